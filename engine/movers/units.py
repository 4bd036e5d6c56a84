"""The memory of pages and host slots, piece by piece: which bytes of a slot belong to which shard.

A host slot, or a block on disk, is one row of bytes: the pages of all units of a replica, one
behind the other. A unit is a shard's values or scales, or what all shards hold alike (TIER-3).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pagedkv.engine.streams.stream import Copy, Memory
from pagedkv.reference.buffers import (
    KVCacheBuffer,
    KVCacheBufferInterface,
    KVCacheMemory,
    MultiKVCacheBuffer,
)


@dataclass(frozen=True, eq=False, slots=True)
class Unit:
    """The pages of one unit of a replica, on each device that holds them."""

    memories: Sequence[tuple[int, Memory]]
    """``(device_idx, pages)``; the first is read by offloads, all are written by onloads."""
    offset: int
    """Where its bytes begin in a slot."""
    nbytes: int
    """Bytes of one page."""


def units_of(buffer: KVCacheBufferInterface, replica: int, shards: int) -> list[Unit]:
    """The units of a replica, in the order of ``to_memory``.

    Args:
        buffer: The replica's memory.
        replica: Which one; its devices are ``replica * shards`` and those after it.
        shards: Devices of a replica.
    """
    units: list[Unit] = []
    offset = 0
    for n, (first_shard, memory) in enumerate(_by_shard(buffer)):
        memories = []
        for shard, rows in enumerate(memory.all_buffers, first_shard):
            device_idx = replica * shards + shard
            memories.append((device_idx, Memory(f"device {device_idx} unit {n}", rows)))
        units.append(Unit(memories, offset, memory.bytes_per_page))
        offset += memory.bytes_per_page
    return units


def copies(
    target: Memory, target_rows: Sequence[int], source: Memory, source_rows: Sequence[int]
) -> list[Copy]:
    """Copies of rows onto rows; those go together that are adjacent on both sides, in one chunk."""
    runs: list[Copy] = []
    start = 0
    for n in range(1, len(target_rows) + 1):
        if (
            n < len(target_rows)
            and target_rows[n] == target_rows[n - 1] + 1
            and source_rows[n] == source_rows[n - 1] + 1
            and not (target.chunk and target_rows[n] % target.chunk == 0)
            and not (source.chunk and source_rows[n] % source.chunk == 0)
        ):
            continue
        runs.append(Copy(target, target_rows[start], source, source_rows[start], n - start))
        start = n
    return runs


def _by_shard(buffer: KVCacheBufferInterface) -> Iterator[tuple[int, KVCacheMemory]]:
    """The units of transfer, each with the first shard that holds it."""
    if isinstance(buffer, MultiKVCacheBuffer):
        for child in buffer.children.values():
            yield from _by_shard(child)
        return
    assert isinstance(buffer, KVCacheBuffer), "there are no other buffers"
    for n, unit in enumerate(buffer.to_memory()):
        yield (0 if buffer.replicates_kv_across_tp else n % len(buffer.values)), unit
