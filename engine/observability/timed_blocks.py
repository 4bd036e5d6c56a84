"""The disk tier's blocks, with a watch on every read and write."""

from collections.abc import Sequence
from typing import Protocol

from pagedkv.engine.disk.block import Block, Failures
from pagedkv.engine.observability.watch import Watch


class Blocks(Protocol):
    """Blocks by slot; see ``BlockFile`` of the movers."""

    async def read(self, blocks: Sequence[Block]) -> Failures:
        """Fill the memory of ``blocks``."""
        ...

    async def write(self, blocks: Sequence[Block]) -> Failures:
        """Write ``blocks``."""
        ...


class TimedBlocks:
    """Does what ``blocks`` does, and tells ``watch`` how long it took."""

    def __init__(self, blocks: Blocks, watch: Watch) -> None:
        self.blocks = blocks
        """What it stands before."""
        self._watch = watch

    async def read(self, blocks: Sequence[Block]) -> Failures:
        """Fill the memory of ``blocks``."""
        with self._watch.disk_operation("read", blocks) as failures:
            failures |= await self.blocks.read(blocks)
        return failures

    async def write(self, blocks: Sequence[Block]) -> Failures:
        """Write ``blocks``."""
        with self._watch.disk_operation("write", blocks) as failures:
            failures |= await self.blocks.write(blocks)
        return failures
