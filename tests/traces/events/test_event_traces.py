"""Event traces: what a manager reports can be written down and read again."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.reference.conftest import Making, Recorder

from pagedkv.reference.events import Event
from pagedkv.traces.errors import TraceError
from pagedkv.traces.events.codec import KINDS, decode, encode
from pagedkv.traces.events.reader import EventTrace
from pagedkv.traces.events.recorder import FlightRecorder, record_to
from pagedkv.traces.events.setup import EventTraceHeader, RunSetup

HEADER = EventTraceHeader(
    implementation="pagedkv.reference", setup=RunSetup(page_size=4, total_num_pages=4, host_pages=4)
)


@pytest.fixture
def make() -> Making:
    return Making()


def a_run(make: Making) -> list[Event]:
    """A run with hits in two tiers, a refusal, a reset and a damaged device."""
    recorder = Recorder()
    manager = make.manager(make.tiered_params(replicas=2), pages=4, host_pages=4, tracer=recorder)
    for n, tokens in enumerate((range(9), range(100, 113), range(13))):
        ctx = make.admit(manager, tokens, request_id=f"r{n}")
        manager.runtime_inputs([[ctx], []])
        make.forward(manager, ctx)
        manager.release(ctx.request_id, 0)
    manager.alloc_dummy("padding", 1)
    with pytest.raises(Exception, match="can never fit"):
        make.admit(manager, range(100), request_id="too long")
    manager.reset_prefix_cache()
    manager.poison(1, "a kernel failed")
    manager.shutdown()
    return recorder.events


@pytest.mark.parametrize("name", ["run.jsonl", "run.jsonl.gz"])
def test_a_run_reads_back_as_it_was_recorded(make: Making, tmp_path: Path, name: str) -> None:
    events = a_run(make)
    with record_to(tmp_path / name, HEADER) as recorder:
        for event in events:
            recorder.emit(event)
    trace = EventTrace(tmp_path / name)
    assert trace.header == HEADER
    assert list(trace) == events
    assert list(trace) == events, "it can be read twice"


def test_equal_runs_give_equal_bytes(make: Making, tmp_path: Path) -> None:
    for name in ("a.gz", "b.gz"):
        with record_to(tmp_path / name, HEADER) as recorder:
            for event in a_run(make):
                recorder.emit(event)
    assert (tmp_path / "a.gz").read_bytes() == (tmp_path / "b.gz").read_bytes()


def test_a_recording_that_is_interrupted_leaves_nothing(make: Making, tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), record_to(tmp_path / "run.jsonl", HEADER) as recorder:
        recorder.emit(a_run(make)[0])
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


@given(st.integers(0, 2**40))
def test_every_kind_of_event_keeps_its_number_and_its_fields(seq: int) -> None:
    for event in a_run(Making()):
        assert decode(encode(seq, event).decode()) == (seq, event)


def lines_of(make: Making, tmp_path: Path) -> tuple[Path, list[str]]:
    path = tmp_path / "run.jsonl"
    with record_to(path, HEADER) as recorder:
        for event in a_run(make):
            recorder.emit(event)
    return path, path.read_text().splitlines()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda lines: [], "is empty"),
        (lambda lines: lines[1:], "line 1: does not begin with the header"),
        (lambda lines: [lines[0].replace('"version":1', '"version":9')], "upgrade pagedkv"),
        (lambda lines: [*lines[:2], *lines[3:]], "line 3: seq = 2 should be 1"),
        (lambda lines: [*lines[:-1], lines[-1][:-5]], "is no event"),
        (lambda lines: [*lines, "[]"], "is no event"),
        (lambda lines: [lines[0], '{"seq":0,"event":"vanished"}'], "the events are claimed"),
        (lambda lines: [lines[0], '{"seq":0,"event":"released"}'], "request_id"),
        (
            lambda lines: [lines[0], '{"seq":0,"event":"released","request_id":"a","x":1}'],
            "line 2: x = 1",
        ),
    ],
)
def test_a_damaged_trace_says_where_and_what(
    make: Making, tmp_path: Path, damage: Callable[[list[str]], list[str]], message: str
) -> None:
    path, lines = lines_of(make, tmp_path)
    path.write_text("\n".join(damage(lines)) + "\n")
    with pytest.raises(TraceError, match=r"run\.jsonl") as caught:
        list(EventTrace(path))
    assert message in str(caught.value)


def test_a_truncated_gzip_trace_is_an_error(make: Making, tmp_path: Path) -> None:
    path, lines = lines_of(make, tmp_path)
    packed = gzip.compress("\n".join(lines).encode())
    path.write_bytes(packed[: len(packed) // 2])
    with pytest.raises(TraceError, match="truncated"):
        list(EventTrace(path))


def test_the_flight_recorder_keeps_the_latest_events(make: Making) -> None:
    flight = FlightRecorder(5)
    events = a_run(make)
    for event in events:
        flight.emit(event)
    assert flight.events == events[-5:]
    assert (flight.total, flight.first_seq) == (len(events), len(events) - 5)
    with pytest.raises(ValueError, match="capacity is 0"):
        FlightRecorder(0)


def test_the_document_lists_every_kind_of_event() -> None:
    text = (Path(__file__).parents[3] / "docs" / "event-traces.md").read_text()
    missing = [name for name in KINDS if f"`{name}`" not in text]
    assert not missing


def test_the_example_in_the_document_can_be_read() -> None:
    text = (Path(__file__).parents[3] / "docs" / "event-traces.md").read_text()
    example = text.split("```json\n")[1].split("```")[0].strip().splitlines()
    EventTraceHeader.model_validate_json(example[0])
    for n, line in enumerate(example[1:]):
        assert decode(line)[0] == n == json.loads(line)["seq"]
