"""The slots of one tier below the device, and which of them may be given up."""

from collections.abc import Callable, Container
from dataclasses import dataclass
from math import inf
from pathlib import Path

from pagedkv.conformance.correct.storage.block_bytes import Content
from pagedkv.conformance.correct.storage.least_used import LeastUsed
from pagedkv.reference.tier_names import LowerTier


@dataclass(eq=False)
class Slot:
    """Room for one block."""

    tier: LowerTier
    """Where it is."""
    block: bytes
    """Its digest."""
    parent: bytes | None
    """Digest of the block before it; ``None`` for a root."""
    content: Content | None = None
    """Its bytes, in host memory."""
    path: Path | None = None
    """Its file, on disk."""
    visible: bool = False
    """Whether all its bytes are there (TIER-1)."""
    pins: int = 0
    """Transfers in flight that read or write it; meanwhile it is not given up."""
    uses: int = 0
    """How often it has served."""


class Tier:
    """Slots by block, the least often used to be given up first.

    Args:
        capacity: Most slots.
        writes_left: How many blocks it may be given (TIER-8).
        clear_away: Called with each slot that is no longer needed.
    """

    def __init__(
        self,
        capacity: int,
        writes_left: float = inf,
        clear_away: Callable[[Slot], None] = lambda slot: None,
    ) -> None:
        self.capacity = capacity
        self.writes_left = writes_left
        self.slots: dict[bytes, Slot] = {}
        """Those that hold a block, or are getting one."""
        self._clear_away = clear_away
        self._queue: LeastUsed[Slot] = LeastUsed()
        self._leaving: set[Slot] = set()
        """Given up, but a transfer still uses them (RESET-3)."""

    @property
    def used(self) -> int:
        """Slots that count against the capacity."""
        return len(self.slots) + len(self._leaving)

    def visible(self, block: bytes) -> Slot | None:
        """The slot of a block that can be hit."""
        slot = self.slots.get(block)
        return slot if slot is not None and slot.visible else None

    def has(self, slot: Slot) -> bool:
        """Whether the slot is still the one of its block."""
        return self.slots.get(slot.block) is slot

    def victim(self, sparing: Container[bytes | None] = ()) -> Slot | None:
        """The slot to give up for another one, if there is any."""
        free = (slot for slot in self._queue if not slot.pins and slot.block not in sparing)
        return next(free, None)

    def add(self, slot: Slot) -> None:
        """Reserve a slot, or take note of one that is filled already.

        Its place in the order does not depend on when it is filled (XFER-1).
        """
        self.slots[slot.block] = slot
        self._queue.add(slot, slot.uses)

    def use(self, slot: Slot) -> None:
        """The slot has served once more."""
        slot.uses += 1
        self._queue.discard(slot)
        self._queue.add(slot, slot.uses)

    def unpin(self, slot: Slot) -> None:
        """One transfer fewer uses the slot."""
        slot.pins -= 1
        if slot in self._leaving and not slot.pins:
            self._leaving.remove(slot)
            self._clear_away(slot)

    def give_up(self, slot: Slot) -> None:
        """The block is here no more; its slot counts as long as a transfer uses it."""
        if not self.has(slot):
            return
        del self.slots[slot.block]
        self._queue.discard(slot)
        if slot.pins:
            self._leaving.add(slot)
        else:
            self._clear_away(slot)
