"""Whole runs of the engine in a world where all that can go wrong does, drawn from one seed.

Devices, disk and clock are simulated, and there are no threads: the same seed gives the same run,
on any machine. To look at many seeds, or again at one that has failed:

    python -m tests.engine.simulated_runs 0 1000
    python -m tests.engine.simulated_runs 417
"""

import asyncio
import hashlib
import logging
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from pagedkv.conformance.bench import Recording
from pagedkv.conformance.clients import Clients
from pagedkv.conformance.recorded.restart import wrong_survivors
from pagedkv.conformance.stream_order import check_order, read_order_log
from pagedkv.conformance.validation import Divergence, validate
from pagedkv.engine import PagedKVCacheManager
from pagedkv.engine.simulated import clock
from pagedkv.engine.simulated.disk import DiskFaults, SimulatedDisk
from pagedkv.engine.simulated.landings import land_by_chance
from pagedkv.engine.streams.order_log import LoggedStreams, OrderLog
from pagedkv.engine.streams.simulated import SimulatedStreams
from pagedkv.engine.streams.stream import DeviceFailedError
from pagedkv.reference.events import (
    Closed,
    DiskOpened,
    IssuedTransfer,
    PrefixCacheReset,
    TransferFailed,
)
from pagedkv.reference.identity import PageKey
from pagedkv.reference.sizing import compute_num_disk_blocks
from pagedkv.specification import reference_specification
from pagedkv.traces.events.setup import EventTraceHeader
from pagedkv.traces.manager_setup import ManagerSetup

PATIENCE_S = 1_000
"""Seconds of made-up time after which a run counts as stuck."""


@dataclass
class Outcome:
    """What has happened in a run, over all lives of its manager."""

    seen: Counter[str] = field(default_factory=Counter)
    """What has happened, and how often."""
    digest: str = ""
    """Of all events and all that was enqueued on streams."""
    logs: list[list[str]] = field(default_factory=list)
    """By life: what was enqueued on streams, in which order."""


@dataclass
class World:
    """What a seed has drawn."""

    seed: int
    rng: Random
    setup: ManagerSetup
    disk: SimulatedDisk | None
    outcome: Outcome = field(default_factory=Outcome)
    header: EventTraceHeader | None = None
    events: Recording = field(default_factory=Recording)
    """Of the life before."""


def run_seed(seed: int) -> Outcome:
    """Run a seed, and check everything there is to check.

    Raises:
        AssertionError: Something is wrong.
        StandstillError, TimeoutError: Somebody waits for ever.
    """
    with errors_logged_by_the_engine() as logged:
        outcome = clock.run(lives(seed))
    assert not logged, "\n".join(logged)
    return outcome


async def lives(seed: int) -> Outcome:
    """One manager after the other, on the same disk."""
    world = drawn_world(seed)
    digest = hashlib.sha256()
    for life in range(world.rng.choice((1, 2, 2, 3)) if world.disk else 1):
        lines = await asyncio.wait_for(one_life(world, life), PATIENCE_S)
        digest.update(repr((list(world.events), lines)).encode())
        world.outcome.logs.append(lines)
        if world.disk is not None:
            world.disk = damaged(world, world.disk.restarted())
    world.outcome.digest = digest.hexdigest()
    return world.outcome


def drawn_world(seed: int) -> World:
    """Sizes, tiers, policies and faults; all small, so that everything thrashes."""
    rng = Random(seed)
    fields: dict[str, Any] = {
        "page_size": 4,
        "max_batch_size": 4,
        "layers": 1,
        "total_num_pages": rng.choice((8, 12, 20)),
        "replicas": rng.choice((1, 1, 2, 3)),
        "shards": rng.choice((1, 1, 2)),
        "cache": rng.choice(("mha", "mha", "mla", "fp8", "tree")),
        "write_policy": rng.choice(("through", "through", "write_back", "reuse")),
        "deduplication": rng.choice(("swap", "swap", "keep")),
        "enable_dp_cross_replica_prefix_copy": rng.random() < 0.8,
        "slow_tier_policy": rng.choice(("wait", "wait", "timeout", "best_effort")),
        "slow_tier_timeout_s": 0.004,
        "model_fingerprint": "weights",
    }
    if rng.random() < 0.9:
        fields["host_pages"] = rng.choice((2, 4, 10, 30))
        if rng.random() < 0.8:
            fields |= {"disk_pages": rng.choice((3, 6, 40)), "disk_dir": Path("simulated")}
    setup = ManagerSetup(**fields)
    disk = None
    if setup.disk_pages:
        params = setup.params()
        disk = SimulatedDisk(
            compute_num_disk_blocks(params),
            params.bytes_per_offloaded_block,
            seed=seed,
            faults=drawn_faults(rng),
        )
    return World(seed, rng, setup, disk)


def drawn_faults(rng: Random) -> DiskFaults:
    def share() -> float:
        return rng.choice((0.0, 0.0, 0.02, 0.2))

    return DiskFaults(
        delay_s=rng.choice((0.0, 0.001, 0.005)),
        stuck=rng.choice((0.0, 0.02)),
        read_errors=share(),
        write_errors=share(),
        no_space=share(),
        torn=share(),
        flipped=share(),
    )


async def one_life(world: World, life: int) -> list[str]:
    """A manager from its opening to its end; the log of its streams."""
    rng, setup, outcome = world.rng, world.setup, world.outcome
    queued = setup.shards == 1 and rng.random() < 0.6
    inner = SimulatedStreams(
        setup.replicas * setup.shards,
        reads=rng.choice(("both", "both", "early", "late")),
        queued_forwards=queued,
    )
    lines: list[str] = []
    events = Recording()
    manager = PagedKVCacheManager(
        setup.params(),
        setup.session(),
        setup.total_num_pages,
        setup.host_pages or 0,
        enable_runtime_checks=True,
        max_batch_size=setup.max_batch_size,
        tracer=events,
        streams=LoggedStreams(inner, OrderLog(lines.append)),
        disk=world.disk,
    )

    def launch(replica: int, forward: Callable[[], None]) -> None:
        try:
            inner.launch(replica, forward)
        except DeviceFailedError as error:
            manager.poison(replica, error.reason)

    clients = Clients(
        manager,
        setup,
        seed=world.seed if rng.random() < 0.5 else rng.randrange(2**32),
        num_prompts=rng.choice((None, 6, 12, 12)),
        cancel_share=rng.choice((0.0, 0.2, 0.5)),
        cancel_after_s=(0, 0.0003, 0.001, 0.003, 0.01),
        reset_share=rng.choice((0.0, 0.0, 0.05, 0.2)),
        prefetch=manager.prefetch if rng.random() < 0.5 else None,
        patient_alloc=lambda ctx, replica: manager.alloc(ctx, replica, wait_s=0.05),
        launch=launch if queued else None,
    )
    landing = asyncio.create_task(land_by_chance(inner, rng, rng.choice((1e-4, 1e-3, 4e-3))))
    failing = asyncio.create_task(device_fails(rng, inner, rng.random() < 0.2))
    load = clients.run(clients=5, requests=rng.choice((6, 12)))
    living = asyncio.create_task(lived(world, manager, load))
    await asyncio.wait([landing, living], return_when=asyncio.FIRST_COMPLETED)
    if landing.done():
        landing.result()  # It has met copies that nothing orders.
    await living
    landing.cancel()
    failing.cancel()
    outcome.seen.update(
        finished=clients.finished,
        cancelled=clients.cancelled,
        refused=clients.refused,
        poisoned=clients.poisoned,
        lives=1,
    )
    outcome.seen.update(f"failed {e.reason}" for e in events if isinstance(e, TransferFailed))
    check_events(world, events)
    races = check_order(read_order_log(lines))
    assert not races, "\n".join(map(str, races[:3]))
    return lines


async def lived(
    world: World, manager: PagedKVCacheManager, load: Coroutine[Any, Any, None]
) -> None:
    """Serve a load, and end somehow."""
    rng, seen = world.rng, world.outcome.seen
    served = asyncio.create_task(load)
    crash_after_s = rng.choice((None, None, None, rng.random() / 20))
    if crash_after_s is not None:
        await asyncio.wait([served], timeout=crash_after_s)
        seen["crashes under load"] += not served.done()
        await manager.crash()
        await served
        return
    await served
    while manager.in_flight():
        await asyncio.sleep(0.001)
    nothing_is_left(manager, world.setup)
    seen.update(counted(manager))
    await (manager.crash() if rng.random() < 0.2 else manager.aclose())


async def device_fails(rng: Random, streams: SimulatedStreams, really: bool) -> None:
    await asyncio.sleep(rng.random() / 20)
    if really:
        streams.fail_device(rng.randrange(streams.num_devices))


def nothing_is_left(manager: PagedKVCacheManager, setup: ManagerSetup) -> None:
    for replica in range(setup.replicas):
        left = manager.statistics(replica)
        assert (left.held, left.pinned) == (0, 0), f"replica {replica}: {left}"
        assert manager.num_free_blocks(replica) == setup.total_num_pages
    # Nobody sees these from outside, but a list that only grows is a leak, too.
    assert not any(tier.given_up for tier in manager._state.lower.tiers.values())


def counted(manager: PagedKVCacheManager) -> dict[str, int]:
    metrics = manager.get_metrics_aggregated()
    names = ("peer", "host", "disk")
    return {f"{name} hits": getattr(metrics, f"{name}_blocks_served") for name in names}


def check_events(world: World, events: Recording) -> None:
    """The reference allows the run, and what it has found on disk."""
    found = validate(world.setup.run_setup(), events, reference_specification)
    assert not isinstance(found, Divergence), str(found)
    header = EventTraceHeader(setup=world.setup.run_setup())
    opened = next((event for event in events if isinstance(event, DiskOpened)), None)
    if opened is not None and world.header is not None:
        world.outcome.seen["survivors"] += len(opened.keys)
        if world.events and isinstance(world.events[-1], Closed):
            wrong = wrong_survivors(
                world.header, world.events, header, opened, reference_specification
            )
            assert wrong is None, wrong
        else:
            assert set(opened.keys) <= ever_written(world.events)
    world.header, world.events = header, events


def ever_written(events: Recording) -> set[PageKey]:
    """Blocks that a crash may leave.

    A block can be whole before its transfer has landed, and one that was given up may come back
    once. What was reset may not.
    """
    written: set[PageKey] = set()
    for event in events:
        issued: tuple[IssuedTransfer, ...] = getattr(event, "issued", ())
        written.update(
            key for transfer in issued if transfer.target == "disk" for key in transfer.keys
        )
        match event:
            case DiskOpened(keys):
                written.update(keys)
            case PrefixCacheReset():
                written.clear()
    return written


def damaged(world: World, disk: SimulatedDisk) -> SimulatedDisk:
    """While nobody looks, bits flip, and blocks change places."""
    rng = world.rng
    if rng.random() < 0.3:
        disk.flip_bit(rng.randrange(disk.capacity))
        disk.swap(rng.randrange(disk.capacity), rng.randrange(disk.capacity))
    return disk


@contextmanager
def errors_logged_by_the_engine() -> Iterator[list[str]]:
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


def innermost(error: BaseException) -> list[str]:
    """What has gone wrong, and where: the last lines of each traceback of a group."""
    if isinstance(error, BaseExceptionGroup):
        return [line for inner in error.exceptions for line in innermost(inner)]
    return traceback.format_exception(error, limit=-5, chain=False)


def main(first: int, end: int) -> None:
    seen: Counter[str] = Counter()
    failed: list[int] = []
    for seed in range(first, end):
        try:
            seen.update(run_seed(seed).seen)
        except Exception as error:
            failed.append(seed)
            print(f"seed {seed}:", *innermost(error), sep="\n", flush=True)
    print(f"{end - first} seeds, {len(failed)} failed: {failed}")
    print(dict(sorted(seen.items())))
    sys.exit(bool(failed))


if __name__ == "__main__":
    numbers = [int(argument) for argument in sys.argv[1:]]
    main(numbers[0], numbers[-1] if len(numbers) > 1 else numbers[0] + 1)
