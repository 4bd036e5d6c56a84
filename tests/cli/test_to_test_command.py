"""``pagedkv trace to-test``: a divergence becomes a test file."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.conformance.upstream.scenarios import SCENARIOS, record

from pagedkv.conformance.implementation import Implementation
from pagedkv.conformance.zoo import catalogue
from pagedkv.implementations import resolve_implementation

Pagedkv = Callable[..., Any]

EXAMPLES = Path(__file__).parents[2] / "examples/upstream_tests"
BROKEN = "pagedkv.conformance.zoo.catalogue:refused_alloc_keeps_its_hit"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of a manager that keeps what a refused allocation has hit."""
    broken = catalogue.refused_alloc_keeps_its_hit
    assert isinstance(broken, Implementation)
    return record(SCENARIOS["refused after a hit"], broken, tmp_path / "run.jsonl")


def test_test_is_printed_or_written(pagedkv: Pagedkv, run: Path, tmp_path: Path) -> None:
    command = ("trace", "to-test", run, "--for", "python", "--impl", BROKEN)
    printed = pagedkv(*command).out
    assert "def test_refused_allocation_keeps_nothing():" in printed
    written = tmp_path / "test_written.py"
    outcome = pagedkv(*command, "-o", written)
    assert (outcome.status, outcome.out) == (0, "")
    assert "tells of" in outcome.err
    assert written.read_text() == printed


def test_shortened_run_gives_the_same_test(pagedkv: Pagedkv, run: Path, tmp_path: Path) -> None:
    short = tmp_path / "short.jsonl"
    options = ("--for", "python", "--impl", BROKEN)
    printed = pagedkv("trace", "to-test", run, *options, "--shortened", short).out
    assert pagedkv("trace", "to-test", short, *options, "--as-it-is").out == printed
    assert pagedkv("trace", "check", short).status == 1


def test_examples_are_what_the_command_prints(pagedkv: Pagedkv) -> None:
    trace = EXAMPLES / "vllm_reset.jsonl"
    printed = pagedkv("trace", "to-test", trace, "--for", "vllm", "--as-it-is").out
    assert printed == (EXAMPLES / "test_vllm_reset.py").read_text()


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["--for", "sglang"], "'sglang' is not one of vllm, max, python"),
        (["--for", "python"], "--for python needs --impl"),
        (["--for", "python", "--impl", "reference"], "does not repeat the mistake"),
        (["--for", "max", "--impl", "no.such.module"], "or keep all calls, with --as-it-is"),
    ],
)
def test_what_cannot_be_done_is_said(
    pagedkv: Pagedkv, run: Path, options: list[str], problem: str
) -> None:
    outcome = pagedkv("trace", "to-test", run, *options)
    assert (outcome.status, outcome.out) == (2, "")
    assert problem in outcome.err


def test_allowed_run_gives_no_test(pagedkv: Pagedkv, tmp_path: Path) -> None:
    right = resolve_implementation("reference")
    run = record(SCENARIOS["refused after a hit"], right, tmp_path / "run.jsonl")
    outcome = pagedkv("trace", "to-test", run, "--for", "vllm", "--as-it-is")
    assert outcome.status == 2 and "the run is allowed" in outcome.err


def test_call_without_counterpart_is_named(pagedkv: Pagedkv, tmp_path: Path) -> None:
    stranger = catalogue.alloc_of_a_stranger
    assert isinstance(stranger, Implementation)
    run = record(SCENARIOS["never claimed"], stranger, tmp_path / "run.jsonl")
    outcome = pagedkv("trace", "to-test", run, "--for", "vllm", "--as-it-is")
    assert outcome.status == 2 and "event 5, alloc_planned:" in outcome.err


def test_run_is_not_overwritten(pagedkv: Pagedkv, run: Path) -> None:
    outcome = pagedkv("trace", "to-test", run, "--for", "vllm", "-o", run)
    assert outcome.status == 2 and "is the RUN itself" in outcome.err
