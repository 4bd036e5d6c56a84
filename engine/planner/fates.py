"""What became of blocks that are cached no more: the reasons of later misses (METRIC-6)."""

from collections.abc import Callable, Iterable, Sequence
from typing import Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt

from pagedkv.reference.identity import PageKey
from pagedkv.reference.tier_names import TierName

MissReason: TypeAlias = Literal[
    "never_seen", "evicted", "not_stored", "failed", "too_slow", "other_namespace"
]
"""Why a block that was looked up is in no tier."""

Witness: TypeAlias = Callable[[Sequence[PageKey], MissReason, TierName | None], None]
"""Is told of blocks that are lost, for which reason, and by which tier, if by one."""

Hashes: TypeAlias = npt.NDArray[np.int64]

REASONS: tuple[MissReason, ...] = get_args(MissReason)
CODES = {reason: code for code, reason in enumerate(REASONS)}

LEAST_ENTRIES = 2**16
"""So many entries that in a small cache hardly any block takes another's."""


class Fates:
    """The fates of the blocks that were lost last: one entry for each, where its hash says.

    An entry goes to the block that was lost last of those whose hashes share it. So nothing has to
    be ordered or removed, and an entry takes 9 bytes. After ``num_pages`` further losses seven of
    eight are still remembered. The entries are far apart in memory: numpy fetches those of many
    blocks in half the time that a loop takes, which waits for each.

    Args:
        num_pages: Pages of all devices.
    """

    def __init__(self, num_pages: int) -> None:
        self.witness: Witness | None = None
        """Is told of every loss, so that somebody can explain it later."""
        entries = max(LEAST_ENTRIES, 1 << (8 * num_pages - 1).bit_length())
        self._mask = entries - 1
        # Not zeros(): its memory comes when it is first used, which took a request 30 ms.
        self._hashes = np.full(entries, 0, np.int64)
        self._reasons = np.full(entries, 0, np.uint8)

    def of(self, key: PageKey) -> MissReason:
        """Why ``key`` is missing, as far as it is remembered."""
        hashed = hash(key)
        entry = hashed & self._mask
        return REASONS[self._reasons[entry] if self._hashes[entry] == hashed else 0]

    def tally(self, keys: Sequence[PageKey]) -> dict[MissReason, int]:
        """How many of ``keys`` are missing for which reason."""
        if not keys:
            return {}
        hashes, entries = self._entries_of(keys)
        found = (self._reasons[entries] * (self._hashes[entries] == hashes)).tobytes()
        return {reason: n for code, reason in enumerate(REASONS) if (n := found.count(code))}

    def forget(self, keys: Sequence[PageKey]) -> None:
        """``keys`` are cached again."""
        hashes, entries = self._entries_of(keys)
        self._reasons[entries[self._hashes[entries] == hashes]] = 0

    def note(
        self, lost: Iterable[PageKey], reason: MissReason, tier: TierName | None = None
    ) -> None:
        """The blocks ``lost`` were lost for this reason, by this ``tier``, if by one."""
        keys = list(lost)
        if not keys:
            return
        if self.witness is not None:
            self.witness(keys, reason, tier)
        hashes, entries = self._entries_of(keys)
        self._hashes[entries] = hashes
        self._reasons[entries] = CODES[reason]

    def _entries_of(self, keys: Sequence[PageKey]) -> tuple[Hashes, Hashes]:
        """Hashes of ``keys`` and their places, of all at once: cache misses do not queue up."""
        hashes = np.fromiter(map(hash, keys), np.int64, len(keys))
        return hashes, hashes & self._mask
