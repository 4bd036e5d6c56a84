"""What became of blocks that are cached no more: the reasons of later misses (METRIC-6)."""

from array import array
from collections.abc import Callable, Iterable, Sequence
from typing import Literal, TypeAlias, get_args

from pagedkv.reference.identity import PageKey
from pagedkv.reference.tier_names import TierName

MissReason: TypeAlias = Literal[
    "never_seen", "evicted", "not_stored", "failed", "too_slow", "other_namespace"
]
"""Why a block that was looked up is in no tier."""

Witness: TypeAlias = Callable[[Sequence[PageKey], MissReason, TierName | None], None]
"""Is told of blocks that are lost, for which reason, and by which tier, if by one."""

REASONS: tuple[MissReason, ...] = get_args(MissReason)

LEAST_ENTRIES = 2**16
"""So many entries that in a small cache hardly any block takes another's."""


class Fates:
    """The fates of the blocks that were lost last: one entry for each, where its hash says.

    An entry goes to the block that was lost last of those whose hashes share it. So nothing has to
    be ordered or removed: an entry takes 9 bytes and less than 0.2 µs. After ``num_pages`` further
    losses seven of eight are still remembered.

    Args:
        num_pages: Pages of all devices.
    """

    def __init__(self, num_pages: int) -> None:
        self.witness: Witness | None = None
        """Is told of every loss, so that somebody can explain it later."""
        entries = max(LEAST_ENTRIES, 1 << (8 * num_pages - 1).bit_length())
        self._mask = entries - 1
        self._hashes = array("q", bytes(8 * entries))
        self._reasons = bytearray(entries)

    def of(self, key: PageKey) -> MissReason:
        """Why ``key`` is missing, as far as it is remembered."""
        hashed = hash(key)
        entry = hashed & self._mask
        return REASONS[self._reasons[entry] if self._hashes[entry] == hashed else 0]

    def tally(self, keys: Iterable[PageKey]) -> dict[MissReason, int]:
        """How many of ``keys`` are missing for which reason."""
        hashes, reasons, mask = self._hashes, self._reasons, self._mask
        counts = [0] * len(REASONS)
        for key in keys:
            hashed = hash(key)
            entry = hashed & mask
            counts[reasons[entry] if hashes[entry] == hashed else 0] += 1
        return {reason: n for reason, n in zip(REASONS, counts, strict=True) if n}

    def forget(self, keys: Iterable[PageKey]) -> None:
        """``keys`` are cached again."""
        hashes, reasons, mask = self._hashes, self._reasons, self._mask
        for key in keys:
            hashed = hash(key)
            if hashes[hashed & mask] == hashed:
                reasons[hashed & mask] = 0

    def note(
        self, keys: Iterable[PageKey], reason: MissReason, tier: TierName | None = None
    ) -> None:
        """``keys`` were lost for this reason, by this ``tier``, if by one."""
        if self.witness is not None:
            keys = list(keys)
            self.witness(keys, reason, tier)
        hashes, reasons, mask = self._hashes, self._reasons, self._mask
        code = REASONS.index(reason)
        for key in keys:
            hashed = hash(key)
            hashes[hashed & mask] = hashed
            reasons[hashed & mask] = code
