"""Running a world and checking everything there is to check: one outcome per world, on any machine.

Each byte that a request relies on is read back before its forward. Then the specification has to
allow every event, the order of all copies is proved, nothing may be held or pinned, and what a
restart finds on disk must have been written before.
"""

import asyncio
import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from random import Random
from typing import Any

from pagedkv.conformance.recorded.specification import SpecificationFactory
from pagedkv.conformance.simulation.causes import uncaused_failure, wrong_patience
from pagedkv.conformance.simulation.cleaning_order import cleaned_out_of_turn
from pagedkv.conformance.simulation.failure import (
    Failure,
    WrongRunError,
    from_divergence,
    from_error,
    from_races,
)
from pagedkv.conformance.simulation.life import LifeRecord, live
from pagedkv.conformance.simulation.looks import wrong_answer
from pagedkv.conformance.simulation.machine import Simulator
from pagedkv.conformance.simulation.restarts import wrong_after_restart
from pagedkv.conformance.simulation.world import World
from pagedkv.conformance.stream_order import check_order, read_order_log
from pagedkv.conformance.time_limit import time_limit
from pagedkv.conformance.validation import Divergence, Follower, validate
from pagedkv.reference.events import Cleaned, Event

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
    machine = simulator.machine(world)
    for life in world.lives:
        record = LifeRecord()
        run.lives.append(record)
        asyncio.get_running_loop().set_exception_handler(partial(_note, record))
        await live(world, life, machine, record)
        run.failure = check(run, simulator, specification)
        if run.failure is not None:
            raise _Stopped
        if life.decay and world.setup.disk_pages:
            rng = Random(f"{life.seed} decay")
            machine.flip_bit(rng)
            machine.misplace(rng)
        await asyncio.sleep(0)


# Any: what asyncio tells.
def _note(record: LifeRecord, _: object, context: dict[str, Any]) -> None:
    record.unforeseen.append(f"{context.get('message')}: {context.get('exception')!r}")


def check(run: Run, simulator: Simulator, specification: SpecificationFactory) -> Failure | None:
    """What is wrong with the latest life, which has ended."""
    last, record = len(run.lives) - 1, run.lives[-1]
    follower = Follower(run.world.setup, specification)
    wrong_answers: list[str] = []
    out_of_turn: list[str] = []
    divergence: Divergence | None = None
    for look in record.looks:
        divergence = divergence or _first_divergence(
            follower, record.events[: look.num_events], out_of_turn
        )
        if divergence is None and (wrong := wrong_answer(follower, run.world.setup, look)):
            wrong_answers.append(wrong)
    divergence = divergence or _first_divergence(follower, record.events, out_of_turn)
    if (divergence := divergence or follower.unfinished()) is not None:
        return from_divergence(divergence, last)
    if record.stream_log and (races := check_order(read_order_log(record.stream_log))):
        return from_races(races, last)
    found = {
        "a page cleaned out of turn": next(iter(out_of_turn), None),
        "a wrong answer": next(iter(wrong_answers), None),
        "an exception that nobody has caught": next(iter(record.unforeseen), None),
        "a failure without a cause": uncaused_failure(run.world, last, record.events),
        "wrong blocks on disk after a restart": _wrong_after_restart(run, specification),
    }
    if simulator.limits_hits:
        found["the wrong patience"] = wrong_patience(run.world, record.events)
    for kind, wrong in found.items():
        if wrong is not None:
            return from_error(WrongRunError(kind, wrong), last)
    return None


def _first_divergence(
    follower: Follower, events: Sequence[Event], out_of_turn: list[str]
) -> Divergence | None:
    """Follow the events that were not followed yet; ``out_of_turn`` gets what was cleaned so."""
    for event in events[follower.count :]:
        if isinstance(event, Cleaned) and follower.between_calls:
            wrong = cleaned_out_of_turn(follower.player.manager.snapshot(), event)
            out_of_turn += [] if wrong is None else [f"event {follower.seq}: {wrong}"]
        if (divergence := follower.follow(event)) is not None:
            return divergence
    return None


def _wrong_after_restart(run: Run, specification: SpecificationFactory) -> str | None:
    if len(run.lives) < 2:
        return None
    return wrong_after_restart(run.world.setup, run.lives[-2], run.lives[-1], specification)


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
