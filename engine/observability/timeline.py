"""A timeline of forwards, copies and disk transfers, for ui.perfetto.dev and chrome://tracing."""

import asyncio
import json
from collections import deque
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from typing import TextIO

from pagedkv.engine.observability.observer import Observer
from pagedkv.engine.observability.records import AllocRecord, CopyRecord, TransferRecord
from pagedkv.engine.observability.trace_events import (
    AllocInterval,
    Argument,
    Entry,
    FreePages,
    Slice,
    Tracks,
)
from pagedkv.engine.observability.watch import Watch
from pagedkv.engine.planner.state import AllocPlan, Request
from pagedkv.engine.streams.stream import DeviceFailedError, StreamEvent

LANES = {"onload": "H2D", "offload": "D2H", "peer": "peer", "compute": "compute"}
"""What a stream's lane is called."""

DISK = "disk"
"""The process, in the trace's sense, whose lanes are reads and writes."""

END = {"ph": "M", "name": "process_sort_index", "pid": 0, "args": {"sort_index": 0}}
"""The last event of a stream, after the last comma."""

WRITTEN_AT_ONCE = 512
"""Entries that are kept back before the file gets them."""


class Timeline(Observer):
    """Records intervals: ``manager.attach(timeline)``, and in the end ``timeline.write(path)``.

    Intervals are what the host sees. A copy begins when the forwards before it and the earlier
    copies of its stream are over, and ends when the event loop learns of it; so does a forward on
    a GPU. A load from disk is in two lanes: while its blocks are read, and while they are copied.

    Args:
        capacity: Most entries to keep; the oldest go first. About 500 bytes each.
        stream_to: A file that gets every entry, a few hundred at once; :meth:`close` writes the
            last of them. What is there can be read after a crash.
        clock: Seconds that never go back; those of the watch once it is attached.

    Raises:
        ValueError: ``capacity`` is not positive.
        OSError: The file cannot be written.
    """

    def __init__(
        self,
        *,
        capacity: int = 100_000,
        stream_to: Path | str | None = None,
        clock: Callable[[], float] = perf_counter,
    ) -> None:
        if capacity < 1:
            raise ValueError(f"capacity is {capacity}; it must be at least 1")
        self._clock = clock
        self._origin_s = clock()
        self._entries: deque[Entry] = deque(maxlen=capacity)
        self._file: TextIO | None = None
        self._tracks = Tracks(self._origin_s)
        if stream_to is not None:
            # Not in a scope: it is open until close().
            self._file = Path(stream_to).open("w", encoding="utf-8")  # noqa: SIM115
            self._file.write("[\n")
        self._watch: Watch | None = None
        self._lane_ends_s: dict[tuple[int, str], float] = {}
        self._read_already: set[str] = set()
        self._ending: set[asyncio.Task[None]] = set()

    # --- what the caller says ---------------------------------------------------------------

    @contextmanager
    def forward(self, device_idx: int, name: str, **arguments: Argument) -> Iterator[None]:
        """Around the launch of a forward: ``with timeline.forward(0, "prefill", tokens=512):``.

        On a GPU it goes on after the launch: it ends when the compute stream gets there, which an
        event of its own tells.

        Args:
            device_idx: Whose compute stream.
            name: What the slice is called.
            arguments: What it shows when it is clicked on.
        """
        began_s = self._clock()
        try:
            yield
        finally:
            event = self._end_of_forward(device_idx)
            if event is None or event.done:
                self._add_in_order(device_idx, "compute", name, began_s, self._clock(), arguments)
            else:
                ending = self._forward_ends(event, device_idx, name, began_s, arguments)
                task = asyncio.get_running_loop().create_task(ending)
                self._ending.add(task)
                task.add_done_callback(self._ending.discard)

    async def settle(self) -> None:
        """Return once all forwards that were launched are in the timeline."""
        if self._ending:
            await asyncio.wait(self._ending)

    def write(self, path: Path | str) -> None:
        """Write what is kept as one JSON object; the file is complete afterwards.

        Raises:
            OSError: It cannot be written.
            ValueError: The entries have gone to ``stream_to``: use that file.
        """
        if self._file is not None:
            raise ValueError("this timeline streams to a file already: call close() and use that")
        tracks = Tracks(self._origin_s)
        events = [event for entry in self._entries for event in tracks.events_of(entry)]
        with Path(path).open("w", encoding="utf-8") as file:
            json.dump({"traceEvents": events, "displayTimeUnit": "ms"}, file)

    def close(self) -> None:
        """Write what is kept back, and end the file; nothing is recorded any more."""
        if self._file is not None:
            self._flush(self._file)
            self._file.write(json.dumps(END) + "]\n")
            self._file.close()
            self._file = None
        self._entries = deque(maxlen=0)

    # --- what the engine says ---------------------------------------------------------------

    def attached(self, watch: Watch) -> None:
        """Take its clock; show how many pages are free."""
        self._watch = watch
        self._clock = watch.clock
        for replica in range(len(watch.state.pools)):
            self._add_free_pages(replica)

    def detached(self) -> None:
        """Forwards are recorded by the host's clock from now on."""
        self._watch = None

    def alloc_planned(self, request_id: Hashable, request: Request, plan: AllocPlan) -> None:
        """Fewer pages are free."""
        self._add_free_pages(request.replica)

    def alloc_ended(self, alloc: AllocRecord) -> None:
        """Add its interval."""
        assert alloc.ended_s is not None
        arguments: dict[str, Argument] = {"replica": alloc.replica, "retries": alloc.retries}
        if alloc.queue_s is not None:
            arguments["queue_ms"] = round(alloc.queue_s * 1e3, 3)
        if alloc.plan is not None:
            arguments["hit_blocks"] = alloc.plan.hits.total_blocks
            arguments["pages"] = len(alloc.plan.pages)
        if alloc.error is not None:
            arguments["error"] = repr(alloc.error)
        name = f"alloc {alloc.request_id}"
        self._add(AllocInterval(alloc.number, name, alloc.began_s, alloc.ended_s, arguments))

    def copied(self, copy: CopyRecord) -> None:
        """Add its slice to the lane of its stream."""
        arguments = self._arguments_of(copy.transfer.id)
        arguments |= {"blocks": copy.blocks, "bytes": copy.nbytes}
        name = f"{copy.transfer.source} to {copy.transfer.target}"
        lane = LANES[copy.stream]
        self._add_in_order(copy.device_idx, lane, name, copy.began_s, copy.ended_s, arguments)

    def blocks_read(self, record: TransferRecord) -> None:
        """Add the part of a load that was the disk's."""
        self._read_already.add(record.transfer.id)
        self._add_disk("read", record, self._clock())

    def transfer_settled(self, record: TransferRecord) -> None:
        """Add the slice of a disk transfer; show how many pages are free."""
        transfer = record.transfer
        if transfer.id in self._read_already:
            self._read_already.remove(transfer.id)
        elif transfer.source == "disk":
            self._add_disk("read", record, self._clock())
        elif transfer.target == "disk":
            self._add_disk("write", record, self._clock())
        if transfer.replica is not None:
            self._add_free_pages(transfer.replica)

    def released(self, request_id: Hashable) -> None:
        """More pages are free."""
        assert self._watch is not None
        for replica in range(len(self._watch.state.pools)):
            self._add_free_pages(replica)

    # --- entries ----------------------------------------------------------------------------

    def _end_of_forward(self, device_idx: int) -> StreamEvent | None:
        if self._watch is None:
            return None
        try:
            return self._watch.streams.record(device_idx)
        except RuntimeError:  # the device has failed, or the manager is closed
            return None

    async def _forward_ends(
        self,
        event: StreamEvent,
        device_idx: int,
        name: str,
        began_s: float,
        arguments: dict[str, Argument],
    ) -> None:
        if self._watch is None:
            return
        try:
            await self._watch.streams.finished(event)
        except DeviceFailedError:
            return
        self._add_in_order(device_idx, "compute", name, began_s, self._clock(), arguments)

    def _add_in_order(
        self,
        device_idx: int,
        lane: str,
        name: str,
        began_s: float,
        ended_s: float,
        arguments: dict[str, Argument],
    ) -> None:
        """Add what a stream did: it began nothing before the end of what it did before."""
        before_s = self._lane_ends_s.get((device_idx, lane), began_s)
        began_s = min(max(began_s, before_s), ended_s)
        self._lane_ends_s[device_idx, lane] = max(ended_s, before_s)
        self._add(Slice(f"device {device_idx}", lane, name, began_s, ended_s, arguments))

    def _add_disk(self, lane: str, record: TransferRecord, ended_s: float) -> None:
        arguments = self._arguments_of(record.transfer.id, record)
        arguments |= {"blocks": len(record.transfer.keys), "bytes": record.nbytes}
        if record.reason is not None:
            arguments["failed"] = record.reason
        name = f"{record.transfer.source} to {record.transfer.target}"
        self._add(Slice(DISK, lane, name, record.began_s, ended_s, arguments))

    def _arguments_of(
        self, transfer_id: str, record: TransferRecord | None = None
    ) -> dict[str, Argument]:
        assert self._watch is not None
        record = record or self._watch.transfers.get(transfer_id)
        arguments: dict[str, Argument] = {"transfer": transfer_id}
        if record is not None and record.requests:
            arguments["request"] = ", ".join(str(request) for request in record.requests)
        return arguments

    def _add_free_pages(self, replica: int) -> None:
        assert self._watch is not None
        free = self._watch.state.pools[replica].num_free
        self._add(FreePages(replica, self._clock(), free))

    def _add(self, entry: Entry) -> None:
        self._entries.append(entry)
        if self._file is not None and len(self._entries) >= WRITTEN_AT_ONCE:
            self._flush(self._file)

    def _flush(self, file: TextIO) -> None:
        for entry in self._entries:
            file.writelines(json.dumps(event) + ",\n" for event in self._tracks.events_of(entry))
        file.flush()
        self._entries.clear()
