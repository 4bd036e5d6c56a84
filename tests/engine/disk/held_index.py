"""An index whose transactions wait, or fail, as a test says."""

import asyncio
import sqlite3
import threading
from collections.abc import Mapping

from pagedkv.engine.disk.index import BlockRow, Index


class HeldIndex:
    """Takes the place of ``apply`` of an open index: from now on each call waits to be let go."""

    def __init__(self, index: Index) -> None:
        self.batches: list[dict[int, BlockRow | None]] = []
        """The changes of all transactions that have begun."""
        self.errors: list[sqlite3.Error] = []
        """What the next transactions fail with, once they are let go."""
        self._begun, self._may_go = threading.Semaphore(0), threading.Semaphore(0)
        self._apply = index.apply
        index.apply = self._held  # type: ignore[method-assign]

    async def begun(self) -> None:
        """Return once one more transaction has begun."""
        assert await asyncio.to_thread(self._begun.acquire, timeout=10), "no transaction begins"

    def let_go(self, transactions: int = 1_000_000) -> None:
        """Let this many more transactions go on."""
        self._may_go.release(transactions)

    def _held(
        self, changes: Mapping[int, BlockRow | None], nbytes: int, *, clear: bool = False
    ) -> None:
        self.batches.append(dict(changes))
        self._begun.release()
        self._may_go.acquire(timeout=10)  # a test that fails does not hang
        if self.errors:
            raise self.errors.pop(0)
        self._apply(changes, nbytes, clear=clear)
