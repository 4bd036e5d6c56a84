"""Running a world and checking everything there is to check: one outcome per world, on any machine.

Each byte that a request relies on is read back before its forward. Then the specification has to
allow every event, the order of all copies is proved, nothing may be held or pinned, and what a
restart finds on disk must have been written before.
"""

import asyncio
import hashlib
from collections import Counter
from dataclasses import asdict, dataclass, field
from random import Random

from pagedkv.conformance.bench import Recording
from pagedkv.conformance.recorded.restart import wrong_survivors
from pagedkv.conformance.recorded.specification import SpecificationFactory
from pagedkv.conformance.simulation.failure import (
    Failure,
    WrongRunError,
    from_divergence,
    from_error,
    from_races,
)
from pagedkv.conformance.simulation.life import LifeRecord, live
from pagedkv.conformance.simulation.machine import Simulator
from pagedkv.conformance.simulation.world import World
from pagedkv.conformance.stream_order import check_order, read_order_log
from pagedkv.conformance.time_limit import time_limit
from pagedkv.conformance.validation import Divergence, Follower, validate
from pagedkv.reference.events import Closed, DiskOpened, Event, IssuedTransfer, PrefixCacheReset
from pagedkv.reference.identity import PageKey
from pagedkv.reference.metrics import KVCacheMetrics
from pagedkv.traces.events.setup import EventTraceHeader

LONGEST_S = 15.0
"""Seconds of real time after which a run hangs: a loop that never lets time pass."""


@dataclass
class Run:
    """What has happened in a world."""

    world: World
    """Where."""
    lives: list[LifeRecord] = field(default_factory=list)
    """What is known of each life that has begun."""
    failure: Failure | None = None
    """What is wrong; ``None``: nothing."""

    @property
    def seen(self) -> Counter[str]:
        """What has happened over all lives, and how often."""
        return sum((record.seen for record in self.lives), Counter(lives=len(self.lives)))

    @property
    def digest(self) -> str:
        """Of all events, all that was enqueued on streams, and the kind of the failure."""
        digest = hashlib.sha256()
        for record in self.lives:
            digest.update(repr((list(record.events), record.stream_log)).encode())
        digest.update(repr(None if self.failure is None else self.failure.kind).encode())
        return digest.hexdigest()


def run_world(world: World, simulator: Simulator, specification: SpecificationFactory) -> Run:
    """Let a world run its course, and check it.

    Args:
        world: What is to happen.
        simulator: The implementation.
        specification: What it is checked against.

    Raises:
        ValueError: The implementation cannot be set up like this.
    """
    run = Run(world)
    try:
        with time_limit(LONGEST_S):
            simulator.run(_lives(run, simulator, specification))
    except _Stopped:
        pass
    except Exception as error:
        run.failure = from_error(error, max(0, len(run.lives) - 1))
        run.failure = _earlier(run, specification) or run.failure
    return run


class _Stopped(Exception):
    """The failure of a run is known; nothing more has to happen in it."""


async def _lives(run: Run, simulator: Simulator, specification: SpecificationFactory) -> None:
    """One manager after the other, on the same machine."""
    world = run.world
    # What a run that breaks off leaves behind has failed before, or has been cancelled.
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)
    machine = simulator.machine(world)
    for life in world.lives:
        record = LifeRecord()
        run.lives.append(record)
        await live(world, life, machine, record)
        run.failure = check(run, specification)
        if run.failure is not None:
            raise _Stopped
        if life.decay and world.setup.disk_pages:
            rng = Random(f"{life.seed} decay")
            machine.flip_bit(rng)
            machine.misplace(rng)
        await asyncio.sleep(0)


def check(run: Run, specification: SpecificationFactory) -> Failure | None:
    """What is wrong with the latest life, which has ended."""
    last, record = len(run.lives) - 1, run.lives[-1]
    follower = Follower(run.world.setup, specification)
    num_counted, counted = record.counted or (0, None)
    wrong: str | None = None
    divergence = _first_divergence(follower, record.events[:num_counted])
    if divergence is None and counted is not None:
        wrong = wrong_counters(follower, counted)
    divergence = divergence or _first_divergence(follower, record.events[num_counted:])
    if (divergence := divergence or follower.unfinished()) is not None:
        return from_divergence(divergence, last)
    if wrong is not None:
        return from_error(WrongRunError("counters that differ", wrong), last)
    races = check_order(read_order_log(record.stream_log)) if record.stream_log else []
    if races:
        return from_races(races, last)
    try:
        check_survivors(run, specification)
    except WrongRunError as error:
        return from_error(error, last)
    return None


def _first_divergence(follower: Follower, events: list[Event]) -> Divergence | None:
    return next(filter(None, map(follower.follow, events)), None)


def wrong_counters(follower: Follower, seen: KVCacheMetrics) -> str | None:
    """What the manager has counted otherwise than the specification until the same event."""
    expected = _comparable(follower.player.manager.get_metrics_aggregated())
    differing = [
        f"{name} is {value}, but should be {expected[name]}"
        for name, value in _comparable(seen).items()
        if value != expected[name]
    ]
    return f"after event {follower.seq - 1}: {'; '.join(differing)}" if differing else None


def _comparable(metrics: KVCacheMetrics) -> dict[str, int]:
    """The counters; misses all together, because not every reason need be remembered (METRIC-6)."""
    counters = asdict(metrics)
    reasons = [name for name in counters if name.startswith("missed_blocks_")]
    misses = sum(counters.pop(name) for name in reasons)
    return counters | {"missed_blocks": misses}


def check_survivors(run: Run, specification: SpecificationFactory) -> None:
    """What the latest life has found on its disk was written in the one before.

    Raises:
        WrongRunError: It was not, or something is missing that had to be there.
    """
    if len(run.lives) < 2:
        return
    before, after = run.lives[-2:]
    opened = next((event for event in after.events if isinstance(event, DiskOpened)), None)
    if opened is None:
        return
    after.seen["survivors"] = len(opened.keys)
    if before.events and isinstance(before.events[-1], Closed):
        header = EventTraceHeader(setup=run.world.setup)
        wrong = wrong_survivors(header, before.events, header, opened, specification)
    else:
        strangers = set(opened.keys) - ever_written(before.events)
        names = ", ".join(sorted(key.hex() for key in strangers))
        wrong = f"the disk holds what nobody wrote to it since its reset: {names}"
        wrong = wrong if strangers else None
    if wrong is not None:
        raise WrongRunError("wrong blocks on disk after a restart", wrong)


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


def _earlier(run: Run, specification: SpecificationFactory) -> Failure | None:
    """A life that has broken off may have gone wrong before that: such is the better explanation.

    That its last call has more to report is none.
    """
    if not run.lives:
        return None
    found = validate(run.world.setup, run.lives[-1].events, specification)
    if isinstance(found, Divergence) and found.seen is not None:
        return from_divergence(found, len(run.lives) - 1)
    return None
