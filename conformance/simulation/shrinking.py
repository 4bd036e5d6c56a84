"""Making the world of a failure as small as possible, so that people can see what it takes.

Lives and requests are left out, faults are turned off one by one, sizes become smaller, and what is
special becomes plain, again and again, until nothing more can go if the run is to fail in the same
way. What happens in a smaller world is not what happened in the larger one: the failure is known
again by its kind alone.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from pydantic import BaseModel

from pagedkv.conformance.recorded.minimise import smallest
from pagedkv.conformance.simulation.run import Run
from pagedkv.conformance.simulation.world import Life, World

BUDGET = 400
"""Runs that are tried by default before the smallest world so far has to do."""

Values = dict[str, tuple[object, ...]]
"""By field: the simplest values, the very simplest first."""

SETUP: Values = {
    "disk_writes_per_day": (None,),
    "disk_pages": (None, 1, 2, 4),
    "host_pages": (None, 1, 2, 4),
    "replicas": (1, 2),
    "shards": (1,),
    "cache": ("mha",),
    "write_policy": ("through",),
    "deduplication": ("swap",),
    "num_draft_tokens": (0, 1),
    "speculative_method": (None,),
    "total_num_pages": (1, 2, 3, 4, 6, 8, 12),
    "page_size": (1, 2),
}

WORLD: Values = {"slow_tier_policy": ("wait",)}

DISK: Values = {
    "misplaced_after_s": (None,),
    "flipped": (0.0,),
    "torn": (0.0,),
    "no_space": (0.0,),
    "write_errors": (0.0,),
    "read_errors": (0.0,),
    "stuck": (0.0,),
    "delay_s": (0.0,),
}

LIFE: Values = {
    "landing_mean_s": (0.004,),
    "decay": (False,),
    "end": ("closed",),
    "device_failure": (None,),
    "renew_after_s": (None,),
    "reset_share": (0.0,),
    "cancel_share": (0.0,),
    "withdraw_share": (0.0,),
    "preempt_share": (0.0,),
    "prefetch_share": (0.0,),
    "chunk_share": (0.0,),
    "patient_share": (0.0,),
    "again_share": (0.0,),
    "batches": (False,),
    "steps_first_share": (0.0,),
    "pads": (False,),
    "defers": (False,),
    "wait_s": (60.0, 0.0),
    "nap_share": (0.0,),
    "interrupt_share": (0.0,),
    "polls": (False,),
    "flush_after_s": (None,),
    "reset_counters_after_s": (None,),
    "queued_forwards": (False,),
    "reads": ("late",),
    "max_pages": (1, 2, 3, 4),
    "num_prompts": (1, 2, 6, None),
}


@dataclass(frozen=True)
class Shrunk:
    """The smallest world that was found."""

    run: Run
    """What happens in it."""
    tries: int
    """Runs that it took to find it."""
    is_smallest: bool
    """Whether nothing more can go by itself; otherwise the budget was spent before."""


def shrink(
    failed: Run,
    rerun: Callable[[World], Run],
    *,
    budget: int = BUDGET,
    on_progress: Callable[[Shrunk], None] = lambda shrunk: None,
) -> Shrunk:
    """The smallest world that can be found to fail in the same way.

    Args:
        failed: A run with a failure.
        rerun: Runs a world.
        budget: Runs to try at most.
        on_progress: Called after each of them, with the smallest world so far.

    Raises:
        ValueError: The run has no failure.
    """
    if failed.failure is None:
        raise ValueError("the run has no failure; there is nothing to keep while it shrinks")
    return _Search(failed, failed.failure.kind, rerun, budget, on_progress).run()


class _Search:
    """The state of one search."""

    def __init__(
        self,
        failed: Run,
        kind: str,
        rerun: Callable[[World], Run],
        budget: int,
        on_progress: Callable[[Shrunk], None],
    ) -> None:
        self.best = failed
        self.kind = kind
        self.rerun = rerun
        self.budget = budget
        self.on_progress = on_progress
        self.tries = 0
        self.is_spent = False

    @property
    def world(self) -> World:
        return self.best.world

    def run(self) -> Shrunk:
        before = None
        while self.world != before and not self.is_spent:
            before = self.world
            self.leave_lives_out()
            self.leave_requests_out()
            self.make_plain()
        return self.found()

    def found(self) -> Shrunk:
        return Shrunk(self.best, self.tries, not self.is_spent)

    # Any, here and below: fields of a world, which checks them.
    def keeps(self, changes: dict[str, Any]) -> bool:
        """Whether the world still fails in the same way with these fields; then it has them."""
        try:
            world = World.model_validate(self.world.model_dump() | changes)
        except ValueError:
            return False  # sizes that cannot be together
        if world == self.world:
            return False
        if self.tries == self.budget:
            self.is_spent = True
            return False
        self.tries += 1
        try:
            run = self.rerun(world)
        except ValueError:
            return False  # the same, as the implementation has it
        fails = run.failure is not None and run.failure.kind == self.kind
        if fails:
            self.best = run
        self.on_progress(self.found())
        return fails

    def leave_lives_out(self) -> None:
        """All that come after the failure, then each that can be spared."""
        begun = self.world.lives[: len(self.best.lives)]
        self.keeps({"lives": begun})
        smallest(begun, lambda lives: bool(lives) and self.keeps({"lives": tuple(lives)}))

    def leave_requests_out(self) -> None:
        """Those of all lives and clients together."""
        lives = self.world.lives
        sent = [
            (place, client, number)
            for place, life in enumerate(lives)
            for client, numbers in enumerate(life.clients)
            for number in numbers
        ]
        smallest(sent, lambda kept: self.keeps({"lives": with_requests(lives, kept)}))

    def make_plain(self) -> None:
        """Turn faults off, take tiers away, make sizes small, one after the other."""
        self.simplify(SETUP, lambda: self.world.setup, lambda now: {"setup": now})
        self.simplify(WORLD, lambda: self.world, dict)
        self.simplify(DISK, lambda: self.world.disk, lambda now: {"disk": now})
        for place in range(len(self.world.lives)):
            self.simplify(LIFE, partial(self.life, place), partial(self.with_life, place))

    def simplify(
        self,
        values: Values,
        part: Callable[[], BaseModel],
        changes: Callable[[dict[str, Any]], dict[str, Any]],
    ) -> None:
        """Give each field of a part of the world the simplest value with which it still fails."""
        for field, simpler in values.items():
            for value in simpler:
                now = part().model_dump()
                if now[field] == value or self.keeps(changes(now | {field: value})):
                    break

    def life(self, place: int) -> Life:
        """The life in this place."""
        return self.world.lives[place]

    def with_life(self, place: int, life: dict[str, Any]) -> dict[str, Any]:
        """The world's lives, with another one in this place."""
        lives: list[object] = list(self.world.lives)
        lives[place] = life
        return {"lives": lives}


def with_requests(lives: Sequence[Life], kept: Iterable[tuple[int, int, int]]) -> tuple[Life, ...]:
    """The lives with those requests alone: each by the places of life and client, and number."""
    wanted = set(kept)

    def clients(place: int, life: Life) -> Iterator[tuple[int, ...]]:
        for client, numbers in enumerate(life.clients):
            yield tuple(number for number in numbers if (place, client, number) in wanted)

    return tuple(
        life.model_copy(update={"clients": tuple(clients(place, life))})
        for place, life in enumerate(lives)
    )
