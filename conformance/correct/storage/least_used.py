"""An order in which things are given up: the least often used first."""

from collections.abc import Hashable, Iterator
from typing import Generic, TypeVar

Thing = TypeVar("Thing", bound=Hashable)


class LeastUsed(Generic[Thing]):
    """Things by how often they were used; among equals, the one that is here longest comes first.

    Source: the frequency lists of Shah, Mitra and Matani, "An O(1) algorithm for implementing the
    LFU cache eviction scheme" (2010).
    """

    def __init__(self) -> None:
        self._uses: dict[Thing, int] = {}
        self._by_uses: dict[int, dict[Thing, None]] = {}

    def __contains__(self, thing: Thing) -> bool:
        return thing in self._uses

    def __len__(self) -> int:
        return len(self._uses)

    def __iter__(self) -> Iterator[Thing]:
        for uses in sorted(self._by_uses):
            yield from self._by_uses[uses]

    def add(self, thing: Thing, uses: int) -> None:
        """Put a thing behind those that were used as often."""
        self._uses[thing] = uses
        self._by_uses.setdefault(uses, {})[thing] = None

    def discard(self, thing: Thing) -> None:
        """Take a thing out, if it is here."""
        uses = self._uses.pop(thing, None)
        if uses is not None:
            del self._by_uses[uses][thing]
            if not self._by_uses[uses]:
                del self._by_uses[uses]
