"""What a disk call moves: blocks, each with its slot and its memory, and which of them fail."""

from typing import NamedTuple, TypeAlias

from pagedkv.engine.disk.errors import BlockDamagedError, BlockMissingError
from pagedkv.reference.identity import PageKey


class Block(NamedTuple):
    """A block on its way to its slot, or from there."""

    slot: int
    """Where it is on disk."""
    key: PageKey
    """Which block it is."""
    content: memoryview
    """Its bytes: what is written, or the memory that is read into."""


Failures: TypeAlias = dict[PageKey, BlockDamagedError | BlockMissingError | OSError]
"""By key, in the order of the call: the blocks that did not get through, and why."""
