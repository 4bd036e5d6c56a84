"""What became of blocks that are cached no more: the reasons of later misses (METRIC-6)."""

from collections.abc import Iterable
from typing import Literal, TypeAlias

from pagedkv.engine.planner.key_map import KeyMap
from pagedkv.engine.planner.recency import RecencyList
from pagedkv.reference.identity import PageKey

MissReason: TypeAlias = Literal[
    "never_seen", "evicted", "not_stored", "failed", "too_slow", "other_namespace"
]
"""Why a block that was looked up is in no tier."""


class Fates:
    """The fates of the blocks that were lost last, up to a limit; older ones are forgotten."""

    def __init__(self, limit: int) -> None:
        self._entry_of = KeyMap()
        self._keys: list[PageKey] = [b""] * limit
        self._reasons: list[MissReason] = ["never_seen"] * limit
        self._recency = RecencyList(limit)
        self._unused = list(range(limit - 1, -1, -1))

    def of(self, key: PageKey) -> MissReason:
        """Why ``key`` is missing, as far as it is remembered."""
        entry = self._entry_of.get(key)
        return "never_seen" if entry is None else self._reasons[entry]

    def forget(self, key: PageKey) -> None:
        """``key`` is cached again."""
        entry = self._entry_of.shards[key[-1]].pop(key, None)
        if entry is not None:
            self._recency.remove(entry)
            self._unused.append(entry)

    def note(self, keys: Iterable[PageKey], reason: MissReason) -> None:
        """``keys`` were lost for this reason."""
        shards, recency = self._entry_of.shards, self._recency
        for key in keys:
            shard = shards[key[-1]]
            entry = shard.get(key)
            if entry is not None:
                recency.remove(entry)
            elif self._unused:
                entry = self._unused.pop()
            else:
                entry = recency.after[recency.end]
                recency.remove(entry)
                del self._entry_of[self._keys[entry]]
            shard[key] = entry
            self._keys[entry], self._reasons[entry] = key, reason
            recency.append(entry)
