"""A dictionary by page key that grows without a long pause."""

from collections.abc import Iterator

from pagedkv.reference.identity import PageKey

NUM_SHARDS = 256
"""At ten million keys a shard has 40,000, and is made larger in about a millisecond. A single
dictionary would stand still for a second."""


class KeyMap:
    """Numbers (pages or slots) by page key.

    Hot loops index :attr:`shards` by the last byte of a key themselves: a method call costs as
    much as the look-up.
    """

    __slots__ = ("shards",)

    def __init__(self) -> None:
        self.shards: list[dict[PageKey, int]] = [{} for _ in range(NUM_SHARDS)]
        """By last byte of the key. Keys are digests, so they spread evenly; where a context brings
        keys of another kind, an uneven spread costs no more than one large dictionary would."""

    def get(self, key: PageKey) -> int | None:
        """The number of ``key``, if it has one."""
        return self.shards[key[-1]].get(key)

    def __contains__(self, key: PageKey) -> bool:
        return key in self.shards[key[-1]]

    def __setitem__(self, key: PageKey, number: int) -> None:
        self.shards[key[-1]][key] = number

    def __delitem__(self, key: PageKey) -> None:
        del self.shards[key[-1]][key]

    def __len__(self) -> int:
        return sum(map(len, self.shards))

    def __iter__(self) -> Iterator[PageKey]:
        for shard in self.shards:
            yield from shard

    def items(self) -> Iterator[tuple[PageKey, int]]:
        """Keys with their numbers, in no particular order."""
        for shard in self.shards:
            yield from shard.items()

    def clear(self) -> None:
        """Forget all of them."""
        for shard in self.shards:
            shard.clear()
