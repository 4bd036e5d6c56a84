"""The bytes of one block, taken out of a replica's memory and put back (TIER-3)."""

from collections.abc import Sequence

from pagedkv.reference.buffers import KVCacheMemory
from pagedkv.reference.tensor_types import Buffer

Content = list[Buffer]
"""A block's bytes: one uint8 tensor per unit of transfer; replicated content is there once."""


def read_page(memory: Sequence[KVCacheMemory], page: int) -> Content:
    """A copy of a page."""
    return [unit.buffer[page].to("cpu", copy=True) for unit in memory]


def write_page(memory: Sequence[KVCacheMemory], page: int, content: Content) -> None:
    """Overwrite a page, on every shard that holds the content."""
    for unit, data in zip(memory, content, strict=True):
        for buffer in unit.all_buffers:
            buffer[page].copy_(data)
