"""Entries of a timeline, and the trace events that they are written as.

The format is Chrome's Trace Event Format, which ui.perfetto.dev and chrome://tracing read.
"""

from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import TypeAlias

TraceEvent: TypeAlias = dict[str, object]
"""One event as the format has it: ``ph`` says what it is, times are in microseconds."""

Argument: TypeAlias = str | int | float
"""A value that is shown when an entry is clicked on."""

REQUESTS = "requests"
"""The process, in the trace's sense, of what belongs to no device."""


@dataclass(frozen=True, slots=True)
class Slice:
    """Something that lasted, in a lane."""

    process: str
    """The device, or the disk."""
    lane: str
    """What it did."""
    name: str
    """What the slice is called."""
    began_s: float
    """On the timeline's clock."""
    ended_s: float
    """The same."""
    arguments: dict[str, Argument]
    """What it shows when it is clicked on."""


@dataclass(frozen=True, slots=True)
class AllocInterval:
    """An allocation; any number of them at the same time."""

    number: int
    """Tells it from others of the same name."""
    name: str
    """What it is called."""
    began_s: float
    """On the timeline's clock."""
    ended_s: float
    """The same."""
    arguments: dict[str, Argument]
    """What it shows when it is clicked on."""


@dataclass(frozen=True, slots=True)
class FreePages:
    """How many pages of a replica are free from now on."""

    replica: int
    """Which one."""
    at_s: float
    """On the timeline's clock."""
    free: int
    """Pages."""


Entry: TypeAlias = Slice | AllocInterval | FreePages
"""What a timeline keeps."""


class Tracks:
    """Numbers for processes and lanes, given when they are first met.

    Slices of one lane must not overlap, or viewers lose some. So whatever overlaps goes to a
    further lane: ``read``, ``read 2``, ...

    Args:
        origin_s: The moment that the trace calls 0.
    """

    def __init__(self, origin_s: float) -> None:
        self._origin_s = origin_s
        self._processes: dict[str, int] = {}
        self._lanes: dict[tuple[int, str], int] = {}
        self._ends_s: dict[tuple[int, str], list[float]] = {}

    def events_of(self, entry: Entry) -> Iterator[TraceEvent]:
        """The trace events of an entry, those that name its lane first."""
        match entry:
            case Slice():
                pid = yield from self._process(entry.process)
                lane = self._free_lane(pid, entry)
                tid = yield from self._lane(pid, lane)
                seconds = entry.ended_s - entry.began_s
                arguments = entry.arguments
                if isinstance(nbytes := arguments.get("bytes"), int) and seconds > 0:
                    arguments = arguments | {"MiB/s": round(nbytes / seconds / 2**20, 1)}
                yield {
                    "ph": "X",
                    "name": entry.name,
                    "cat": entry.lane,
                    "pid": pid,
                    "tid": tid,
                    "ts": self._us(entry.began_s),
                    "dur": round(seconds * 1e6, 3),
                    "args": arguments,
                }
            case AllocInterval():
                pid = yield from self._process(REQUESTS)
                event = {
                    "name": entry.name,
                    "cat": "alloc",
                    "id": entry.number,
                    "pid": pid,
                    "tid": 0,
                }
                began, ended = self._us(entry.began_s), self._us(entry.ended_s)
                yield {"ph": "b", **event, "ts": began, "args": entry.arguments}
                yield {"ph": "e", **event, "ts": ended}
            case FreePages():
                pid = yield from self._process(REQUESTS)
                yield {
                    "ph": "C",
                    "name": f"free pages of replica {entry.replica}",
                    "pid": pid,
                    "ts": self._us(entry.at_s),
                    "args": {"pages": entry.free},
                }

    def _us(self, at_s: float) -> float:
        return round((at_s - self._origin_s) * 1e6, 3)

    def _free_lane(self, pid: int, entry: Slice) -> str:
        """The first lane in which everything has ended when ``entry`` begins."""
        ends_s = self._ends_s.setdefault((pid, entry.lane), [])
        for n, end_s in enumerate(ends_s):
            if end_s <= entry.began_s:
                ends_s[n] = entry.ended_s
                return entry.lane if n == 0 else f"{entry.lane} {n + 1}"
        ends_s.append(entry.ended_s)
        return entry.lane if len(ends_s) == 1 else f"{entry.lane} {len(ends_s)}"

    def _process(self, name: str) -> Generator[TraceEvent, None, int]:
        if name not in self._processes:
            self._processes[name] = pid = len(self._processes) + 1
            yield {"ph": "M", "name": "process_name", "pid": pid, "args": {"name": name}}
        return self._processes[name]

    def _lane(self, pid: int, name: str) -> Generator[TraceEvent, None, int]:
        if (pid, name) not in self._lanes:
            self._lanes[pid, name] = tid = len(self._lanes) + 1
            yield {
                "ph": "M",
                "name": "thread_name",
                "pid": pid,
                "tid": tid,
                "args": {"name": name},
            }
        return self._lanes[pid, name]
