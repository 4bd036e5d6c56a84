"""The recorded traces are what the scenarios still do, and together show every visible rule."""

import gzip
import hashlib
from pathlib import Path

import pytest

from pagedkv.conformance.recordings.catalogue import INVISIBLE, recordings
from pagedkv.conformance.recordings.library import write_recordings
from pagedkv.conformance.spec_text import rules
from pagedkv.conformance.validation import validate
from pagedkv.specification import build_reference, reference_specification
from pagedkv.traces.events.reader import EventTrace
from pagedkv.traces.events.shipped import RECORDED_RUNS, RecordedRun, recorded_runs

RUNS = recorded_runs()
LARGEST = 200 * 1024


@pytest.fixture(params=RUNS)
def run(request: pytest.FixtureRequest) -> RecordedRun:
    return RUNS[request.param]


def test_playing_all_scenarios_again_gives_the_same_traces(tmp_path: Path) -> None:
    """If this fails, the reference or a scenario has changed: run scripts/record_traces.py."""
    write_recordings(recordings().values(), tmp_path, build_reference, "reference")
    assert (tmp_path / "index.toml").read_text() == (RECORDED_RUNS / "index.toml").read_text()


def test_every_file_is_in_the_index_and_every_entry_has_its_file() -> None:
    files = {path.name for path in RECORDED_RUNS.glob("*.jsonl*")}
    assert files == {run.path.name for run in RUNS.values()}
    assert RUNS.keys() == recordings().keys()


def test_a_file_is_what_the_index_says(run: RecordedRun) -> None:
    content = gzip.decompress(run.path.read_bytes())
    assert hashlib.sha256(content).hexdigest() == run.sha256
    assert content.count(b"\n") == run.events + 1


def test_a_recorded_run_is_allowed(run: RecordedRun) -> None:
    trace = EventTrace(run.path)
    start = trace.header.start
    assert validate(trace.header.setup, trace, reference_specification, start) == run.events


def test_every_rule_is_shown_or_cannot_be() -> None:
    shown = {rule for run in RUNS.values() for rule in run.rules}
    invisible = [rule for names in INVISIBLE.values() for rule in names]
    assert len(invisible) == len(set(invisible))
    assert not shown & set(invisible), "what is shown is not invisible"
    assert shown | set(invisible) == rules().keys()


def test_the_traces_stay_small() -> None:
    assert sum(path.stat().st_size for path in RECORDED_RUNS.iterdir()) < LARGEST
