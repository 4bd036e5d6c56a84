"""The reference in a simulation: a seed plays its environment, for what lands and fails when.

It shows that the checks of a simulation raise no false alarm, and it is the shortest example of a
:class:`~pagedkv.conformance.simulation.machine.Simulator`.
"""

import asyncio
from collections.abc import Coroutine
from random import Random
from typing import Any, TypeVar

from pagedkv.conformance.forwards import Launch
from pagedkv.conformance.simulation.world import Life, World
from pagedkv.engine.simulated import clock
from pagedkv.reference.context import Context
from pagedkv.reference.errors import KVLoadFailed, ManagerClosedError
from pagedkv.reference.events import Tracer
from pagedkv.reference.media import Media
from pagedkv.reference.tier_names import FailReason
from pagedkv.reference.transfer import Transfer
from pagedkv.specification import build_reference

Result = TypeVar("Result")


class ReferenceSimulator:
    """The reference, as :class:`~pagedkv.conformance.simulation.machine.Simulator`."""

    name = "reference"
    """How people ask for it."""
    limits_hits = False
    """Whether allocations follow the world's ``slow_tier_policy``: these wait."""
    packages = ("pagedkv.reference",)
    """Where everything is decided."""

    def run(self, main: Coroutine[Any, Any, Result]) -> Result:
        """What ``main`` returns or raises, on a loop whose clock jumps from timer to timer.

        Raises:
            StandstillError: ``main`` can never end.
        """
        return clock.run(main)

    def machine(self, world: World) -> "ReferenceMachine":
        """A machine for a world, with an empty disk."""
        return ReferenceMachine(world)


class ReferenceMachine:
    """What outlives a reference manager: blocks as plain data, which do not decay."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._media = Media()

    def open(self, life: Life, tracer: Tracer) -> "SimulatedReference":
        """A manager on the disk as the one before has left it."""
        return SimulatedReference(self._world, life, self._media, tracer)

    def misplace(self, rng: Random) -> None:
        """Nothing: what is read is what was written."""

    def flip_bit(self, rng: Random) -> None:
        """Nothing: what is read is what was written."""


class SimulatedReference:
    """A reference manager behind the calls of an asynchronous one, and its environment."""

    def __init__(self, world: World, life: Life, media: Media, tracer: Tracer) -> None:
        setup = world.manager_setup(tracer).model_copy(update={"media": media, "auto_land": False})
        self._world, self._life = world, life
        self._reference = build_reference(setup)
        self._settled = asyncio.Event()
        self._closed = False
        self.stream_log: list[str] = []
        """Empty: there are no streams."""
        self.launch: Launch | None = None
        """Forwards run at once."""

    # Any: this stands for the manager itself, whose other calls wait for nothing.
    @property
    def manager(self) -> Any:
        """This, as the manager of its clients."""
        return self

    def __getattr__(self, name: str) -> Any:
        if self._closed:
            raise ManagerClosedError
        return getattr(self._reference, name)

    async def alloc(self, data: Context, replica_idx: int) -> None:
        """Begin an allocation, wait for its loads, and finish it; again if one fails."""
        while True:
            plan = self.begin_alloc(data, replica_idx)
            try:
                await self._until_settled(plan.transfers)
                self.finish_alloc(data, replica_idx)
                return
            except KVLoadFailed:
                continue
            except asyncio.CancelledError:
                if not self._closed:
                    self.cancel_alloc(data.request_id, replica_idx)
                raise

    async def alloc_patiently(self, ctx: Context, replica: int) -> None:
        """The same: there is no queue."""
        await self.alloc(ctx, replica)

    async def copies_land(self) -> None:
        """Let one transfer land after the other, or fail, until this is cancelled."""
        rng = Random(f"{self._life.seed} landings")
        while True:
            await asyncio.sleep(rng.expovariate(1 / self._life.landing_mean_s))
            if not self._closed and (moving := self._reference.in_flight()):
                self._settle(rng, rng.choice(moving))

    def fail_device(self, device: int) -> None:
        """A device fails, and its replica with it."""
        if not self._closed:
            self._reference.poison(device // self._world.setup.shards, "simulated failure")
            self._tell()

    async def shutdown(self) -> None:
        """Land what is in flight, and refuse every further call."""
        self._reference.shutdown()
        self._end()

    async def crash(self) -> None:
        """Refuse every further call; what is in flight goes nowhere."""
        self._end()

    def leftovers(self) -> str | None:
        """Nothing: the reference has no lists of its own."""
        return None

    async def _until_settled(self, transfers: list[str]) -> None:
        while any(transfer.id in transfers for transfer in self.in_flight()):
            self._settled.clear()
            await self._settled.wait()

    def _settle(self, rng: Random, transfer: Transfer) -> None:
        reason = self._drawn_failure(rng, transfer)
        if reason is None:
            self._reference.land(transfer.id)
        else:
            self._reference.fail(transfer.id, reason, [rng.choice(list(transfer.keys))])
        self._tell()

    def _drawn_failure(self, rng: Random, transfer: Transfer) -> FailReason | None:
        """What the disk does to a transfer, as often as the world says."""
        disk = self._world.disk
        reasons: list[tuple[FailReason, float]] = []
        if transfer.source == "disk":
            reasons = [("io_error", disk.read_errors), ("corrupt", max(disk.flipped, disk.torn))]
        elif transfer.target == "disk":
            reasons = [("io_error", disk.write_errors), ("no_space", disk.no_space)]
        return next((reason for reason, share in reasons if rng.random() < share), None)

    def _end(self) -> None:
        self._closed = True
        self._tell()

    def _tell(self) -> None:
        self._settled.set()
