"""The disk tier's blocks, with a watch on every read and write."""

from typing import Protocol

from pagedkv.engine.observability.watch import Watch
from pagedkv.reference.identity import PageKey


class Blocks(Protocol):
    """Blocks by slot; see ``BlockFile`` of the movers."""

    async def read(self, slot: int, key: PageKey, into: memoryview) -> None:
        """Fill ``into``."""
        ...

    async def write(self, slot: int, key: PageKey, content: memoryview) -> None:
        """Write ``content``."""
        ...


class TimedBlocks:
    """Does what ``blocks`` does, and tells ``watch`` how long it took."""

    def __init__(self, blocks: Blocks, watch: Watch) -> None:
        self.blocks = blocks
        """What it stands before."""
        self._watch = watch

    async def read(self, slot: int, key: PageKey, into: memoryview) -> None:
        """Fill ``into``."""
        with self._watch.disk_operation("read"):
            await self.blocks.read(slot, key, into)

    async def write(self, slot: int, key: PageKey, content: memoryview) -> None:
        """Write ``content``."""
        with self._watch.disk_operation("write"):
            await self.blocks.write(slot, key, content)
