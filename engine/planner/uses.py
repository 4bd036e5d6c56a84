"""How often recent blocks were used: the ``reuse`` policy stores what is used twice (TIER-8)."""

from collections import OrderedDict
from collections.abc import Iterable

from pagedkv.reference.identity import PageKey


class RecentUses:
    """Counts of the blocks that were used last, up to a limit."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._counts: OrderedDict[PageKey, int] = OrderedDict()

    def of(self, key: PageKey) -> int:
        """How often ``key`` was used, as far as it is remembered."""
        return self._counts.get(key, 0)

    def add(self, keys: Iterable[PageKey]) -> None:
        """Each of ``keys`` is used once more."""
        for key in keys:
            self._counts[key] = self._counts.pop(key, 0) + 1
            if len(self._counts) > self._limit:
                self._counts.popitem(last=False)

    def clear(self) -> None:
        """Forget all of them."""
        self._counts.clear()
