"""One tier below the device: blocks by identity, in the order in which they would be given up.

Rules TIER-1 to TIER-6. Host, disk and block store are the same data structure here; they differ
in capacity, in who shares them, and in whether their blocks carry a checksum.
"""

from collections import OrderedDict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from pagedkv.reference.fates import Fates
from pagedkv.reference.identity import PageKey
from pagedkv.reference.page_bytes import PageBytes, checksum


@dataclass(eq=False, slots=True)
class Block:
    """One block in one tier."""

    name: bytes
    """Its key in the tier: the namespace, where there is one, and the identity of the page."""
    key: PageKey
    """Identity of the page."""
    parent: PageKey | None
    """Identity of the page before it; ``None`` for the first of a chain."""
    content: PageBytes | None = None
    """The bytes; ``None`` until all of them are there."""
    checksum: int | None = None
    """Checksum over key and bytes, in tiers that may lie."""
    pins: int = 0
    """Transfers in flight that read or write it."""

    def is_intact(self) -> bool:
        """Whether the bytes are still those that were written, and for this block (TIER-5)."""
        return self.checksum is None or (
            self.content is not None and checksum(self.key, self.content) == self.checksum
        )


@dataclass
class Tier:
    """Blocks of one tier, oldest first; reserved slots count from their reservation on."""

    capacity: int | None
    """Most blocks, those in flight included; ``None`` where somebody else bounds it."""
    verifies: bool = False
    """Whether blocks carry a checksum that is checked after each read."""
    prefix: bytes = b""
    """Put before every key: the namespace, in a tier that is shared with others (STORE-1)."""
    blocks: "OrderedDict[bytes, Block]" = field(default_factory=OrderedDict)
    """By prefixed key: landed blocks and reserved slots, the next victim first."""
    leaving: list[Block] = field(default_factory=list)
    """Blocks that can no longer be found, whose slots a transfer still uses (RESET-3)."""
    evictions: int = 0
    """Landed blocks given up to make room."""
    fates: Fates = field(default_factory=Fates)
    """Where evictions are noted."""
    writes_left: int | None = None
    """Blocks that may still be written under the daily budget; ``None``: no budget (TIER-8)."""
    arriving: dict[bytes, Block] = field(default_factory=dict)
    """In a store: what this manager is putting there, which nobody else can see yet."""
    known: set[bytes] = field(default_factory=set)
    """In a store: the blocks that are here as far as the events so far say (EVENT-5)."""

    @property
    def used(self) -> int:
        """Slots in use, those in flight included (TIER-1)."""
        return len(self.blocks) + len(self.leaving)

    def holds(self, key: PageKey) -> bool:
        """Whether the block is here or on its way here."""
        return self.prefix + key in self.blocks or self.prefix + key in self.arriving

    def find(self, key: PageKey) -> Block | None:
        """The block, if all its bytes are here (TIER-1)."""
        block = self.blocks.get(self.prefix + key)
        return block if block is not None and block.content is not None else None

    def reserve(
        self, key: PageKey, parent: PageKey | None, protected: Collection[PageKey]
    ) -> Block | None:
        """A pinned slot for ``key``, or ``None`` if none is free and none may be given up.

        Victims are taken oldest first; never a pinned block, never one of ``protected``.
        """
        if self.writes_left == 0:
            return None
        if self.capacity is not None and self.used >= self.capacity:
            victim = self._victim(protected)
            if victim is None:
                return None
            del self.blocks[victim.name]
            self.evictions += 1
            self.fates.note([victim.key], "evicted")
        if self.writes_left is not None:
            self.writes_left -= 1
        block = Block(self.prefix + key, key, parent, pins=1)
        (self.arriving if self.capacity is None else self.blocks)[block.name] = block
        return block

    def ask(self, keys: Sequence[PageKey]) -> tuple[tuple[PageKey, ...], tuple[PageKey, ...]]:
        """Of ``keys``: those that are here although :attr:`known` lacks them, and those that are
        not although it has them. From now on it is right about all of them."""
        found = tuple(k for k in keys if self.find(k) and self.prefix + k not in self.known)
        missing = tuple(k for k in keys if self.prefix + k in self.known and not self.find(k))
        self.known.update(self.prefix + key for key in found)
        self.known.difference_update(self.prefix + key for key in missing)
        return found, missing

    def believe(
        self, found: Sequence[PageKey], missing: Sequence[PageKey], content: PageBytes
    ) -> None:
        """Hold the blocks ``found`` from now on, with this content, and those ``missing`` not."""
        for key in found:
            if self.find(key) is None:
                self.blocks[self.prefix + key] = Block(self.prefix + key, key, None, content)
            self.known.add(self.prefix + key)
        for key in missing:
            self.blocks.pop(self.prefix + key, None)
            self.known.discard(self.prefix + key)

    def fill(self, block: Block, content: PageBytes) -> None:
        """Copy all bytes into a reserved slot: the block can be found from now on."""
        block.content = tuple(row.clone() for row in content)
        if self.verifies:
            block.checksum = checksum(block.key, content)
        if self.arriving.pop(block.name, None) is not None:
            self.blocks.setdefault(block.name, block)
            self.known.add(block.name)

    def refresh(self, chain: Sequence[PageKey]) -> None:
        """Make the blocks of ``chain``, root first, the youngest: leaf before root (TIER-4)."""
        for key in reversed(chain):
            if self.prefix + key in self.blocks:
                self.blocks.move_to_end(self.prefix + key)

    def unpin(self, block: Block) -> None:
        """A transfer no longer uses the block."""
        block.pins -= 1
        if not block.pins and block in self.leaving:
            self.leaving.remove(block)

    def drop(self, block: Block) -> None:
        """The block cannot be found any more; its slot is free once no transfer uses it."""
        if self.arriving.get(block.name) is block:
            del self.arriving[block.name]
            return
        self.known.discard(block.name)
        if self.blocks.get(block.name) is block:
            del self.blocks[block.name]
            if block.pins and self.capacity is not None:
                self.leaving.append(block)

    def reset(self) -> None:
        """Drop every block (RESET-1)."""
        for block in list(self.blocks.values()):
            self.drop(block)

    def _victim(self, protected: Collection[PageKey]) -> Block | None:
        for block in self.blocks.values():
            if not block.pins and block.key not in protected:
                return block
        return None
