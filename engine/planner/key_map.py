"""Dictionaries by page key: one that is quick, and one that grows without a long pause."""

from collections.abc import Iterable, Iterator, Sequence
from typing import TypeAlias

from pagedkv.reference.identity import PageKey

MOST_PLAIN_KEYS = 2**17
"""Of so many keys, a dictionary is made larger in 10 ms; of a million, in 60; of ten, in 600."""

NUM_SHARDS = 256
"""At ten million keys a shard has 40,000, and is made larger in about a millisecond."""


class PlainKeyMap(dict[PageKey, int]):
    """Numbers (pages or slots) by page key: a dictionary, and what is done to many keys at once.

    That runs in C: to find the pages of a long prompt takes a quarter of what a loop takes.
    """

    __slots__ = ()

    def find(self, keys: Iterable[PageKey]) -> list[int | None]:
        """The numbers of ``keys``, in their order."""
        return list(map(self.get, keys))

    def add(self, keys: Sequence[PageKey], numbers: Sequence[int]) -> list[int]:
        """Give ``keys`` these ``numbers``, unless they have one; returns those that they have."""
        return list(map(self.setdefault, keys, numbers))

    def drop(self, keys: Iterable[PageKey]) -> None:
        """Forget ``keys``, which are all there."""
        for key in keys:
            del self[key]


class ShardedKeyMap:
    """The same for many more keys: a dictionary for each last byte of a key.

    Keys are digests, so they spread evenly; where a context brings keys of another kind, an uneven
    spread costs no more than one large dictionary would.
    """

    __slots__ = ("_shards",)

    def __init__(self) -> None:
        self._shards: list[dict[PageKey, int]] = [{} for _ in range(NUM_SHARDS)]

    def find(self, keys: Iterable[PageKey]) -> list[int | None]:
        """The numbers of ``keys``, in their order."""
        shards = self._shards
        return [shards[key[-1]].get(key) for key in keys]

    def add(self, keys: Sequence[PageKey], numbers: Sequence[int]) -> list[int]:
        """Give ``keys`` these ``numbers``, unless they have one; returns those that they have."""
        shards, pairs = self._shards, zip(keys, numbers, strict=True)
        return [shards[key[-1]].setdefault(key, number) for key, number in pairs]

    def drop(self, keys: Iterable[PageKey]) -> None:
        """Forget ``keys``, which are all there."""
        shards = self._shards
        for key in keys:
            del shards[key[-1]][key]

    def get(self, key: PageKey) -> int | None:
        """The number of ``key``, if it has one."""
        return self._shards[key[-1]].get(key)

    def __contains__(self, key: PageKey) -> bool:
        return key in self._shards[key[-1]]

    def __getitem__(self, key: PageKey) -> int:
        return self._shards[key[-1]][key]

    def __setitem__(self, key: PageKey, number: int) -> None:
        self._shards[key[-1]][key] = number

    def __delitem__(self, key: PageKey) -> None:
        del self._shards[key[-1]][key]

    def __len__(self) -> int:
        return sum(map(len, self._shards))

    def __iter__(self) -> Iterator[PageKey]:
        for shard in self._shards:
            yield from shard

    def items(self) -> Iterator[tuple[PageKey, int]]:
        """Keys with their numbers, in no particular order."""
        for shard in self._shards:
            yield from shard.items()

    def clear(self) -> None:
        """Forget all of them."""
        for shard in self._shards:
            shard.clear()


KeyMap: TypeAlias = PlainKeyMap | ShardedKeyMap


def key_map(most_keys: int) -> KeyMap:
    """An empty one for up to so many keys."""
    return PlainKeyMap() if most_keys <= MOST_PLAIN_KEYS else ShardedKeyMap()
