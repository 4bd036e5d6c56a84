"""Moves the bytes of one transfer, whatever its way, and says what went wrong."""

import asyncio
import errno
from collections.abc import Collection, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from pagedkv.engine.disk.errors import BlockDamagedError
from pagedkv.engine.movers.copier import Marks, PageCopier
from pagedkv.engine.movers.host_rows import HostRows
from pagedkv.engine.observability.timed_blocks import TimedBlocks
from pagedkv.engine.observability.watch import Watch
from pagedkv.engine.planner.transfer import Transfer
from pagedkv.reference.identity import PageKey
from pagedkv.reference.tier_names import FailReason


class BlockFile(Protocol):
    """Blocks on disk, by slot; each call fails or succeeds as a whole."""

    async def read(self, slot: int, key: PageKey, into: memoryview) -> None:
        """Fill ``into``; ``BlockDamagedError`` if it is not what was written, or ``OSError``."""
        ...

    async def write(self, slot: int, key: PageKey, content: memoryview) -> None:
        """Write ``content``, or raise ``OSError``."""
        ...


class MoveFailedError(Exception):
    """The bytes of a transfer did not arrive: it is a failed one (TIER-6)."""

    def __init__(self, reason: FailReason, keys: Collection[PageKey]) -> None:
        self.reason = reason
        """Why."""
        self.keys = keys
        """The blocks at fault."""
        super().__init__(f"{reason}: {len(keys)} blocks")


class Mover:
    """Moves transfers. Nothing here decides anything.

    Args:
        copier: Copies to and from devices.
        host: Slots of the host tier; ``None`` without one.
        disk: Blocks of the disk tier; ``None`` without one.
        passing: Host memory for blocks that go from disk to a device without a host slot.
    """

    def __init__(
        self,
        copier: PageCopier,
        host: HostRows | None = None,
        disk: BlockFile | None = None,
        passing: HostRows | None = None,
    ) -> None:
        self.copier = copier
        """Copies to and from devices."""
        self._host = host
        self._disk = self._untimed_disk = disk
        self._passing = passing
        self._unused_rows = list(range(0 if passing is None else passing.num_slots))
        self._row_returned = asyncio.Semaphore(len(self._unused_rows))

    def watched_by(self, watch: Watch | None) -> None:
        """From now on, tell ``watch`` how long copies and disk calls take; ``None``: nobody."""
        self.copier.watch = watch
        if watch is not None and self._untimed_disk is not None:
            self._disk = TimedBlocks(self._untimed_disk, watch)
        else:
            self._disk = self._untimed_disk

    async def move(self, transfer: Transfer, marks: Marks) -> None:
        """Move all bytes of ``transfer``; nothing of it goes on once this has returned.

        Raises:
            MoveFailedError: Some did not arrive.
            DeviceFailedError: A device has failed.
        """
        match transfer.source, transfer.target:
            case "peer", "device":
                await self.copier.from_peer(transfer, marks)
            case "device", "host":
                await self.copier.to_host(transfer, marks, self._slots, transfer.target_slots)
            case "host", "device":
                slots, pages = transfer.source_slots, transfer.pages
                await self.copier.to_device(transfer, marks, self._slots, slots, pages)
            case "host", "disk":
                await self._write(transfer)
            case "disk", "host":
                await self._prefetch(transfer)
            case "disk", "device":
                await self._read(transfer, marks)
            case way:
                raise AssertionError(f"no transfer goes {way}")

    @property
    def _slots(self) -> HostRows:
        assert self._host is not None, "only a host tier's transfers use its slots"
        return self._host

    async def _write(self, transfer: Transfer) -> None:
        places = zip(transfer.keys, transfer.source_slots, transfer.target_slots, strict=True)
        writes = [self._write_block(target, key, source) for key, source, target in places]
        await _all_of(transfer.keys, writes)

    async def _prefetch(self, transfer: Transfer) -> None:
        places = zip(transfer.keys, transfer.source_slots, transfer.target_slots, strict=True)
        reads = [
            self._read_block(source, key, self._slots, target) for key, source, target in places
        ]
        await _all_of(transfer.keys, reads)

    async def _read(self, transfer: Transfer, marks: Marks) -> None:
        """Blocks with a host slot are read into it and copied together, the others one by one."""
        slot_of = dict(transfer.promoted)
        reads = [
            self._read_block(source, key, self._slots, slot_of[n])
            if n in slot_of
            else self._read_past_host(transfer, marks, n)
            for n, (key, source) in enumerate(
                zip(transfer.keys, transfer.source_slots, strict=True)
            )
        ]
        await _all_of(transfer.keys, reads)
        if self.copier.watch is not None:
            self.copier.watch.blocks_read(transfer)
        if slot_of:
            pages = [transfer.pages[n] for n in slot_of]
            slots = list(slot_of.values())
            await self.copier.to_device(transfer, marks, self._slots, slots, pages)

    async def _read_past_host(self, transfer: Transfer, marks: Marks, n: int) -> None:
        assert self._passing is not None
        async with self._row_returned:
            with self._passing_row() as row:
                source, key = transfer.source_slots[n], transfer.keys[n]
                await self._read_block(source, key, self._passing, row)
                page = transfer.pages[n]
                await self.copier.to_device(transfer, marks, self._passing, [row], [page])

    async def _read_block(self, slot: int, key: PageKey, rows: HostRows, row: int) -> None:
        assert self._disk is not None
        with self.copier.host_access(rows, row, writes=True):
            await self._disk.read(slot, key, rows.row(row))

    async def _write_block(self, slot: int, key: PageKey, row: int) -> None:
        assert self._disk is not None
        with self.copier.host_access(self._slots, row, writes=False):
            await self._disk.write(slot, key, self._slots.row(row))

    @contextmanager
    def _passing_row(self) -> Iterator[int]:
        row = self._unused_rows.pop()
        try:
            yield row
        finally:
            self._unused_rows.append(row)


async def _all_of(keys: Sequence[PageKey], moves: Sequence[Coroutine[Any, Any, None]]) -> None:
    """Run ``moves``, one per block, to their end, whatever becomes of the others.

    Raises:
        MoveFailedError: Some have failed, and the first of them for the reason that is given. All
            are named: whatever went wrong with a block that was read, it is lost (TIER-6).
    """
    results = await asyncio.gather(*moves, return_exceptions=True)
    failed: list[PageKey] = []
    reasons: list[FailReason] = []
    for key, result in zip(keys, results, strict=True):
        if isinstance(result, BlockDamagedError | OSError):
            failed.append(key)
            reasons.append(_reason(result))
        elif isinstance(result, BaseException):
            raise result
    if failed:
        raise MoveFailedError(reasons[0], failed)


def _reason(error: BlockDamagedError | OSError) -> FailReason:
    if isinstance(error, BlockDamagedError):
        return "corrupt"
    return "no_space" if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) else "io_error"
