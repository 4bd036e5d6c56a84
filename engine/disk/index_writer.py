"""A thread that writes rows in batches, so that no loop and no transfer waits for SQLite."""

import asyncio
import contextlib
import logging
import sqlite3
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pagedkv.engine.disk.index import BlockRow, Index

RETRY_S = 1.0
"""How long after a failure the next attempt comes, unless somebody waits for it."""

_logger = logging.getLogger(__name__)


class IndexWriter:
    """Takes over an index until ``stop``; a slot's last change wins.

    A batch that cannot be written is kept and tried again with the next one; blocks whose rows
    never make it are lost at the next start, not before.

    Args:
        index: What to write to.
        block_nbytes: Bytes of every block.
        gather_s: How long changes that nobody waits for may wait for others.
    """

    def __init__(self, index: Index, block_nbytes: int, gather_s: float = 0.005) -> None:
        self._index = index
        self._block_nbytes = block_nbytes
        self._gather_s = gather_s
        self._queued = _Batch()
        self._writing = _Batch()
        self._waiter: asyncio.Future[None] | None = None  # one for all who wait for a batch
        self._changed = threading.Condition()
        self._hurry = False
        self._stopping = False
        self._failing = False
        self._thread = threading.Thread(target=self._run, name="pagedkv-index", daemon=True)
        self._thread.start()

    def put(self, rows: Mapping[int, BlockRow | None]) -> None:
        """Queue the rows of slots, or with ``None`` their ends. Never waits for the disk."""
        with self._changed:
            if not self._queued:
                self._changed.notify()
            self._queued.changes.update(rows)

    def clear(self) -> None:
        """Queue the end of all rows, which will then survive a loss of power too."""
        with self._changed:
            self._queued = _Batch(clear=True)
            self._changed.notify()

    async def settled(self, slots: Sequence[int]) -> None:
        """Return once what was queued for ``slots`` is committed, or could not be."""
        with self._changed:
            is_open = self._queued.touches(slots) or self._writing.touches(slots)
        if is_open:
            await self.flush()

    async def flush(self) -> None:
        """Return once all that was queued is committed, or could not be, which is logged."""
        with self._changed:
            if not self._queued and not self._writing:
                return
            if self._waiter is None:
                self._waiter = asyncio.get_running_loop().create_future()
                self._hurry = True
                self._changed.notify()
            waiter = self._waiter
        await asyncio.shield(waiter)  # others wait for it too

    def stop(self) -> None:
        """Write what is queued and end the thread; the index is the caller's again."""
        with self._changed:
            self._stopping = self._hurry = True
            self._changed.notify()
        self._thread.join()

    def abandon(self) -> None:
        """End the thread without writing what is queued."""
        with self._changed:
            self._queued = _Batch()
        self.stop()

    def _run(self) -> None:
        stopping = False
        while not stopping:
            with self._changed:
                self._changed.wait_for(lambda: self._queued or self._waiter or self._stopping)
                gather_s = RETRY_S if self._failing else self._gather_s
                self._changed.wait_for(lambda: self._hurry, gather_s)
                self._writing, self._queued = self._queued, _Batch()
                waiter, self._waiter = self._waiter, None
                self._hurry = stopping = self._stopping
            self._write(self._writing)
            if waiter is not None:
                _wake(waiter)

    def _write(self, batch: "_Batch") -> None:
        try:
            self._index.apply(batch.changes, self._block_nbytes, clear=batch.clear)
            if batch.clear:
                self._index.checkpoint()
            self._failing = False
        except sqlite3.Error as error:
            if not self._failing:
                _logger.warning("the index of the disk tier cannot be written: %s", error)
            self._failing = True
        with self._changed:
            if self._failing and not self._queued.clear:
                self._queued = _Batch({**batch.changes, **self._queued.changes}, batch.clear)
            self._writing = _Batch()


@dataclass
class _Batch:
    changes: dict[int, BlockRow | None] = field(default_factory=dict)
    clear: bool = False

    def __bool__(self) -> bool:
        return self.clear or bool(self.changes)

    def touches(self, slots: Sequence[int]) -> bool:
        return self.clear or not self.changes.keys().isdisjoint(slots)


def _wake(waiter: "asyncio.Future[None]") -> None:
    with contextlib.suppress(RuntimeError):  # its loop is closed: nobody waits any more
        waiter.get_loop().call_soon_threadsafe(waiter.set_result, None)
