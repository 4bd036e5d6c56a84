"""A disk in memory that is slow, full, broken, or cut off from its power, as its seed decides.

It takes the place of a :class:`~pagedkv.engine.disk.directory.BlockDirectory`, with two
differences: it uses no threads, so that the same seed gives the same run, and it insists on what it
may expect of its callers. docs/faults.md shows how to test a server with it.
"""

import asyncio
import errno
import os
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from random import Random

from pagedkv.engine.disk.block import Block, Failures
from pagedkv.engine.disk.checksum import block_checksum
from pagedkv.engine.disk.errors import BlockDamagedError, BlockMissingError
from pagedkv.reference.identity import PageKey

RUBBISH = 0x5A
"""The byte that fills the target of a read that has begun and not ended."""


class DiskMisusedError(AssertionError):
    """A caller has touched a slot or a buffer that a call in flight was using."""


@dataclass
class DiskFaults:
    """What goes wrong. Shares are probabilities from 0 to 1, drawn anew for every call."""

    delay_s: float = 0.0
    """A call takes up to this long, in seconds of the loop's clock, so that calls overtake each
    other."""
    stuck: float = 0.0
    """Share of calls that take a hundred times as long."""
    read_errors: float = 0.0
    """Share of reads that fail with ``EIO``; a slab that ends too early looks the same."""
    write_errors: float = 0.0
    """Share of writes that fail with ``EIO``."""
    no_space: float = 0.0
    """Share of writes that fail with ``ENOSPC``."""
    torn: float = 0.0
    """Share of writes that claim to be complete although only the first half was written."""
    flipped: float = 0.0
    """Share of calls in which one bit changes on its way."""


@dataclass(frozen=True, slots=True)
class _Row:
    """What the index says of a slot."""

    key: PageKey
    checksum: bytes
    age: int


class SimulatedDisk:
    """Blocks in memory, by slot. :meth:`restarted` is the disk as the next manager finds it.

    Its index is written in batches: a crash loses what came last. A row never stands for bytes
    that are being overwritten.

    Args:
        capacity: Slots.
        block_nbytes: Bytes of every block.
        seed: Of all random choices.
        faults: What goes wrong; may be changed at any time.
    """

    def __init__(
        self, capacity: int, block_nbytes: int, *, seed: int = 0, faults: DiskFaults | None = None
    ) -> None:
        self.capacity = capacity
        """Slots."""
        self.block_nbytes = block_nbytes
        """Bytes of every block."""
        self.faults = faults or DiskFaults()
        """What goes wrong."""
        self.survivors: list[tuple[int, PageKey]] = []
        """Slots and blocks that were there at the start, oldest first (NS-4)."""
        self.strangers: list[PageKey] = []
        """Blocks of other weights; there are none."""
        self._random = Random(f"disk {seed}")
        self._seed = seed
        self._bytes: dict[int, bytes] = {}
        self._rows: dict[int, _Row] = {}
        self._stored: dict[int, _Row] = {}  # of the rows, what a crash leaves
        self._writing: dict[int, bool] = {}  # whether the write shall count
        self._reading: Counter[int] = Counter()
        self._written = 0
        self._closed = False

    def __repr__(self) -> str:
        return f"SimulatedDisk({len(self._rows)} blocks in {self.capacity} slots)"

    @property
    def blocks(self) -> dict[int, PageKey]:
        """By slot: the block that it holds."""
        return {slot: row.key for slot, row in self._rows.items()}

    async def write(self, blocks: Sequence[Block]) -> Failures:
        """Put blocks into their slots; what was there is gone from the beginning of the call.

        Returns:
            The blocks that could not be written; their slots hold nothing.

        Raises:
            DiskMisusedError: A slot is in use, or the bytes of a block have changed meanwhile.
        """
        return await _all_of(blocks, self._write)

    async def _write(self, block: Block) -> None:
        slot, key, content = block
        self._check(slot, content)
        if slot in self._writing or self._reading[slot]:
            raise DiskMisusedError(f"slot {slot} is written while another call uses it")
        self.forget(slot)
        if slot in self._stored:
            self._store()
        self._writing[slot] = True
        try:
            before = bytes(content)
            self._bytes[slot] = self._half_of(before, slot)  # what a crash leaves
            await self._delay()
            if bytes(content) != before:
                raise DiskMisusedError(
                    f"the buffer of slot {slot} was changed while it was written"
                )
            self._maybe_fail(self.faults.write_errors, errno.EIO)
            self._maybe_fail(self.faults.no_space, errno.ENOSPC)
            if not self._draw(self.faults.torn):
                self._bytes[slot] = self._perhaps_flipped(before)
            if self._writing[slot]:
                self._written += 1
                checksum = block_checksum(b"simulated", key, memoryview(before))
                self._rows[slot] = _Row(key, checksum, self._written)
        finally:
            del self._writing[slot]
        self._store_perhaps()

    async def read(self, blocks: Sequence[Block]) -> Failures:
        """Copy blocks from their slots into memory, and verify them there (TIER-5).

        Returns:
            The blocks that could not be read, or are not what was written under their keys: those
            are forgotten.

        Raises:
            DiskMisusedError: A slot is being written, or somebody has written to the memory.
        """
        return await _all_of(blocks, self._read)

    async def _read(self, block: Block) -> None:
        slot, key, into = block
        self._check(slot, into)
        if slot in self._writing:
            raise DiskMisusedError(f"slot {slot} is read while it is being written")
        row = self._rows.get(slot)
        if row is None:
            raise BlockMissingError(key)
        rubbish = bytes([RUBBISH]) * len(into)
        with self._reads(slot):
            into[:] = rubbish
            await self._delay()
            if bytes(into) != rubbish:
                raise DiskMisusedError(
                    f"the buffer for slot {slot} was written to while it was read"
                )
            self._maybe_fail(self.faults.read_errors, errno.EIO)
            into[:] = self._perhaps_flipped(self._bytes[slot])
            if block_checksum(b"simulated", key, into) != row.checksum:
                if self._rows.get(slot) is row:
                    self.forget(slot)
                raise BlockDamagedError(key)

    def forget(self, slot: int) -> None:
        """The slot holds nothing any more. A write in flight does not count."""
        if slot in self._writing:
            self._writing[slot] = False
        self._rows.pop(slot, None)

    def forget_all(self) -> None:
        """No slot holds anything any more."""
        self._writing = dict.fromkeys(self._writing, False)
        self._rows.clear()
        self._store()

    async def flush(self) -> None:
        """Return once a crash would leave all that was written so far."""
        await self._delay()
        self._store()

    async def aclose(self, oldest_first: Sequence[int] = ()) -> None:
        """Store everything, in the order of its last use."""
        if not self._closed:
            self._closed = True
            place = {slot: n for n, slot in enumerate(oldest_first)}
            order = sorted(self._rows, key=lambda slot: (place.get(slot, -1), self._rows[slot].age))
            self._rows = {
                slot: replace(self._rows[slot], age=age) for age, slot in enumerate(order)
            }
            self._store()

    async def crash(self) -> None:
        """End as a machine without power: index rows that were not stored are lost."""
        self._closed = True

    def restarted(self) -> "SimulatedDisk":
        """The disk as it is found after the end of this one."""
        disk = SimulatedDisk(
            self.capacity, self.block_nbytes, seed=self._seed + 1, faults=self.faults
        )
        order = sorted(self._stored, key=lambda slot: self._stored[slot].age)
        disk._rows = {slot: self._stored[slot] for slot in order}
        disk._bytes = dict(self._bytes)
        disk._written = max((row.age for row in disk._rows.values()), default=0)
        disk._store()
        disk.survivors = [(slot, row.key) for slot, row in disk._rows.items()]
        return disk

    def flip_bit(self, slot: int) -> None:
        """Damage a block behind everybody's back."""
        if slot in self._bytes:
            self._bytes[slot] = self._flipped(self._bytes[slot])

    def swap(self, slot: int, other: int) -> None:
        """Give two blocks each other's bytes, as a disk that writes to the wrong place does."""
        if slot in self._bytes and other in self._bytes:
            self._bytes[slot], self._bytes[other] = self._bytes[other], self._bytes[slot]

    def _check(self, slot: int, buffer: memoryview) -> None:
        if self._closed:
            raise DiskMisusedError(f"slot {slot} is used after the disk was closed")
        if not 0 <= slot < self.capacity or len(buffer) != self.block_nbytes:
            raise DiskMisusedError(
                f"slot {slot} with {len(buffer)} bytes: there are slots 0 to {self.capacity - 1} "
                f"of {self.block_nbytes} bytes"
            )

    @contextmanager
    def _reads(self, slot: int) -> Iterator[None]:
        self._reading[slot] += 1
        try:
            yield
        finally:
            self._reading[slot] -= 1

    async def _delay(self) -> None:
        seconds = self._random.uniform(0, self.faults.delay_s)
        await asyncio.sleep(seconds * (100 if self._draw(self.faults.stuck) else 1))

    def _draw(self, share: float) -> bool:
        return self._random.random() < share

    def _maybe_fail(self, share: float, error: int) -> None:
        if self._draw(share):
            raise OSError(error, os.strerror(error))

    def _half_of(self, content: bytes, slot: int) -> bytes:
        before = self._bytes.get(slot, bytes(self.block_nbytes))
        half = len(content) // 2
        return content[:half] + before[half:]

    def _perhaps_flipped(self, content: bytes) -> bytes:
        return self._flipped(content) if self._draw(self.faults.flipped) else content

    def _flipped(self, content: bytes) -> bytes:
        place = self._random.randrange(len(content))
        return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]

    def _store_perhaps(self) -> None:
        if self._draw(0.3):
            self._store()

    def _store(self) -> None:
        self._stored = dict(self._rows)


async def _all_of(blocks: Sequence[Block], move: Callable[[Block], Awaitable[None]]) -> Failures:
    """Move blocks beside each other, to the end of the last; which have failed, and why."""
    results = await asyncio.gather(*map(move, blocks), return_exceptions=True)
    failures: Failures = {}
    for block, result in zip(blocks, results, strict=True):
        if isinstance(result, BlockDamagedError | BlockMissingError | OSError):
            failures[block.key] = result
        elif result is not None:
            raise result
    return failures
