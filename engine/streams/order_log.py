"""Logs what is enqueued on streams, so that its order can be checked where no GPU is.

::

    with open("order.jsonl", "w") as file:
        streams = LoggedStreams(ThreadStreams(num_devices=1), OrderLog(file.write))

What an entry says, and how such a log is checked, is in docs/stream-order.md.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager

from pagedkv.engine.streams.stream import (
    Access,
    Copy,
    DeviceFailedError,
    StreamEvent,
    StreamName,
    Streams,
)

HOST = "host"
"""The name of the program itself, among the names of streams."""

Ranges = dict[str, list[tuple[int, int]]]
"""Rows, by the name of their memory: the first of adjacent ones, and how many they are."""


def stream_label(device_idx: int, name: StreamName) -> str:
    """What a stream is called in the log: ``onload 0``."""
    return f"{name} {device_idx}"


class OrderLog:
    """Writes entries as JSON lines, each with its line end, the header first."""

    def __init__(self, write: Callable[[str], object]) -> None:
        """Call ``write`` with each line, in the thread that enqueues."""
        self._write = write
        self._num_events = 0
        self._line(format="pagedkv-stream-order", version=1)

    def launch(self, stream: str, reads: Ranges, writes: Ranges) -> None:
        """A forward was enqueued on ``stream``."""
        self._line(entry="launch", stream=stream, reads=reads, writes=writes)

    def copy(self, stream: str, reads: Ranges, writes: Ranges) -> None:
        """Copies were enqueued on ``stream``."""
        self._line(entry="copy", stream=stream, reads=reads, writes=writes)

    def host(self, reads: Ranges, writes: Ranges) -> None:
        """The CPU has used rows."""
        self._line(entry="host", stream=HOST, reads=reads, writes=writes)

    def record(self, stream: str) -> int:
        """An event was recorded behind what is on ``stream``; returns its number in the log."""
        self._num_events += 1
        self._line(entry="record", stream=stream, event=self._num_events)
        return self._num_events

    def wait(self, stream: str, event: int) -> None:
        """``stream`` goes on after ``event``; for the host: it knows that it has happened."""
        self._line(entry="wait", stream=stream, event=event)

    # object: strings, numbers and ranges, whatever the entry has.
    def _line(self, **fields: object) -> None:
        self._write(json.dumps(fields, separators=(",", ":")) + "\n")


class LoggedEvent:
    """An event of logged streams. The host has waited for it once it has seen it done."""

    __slots__ = ("_log", "_seen", "inner", "number")

    def __init__(self, log: OrderLog, number: int, inner: StreamEvent) -> None:
        self._log = log
        self._seen = False
        self.number = number
        """What the log calls it."""
        self.inner = inner
        """The event of the streams that do the work."""

    @property
    def done(self) -> bool:
        """Whether everything before it has happened."""
        if self.inner.done:
            self.seen()
            return True
        return False

    def seen(self) -> None:
        """The host knows that it is done; said once."""
        if not self._seen:
            self._seen = True
            self._log.wait(HOST, self.number)


class LoggedStreams(Streams):
    """Any streams, with a log of what is enqueued on them."""

    def __init__(self, inner: Streams, log: OrderLog) -> None:
        """Pass everything on to ``inner``, which belongs to this one from now on."""
        self.inner = inner
        """The streams that do the work."""
        self.log = log
        """Where it is written down."""

    def copy(
        self,
        device_idx: int,
        name: StreamName,
        copies: Sequence[Copy],
        after: Sequence[StreamEvent] = (),
    ) -> StreamEvent:
        """Enqueue ``copies``; in the log these are waits, a copy and a record."""
        events = [own(event) for event in after]
        inner = self.inner.copy(device_idx, name, copies, [event.inner for event in events])
        stream = stream_label(device_idx, name)
        for event in events:
            self.log.wait(stream, event.number)
        self.log.copy(
            stream,
            ranges((copy.source.name, copy.source_row, copy.count) for copy in copies),
            ranges((copy.target.name, copy.target_row, copy.count) for copy in copies),
        )
        return LoggedEvent(self.log, self.log.record(stream), inner)

    def record(self, device_idx: int, name: StreamName = "compute") -> StreamEvent:
        """An event behind everything that is on a stream."""
        inner = self.inner.record(device_idx, name)
        return LoggedEvent(self.log, self.log.record(stream_label(device_idx, name)), inner)

    def wait(self, device_idx: int, name: StreamName, event: StreamEvent) -> None:
        """What is enqueued from now on runs after ``event``."""
        event = own(event)
        self.inner.wait(device_idx, name, event.inner)
        self.log.wait(stream_label(device_idx, name), event.number)

    def launched(self, device_idx: int, accesses: Iterable[Access]) -> None:
        """Log a forward."""
        self.log.launch(stream_label(device_idx, "compute"), *reads_and_writes(accesses))

    def host_accessed(self, accesses: Iterable[Access]) -> None:
        """Log what the CPU does itself."""
        self.log.host(*reads_and_writes(accesses))

    async def finished(self, event: StreamEvent) -> None:
        """Return once ``event`` is done."""
        event = own(event)
        try:
            await self.inner.finished(event.inner)
        except DeviceFailedError:
            event.seen()  # not done, but over: nothing goes on there
            raise
        event.seen()

    def capturing(self) -> AbstractContextManager[None]:
        """That of the streams that do the work."""
        return self.inner.capturing()

    async def aclose(self) -> None:
        """Close the streams that do the work."""
        await self.inner.aclose()

    def __repr__(self) -> str:
        return f"LoggedStreams({self.inner})"


def own(event: StreamEvent) -> LoggedEvent:
    """``event``, if it is one of these streams'.

    Raises:
        TypeError: It comes from other streams, such as the ones that are logged.
    """
    if not isinstance(event, LoggedEvent):
        raise TypeError(f"event is {event!r}; give one that these streams have returned")
    return event


def reads_and_writes(accesses: Iterable[Access]) -> tuple[Ranges, Ranges]:
    """Accesses as ranges: what is read, and what is written."""
    accesses = list(accesses)
    reads = ((access.memory, access.row, 1) for access in accesses if not access.writes)
    writes = ((access.memory, access.row, 1) for access in accesses if access.writes)
    return ranges(reads), ranges(writes)


def ranges(rows: Iterable[tuple[str, int, int]]) -> Ranges:
    """Ranges by memory; those that follow on each other become one."""
    found: Ranges = {}
    for memory, row, count in rows:
        of_memory = found.setdefault(memory, [])
        if of_memory and sum(of_memory[-1]) == row:
            of_memory[-1] = (of_memory[-1][0], of_memory[-1][1] + count)
        else:
            of_memory.append((row, count))
    return found
