"""Blocks in a directory: one layout, one process, and after any end nothing but whole blocks.

docs/disk.md goes through what a crash can leave behind.
"""

import asyncio
import itertools
import logging
import math
import os
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Self, TypeAlias

from pagedkv.engine.disk.block import Block, Failures
from pagedkv.engine.disk.checksum import block_checksum, namespace_tag
from pagedkv.engine.disk.errors import BlockDamagedError, BlockMissingError
from pagedkv.engine.disk.files import REAL_FILES, Files
from pagedkv.engine.disk.index import BlockRow, Namespace
from pagedkv.engine.disk.index_writer import IndexWriter
from pagedkv.engine.disk.io_queue import IoQueue, Kind, to_the_end
from pagedkv.engine.disk.warm_start import OpenedDirectory, open_directory
from pagedkv.reference.identity import PageKey

MIN_PIECE_NBYTES = 2**18
"""The least that a thread is given of a transfer: enough to be worth its waking."""

MAX_PIECE_NBYTES = 2**22
"""The most that a thread is given of a transfer: a read waits for the end of such a write."""

_SlabCall: TypeAlias = Callable[[int, Sequence[memoryview]], dict[int, OSError]]

_logger = logging.getLogger(__name__)


class BlockDirectory:
    """An open directory. What is written to a slot can be read until the slot is written again.

    Which slot gets which block, and which block goes when, is for the caller to decide. All methods
    but :meth:`open` belong to one event loop; memory that is passed in belongs to the directory
    until the call is over, even if it is cancelled.
    """

    def __init__(self, opened: OpenedDirectory, depth: int) -> None:
        self.path = opened.path
        """Where it is."""
        self.namespace = opened.namespace
        """Whose blocks it holds, and how many fit."""
        self.survivors: list[tuple[int, PageKey]] = [
            (slot, row.key) for slot, row in opened.survivors.items()
        ]
        """Slots and blocks that were there at the start, oldest first (NS-4)."""
        self.strangers: list[PageKey] = opened.strangers
        """Blocks that were there under another model, or under none, and were dropped (NS-3)."""
        self._opened = opened
        self._slab = opened.slab
        self._tag = namespace_tag(opened.namespace.layout, opened.namespace.model)
        self._checksums: list[bytes | None] = [None] * opened.namespace.capacity
        for slot, row in opened.survivors.items():
            self._checksums[slot] = row.checksum
        self._ages = itertools.count(
            max((row.age for row in opened.survivors.values()), default=0) + 1
        )
        self._rows = IndexWriter(opened.index, opened.namespace.block_nbytes)
        self._depth = depth
        self._io = IoQueue(depth)
        self._is_wanted: dict[int, bool] = {}  # by slot: whether the write in flight shall count
        self._calls = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._closing: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"BlockDirectory({self.path}, {self.namespace.capacity} slots)"

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        layout: str,
        model: str | None,
        capacity: int,
        block_nbytes: int,
        direct_io: bool = False,
        depth: int = 8,
        files: Files = REAL_FILES,
    ) -> Self:
        """Open a directory; this reads the whole index and belongs on a worker thread.

        Args:
            path: The directory; it is made if it is missing, parents included.
            layout: Fingerprint of all that decides what the bytes mean (NS-1).
            model: The caller's name for the weights; without one nothing survives (NS-2).
            capacity: Slots. If there are more survivors than that, the oldest go.
            block_nbytes: Bytes of every block.
            direct_io: Whether to go past the page cache where that is possible.
            depth: Most transfers at a time.
            files: The calls to the operating system.

        Raises:
            InsufficientMemoryError: The disk does not have the room (SIZE-4).
            DirectoryUnusableError: It cannot be made, read or written.
            DirectoryInUseError: Somebody else has it open.
            LayoutMismatchError: It holds blocks of another layout; it is as it was (NS-3).
            NewerIndexError: A later version of this package has written it; it is as it was.
        """
        for name, number in (
            ("capacity", capacity),
            ("block_nbytes", block_nbytes),
            ("depth", depth),
        ):
            if number < 1:
                raise ValueError(f"{name} is {number}; use 1 or more")
        namespace = Namespace(layout, model, block_nbytes, capacity)
        opened = open_directory(Path(path), namespace, direct_io=direct_io, files=files)
        return cls(opened, depth)

    async def write(self, blocks: Sequence[Block]) -> Failures:
        """Put blocks into their slots; what was there is gone from the beginning of the call.

        When this returns, the blocks can be read, and their rows are on their way to the index.

        Args:
            blocks: No other call may use their slots until this one is over, but ``forget``; their
                ``block_nbytes`` bytes each must not change meanwhile.

        Returns:
            The blocks that could not be written, each with an ``OSError``; their slots hold
            nothing.

        Raises:
            ValueError: A slot is being written, or does not exist, or a length is wrong.
        """
        with self._call(blocks):
            slots = [block.slot for block in blocks]
            for slot in self._is_wanted.keys() & slots:
                raise ValueError(f"slot {slot} is being written; wait for that write to end")
            for slot in slots:
                self.forget(slot)
            self._is_wanted.update(dict.fromkeys(slots, True))
            try:
                # A row never stands for bytes that are being overwritten, not even on disk.
                await self._rows.settled(slots)
                outcomes = await self._moved("write", self._slab.write, blocks)
                failures: Failures = {}
                rows: dict[int, BlockRow | None] = {}
                for slot, key, _ in blocks:
                    outcome = outcomes[slot]
                    if isinstance(outcome, OSError):
                        failures[key] = outcome
                    elif self._is_wanted[slot]:
                        self._checksums[slot] = outcome
                        rows[slot] = BlockRow(key, outcome, next(self._ages))
                self._rows.put(rows)
                return failures
            finally:
                for slot in slots:
                    del self._is_wanted[slot]

    async def read(self, blocks: Sequence[Block]) -> Failures:
        """Copy blocks from their slots into memory, and verify them there (TIER-5).

        Args:
            blocks: Their slots must not be written until this call is over; their memory is
                writable, ``block_nbytes`` for each.

        Returns:
            The blocks that are not in memory now, each with an ``OSError`` if it could not be read,
            a ``BlockMissingError`` if its slot holds nothing, or a ``BlockDamagedError`` if that
            does not hold the bytes that were written under its key: then the slot is forgotten.

        Raises:
            ValueError: A slot does not exist, or a length is wrong.
        """
        with self._call(blocks):
            expected = {slot: self._checksums[slot] for slot, _, _ in blocks}
            stored = [block for block in blocks if expected[block.slot] is not None]
            outcomes = await self._moved("read", self._slab.read, stored)
            failures: Failures = {}
            for slot, key, _ in blocks:
                outcome = outcomes.get(slot)
                if outcome is None:
                    failures[key] = BlockMissingError(key)
                elif isinstance(outcome, OSError):
                    failures[key] = outcome
                elif outcome != expected[slot]:
                    if self._checksums[slot] is expected[slot]:
                        self.forget(slot)
                    failures[key] = BlockDamagedError(key)
            return failures

    def forget(self, slot: int) -> None:
        """The slot holds nothing any more, also after a restart. A write in flight does not count.

        The end of its row is queued; the earlier this is called before the next write to the slot,
        the less that one has to wait.
        """
        if slot in self._is_wanted:
            self._is_wanted[slot] = False
        if self._checksums[slot] is not None:
            self._checksums[slot] = None
            self._rows.put({slot: None})

    def forget_all(self) -> None:
        """No slot holds anything any more (RESET-1). Once :meth:`flush` has returned, not even a
        loss of power brings a block back."""
        self._checksums = [None] * len(self._checksums)
        self._is_wanted = dict.fromkeys(self._is_wanted, False)
        self._rows.clear()

    async def flush(self) -> None:
        """Return once the rows of all that was written so far would survive ``kill -9``."""
        await self._rows.flush()

    async def aclose(self, oldest_first: Sequence[int] = ()) -> None:
        """Wait for the calls in flight, store everything and let others open the directory.

        What cannot be stored is logged, and lost. A second call waits for the first.

        Args:
            oldest_first: Slots in the order of their last use. Those not named count as older, in
                the order of their writing.
        """
        if self._closing is None:
            self._closing = asyncio.ensure_future(self._close(oldest_first))
        await to_the_end(self._closing)

    async def crash(self) -> None:
        """End as a killed process would: index rows that are queued are lost. For tests."""
        if self._closing is None:
            self._closing = asyncio.ensure_future(self._abandon())
        await to_the_end(self._closing)

    async def _abandon(self) -> None:
        await self._idle.wait()
        self._io.close()
        await asyncio.to_thread(self._rows.abandon)
        self._opened.index.close()
        self._slab.close()
        self._opened.lock.close()

    async def _close(self, oldest_first: Sequence[int]) -> None:
        await self._idle.wait()
        await asyncio.to_thread(self._store, oldest_first)

    def _store(self, oldest_first: Sequence[int]) -> None:
        try:
            self._io.close()
            self._rows.stop()
            # The bytes first: what the index says after a loss of power is then there.
            self._slab.sync()
            self._opened.index.reorder(oldest_first, next(self._ages))
            self._opened.index.checkpoint()
        except (OSError, sqlite3.Error) as error:
            _logger.warning("not all of %s could be stored: %s", self.path, error)
        finally:
            self._opened.index.close()
            self._slab.close()
            self._opened.lock.close()

    @contextmanager
    def _call(self, blocks: Sequence[Block]) -> Iterator[None]:
        """Check the arguments of a transfer, and let ``aclose`` wait for its end."""
        if self._closing is not None:
            raise RuntimeError(f"{self!r} is closed; open it again")
        for slot, _, content in blocks:
            if not 0 <= slot < len(self._checksums):
                raise ValueError(f"slot is {slot}; use 0 to {len(self._checksums) - 1}")
            if len(content) != self.namespace.block_nbytes:
                raise ValueError(
                    f"a block has {self.namespace.block_nbytes} bytes, but {len(content)} were "
                    "given"
                )
        for slot, times in Counter(block.slot for block in blocks).items():
            if times > 1:
                raise ValueError(f"slot {slot} is named twice in one call; use a call for each")
        self._calls += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._calls -= 1
            if not self._calls:
                self._idle.set()

    async def _moved(
        self, kind: Kind, move: _SlabCall, blocks: Sequence[Block]
    ) -> dict[int, bytes | OSError]:
        """Move blocks on the disk's threads; by slot, the checksum of what was moved."""
        calls = [partial(self._move, move, piece) for piece in self._pieces(blocks)]
        outcomes: dict[int, bytes | OSError] = {}
        for part in await self._io.run(kind, calls):
            outcomes |= part
        return outcomes

    def _pieces(self, blocks: Sequence[Block]) -> list[list[Block]]:
        """A piece for each thread, or more, or fewer; in the order of the slots."""
        nbytes = self.namespace.block_nbytes
        fair = math.ceil(len(blocks) / self._depth)
        size = max(1, min(max(fair, MIN_PIECE_NBYTES // nbytes), MAX_PIECE_NBYTES // nbytes))
        in_order = sorted(blocks, key=itemgetter(0))
        return [in_order[n : n + size] for n in range(0, len(in_order), size)]

    def _move(self, move: _SlabCall, piece: Sequence[Block]) -> dict[int, bytes | OSError]:
        outcomes: dict[int, bytes | OSError] = {}
        for run in _adjacent(piece):
            failed = move(run[0].slot, [block.content for block in run])
            for slot, key, content in run:
                outcomes[slot] = failed.get(slot) or block_checksum(self._tag, key, content)
        return outcomes


def _adjacent(blocks: Sequence[Block]) -> list[list[Block]]:
    """Runs of blocks whose slots lie behind each other."""
    runs: list[list[Block]] = []
    for block in blocks:
        if runs and runs[-1][-1].slot + 1 == block.slot:
            runs[-1].append(block)
        else:
            runs.append([block])
    return runs
