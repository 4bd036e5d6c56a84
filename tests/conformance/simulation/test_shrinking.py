"""A planted bug is found, happens again exactly, and is shown in the smallest world that has it."""

import json
from functools import cache
from itertools import count
from pathlib import Path

import pytest
from tests.conformance.simulation.broken_engine import BROKEN

from pagedkv.conformance.simulation.drawing import draw_world
from pagedkv.conformance.simulation.reproduction import read_world, write_divergence, write_run
from pagedkv.conformance.simulation.run import Run, run_world
from pagedkv.conformance.simulation.shrinking import Shrunk, shrink
from pagedkv.conformance.simulation.world import World
from pagedkv.conformance.validation import Divergence, validate
from pagedkv.specification import reference_specification
from pagedkv.traces.events.reader import EventTrace

KINDS = {
    "gives pages back head first": "divergence: AllocPlanned with another pages",
    "does not pin": "PoolCorruptedError in invariants._demand",
    "loads the wrong rows": "violation of TIER-3",
    "copies at once": "UnorderedAccessError in simulated._land",
    "never wakes": "hang",
}

pytestmark = pytest.mark.parametrize("bug", BROKEN)


def run(bug: str, world: World) -> Run:
    return run_world(world, BROKEN[bug](), reference_specification)


@cache
def found(bug: str) -> Run:
    """The first run that shows a bug."""
    runs = (run(bug, draw_world(seed)) for seed in count())
    return next(run for run in runs if run.failure is not None)


@cache
def smallest(bug: str) -> Shrunk:
    return shrink(found(bug), lambda world: run(bug, world))


def test_it_is_found_soon_and_says_what_was_expected(bug: str) -> None:
    failure = found(bug).failure
    assert failure is not None and found(bug).world.seed < 20
    assert failure.kind == KINDS[bug]
    assert failure.last_events(found(bug).lives[failure.life].events)


def test_it_happens_again_exactly(bug: str) -> None:
    again = run(bug, draw_world(found(bug).world.seed))
    assert again.digest == found(bug).digest
    assert again.failure == found(bug).failure


def test_the_smallest_world_fails_in_the_same_way_and_has_few_requests(bug: str) -> None:
    shrunk, failure = smallest(bug), found(bug).failure
    assert shrunk.is_smallest
    assert failure is not None and shrunk.run.failure is not None
    assert shrunk.run.failure.kind == failure.kind
    assert len(shrunk.run.world.lives) == 1
    assert shrunk.run.world.num_requests <= 6


def test_nothing_more_can_go_from_the_smallest_world(bug: str) -> None:
    world = smallest(bug).run.world
    assert shrink(smallest(bug).run, lambda smaller: run(bug, smaller)).run.world == world


def test_without_a_budget_the_world_stays_as_it_is(bug: str) -> None:
    shrunk = shrink(found(bug), lambda world: run(bug, world), budget=0)
    assert shrunk == Shrunk(found(bug), 0, is_smallest=False)


def test_what_is_written_of_it_runs_again_and_can_be_checked(bug: str, tmp_path: Path) -> None:
    shown, failure = smallest(bug).run, smallest(bug).run.failure
    assert failure is not None
    write_run(tmp_path, shown, "broken")
    assert run(bug, read_world(tmp_path / "world.json")).digest == shown.digest
    assert json.loads((tmp_path / "failure.json").read_text())["kind"] == failure.kind
    trace = EventTrace(tmp_path / f"life-{failure.life}.events.jsonl")
    checked = validate(trace.header.setup, trace, reference_specification)
    assert isinstance(checked, Divergence) == (failure.seq is not None)


def test_a_divergence_is_left_with_the_calls_that_lead_to_it(bug: str, tmp_path: Path) -> None:
    path, shown = tmp_path / "divergence.jsonl", smallest(bug).run
    events = write_divergence(path, shown, "broken", reference_specification)
    assert shown.failure is not None
    if shown.failure.seq is None:
        assert events is None and not path.exists()
        return
    trace = EventTrace(path)
    assert len(list(trace)) == events
    assert isinstance(validate(trace.header.setup, trace, reference_specification), Divergence)
