"""A divergence becomes a test: short, of the system's own words, and wrong where it should be."""

import ast
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.conformance.upstream.scenarios import SCENARIOS, Scenario, record

from pagedkv.conformance.implementation import Implementation
from pagedkv.conformance.upstream.requests import tokens_text, variable_name
from pagedkv.conformance.upstream.shorten import NotReproducedError, shortened
from pagedkv.conformance.upstream.story import NoCounterpartError, NoTestError, Story, story_of
from pagedkv.conformance.upstream.write_test import System, write_test
from pagedkv.conformance.zoo import catalogue
from pagedkv.implementations import resolve_implementation
from pagedkv.reference.events import AllocPlanned, Event, InputsBuilt, Released, Stepped
from pagedkv.reference.metrics import PrefixCacheHits
from pagedkv.specification import reference_specification
from pagedkv.traces.events.reader import EventTrace
from pagedkv.traces.events.shipped import recorded_runs

EXAMPLES = Path(__file__).parents[3] / "examples/upstream_tests"

ZOO = {
    "refused after a hit": "refused_alloc_keeps_its_hit",
    "never claimed": "alloc_of_a_stranger",
    "claimed twice": "one_id_on_two_replicas",
    "garbage": "garbage_pages_kept_longest",
    "another successor": "successor_ignored",
}
"""Specimens that do what the scenarios show."""


def specimen(name: str) -> Implementation:
    found = getattr(catalogue, ZOO[name])
    assert isinstance(found, Implementation)
    return found


def story_from(path: Path) -> Story:
    trace = EventTrace(path)
    return story_of(trace.header, trace, reference_specification)


@pytest.fixture
def story(request: pytest.FixtureRequest, tmp_path: Path) -> Story:
    """The story of a scenario, as a specimen plays it."""
    name = request.param
    path = record(SCENARIOS[name], specimen(name), tmp_path / "run.jsonl")
    return story_from(path)


def generated(text: str) -> Iterator[Callable[[], object]]:
    """The tests of a file."""
    names: dict[str, Any] = {}  # whatever the file defines
    exec(compile(text, "generated", "exec"), names)
    return (found for name, found in names.items() if name.startswith("test_"))


def outcome(text: str) -> str:
    """What a generated test says when it fails; empty if it passes."""
    (test,) = generated(text)
    try:
        test()
    except (AssertionError, pytest.fail.Exception) as error:
        return str(error)
    return ""


@pytest.mark.parametrize(("story", "name"), [(name, name) for name in ZOO], indirect=["story"])
def test_generated_test_fails_on_the_mistake_and_passes_without(story: Story, name: str) -> None:
    scenario = SCENARIOS[name]
    short = shortened(story, specimen(name), reference_specification)
    broken = f"pagedkv.conformance.zoo.catalogue:{ZOO[name]}"
    assert scenario.says in outcome(write_test(short, "python", implementation=broken))
    right = write_test(short, "python", implementation="reference")
    assert f"def test_{scenario.claim}(" in right
    assert outcome(right) == ""


@pytest.mark.parametrize("implementation", ["reference", "engine"])
@pytest.mark.parametrize("trace", sorted(EXAMPLES.glob("*.jsonl")), ids=lambda path: path.stem)
def test_what_peers_get_wrong_is_right_here(trace: Path, implementation: str) -> None:
    assert outcome(write_test(story_from(trace), "python", implementation=implementation)) == ""


@pytest.mark.parametrize("trace", sorted(EXAMPLES.glob("*.jsonl")), ids=lambda path: path.stem)
def test_example_is_what_its_run_gives(trace: Path) -> None:
    """If this fails, write it anew with ``pagedkv trace to-test --as-it-is``, and look at it."""
    system: System = "vllm" if trace.stem.startswith("vllm_") else "max"
    example = EXAMPLES / f"test_{trace.stem}.py"
    assert write_test(story_from(trace), system) == example.read_text()


@pytest.mark.parametrize("test", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_example_needs_nothing_of_ours(test: Path) -> None:
    imported = {
        node.module.split(".")[0]
        for node in ast.walk(ast.parse(test.read_text()))
        if isinstance(node, ast.ImportFrom) and node.module
    }
    assert imported <= {"vllm", "max"}
    assert "pagedkv" not in test.read_text()


@pytest.mark.parametrize("story", ["refused after a hit"], indirect=True)
def test_calls_that_the_mistake_does_not_need_are_left_out(story: Story) -> None:
    strangers = [e for e in story.events if getattr(e, "request_id", None) == "a"]
    long = replace(story, events=(*_renamed(strangers, "z"), *story.events))
    short = shortened(long, specimen("refused after a hit"), reference_specification)
    assert {getattr(e, "request_id", None) for e in long.events} == {"z", "a", "b", "c"}
    names = {getattr(e, "request_id", None) for e in short.events}
    assert names in ({"a", "b", "c"}, {"z", "b", "c"}), "one of the equal two is enough"
    again = shortened(short, specimen("refused after a hit"), reference_specification)
    assert again.events == short.events


@pytest.mark.parametrize("story", ["another successor"], indirect=True)
def test_single_events_are_left_out_as_well(story: Story) -> None:
    assert any(isinstance(event, Released) for event in story.events)
    short = shortened(story, specimen("another successor"), reference_specification)
    assert not any(isinstance(event, Released) for event in short.events), "a may go on"
    assert any(isinstance(event, Stepped) for event in short.events)


@pytest.mark.parametrize("story", ["refused after a hit"], indirect=True)
def test_mistake_that_a_system_does_not_repeat_is_refused(story: Story) -> None:
    with pytest.raises(NotReproducedError, match=r"does not repeat the mistake .*recorded of"):
        shortened(story, resolve_implementation("reference"), reference_specification)


def test_pages_may_have_any_numbers(tmp_path: Path) -> None:
    scenario = SCENARIOS["garbage"]
    path = record(scenario, specimen("garbage"), tmp_path / "run.jsonl")
    trace = EventTrace(path)
    last = trace.header.setup.total_num_pages - 1
    others = [
        replace(event, pages=tuple(last - page for page in event.pages))
        if isinstance(event, AllocPlanned | Stepped)
        else event
        for event in trace
    ]
    story = story_of(trace.header, others, reference_specification)
    assert story.mistake == "hits"


def test_run_that_is_allowed_gives_no_test(tmp_path: Path) -> None:
    scenario = Scenario(SCENARIOS["garbage"].play, "", "")
    path = record(scenario, resolve_implementation("reference"), tmp_path / "run.jsonl")
    with pytest.raises(NoTestError, match="the run is allowed"):
        story_from(path)


def test_tiers_that_a_system_lacks_are_refused_by_name() -> None:
    trace = EventTrace(recorded_runs()["busy"].path)
    events = [*trace]
    n = max(n for n, e in enumerate(events) if isinstance(e, AllocPlanned) and e.hits.device_blocks)
    event = events[n]
    assert isinstance(event, AllocPlanned)
    events[n] = replace(event, hits=PrefixCacheHits())
    story = story_of(trace.header, events, reference_specification)
    with pytest.raises(NoTestError, match=r"is .*; vLLM's KVCacheManager takes only the default"):
        write_test(story, "vllm")


@pytest.mark.parametrize(
    ("name", "system", "problem"),
    [
        ("claimed twice", "vllm", "replicas is 2; vLLM's KVCacheManager takes only the default, 1"),
        ("never claimed", "vllm", "event 5, alloc_planned: .* has no table of claimed requests"),
        ("another successor", "vllm", "speculative_method is 'eagle'; vLLM's KVCacheManager takes"),
    ],
)
def test_what_has_no_counterpart_is_named(
    name: str, system: System, problem: str, tmp_path: Path
) -> None:
    path = record(SCENARIOS[name], specimen(name), tmp_path / "run.jsonl")
    with pytest.raises(NoTestError, match=problem):
        write_test(story_from(path), system)


@pytest.mark.parametrize("story", ["garbage"], indirect=True)
def test_event_without_counterpart_is_named(story: Story) -> None:
    foreign = InputsBuilt(batches=(("a",),), contexts=((),), max_cache_length=None)
    events = (*story.events[:3], foreign, *story.events[3:])
    with pytest.raises(NoCounterpartError, match="event 3, inputs_built: vLLM's KVCacheManager"):
        write_test(replace(story, events=events), "vllm")


@pytest.mark.parametrize(
    "given", [{"placeholders": 1}, {"drafts_to_verify": 1}, {"stores": ("redis://one",)}]
)
@pytest.mark.parametrize("story", ["garbage"], indirect=True)
def test_context_without_counterpart_is_named(story: Story, given: dict[str, Any]) -> None:
    events = [*story.events]
    n = next(n for n, event in enumerate(events) if isinstance(event, AllocPlanned))
    event = events[n]
    assert isinstance(event, AllocPlanned)
    events[n] = replace(event, context=replace(event.context, **given))
    with pytest.raises(NoCounterpartError, match=f"event {n}, alloc_planned"):
        write_test(replace(story, events=tuple(events)), "max")


@pytest.mark.parametrize("story", ["garbage"], indirect=True)
def test_names_of_requests_may_be_anything(story: Story) -> None:
    name = 'import "\\ \n" é'
    renamed = tuple(
        _renamed([event], name)[0] if getattr(event, "request_id", None) == "b" else event
        for event in (*story.events, story.last)
    )
    other = story_of(story.header, renamed, reference_specification)
    assert outcome(write_test(other, "python", implementation="reference")) == ""


@given(st.text(min_size=1))
def test_variables_are_names_that_are_free(request_id: str) -> None:
    name = variable_name(request_id)
    assert name.isidentifier() and name.isascii() and name not in ("None", "list", "manager")


@given(st.lists(st.integers(0, 30)))
def test_tokens_are_written_as_they_are(tokens: list[int]) -> None:
    assert eval(tokens_text(tokens)) == tokens


def _renamed(events: list[Event], name: str) -> list[Event]:
    # Any: replace() of a union knows no fields that all have.
    kept: list[Any] = [*events]
    return [replace(event, request_id=name) for event in kept]
