"""What became of blocks that are cached no more: the reasons of later misses (METRIC-6)."""

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from pagedkv.reference.identity import PageKey

MissReason = Literal["never_seen", "evicted", "not_stored", "failed", "too_slow", "other_namespace"]
"""Why a block that was looked up is in no tier."""


@dataclass
class Fates:
    """The fates of the blocks that were lost last, up to a limit; older ones are forgotten."""

    limit: int = 0
    """Most blocks to remember."""
    reasons: "OrderedDict[PageKey, MissReason]" = field(default_factory=OrderedDict)
    """By block, the longest unchanged first."""

    def of(self, key: PageKey) -> MissReason:
        """Why ``key`` is missing, as far as it is remembered."""
        return self.reasons.get(key, "never_seen")

    def forget(self, key: PageKey) -> None:
        """``key`` is cached again."""
        self.reasons.pop(key, None)

    def note(self, keys: Iterable[PageKey], reason: MissReason) -> None:
        """``keys`` were lost for this reason."""
        for key in keys:
            self.reasons.pop(key, None)
            self.reasons[key] = reason
            if len(self.reasons) > self.limit:
                self.reasons.popitem(last=False)
