"""Moves the bytes of one transfer, whatever its way, and says what went wrong."""

import asyncio
import errno
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Protocol

from pagedkv.engine.disk.block import Block, Failures
from pagedkv.engine.disk.errors import BlockDamagedError, BlockMissingError
from pagedkv.engine.movers.copier import Arrivals, Marks, PageCopier
from pagedkv.engine.movers.host_rows import HostRows
from pagedkv.engine.observability.timed_blocks import TimedBlocks
from pagedkv.engine.observability.watch import Watch
from pagedkv.engine.planner.transfer import Transfer
from pagedkv.reference.identity import PageKey
from pagedkv.reference.tier_names import FailReason


class BlockFile(Protocol):
    """Blocks on disk, by slot: one call for all blocks of a transfer."""

    async def read(self, blocks: Sequence[Block]) -> Failures:
        """Fill the memory of ``blocks``; which of them did not get there, or are damaged."""
        ...

    async def write(self, blocks: Sequence[Block]) -> Failures:
        """Write ``blocks``; which of them could not be written."""
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
        self._unused_rows: asyncio.Queue[int] = asyncio.Queue()
        for row in range(0 if passing is None else passing.num_slots):
            self._unused_rows.put_nowait(row)

    def watched_by(self, watch: Watch | None) -> None:
        """From now on, tell ``watch`` how long copies and disk calls take; ``None``: nobody."""
        self.copier.watch = watch
        if watch is not None and self._untimed_disk is not None:
            self._disk = TimedBlocks(self._untimed_disk, watch)
        else:
            self._disk = self._untimed_disk

    async def move(
        self, transfer: Transfer, marks: Marks, enqueued: Callable[[Arrivals], None]
    ) -> None:
        """Move all bytes of ``transfer``; nothing of it goes on once this has returned.

        When all that can fail of a load into a device is done, ``enqueued`` is told of the copies
        that are left; never, if none is.

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
                await self.copier.to_device(transfer, marks, self._slots, slots, pages, enqueued)
            case "host", "disk":
                await self._write(transfer)
            case "disk", "host":
                await self._prefetch(transfer)
            case "disk", "device":
                await self._read(transfer, marks, enqueued)
            case way:
                raise AssertionError(f"no transfer goes {way}")

    @property
    def _slots(self) -> HostRows:
        assert self._host is not None, "only a host tier's transfers use its slots"
        return self._host

    async def _write(self, transfer: Transfer) -> None:
        assert self._disk is not None
        rows = transfer.source_slots
        blocks = _blocks(transfer.target_slots, transfer.keys, self._slots, rows)
        with self.copier.host_access(self._slots, rows, writes=False):
            failures = await self._disk.write(blocks)
        _check(transfer, failures)

    async def _prefetch(self, transfer: Transfer) -> None:
        rows = dict(enumerate(transfer.target_slots))
        _check(transfer, await self._read_blocks(transfer, self._slots, rows))

    async def _read(
        self, transfer: Transfer, marks: Marks, enqueued: Callable[[Arrivals], None]
    ) -> None:
        """Blocks with a host slot are read into it, the others go by as rows are there for them."""
        kept = dict(transfer.promoted)
        failures = await self._read_blocks(transfer, self._slots, kept)
        others = [n for n in range(len(transfer.keys)) if n not in kept]
        while others:
            assert self._passing is not None
            async with self._passing_rows(len(others)) as rows:
                passing = dict(zip(others, rows, strict=False))
                failures |= await self._read_blocks(transfer, self._passing, passing)
                if not failures:
                    await self._copy_on(
                        transfer, marks, self._passing, passing, enqueued=lambda _: None
                    )
            del others[: len(passing)]
        _check(transfer, failures)
        if self.copier.watch is not None:
            self.copier.watch.blocks_read(transfer)
        if kept:
            await self._copy_on(transfer, marks, self._slots, kept, enqueued)

    async def _read_blocks(
        self, transfer: Transfer, slots: HostRows, rows: Mapping[int, int]
    ) -> Failures:
        """Read blocks from disk, given by their numbers in ``transfer``, each with its row."""
        assert self._disk is not None
        sources = [transfer.source_slots[n] for n in rows]
        into = list(rows.values())
        with self.copier.host_access(slots, into, writes=True):
            keys = [transfer.keys[n] for n in rows]
            return await self._disk.read(_blocks(sources, keys, slots, into))

    async def _copy_on(
        self,
        transfer: Transfer,
        marks: Marks,
        slots: HostRows,
        rows: Mapping[int, int],
        enqueued: Callable[[Arrivals], None],
    ) -> None:
        """Copy blocks to the device, given by their numbers in ``transfer``, each with its row."""
        pages = [transfer.pages[n] for n in rows]
        held = list(rows.values())
        await self.copier.to_device(transfer, marks, slots, held, pages, enqueued)

    @asynccontextmanager
    async def _passing_rows(self, wanted: int) -> AsyncIterator[list[int]]:
        """Rows for ``wanted`` blocks, or for as many as there are, once there is one."""
        rows = [await self._unused_rows.get()]
        while len(rows) < wanted and not self._unused_rows.empty():
            rows.append(self._unused_rows.get_nowait())
        try:
            yield rows
        finally:
            for row in rows:
                self._unused_rows.put_nowait(row)


def _blocks(
    slots: Sequence[int], keys: Sequence[PageKey], host: HostRows, rows: Sequence[int]
) -> list[Block]:
    places = zip(slots, keys, rows, strict=True)
    return [Block(slot, key, host.row(row)) for slot, key, row in places]


def _check(transfer: Transfer, failures: Failures) -> None:
    """A transfer has failed if one of its blocks has.

    Raises:
        MoveFailedError: For the reason of the first of them. All are named: whatever went wrong
            with a block that was read, it is lost (TIER-6).
    """
    failed = [key for key in transfer.keys if key in failures]
    if failed:
        raise MoveFailedError(_reason(failures[failed[0]]), failed)


def _reason(error: BlockDamagedError | BlockMissingError | OSError) -> FailReason:
    if isinstance(error, BlockDamagedError):
        return "corrupt"
    if isinstance(error, BlockMissingError):
        return "missing"
    return "no_space" if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) else "io_error"
