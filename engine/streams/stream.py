"""The one interface behind which copies run: FIFO streams, and events that order them.

A stream does what is enqueued on it one after the other; streams run beside each other. Nothing
else orders two copies but an event: it is *recorded* behind what is on one stream, and another
stream *waits* for it, or the host does.
"""

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

from pagedkv.reference.tensor_types import Buffer

StreamName: TypeAlias = Literal["compute", "onload", "offload", "peer"]
"""The streams of a device: forwards, copies from the host, copies to it, and copies from another
device."""


@dataclass(frozen=True, eq=False, slots=True)
class Memory:
    """Rows of bytes that copies read and write."""

    name: str
    """Its name in the log: ``device 0 unit 1``, ``host unit 1``; a row of a unit that all shards
    hold has one name per shard."""
    rows: Buffer
    """``[rows, nbytes]`` uint8, each row contiguous; a device's pages, or the host pool's slots."""
    chunk: int | None = None
    """Rows that are pinned together: no copy may span two such chunks. ``None``: all are alike."""

    def __repr__(self) -> str:
        return f"Memory({self.name}: {list(self.rows.shape)})"


@dataclass(frozen=True, slots=True)
class Copy:
    """Adjacent rows of one memory onto as many adjacent rows of another, of equal length."""

    target: Memory
    """What is written."""
    target_row: int
    """The first row that is written."""
    source: Memory
    """What is read."""
    source_row: int
    """The first row that is read."""
    count: int = 1
    """How many rows."""


@dataclass(frozen=True, slots=True)
class Access:
    """A row that a forward or the CPU reads or writes, for the log."""

    memory: str
    """The name of the :class:`Memory`."""
    row: int
    """Which one."""
    writes: bool
    """Whether it is written, not only read."""


class StreamEvent(Protocol):
    """A point on a stream. It is owned by whoever recorded it, and needs no closing."""

    @property
    def done(self) -> bool:
        """Whether everything before it has happened. Never waits."""
        ...


class Streams(Protocol):
    """The streams of a manager's devices, one of each name per device.

    All methods but ``finished`` and ``aclose`` may be called from any one thread at a time, and
    never wait for a copy. A copy's memory has to live until an event behind it is done.
    """

    def copy(
        self,
        device_idx: int,
        name: StreamName,
        copies: Sequence[Copy],
        after: Sequence[StreamEvent] = (),
    ) -> StreamEvent:
        """Enqueue ``copies`` on a stream, behind what is on it and behind ``after``.

        Returns:
            An event behind the last of them.

        Raises:
            DeviceFailedError: The device takes no more work.
        """
        ...

    def record(self, device_idx: int, name: StreamName = "compute") -> StreamEvent:
        """An event behind everything that is on a stream."""
        ...

    def wait(self, device_idx: int, name: StreamName, event: StreamEvent) -> None:
        """What is enqueued on the stream from now on runs after ``event``."""
        ...

    def launched(self, device_idx: int, accesses: Iterable[Access]) -> None:
        """Note in the log that a forward was launched on the compute stream; enqueues nothing.

        ``accesses`` is not looked at where nothing is logged: a generator costs nothing there.
        """
        ...

    def host_accessed(self, accesses: Iterable[Access]) -> None:
        """Note in the log that the CPU reads or writes rows now; enqueues nothing.

        An access that lasts while other tasks run is noted when it begins and when it has ended.
        """
        ...

    def capturing(self) -> AbstractContextManager[None]:
        """While a graph is captured, nothing touches the driver: it is kept back until the end.

        Blocks at first until threads have left the driver. Streams without a driver do nothing.
        """
        return nullcontext()

    async def finished(self, event: StreamEvent) -> None:
        """Return once ``event`` is done; other tasks run meanwhile.

        Raises:
            DeviceFailedError: The device has failed; what became of the copies is not known.
        """
        ...

    async def aclose(self) -> None:
        """Wait for what is enqueued, and give threads and streams back; twice is harmless."""
        ...


class DeviceFailedError(RuntimeError):
    """A device takes no more work: its replica is poisoned (FAIL-2)."""

    def __init__(self, device_idx: int, reason: str) -> None:
        self.device_idx = device_idx
        """Which one."""
        self.reason = reason
        """What it said."""
        super().__init__(f"device {device_idx} has failed: {reason}")
