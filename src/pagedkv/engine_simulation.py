"""The engine on simulated streams and a simulated disk, for runs that a seed decides on."""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from random import Random
from types import ModuleType
from typing import Any, TypeVar

from pagedkv.conformance.forwards import Launch
from pagedkv.conformance.simulation.world import Life, World
from pagedkv.engine import PagedKVCacheManager
from pagedkv.engine.planner import key_map, recency
from pagedkv.engine.simulated import clock
from pagedkv.engine.simulated.disk import DiskFaults, SimulatedDisk
from pagedkv.engine.simulated.landings import land_by_chance
from pagedkv.engine.streams.order_log import LoggedStreams, OrderLog
from pagedkv.engine.streams.simulated import SimulatedStreams
from pagedkv.engine.streams.stream import DeviceFailedError
from pagedkv.engine_leftovers import leftovers
from pagedkv.engine_watch import EngineWatch
from pagedkv.reference.context import Context
from pagedkv.reference.events import Tracer
from pagedkv.reference.sizing import compute_num_disk_blocks

Result = TypeVar("Result")

POLL_S = 0.0005
"""How often one looks whether it may go on."""


SIZES: tuple[tuple[ModuleType, str, tuple[int, ...]], ...] = (
    (recency, "LONGEST_RUN", (1, 3, recency.LONGEST_RUN)),
    (key_map, "MOST_PLAIN_KEYS", (0, key_map.MOST_PLAIN_KEYS)),
)
"""Sizes from which on the engine goes about things in another way, and such as small worlds reach.
The last are those that it has."""


class UnforeseenError(AssertionError):
    """The engine has logged exceptions: it has met what it did not foresee."""


class EngineSimulator:
    """The engine, as :class:`~pagedkv.conformance.simulation.machine.Simulator`."""

    name = "engine"
    """How people ask for it."""
    limits_hits = True
    """Whether allocations follow the world's ``slow_tier_policy``."""
    packages = ("pagedkv.engine.planner",)
    """Where everything is decided."""

    def run(self, main: Coroutine[Any, Any, Result]) -> Result:
        """What ``main`` returns or raises, on a loop whose clock jumps from timer to timer.

        Raises:
            StandstillError: ``main`` can never end.
            UnforeseenError: The engine has logged an exception.
        """
        with exceptions_logged_by_the_engine() as logged, sizes_as_they_were():
            result = clock.run(main)
        if logged:
            raise UnforeseenError("\n".join(logged))
        return result

    def machine(self, world: World) -> "EngineMachine":
        """A machine for a world, with an empty disk."""
        rng = Random(f"{world.seed} sizes")
        for module, name, sizes in SIZES:
            setattr(module, name, rng.choice(sizes))
        return EngineMachine(world)


class EngineMachine:
    """A simulated disk, and an engine after the other on it."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._disk: SimulatedDisk | None = None
        self._is_used = False
        if world.setup.disk_pages:
            params = world.manager_setup(NoTracer()).params()
            self._disk = SimulatedDisk(
                compute_num_disk_blocks(params),
                params.bytes_per_offloaded_block,
                seed=world.seed,
                faults=DiskFaults(**world.disk.model_dump(exclude={"misplaced_after_s"})),
            )

    def open(self, life: Life, tracer: Tracer) -> "SimulatedEngine":
        """An engine on the disk as the one before has left it."""
        if self._disk is not None and self._is_used:
            self._disk = self._disk.restarted()
        self._is_used = True
        return SimulatedEngine(self._world, life, self._disk, tracer)

    def misplace(self, rng: Random) -> None:
        """Two blocks on the disk change places behind everybody's back."""
        if self._disk is not None:
            self._disk.swap(rng.randrange(self._disk.capacity), rng.randrange(self._disk.capacity))

    def flip_bit(self, rng: Random) -> None:
        """A bit on the disk changes behind everybody's back."""
        if self._disk is not None:
            self._disk.flip_bit(rng.randrange(self._disk.capacity))


class SimulatedEngine:
    """An engine whose copies and forwards land when the seed of its life says so."""

    def __init__(
        self, world: World, life: Life, disk: SimulatedDisk | None, tracer: Tracer
    ) -> None:
        setup = world.manager_setup(tracer)
        queued = life.queued_forwards and setup.shards == 1
        self._life, self._disk = life, disk
        self._streams = SimulatedStreams(
            setup.replicas * setup.shards, reads=life.reads, queued_forwards=queued
        )
        self.stream_log: list[str] = []
        """What was enqueued on streams so far."""
        self.manager = PagedKVCacheManager(
            setup.params(),
            setup.session(),
            setup.total_num_pages,
            setup.host_pages or 0,
            enable_runtime_checks=True,
            max_batch_size=setup.max_batch_size,
            tracer=tracer,
            streams=LoggedStreams(self._streams, OrderLog(self.stream_log.append)),
            disk=disk,
        )
        """The engine."""
        self._watch = EngineWatch(self.manager, self._streams)
        self.launch: Launch | None = self._launch if queued else None
        """Launches a forward that runs later, if forwards are queued."""

    async def alloc_patiently(self, ctx: Context, replica: int) -> None:
        """An ``alloc`` that waits for pages in a queue."""
        with self._watch.waiting(ctx, replica):
            await self._alloc_patiently(ctx, replica)

    async def _alloc_patiently(self, ctx: Context, replica: int) -> None:
        if not self._life.defers:
            await self.manager.alloc(ctx, replica, wait_s=self._life.wait_s)
            return
        handle = self.manager.alloc(ctx, replica, wait_s=self._life.wait_s, defer=True)
        try:
            while self._life.polls and not handle.ready:
                await asyncio.sleep(POLL_S)
            await handle
        finally:
            handle.cancel()
        assert handle.ready, "a handle that was awaited is not ready"

    async def copies_land(self) -> None:
        """Let copies and forwards land, one after the other, until this is cancelled."""
        rng = Random(f"{self._life.seed} landings")
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(land_by_chance(self._streams, rng, self._life.landing_mean_s))
            tasks.create_task(self._watch.watch())

    def fail_device(self, device: int) -> None:
        """A device fails."""
        self._streams.fail_device(device)

    async def crash(self) -> None:
        """The power is cut."""
        await self.manager.crash()

    def leftovers(self) -> str | None:
        """See :mod:`pagedkv.engine_leftovers`."""
        return next(leftovers(self.manager, self._disk), None)

    def _launch(self, replica: int, forward: Callable[[], None]) -> None:
        try:
            self._streams.launch(replica, forward)
        except DeviceFailedError as error:
            self.manager.poison(replica, error.reason)


class NoTracer:
    """Nobody listens."""

    def emit(self, event: object) -> None:
        """Forget it."""


@contextmanager
def exceptions_logged_by_the_engine() -> Iterator[list[str]]:
    """Exceptions that the engine has logged: it has met what it did not foresee."""
    logged: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.exc_info is not None:
                logged.append(self.format(record))

    logger, handler = logging.getLogger("pagedkv.engine"), Keep(logging.ERROR)
    logger.addHandler(handler)
    try:
        yield logged
    finally:
        logger.removeHandler(handler)


@contextmanager
def sizes_as_they_were() -> Iterator[None]:
    """At the end, the engine has its own sizes again."""
    try:
        yield
    finally:
        for module, name, sizes in SIZES:
            setattr(module, name, sizes[-1])
