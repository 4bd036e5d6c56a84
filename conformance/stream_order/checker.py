"""Checks that every two conflicting uses of a row are ordered, by a clock per stream.

These are vector clocks, as in race detectors for threads (Lamport's happened-before; FastTrack by
Flanagan and Freund, 2009). A stream counts its own steps, and knows up to which step of every other
stream everything is over before what it does next. Of each row only the last write, and each
stream's last read since, are kept: whoever is ordered behind those is ordered behind all before.
"""

from bisect import bisect
from collections.abc import Iterable
from dataclasses import dataclass, field

from pagedkv.conformance.stream_order.entries import HOST, Entry, Record, Rows, Use, Wait
from pagedkv.conformance.stream_order.log_file import OrderLogError
from pagedkv.conformance.stream_order.race import Race, Side


@dataclass(slots=True)
class Clock:
    """How far a stream is, and what it knows of the others."""

    stream: str
    """Its name."""
    step: int = 0
    """How many uses and waits there were on it."""
    known: dict[str, int] = field(default_factory=dict)
    """Steps of other streams that are over before its next one. Replaced, never changed: points
    share it."""
    recorded: list[tuple[int, int]] = field(default_factory=list)
    """Entries at which events were recorded on it, with the events."""

    def join(self, other: "Clock | Point") -> None:
        """From now on, everything up to ``other`` is over."""
        if other.stream == self.stream or self.known.get(other.stream, 0) >= other.step:
            return
        known = dict(self.known)
        for stream, step in other.known.items():
            if step > known.get(stream, 0):
                known[stream] = step
        known[other.stream] = other.step
        self.known = known
        self.step += 1


@dataclass(frozen=True, slots=True)
class Point:
    """Where a stream was when an event was recorded."""

    stream: str
    """The stream."""
    step: int
    """Its last step before the event."""
    known: dict[str, int]
    """What it knew."""


@dataclass(slots=True)
class UseAt:
    """A use, and when on its stream it happened."""

    index: int
    """Its entry in the log."""
    use: Use
    """What it is."""
    clock: Clock
    """Its stream's."""
    step: int
    """The step of that stream."""

    def over_before(self, clock: Clock) -> bool:
        """Whether it is over before the next step of ``clock``'s stream."""
        return clock is self.clock or clock.known.get(self.clock.stream, 0) >= self.step


@dataclass(slots=True)
class Row:
    """What has to be over before a row may be used again."""

    write: UseAt | None = None
    """The last write."""
    reads: dict[str, UseAt] = field(default_factory=dict)
    """Each stream's last read since."""


def check_order(entries: Iterable[Entry]) -> list[Race]:
    """The races in a log, by their later entry; none if everything is ordered.

    After a race the later use counts as ordered, so that one mistake gives few reports.

    Raises:
        OrderLogError: Something waits for an event that was never recorded.
    """
    checker = Checker()
    for entry in entries:
        checker.add(entry)
    return list(checker.races.values())


class Checker:
    """Goes through a log entry by entry; 1,000,000 of them take seconds."""

    def __init__(self) -> None:
        self.races: dict[tuple[str, int, int, bool], Race] = {}
        """What was found: by memory, the two entries, and whether the earlier one writes."""
        self._num_entries = 0
        self._host = Clock(HOST)
        self._clocks = {HOST: self._host}
        self._events: dict[int, Point] = {}
        self._memories: dict[str, dict[int, Row]] = {}

    def add(self, entry: Entry) -> None:
        """The next entry of the log."""
        index = self._num_entries
        self._num_entries += 1
        clock = self._clocks.get(entry.stream)
        if clock is None:
            clock = self._clocks[entry.stream] = Clock(entry.stream)
        # Whoever enqueues has done what comes before it in the log.
        clock.join(self._host)
        match entry:
            case Record():
                self._events[entry.event] = Point(clock.stream, clock.step, clock.known)
                clock.recorded.append((index, entry.event))
            case Wait():
                point = self._events.get(entry.event)
                if point is None:
                    raise OrderLogError(
                        index + 2,
                        f"{entry.stream} waits for event {entry.event}, which was not recorded; "
                        "a record comes before its waits",
                    )
                clock.join(point)
            case Use():
                clock.step += 1
                self._use(UseAt(index, entry, clock, clock.step))

    def _use(self, at: UseAt) -> None:
        # Writes first: what conflicts with a read conflicts with a write as well.
        for memory, row_idx, row in self._rows(at.use.writes):
            if row.write is not None and not row.write.over_before(at.clock):
                self._race(memory, row_idx, row.write, True, at, True)
            for read in row.reads.values():
                if not read.over_before(at.clock):
                    self._race(memory, row_idx, read, False, at, True)
            row.write = at
            row.reads.clear()
        for memory, row_idx, row in self._rows(at.use.reads):
            if row.write is not None and not row.write.over_before(at.clock):
                self._race(memory, row_idx, row.write, True, at, False)
            row.reads[at.use.stream] = at

    def _rows(self, used: Rows) -> Iterable[tuple[str, int, Row]]:
        for memory, ranges in used.items():
            rows = self._memories.setdefault(memory, {})
            for first, count in ranges:
                for row_idx in range(first, first + count):
                    row = rows.get(row_idx)
                    if row is None:
                        row = rows[row_idx] = Row()
                    yield memory, row_idx, row

    def _race(
        self,
        memory: str,
        row_idx: int,
        earlier: UseAt,
        earlier_writes: bool,
        later: UseAt,
        later_writes: bool,
    ) -> None:
        key = memory, earlier.index, later.index, earlier_writes
        race = self.races.get(key)
        if race is None:
            recorded = earlier.clock.recorded
            at = bisect(recorded, earlier.index, key=lambda record: record[0])
            race = self.races[key] = Race(
                memory,
                _side(earlier, earlier_writes),
                _side(later, later_writes),
                recorded[at][1] if at < len(recorded) else None,
            )
        race.rows.append(row_idx)


def _side(at: UseAt, writes: bool) -> Side:
    return Side(at.index, at.use.stream, at.use.entry, writes, at.use.note)
