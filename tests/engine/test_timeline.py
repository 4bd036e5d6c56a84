"""Timelines are valid trace events, in lanes without overlap, and say what was hidden."""

import asyncio
import json
from collections import defaultdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.engine.conftest import Making, prompt, serve

from pagedkv.engine import PagedKVCacheManager
from pagedkv.engine.observability.overlap import copy_overlaps
from pagedkv.engine.observability.records import CopyRecord
from pagedkv.engine.observability.timeline import WRITTEN_AT_ONCE, Timeline
from pagedkv.engine.observability.trace_events import AllocInterval, Entry, FreePages, Slice, Tracks
from pagedkv.engine.planner.transfer import Transfer
from pagedkv.engine.streams.simulated import SimulatedStreams

# JSON has no types; what is read is checked by is_valid.
Event = dict[str, Any]

FIELDS = {
    "M": {"name", "pid", "args"},
    "X": {"name", "cat", "pid", "tid", "ts", "dur", "args"},
    "b": {"name", "cat", "id", "pid", "tid", "ts", "args"},
    "e": {"name", "cat", "id", "pid", "tid", "ts"},
    "C": {"name", "pid", "ts", "args"},
}
"""By phase: the fields that the Trace Event Format asks for."""


def assert_valid(events: list[Event]) -> None:
    """As the Trace Event Format describes them; every process and lane has a name."""
    names = {(e["pid"], e.get("tid")) for e in events if e["ph"] == "M"}
    open_intervals: set[tuple[str, int]] = set()
    for event in events:
        assert FIELDS[event["ph"]] <= event.keys()
        assert isinstance(event["pid"], int)
        if event["ph"] == "M":
            assert event["name"] in ("process_name", "thread_name", "process_sort_index")
            continue
        assert isinstance(event["name"], str)
        assert isinstance(event["ts"], int | float)
        assert (event["pid"], None) in names
        match event["ph"]:
            case "X":
                assert event["dur"] >= 0
                assert (event["pid"], event["tid"]) in names
            case "b":
                open_intervals.add((event["cat"], event["id"]))
            case "e":
                open_intervals.remove((event["cat"], event["id"]))
            case "C":
                assert all(isinstance(level, int | float) for level in event["args"].values())
    assert not open_intervals
    assert_lanes_do_not_overlap(events)


def assert_lanes_do_not_overlap(events: list[Event]) -> None:
    lanes = defaultdict(list)
    for event in events:
        if event["ph"] == "X":
            lanes[event["pid"], event["tid"]].append((event["ts"], event["ts"] + event["dur"]))
    for slices in lanes.values():
        slices.sort()
        for (_, end), (begin, _) in pairwise(slices):
            assert end <= begin + 0.01  # times are rounded to nanoseconds


def read(path: Path) -> list[Event]:
    trace = json.loads(path.read_text(encoding="utf-8"))
    events: list[Event] = trace["traceEvents"] if isinstance(trace, dict) else trace
    return events


def slices_of(events: list[Event]) -> dict[str, list[Event]]:
    """By process and lane: its slices."""
    pids = {e["pid"]: e["args"]["name"] for e in events if e["name"] == "process_name"}
    slices = defaultdict(list)
    for event in events:
        if event["ph"] == "X":
            slices[f"{pids[event['pid']]} {event['cat']}"].append(event)
    return slices


async def drained(manager: PagedKVCacheManager) -> None:
    while manager.in_flight():
        await asyncio.sleep(0.001)


async def served_with_tiers(make: Making, timeline: Timeline, folder: Path) -> None:
    """Every way but between replicas: offload, write, load from host, load from disk."""
    manager = make.engine(host_pages=20, disk_pages=60, disk_dir=folder)
    manager.attach(timeline)
    for n, start in enumerate((0, 100, 0, 200, 100)):
        await serve(manager, make.request(prompt(12, start), f"r{n}"))
        await drained(manager)
        with timeline.forward(0, "decode", tokens=1):
            pass
    await timeline.settle()
    await manager.aclose()


async def test_real_run_is_a_valid_trace_with_all_lanes(make: Making, tmp_path: Path) -> None:
    timeline = Timeline()
    await served_with_tiers(make, timeline, tmp_path / "disk")
    timeline.write(tmp_path / "timeline.json")
    events = read(tmp_path / "timeline.json")
    assert_valid(events)
    lanes = slices_of(events)
    assert lanes.keys() >= {
        "device 0 compute",
        "device 0 H2D",
        "device 0 D2H",
        "disk read",
        "disk write",
    }
    load = lanes["device 0 H2D"][0]["args"]
    assert load["blocks"] > 0
    assert load["bytes"] > 0
    assert load["MiB/s"] >= 0
    assert load["request"].startswith("r")
    assert lanes["device 0 compute"][0]["args"] == {"tokens": 1}
    for lane in ("disk read", "disk write"):
        transfers = [event["args"]["transfer"] for event in lanes[lane]]
        assert len(transfers) == len(set(transfers))
    free = [e["args"]["pages"] for e in events if e["ph"] == "C"]
    assert min(free) < 16
    assert free[-1] == 16
    assert sum(e["ph"] == "b" for e in events) == 5


async def test_copies_of_one_stream_follow_each_other(make: Making, tmp_path: Path) -> None:
    manager, timeline = make.engine(), Timeline()
    manager.attach(timeline)
    transfer = Transfer("onload", "host", "device", (b"1",))
    for ended_s in (1.0, 3.0):  # both were enqueued at 0
        timeline.copied(CopyRecord(transfer, 0, "onload", 1, 2**20, 0.0, ended_s))
    timeline.write(tmp_path / "timeline.json")
    first, second = slices_of(read(tmp_path / "timeline.json"))["device 0 H2D"]
    assert (first["dur"], second["dur"]) == (1e6, 2e6)
    assert (first["tid"], first["args"]["MiB/s"]) == (second["tid"], 1.0)
    await manager.aclose()


async def test_copies_between_replicas_have_a_lane(make: Making, tmp_path: Path) -> None:
    manager, timeline = make.engine(replicas=2), Timeline()
    manager.attach(timeline)
    first = make.request(prompt(3), "on replica 0")
    async with manager.admit(first):
        first.update(1)
        manager.step([[first], []])
    async with manager.admit(make.request(prompt(3), "on replica 1"), 1):
        pass
    timeline.write(tmp_path / "timeline.json")
    assert len(slices_of(read(tmp_path / "timeline.json"))["device 1 peer"]) == 1
    await manager.aclose()


async def test_stream_has_the_same_entries_and_is_readable_before_its_end(
    make: Making, tmp_path: Path
) -> None:
    path = tmp_path / "stream.json"
    timeline = Timeline(stream_to=path)
    await served_with_tiers(make, timeline, tmp_path / "disk")
    for n in range(WRITTEN_AT_ONCE):
        with timeline.forward(0, f"decode {n}"):
            pass
    before_the_end = copy_overlaps(path)
    timeline.close()
    assert_valid(read(path))
    assert before_the_end == copy_overlaps(path)
    assert {overlap.lane for overlap in before_the_end} == {"H2D", "D2H"}


def test_streamed_timeline_is_not_written_twice(tmp_path: Path) -> None:
    timeline = Timeline(stream_to=tmp_path / "stream.json")
    with pytest.raises(ValueError, match="close"):
        timeline.write(tmp_path / "other.json")
    timeline.close()
    assert read(tmp_path / "stream.json")


def test_only_the_latest_entries_are_kept(tmp_path: Path) -> None:
    timeline = Timeline(capacity=3)
    for n in range(10):
        with timeline.forward(0, str(n)):
            pass
    timeline.write(tmp_path / "timeline.json")
    events = read(tmp_path / "timeline.json")
    assert_valid(events)
    assert [e["name"] for e in events if e["ph"] == "X"] == ["7", "8", "9"]


def test_capacity_is_checked() -> None:
    with pytest.raises(ValueError, match="capacity is 0"):
        Timeline(capacity=0)


async def test_forward_lasts_until_the_compute_stream_gets_there(
    make: Making, tmp_path: Path
) -> None:
    streams = SimulatedStreams(num_devices=1, queued_forwards=True)
    manager, timeline = make.engine(streams), Timeline()
    manager.attach(timeline)
    with timeline.forward(0, "prefill"):
        streams.launch(0, lambda: None)
    await asyncio.sleep(0)
    timeline.write(tmp_path / "before.json")
    streams.run_all()
    await timeline.settle()
    timeline.write(tmp_path / "after.json")
    assert not slices_of(read(tmp_path / "before.json"))
    assert len(slices_of(read(tmp_path / "after.json"))["device 0 compute"]) == 1
    await manager.aclose()


async def test_failed_forward_is_recorded_all_the_same(make: Making, tmp_path: Path) -> None:
    timeline = Timeline()
    with pytest.raises(ZeroDivisionError), timeline.forward(0, "prefill"):
        _ = 1 / 0
    timeline.write(tmp_path / "timeline.json")
    assert len(slices_of(read(tmp_path / "timeline.json"))["device 0 compute"]) == 1


async def test_forward_after_the_end_of_the_manager_is_recorded(
    make: Making, tmp_path: Path
) -> None:
    manager, timeline = make.engine(), Timeline()
    manager.attach(timeline)
    await manager.aclose()
    with timeline.forward(0, "late"):
        pass
    timeline.write(tmp_path / "timeline.json")
    assert len(slices_of(read(tmp_path / "timeline.json"))["device 0 compute"]) == 1


INTERVALS = st.lists(
    st.tuples(st.integers(0, 40), st.integers(0, 15)).map(lambda x: (x[0], x[0] + x[1]))
)


@given(INTERVALS)
def test_overlapping_slices_go_to_lanes_of_their_own(intervals: list[tuple[int, int]]) -> None:
    tracks = Tracks(0.0)
    in_order_of_their_end = sorted(intervals, key=lambda interval: interval[1])
    events = [
        event
        for begin, end in in_order_of_their_end
        for event in tracks.events_of(Slice("disk", "read", "x", begin, end, {}))
    ]
    assert_valid(events)
    assert sum(event["ph"] == "X" for event in events) == len(intervals)


def test_lanes_are_not_more_than_there_are_slices_at_once() -> None:
    tracks = Tracks(0.0)
    slices = [Slice("disk", "read", "x", n, n + 1, {}) for n in range(50)]
    events = [event for entry in slices for event in tracks.events_of(entry)]
    assert sum(event["name"] == "thread_name" for event in events) == 1


def write_trace(path: Path, compute: list[tuple[int, int]], copies: list[tuple[int, int]]) -> None:
    tracks = Tracks(0.0)
    entries = [Slice("device 0", "compute", "f", b / 1e6, e / 1e6, {}) for b, e in compute]
    entries += [Slice("device 0", "H2D", "c", b / 1e6, e / 1e6, {}) for b, e in copies]
    others: list[Entry] = [AllocInterval(1, "alloc", 0, 1, {}), FreePages(0, 0, 3)]
    events = [event for entry in [*entries, *others] for event in tracks.events_of(entry)]
    path.write_text(json.dumps({"traceEvents": events}), encoding="utf-8")


@given(compute=INTERVALS, copies=INTERVALS)
def test_hidden_copy_time_is_what_counting_moments_gives(
    compute: list[tuple[int, int]],
    copies: list[tuple[int, int]],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    path = tmp_path_factory.getbasetemp() / "counted.json"
    write_trace(path, compute, copies)
    moments = {t for begin, end in copies for t in range(begin, end)}
    hidden = {t for begin, end in compute for t in range(begin, end)} & moments
    overlaps = copy_overlaps(path)
    if not copies:
        assert overlaps == []
        return
    (overlap,) = overlaps
    assert overlap.copy_s == pytest.approx(len(moments) / 1e6)
    assert overlap.hidden_s == pytest.approx(len(hidden) / 1e6)
    assert 0 <= overlap.hidden_share <= 1


def test_overlap_is_told_in_one_line(tmp_path: Path) -> None:
    write_trace(tmp_path / "t.json", [(0, 10_000)], [(5_000, 25_000)])
    (overlap,) = copy_overlaps(tmp_path / "t.json")
    assert str(overlap) == "device 0 H2D: 20.0 ms of copies, 25% under compute"
