"""Tracers that keep what a manager reports: in a file, or the latest of it in memory."""

import gzip
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from pagedkv.reference.events import Event
from pagedkv.traces.atomic_file import replace_file
from pagedkv.traces.events.codec import encode, encode_header
from pagedkv.traces.events.setup import EventTraceHeader


class EventRecorder:
    """A tracer that writes every event to an open binary file as it happens."""

    def __init__(self, file: "BinaryIO | gzip.GzipFile", header: EventTraceHeader) -> None:
        self.count = 0
        """Events written so far."""
        self._file = file
        self._first = header.first_seq
        file.write(encode_header(header) + b"\n")

    def emit(self, event: Event) -> None:
        """Write one event."""
        self._file.write(encode(self._first + self.count, event) + b"\n")
        self.count += 1


class FlightRecorder:
    """A tracer that keeps the latest events in memory, cheaply enough to be always on.

    Args:
        capacity: Most events to keep.
    """

    def __init__(self, capacity: int) -> None:
        if capacity < 1:
            raise ValueError(f"capacity is {capacity}; it must be at least 1")
        self.total = 0
        """Events seen so far; those before the last ``capacity`` are gone."""
        self._events: deque[Event] = deque(maxlen=capacity)

    def emit(self, event: Event) -> None:
        """Keep one event, and forget the oldest if there are too many."""
        self._events.append(event)
        self.total += 1

    @property
    def first_seq(self) -> int:
        """Number of the oldest event that is still there, counted from the first one seen."""
        return self.total - len(self._events)

    @property
    def events(self) -> list[Event]:
        """The events that are still there, oldest first."""
        return list(self._events)


@contextmanager
def record_to(path: Path | str, header: EventTraceHeader) -> Iterator[EventRecorder]:
    """A recorder for a file, compressed if its name ends in ``.gz``.

    The file appears when the block ends without an error; equal runs give equal bytes.

    Raises:
        OSError: The file cannot be written; what was there before stays.
    """
    path = Path(path)
    with replace_file(path) as file:
        if path.suffix != ".gz":
            yield EventRecorder(file, header)
            return
        with gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=0) as packed:
            yield EventRecorder(packed, header)
