"""Whether memory grows, judged by a rule that can be read.

The first half of a soak is warming up: caches of the allocator and of the interpreter fill, every
fault happens for the first time. Then the median of the last quarter of all samples is compared
with the median of the quarter before. It may be higher by :data:`SHARE` and by :data:`SLACK_BYTES`
together; what grows more than that in a quarter of the time grows for ever.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

SHARE = 0.02
"""Growth that is allowed, as a share of the third quarter's median."""

SLACK_BYTES = 8 * 2**20
"""And besides."""

FEWEST = 40
"""Samples without which nothing can be said."""


@dataclass(frozen=True)
class MemoryGrowth:
    """What the rule says."""

    before_bytes: int
    """Median of the third quarter of the samples."""
    after_bytes: int
    """Median of the last quarter."""

    @property
    def grown_bytes(self) -> int:
        """By how much; below 0 if it has shrunk."""
        return self.after_bytes - self.before_bytes

    @property
    def allowed_bytes(self) -> int:
        """By how much it may."""
        return round(SHARE * self.before_bytes) + SLACK_BYTES

    @property
    def is_leak(self) -> bool:
        """Whether it has grown by more."""
        return self.grown_bytes > self.allowed_bytes


def memory_growth(resident_bytes: Sequence[int]) -> MemoryGrowth | None:
    """What samples of the resident memory say, taken at regular times; ``None``: too few."""
    count = len(resident_bytes)
    if count < FEWEST:
        return None
    before, after = resident_bytes[count // 2 : 3 * count // 4], resident_bytes[3 * count // 4 :]
    return MemoryGrowth(round(median(before)), round(median(after)))
