"""Copies of pages between devices and host memory, on streams of their own."""

from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager

from pagedkv.engine.movers.host_rows import HostRows
from pagedkv.engine.movers.units import Unit, copies
from pagedkv.engine.observability.watch import Watch
from pagedkv.engine.observability.watched_copies import WatchedCopies
from pagedkv.engine.planner.transfer import Transfer
from pagedkv.engine.streams.stream import Access, Copy, DeviceFailedError, StreamEvent, Streams

Marks = dict[int, StreamEvent]
"""By device: an event behind every forward that was launched before a transfer was issued."""


Arrivals = Sequence[tuple[int, StreamEvent]]
"""Events behind the copies of a load, each with the device whose pages are written."""


class PageCopier:
    """Enqueues what a transfer moves to or from a device.

    A copy follows every forward that was launched before its transfer was issued: those may have
    written what it reads, or still read what it overwrites.

    Args:
        streams: The devices' streams.
        units: By replica: its memory.
    """

    def __init__(self, streams: Streams, units: Sequence[Sequence[Unit]]) -> None:
        self.watch: Watch | None = None
        """Is told when copies are over."""
        self._streams = streams
        self._units = units

    def mark(self, transfer: Transfer) -> Marks:
        """To be called when the transfer is issued, before anything else is launched."""
        replicas = {transfer.replica, transfer.source_replica} - {None}
        devices = {
            device_idx
            for replica in replicas
            if replica is not None
            for unit in self._units[replica]
            for device_idx, _ in unit.memories
        }
        return {device_idx: self._streams.record(device_idx) for device_idx in sorted(devices)}

    async def to_host(
        self,
        transfer: Transfer,
        marks: Marks,
        slots: HostRows,
        rows: Sequence[int],
    ) -> None:
        """Copy the transfer's pages into host ``rows``; return when they are there.

        Raises:
            DeviceFailedError: The device has failed.
        """
        assert transfer.replica is not None
        streams = self._streams_for(transfer)
        async with _all_finished(streams) as events:
            for unit, slot in zip(self._units[transfer.replica], slots.memories, strict=True):
                device_idx, memory = unit.memories[0]
                moved = copies(slot, rows, memory, transfer.pages)
                after = [marks[device_idx]]
                events.append(streams.copy(device_idx, "offload", moved, after))

    async def to_device(
        self,
        transfer: Transfer,
        marks: Marks,
        slots: HostRows,
        rows: Sequence[int],
        pages: Sequence[int],
        enqueued: Callable[[Arrivals], None],
    ) -> None:
        """Copy host ``rows`` into ``pages``, on every shard; return when they are there.

        ``enqueued`` is told when the last of the copies is on its stream.

        Raises:
            DeviceFailedError: A device has failed.
        """
        assert transfer.replica is not None
        streams = self._streams_for(transfer)
        arrivals: list[tuple[int, StreamEvent]] = []
        async with _all_finished(streams) as events:
            for unit, slot in zip(self._units[transfer.replica], slots.memories, strict=True):
                (root_idx, root), *peers = unit.memories
                moved = copies(root, pages, slot, rows)
                arrived = streams.copy(root_idx, "onload", moved, [marks[root_idx]])
                events.append(arrived)
                arrivals.append((root_idx, arrived))
                for device_idx, memory in peers:
                    # One copy over the bus from the host; the others hold the same.
                    spread = copies(memory, pages, root, pages)
                    after = [arrived, marks[device_idx]]
                    events.append(streams.copy(device_idx, "peer", spread, after))
                    arrivals.append((device_idx, events[-1]))
            enqueued(arrivals)

    def before_forward(self, arrivals: Arrivals) -> None:
        """What is launched from now on on these devices runs behind these copies."""
        for device_idx, event in arrivals:
            self._streams.wait(device_idx, "compute", event)

    async def from_peer(self, transfer: Transfer, marks: Marks) -> None:
        """Copy the transfer's pages from another replica; return when they are there.

        Raises:
            DeviceFailedError: A device has failed.
        """
        assert transfer.replica is not None and transfer.source_replica is not None
        streams = self._streams_for(transfer)
        targets, sources = self._units[transfer.replica], self._units[transfer.source_replica]
        async with _all_finished(streams) as events:
            for target, source in zip(targets, sources, strict=True):
                for (device_idx, memory), (source_idx, read) in zip(
                    target.memories, source.memories, strict=True
                ):
                    moved: list[Copy] = copies(memory, transfer.pages, read, transfer.source_pages)
                    after = [marks[device_idx], marks[source_idx]]
                    events.append(streams.copy(device_idx, "peer", moved, after))

    def launched(self, replica: int, reads: Iterable[int], writes: Iterable[int]) -> None:
        """Log that a forward was launched that reads and writes these pages, on every shard."""
        accesses = [(page, False) for page in reads] + [(page, True) for page in writes]
        devices = {device_idx for unit in self._units[replica] for device_idx, _ in unit.memories}
        for device_idx in sorted(devices):
            self._streams.launched(
                device_idx,
                (
                    Access(memory.name, page, written)
                    for unit in self._units[replica]
                    for idx, memory in unit.memories
                    if idx == device_idx
                    for page, written in accesses
                ),
            )

    @contextmanager
    def host_access(self, slots: HostRows, rows: Sequence[int], *, writes: bool) -> Iterator[None]:
        """Log that a disk call uses host rows from the beginning to the end of this scope."""
        names = [slot.name for slot in slots.memories]
        self._streams.host_accessed(Access(name, row, writes) for name in names for row in rows)
        try:
            yield
        finally:
            self._streams.host_accessed(Access(name, row, writes) for name in names for row in rows)

    def _streams_for(self, transfer: Transfer) -> Streams | WatchedCopies:
        return self._streams if self.watch is None else self.watch.copies_of(transfer)


@asynccontextmanager
async def _all_finished(streams: Streams | WatchedCopies) -> AsyncIterator[list[StreamEvent]]:
    """Wait at the end of the scope for the events that it has collected.

    For all of them, also if a device fails: copies of the others would go on meanwhile.

    Raises:
        DeviceFailedError: A device has failed.
    """
    events: list[StreamEvent] = []
    failures: list[DeviceFailedError] = []
    try:
        yield events
    except DeviceFailedError as error:
        failures.append(error)
    for event in events:
        try:
            await streams.finished(event)
        except DeviceFailedError as error:
            failures.append(error)
    if failures:
        raise failures[0]
