"""Writes logs of stream order, from within any system: this file needs nothing but Python.

Copy it next to the code that enqueues, and write a line for each thing that is enqueued::

    log = OrderLogWriter(open("order.jsonl", "w"))
    log.launch("compute", reads={"blocks": [4, 5, 9]}, writes={"blocks": [9]}, note="step 7")
    log.copy("offload", reads={"blocks": [9]}, writes={"slots": [3]})
"""

import json
import threading
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import TextIO

HOST = "host"
"""The program itself, among the names of streams."""

Rows = Mapping[str, Iterable[int]]
"""Rows by the name of their memory, such as ids of blocks."""

NONE: Rows = MappingProxyType({})
"""No rows."""


class OrderLogWriter:
    """Writes one line per call, in the order of the calls, which has to be that of the enqueuing.

    Args:
        file: Where to; the caller closes it.
    """

    def __init__(self, file: TextIO) -> None:
        self.lock = threading.RLock()
        """Held for each line. Where several threads enqueue, hold it around what is enqueued and
        its line, so that the two orders are one."""
        self._file = file
        self._num_events = 0
        self._line(format="pagedkv-stream-order", version=1)

    def launch(
        self, stream: str, *, reads: Rows = NONE, writes: Rows = NONE, note: str = ""
    ) -> None:
        """A forward, or any other kernel, was enqueued on ``stream``."""
        self._use("launch", stream, reads, writes, note)

    def copy(self, stream: str, *, reads: Rows = NONE, writes: Rows = NONE, note: str = "") -> None:
        """Copies were enqueued on ``stream``."""
        self._use("copy", stream, reads, writes, note)

    def host(self, *, reads: Rows = NONE, writes: Rows = NONE, note: str = "") -> None:
        """The CPU has used rows; write it twice, before and after, if that takes a while."""
        self._use("host", HOST, reads, writes, note)

    def record(self, stream: str, event: int | None = None) -> int:
        """An event was recorded on ``stream``.

        Args:
            stream: Behind what is on it now.
            event: A number for it, such as ``id(event)``; by default a fresh one.

        Returns:
            The number, for :meth:`wait`.
        """
        with self.lock:
            self._num_events += 1
            event = self._num_events if event is None else event
            self._line(entry="record", stream=stream, event=event)
        return event

    def wait(self, stream: str, event: int) -> None:
        """``stream`` waits for ``event``; ``host``: the program has seen that it is done."""
        self._line(entry="wait", stream=stream, event=event)

    def wait_stream(self, stream: str, other: str) -> None:
        """``stream`` waits for all that is on ``other``, as after synchronizing with it."""
        with self.lock:
            self.wait(stream, self.record(other))

    def _use(self, entry: str, stream: str, reads: Rows, writes: Rows, note: str) -> None:
        named = {"note": note} if note else {}
        self._line(
            entry=entry, stream=stream, reads=_ranges(reads), writes=_ranges(writes), **named
        )

    # object: strings, numbers and ranges, whatever the entry has.
    def _line(self, **fields: object) -> None:
        with self.lock:
            self._file.write(json.dumps(fields, separators=(",", ":")) + "\n")


def _ranges(rows: Rows) -> dict[str, list[list[int]]]:
    """Each first row with how many follow on each other."""
    found: dict[str, list[list[int]]] = {}
    for memory, numbers in rows.items():
        ranges = found[memory] = []
        for row in sorted(set(numbers)):
            if ranges and sum(ranges[-1]) == row:
                ranges[-1][1] += 1
            else:
                ranges.append([row, 1])
    return found
