"""``pagedkv replay --record`` and ``pagedkv trace check``: a run is written down and checked."""

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Pagedkv = Callable[..., Any]

SIZES = "--pages 300 --host-pages 400 --disk-pages 900 --replicas 2 --concurrency 3 --decode"


@pytest.fixture
def run(pagedkv: Pagedkv, workload: Path, tmp_path: Path) -> Path:
    """A recorded replay of 40 requests, with all local tiers."""
    path = tmp_path / "run.jsonl"
    outcome = pagedkv("replay", workload, *SIZES.split(), "--limit", 40, "--record", path)
    assert outcome.status == 0
    return path


def test_a_recorded_replay_is_allowed(pagedkv: Pagedkv, run: Path) -> None:
    result = pagedkv("trace", "check", run, "--json").json
    lines = run.read_text().splitlines()
    assert result == {
        "trace": str(run),
        "implementation": "reference",
        "allowed": True,
        "events": len(lines) - 1,
        "reason": None,
    }
    assert sum('"event":"alloc_planned"' in line for line in lines) > 40


def test_a_forged_result_is_named_with_its_line(pagedkv: Pagedkv, run: Path) -> None:
    lines = run.read_text().splitlines()
    forged = max(n for n, line in enumerate(lines) if '"event":"alloc_returned"' in line)
    lines[forged] = lines[forged].replace('"processed":', '"processed":1')
    run.write_text("\n".join(lines))
    outcome = pagedkv("trace", "check", run)
    assert outcome.status == 1
    assert f"line {forged + 1}: AllocReturned: processed: expected" in outcome.err
    assert "Traceback" not in outcome.err


def test_a_recording_is_packed_if_its_name_says_so(
    pagedkv: Pagedkv, workload: Path, tmp_path: Path
) -> None:
    path = tmp_path / "run.jsonl.gz"
    assert pagedkv("replay", workload, "--limit", 3, "--record", path).status == 0
    assert gzip.decompress(path.read_bytes()).startswith(b'{"format":"pagedkv-events"')
    assert pagedkv("trace", "check", path).status == 0


def test_what_is_no_event_trace_cannot_be_checked(pagedkv: Pagedkv, workload: Path) -> None:
    outcome = pagedkv("trace", "check", workload)
    assert outcome.status == 2
    assert "does not begin with the header of an event trace" in outcome.err


def test_a_recording_replaces_neither_the_trace_nor_the_json(
    pagedkv: Pagedkv, workload: Path, tmp_path: Path
) -> None:
    before = workload.read_bytes()
    outcome = pagedkv("replay", workload, "--record", workload)
    assert (outcome.status, workload.read_bytes()) == (2, before)
    assert "--record" in outcome.err
    both = tmp_path / "both"
    outcome = pagedkv("replay", workload, "--record", both, "--json", both)
    assert (outcome.status, both.exists()) == (2, False)
