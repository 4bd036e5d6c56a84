"""Divergences of vLLM and MAX become tests that fail there, as far as those are installed."""

import importlib
import warnings
from pathlib import Path

import pytest
from tests.conformance.upstream.generated import run_test
from tests.conformance.upstream.scenarios import SCENARIOS, record

from pagedkv.conformance.implementation import Implementation
from pagedkv.conformance.upstream.shorten import shortened
from pagedkv.conformance.upstream.story import story_of
from pagedkv.conformance.upstream.write_test import System, write_test
from pagedkv.specification import reference_specification
from pagedkv.traces.events.reader import EventTrace

EXAMPLES = Path(__file__).parents[3] / "examples/upstream_tests"

DIVERGENCES: list[tuple[System, str, bool]] = [
    # system, scenario, whether fixes_for_*.py mends it
    ("vllm", "two in a row", True),
    ("vllm", "ended before its forward", True),
    ("vllm", "reset while one runs", True),
    ("vllm", "cached between two chunks", False),
    ("max", "reset while one runs", True),
    ("max", "chunk", False),
    ("max", "refused after a hit", True),
    ("max", "never claimed", True),
    ("max", "claimed twice", True),
    ("max", "garbage", False),
    ("max", "another successor", False),
]


def peer(system: System) -> Implementation:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what a peer imports is its own affair
        try:
            module = importlib.import_module(f"pagedkv.conformance.peers.{system}")
        except ImportError as error:
            pytest.skip(f"docs/peers.md says how to install it: {error}")
    found = module.implementation
    assert isinstance(found, Implementation)
    return found


@pytest.mark.parametrize(("system", "name", "is_mended"), DIVERGENCES)
def test_divergence_becomes_a_test_that_fails_for_its_reason(
    system: System, name: str, is_mended: bool, tmp_path: Path
) -> None:
    implementation, scenario = peer(system), SCENARIOS[name]
    trace = EventTrace(record(scenario, implementation, tmp_path / "run.jsonl"))
    story = story_of(trace.header, trace, reference_specification)
    story = shortened(story, implementation, reference_specification)
    test = tmp_path / "test_generated.py"
    test.write_text(write_test(story, system))
    status, out = run_test(test)
    assert status == 1, out
    assert f"test_{scenario.claim} - " in out or f"::test_{scenario.claim}" in out
    assert scenario.says in out
    if is_mended:
        status, out = run_test(test, plugin=f"fixes_for_{system}")
        assert status == 0, out


@pytest.mark.parametrize("test", sorted(EXAMPLES.glob("test_*.py")), ids=lambda path: path.stem)
def test_example_fails_on_the_release_and_passes_once_mended(test: Path) -> None:
    system: System = "vllm" if test.stem.startswith("test_vllm_") else "max"
    peer(system)
    assert run_test(test)[0] == 1
    status, out = run_test(test, plugin=f"fixes_for_{system}")
    assert status == 0, out
