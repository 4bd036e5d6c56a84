"""Worlds, their runs on several implementations, and what they have tried."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.conformance.simulation.broken_engine import BROKEN

from pagedkv.conformance.simulation import situations
from pagedkv.conformance.simulation.campaign import Campaign
from pagedkv.conformance.simulation.coverage import as_data, never_tried, rules_tried, share_tried
from pagedkv.conformance.simulation.drawing import draw_world
from pagedkv.conformance.simulation.event_text import event_text
from pagedkv.conformance.simulation.many import common_digest, in_processes, one_by_one
from pagedkv.conformance.simulation.run import run_world
from pagedkv.conformance.simulation.situations import Tried, tried_in
from pagedkv.conformance.simulation.world import World
from pagedkv.conformance.spec_text import rules
from pagedkv.engine_simulation import EngineSimulator
from pagedkv.reference.events import AllocPlanned, ContextSnapshot
from pagedkv.reference.metrics import PrefixCacheHits
from pagedkv.reference_simulation import ReferenceSimulator
from pagedkv.specification import reference_specification

SEEDS = range(12)


@given(st.integers(0, 2**40))
def test_a_world_is_the_same_after_it_was_written_and_read(seed: int) -> None:
    world = draw_world(seed)
    assert World.model_validate_json(world.model_dump_json()) == world == draw_world(seed)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_reference_raises_no_alarm(seed: int) -> None:
    run = run_world(draw_world(seed), ReferenceSimulator(), reference_specification)
    assert run.failure is None
    assert run.seen["finished"]


def test_processes_find_what_one_process_finds() -> None:
    worlds = [draw_world(seed) for seed in range(4)]
    alone = one_by_one(worlds, EngineSimulator(), reference_specification)
    together = in_processes(worlds, EngineSimulator(), reference_specification, 2)
    assert sorted(together, key=lambda outcome: outcome.world.seed) == list(alone)


def test_the_order_in_which_runs_end_is_of_no_importance_to_their_digest() -> None:
    digests = [(seed, f"{seed:x}") for seed in range(10)]
    assert common_digest(digests) == common_digest(reversed(digests))
    assert common_digest(digests) != common_digest(digests[1:])


def test_a_request_is_the_same_whatever_others_are_left_out() -> None:
    world = draw_world(0)
    life = world.lives[0]
    alone = world.model_copy(
        update={"lives": (life.model_copy(update={"clients": ((), (), (3,))}),)}
    )

    def prompts(world: World) -> set[int]:
        run = run_world(world, EngineSimulator(), reference_specification)
        events = run.lives[0].events
        return {
            event.context.length
            for event in events
            if isinstance(event, AllocPlanned) and event.request_id == "client 2 request 3"
        }

    assert min(prompts(alone)) == min(prompts(world))


@pytest.mark.parametrize("rule", sorted({r for rs in situations.SITUATIONS.values() for r in rs}))
def test_situations_name_rules_that_there_are(rule: str) -> None:
    assert rule in rules()


def test_runs_come_to_situations_and_faults_that_are_listed() -> None:
    tried = Tried()
    for seed in SEEDS:
        run = run_world(draw_world(seed), EngineSimulator(), reference_specification)
        tried.add(tried_in(run.world.setup, (record.events for record in run.lives)))
    assert tried.situations.keys() <= situations.SITUATIONS.keys()
    assert tried.struck.keys() <= {
        (fault, state) for fault, states in situations.STRUCK.items() for state in states
    }
    assert tried.events.keys() <= set(situations.EVENTS)
    assert {way for way, _ in tried.ended} <= set(situations.WAYS)
    assert {how for _, how in tried.ended} <= set(situations.OUTCOMES)


def test_what_was_not_tried_is_told() -> None:
    nothing = Tried()
    done, of = share_tried(nothing)
    assert (done, of) == (0, len(never_tried(nothing)))
    assert not any(rules_tried(nothing).values())
    some = Tried(situations=Counter({"reset": 2}), struck=Counter({("reset", "nothing"): 2}))
    assert share_tried(some) == (2, of)
    assert rules_tried(some)["RESET-1"] == 2
    assert "reset" not in never_tried(some)
    told = as_data(some)
    assert told["tried"] == 2 and told["of"] == of


def test_a_campaign_keeps_the_first_failure() -> None:
    campaign = Campaign("broken")
    worlds = map(draw_world, range(3))
    for outcome in one_by_one(worlds, BROKEN["does not pin"](), reference_specification):
        campaign.add(outcome)
    assert campaign.runs == 3
    assert campaign.failed is not None and campaign.failed.failure is not None
    assert campaign.as_data()["failed_seed"] == campaign.failed.world.seed


def test_the_text_of_an_event_says_what_is_special_about_it() -> None:
    context = ContextSnapshot(length=9, processed=0, position=9, keys=(b"\xab\xcd\xef\x01",))
    event = AllocPlanned("r", 0, context, (1, 2), PrefixCacheHits(host_blocks=1), (), ("onload-1",))
    assert event_text(event) == (
        "AllocPlanned(request_id='r', replica=0, context=(length=9, processed=0, position=9, "
        "keys=[abcdef]), pages=[1 2], hits=(host_blocks=1), waits_for=['onload-1'])"
    )
    assert event_text(event, ["pages"]) == "AllocPlanned(pages=[1 2])"
