"""The slots of one tier below the devices: which block is where, and which goes next.

Rules TIER-1, TIER-4 and TIER-8. The bytes are elsewhere: in the host pool, or on disk.
"""

from collections.abc import Callable, Collection, Iterable, Sequence

from pagedkv.engine.planner.fates import Fates
from pagedkv.engine.planner.key_map import key_map
from pagedkv.engine.planner.recency import RecencyList
from pagedkv.reference.identity import PageKey
from pagedkv.reference.tier_names import LowerTier


class TierSlots:
    """Slots ``0 .. capacity - 1``; a reserved one counts from its reservation on.

    Args:
        name: Which tier it is.
        capacity: Most blocks, those in flight included.
        fates: Where evictions are noted.
        writes_left: Blocks that may still be written under the daily budget; ``None``: no budget.
    """

    def __init__(
        self, name: LowerTier, capacity: int, fates: Fates, writes_left: int | None = None
    ) -> None:
        self.capacity = capacity
        self.writes_left = writes_left
        self.slot_of = key_map(capacity)
        """Landed blocks and reserved slots, by key."""
        self.key_of: list[PageKey | None] = [None] * capacity
        """By slot: whose it is."""
        self.parent_of: list[PageKey | None] = [None] * capacity
        """By slot: the block before it in its chain; ``None`` for the first."""
        self.visible = bytearray(capacity)
        """By slot: whether all bytes are there."""
        self.pins: dict[int, int] = {}
        """By slot: how many transfers in flight read or write it."""
        self.leaving: set[int] = set()
        """Slots whose block cannot be found any more while a transfer still uses them (RESET-3)."""
        self.recency = RecencyList(capacity)
        """Slots that can be found, the next victim first."""
        self.evictions = 0
        """Landed blocks given up to make room."""
        self.given_up: list[int] = []
        """Slots whose block was given up since somebody has last emptied this list: what persists
        of it has to go."""
        self._unused = list(range(capacity - 1, -1, -1))
        self._name: LowerTier = name
        self._fates = fates

    @property
    def used(self) -> int:
        """Slots in use, those in flight included (TIER-1)."""
        return self.capacity - len(self._unused)

    def adopt(self, blocks: Iterable[tuple[int, PageKey]]) -> None:
        """Hold blocks that were there before, ``(slot, key)``, oldest first."""
        for slot, key in blocks:
            self.slot_of[key], self.key_of[slot], self.visible[slot] = slot, key, 1
            self.recency.append(slot)
        self._unused = [slot for slot in self._unused if self.key_of[slot] is None]

    def holds(self, key: PageKey) -> bool:
        """Whether the block is here or on its way here."""
        return key in self.slot_of

    def find(self, key: PageKey) -> int | None:
        """The slot of the block, if all its bytes are here (TIER-1)."""
        slot = self.slot_of.get(key)
        return slot if slot is not None and self.visible[slot] else None

    def reserve(
        self,
        key: PageKey,
        parent: PageKey | None,
        protected: Callable[[], Collection[PageKey]],
    ) -> int | None:
        """A pinned slot for ``key``, or ``None`` if none is free and none may be given up.

        Victims are taken oldest first; never a pinned block, never one of ``protected``.
        """
        if self.writes_left == 0:
            return None
        if self._unused:
            slot = self._unused.pop()
        else:
            victim = self._take_victim(protected())
            if victim is None:
                return None
            slot, lost = victim
            del self.slot_of[lost]
            self.given_up.append(slot)
            self.visible[slot] = 0
            self.evictions += 1
            self._fates.note([lost], "evicted", self._name)
        if self.writes_left is not None:
            self.writes_left -= 1
        self.slot_of[key], self.key_of[slot], self.parent_of[slot] = slot, key, parent
        self.pins[slot] = 1
        self.recency.append(slot)
        return slot

    def refresh(self, chain: Sequence[PageKey]) -> None:
        """Make the blocks of ``chain``, root first, the youngest: leaf before root (TIER-4)."""
        found = self.slot_of.find(reversed(chain))
        self.recency.renew([slot for slot in found if slot is not None])

    def pin(self, slots: Iterable[int]) -> None:
        """A transfer reads ``slots``."""
        for slot in slots:
            self.pins[slot] = self.pins.get(slot, 0) + 1

    def unpin(self, slot: int) -> None:
        """A transfer no longer uses the slot."""
        self.pins[slot] -= 1
        if not self.pins[slot]:
            del self.pins[slot]
            if slot in self.leaving:
                self.leaving.remove(slot)
                self.given_up.append(slot)  # once more: it may have been written since
                self._free(slot)

    def drop(self, slot: int, key: PageKey) -> None:
        """The block ``key`` in this slot cannot be found any more.

        The slot is free once no transfer uses it.
        """
        if self.slot_of.get(key) != slot:
            return
        del self.slot_of[key]
        self.recency.remove(slot)
        self.given_up.append(slot)
        if slot in self.pins:
            self.leaving.add(slot)
        else:
            self._free(slot)

    def reset(self) -> None:
        """Drop every block (RESET-1)."""
        for key, slot in list(self.slot_of.items()):
            self.drop(slot, key)

    def oldest_first(self) -> list[int]:
        """Slots of the landed blocks."""
        return [slot for slot in self.recency if self.visible[slot]]

    def _free(self, slot: int) -> None:
        self.key_of[slot] = self.parent_of[slot] = None
        self.visible[slot] = 0
        self._unused.append(slot)

    def _take_victim(self, protected: Collection[PageKey]) -> tuple[int, PageKey] | None:
        """The oldest slot that may go, out of the order; those before it keep their places."""
        passed: list[int] = []
        victim: tuple[int, PageKey] | None = None
        while victim is None and (oldest := self.recency.take(1)):
            slot = oldest[0]
            key = self.key_of[slot]
            if slot not in self.pins and key is not None and key not in protected:
                victim = slot, key
            else:
                passed.append(slot)
        self.recency.prepend(passed)
        return victim
