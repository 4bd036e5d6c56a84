"""The bytes of one page, taken out of a replica's memory and put back (TIER-3)."""

from collections.abc import Sequence

import torch
import xxhash

from pagedkv.reference.buffers import KVCacheMemory
from pagedkv.reference.identity import PageKey

PageBytes = tuple[torch.Tensor, ...]
"""One uint8 row ``[bytes_per_page]`` per memory unit, on the CPU.

A replicated unit has one row, because its shards are equal; values and scales stay together.
"""


def read_page(memory: Sequence[KVCacheMemory], page: int) -> PageBytes:
    """The bytes of ``page``, one row per memory unit; for CPU memory, views of it."""
    return tuple(unit.buffer[page].cpu() for unit in memory)


def write_page(memory: Sequence[KVCacheMemory], page: int, content: PageBytes) -> None:
    """Overwrite ``page`` in every shard of every memory unit."""
    for unit, row in zip(memory, content, strict=True):
        for buffer in unit.all_buffers:
            buffer[page] = row


def copy_page(
    source: Sequence[KVCacheMemory], source_page: int, target: Sequence[KVCacheMemory], page: int
) -> int:
    """Copy a page between two replicas, shard by shard; returns the bytes written."""
    nbytes = 0
    for source_unit, target_unit in zip(source, target, strict=True):
        source_unit.copy_block_to(target_unit, page, source_page)
        nbytes += source_unit.buffer.shape[1] * len(source_unit.all_buffers)
    return nbytes


def checksum(key: PageKey, content: PageBytes) -> int:
    """Checksum over a block's key and all rows, for tiers that may lie (TIER-5).

    Without the key, two blocks that were exchanged together with their checksums would be intact.
    """
    digest = xxhash.xxh3_64(key)
    for row in content:
        digest.update(row.numpy().data)
    return digest.intdigest()
