"""How much of the copy time lay under compute: read back from a timeline."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias, TypedDict

Interval: TypeAlias = tuple[float, float]
"""Begin and end, in microseconds."""


class ReadEvent(TypedDict):
    """A trace event. Not every kind has all of these: ``ph`` and ``name`` say which it is."""

    ph: str
    """Its kind: ``X`` is a slice, which has all."""
    name: str
    """What it is called; one called ``process_name`` has ``args``."""
    cat: str
    """The lane of a slice, without the number that tells overlapping ones apart."""
    pid: int
    """The device, or what else the event belongs to."""
    ts: float
    """Begin, in microseconds."""
    dur: float
    """Length, in microseconds."""
    args: dict[str, str]
    """Of a process: its ``name``."""


COPY_LANES = ("H2D", "D2H", "peer")
"""The lanes whose time should be hidden."""


@dataclass(frozen=True, slots=True)
class CopyOverlap:
    """One lane of copies of one device."""

    device: str
    """Which device: ``device 0``."""
    lane: str
    """``H2D``, ``D2H`` or ``peer``."""
    copy_s: float
    """Seconds in which something was copied."""
    hidden_s: float
    """Those of them in which the device computed."""

    @property
    def hidden_share(self) -> float:
        """Share of the copy time that lay under compute, 0 to 1; 1 if nothing was copied."""
        return self.hidden_s / self.copy_s if self.copy_s else 1.0

    def __str__(self) -> str:
        return (
            f"{self.device} {self.lane}: {self.copy_s * 1e3:.1f} ms of copies, "
            f"{self.hidden_share:.0%} under compute"
        )


def copy_overlaps(path: Path | str) -> list[CopyOverlap]:
    """By device and lane, as far as there were copies; the file may end in the middle of a stream.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is no timeline.
    """
    processes: dict[int, str] = {}
    intervals: dict[tuple[int, str], list[Interval]] = {}
    for event in _events_of(Path(path)):
        if event["name"] == "process_name":
            processes[event["pid"]] = event["args"]["name"]
        elif event["ph"] == "X":
            lane = intervals.setdefault((event["pid"], event["cat"]), [])
            lane.append((event["ts"], event["ts"] + event["dur"]))
    overlaps: list[CopyOverlap] = []
    for pid, device in sorted(processes.items(), key=lambda process: process[1]):
        compute = _union(intervals.get((pid, "compute"), []))
        for lane_name in COPY_LANES:
            copies = _union(intervals.get((pid, lane_name), []))
            if copies:
                hidden = _length(copies) + _length(compute) - _length(_union(copies + compute))
                overlaps.append(CopyOverlap(device, lane_name, _length(copies) / 1e6, hidden / 1e6))
    return overlaps


def _events_of(path: Path) -> list[ReadEvent]:
    text = path.read_text(encoding="utf-8")
    try:
        trace = json.loads(text)
    except json.JSONDecodeError:
        # A stream that nobody has closed ends behind some comma.
        trace = json.loads(text[: text.rindex(",")] + "]")
    events: list[ReadEvent] = trace["traceEvents"] if isinstance(trace, dict) else trace
    return events


def _union(intervals: list[Interval]) -> list[Interval]:
    """The same time as intervals that do not touch, in order."""
    union: list[Interval] = []
    for begin, end in sorted(intervals):
        if union and begin <= union[-1][1]:
            union[-1] = union[-1][0], max(end, union[-1][1])
        else:
            union.append((begin, end))
    return union


def _length(intervals: list[Interval]) -> float:
    return sum(end - begin for begin, end in intervals)
