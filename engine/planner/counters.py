"""Counters that the planner moves in place; a snapshot of them is a ``KVCacheMetrics``."""

from dataclasses import fields
from typing import TYPE_CHECKING

from pagedkv.engine.planner.fates import MissReason
from pagedkv.reference.metrics import KVCacheMetrics

NAMES = tuple(field.name for field in fields(KVCacheMetrics))


class Counters:
    """The counters of :class:`KVCacheMetrics` under their names there, all of them 0 at first."""

    __slots__ = NAMES

    if TYPE_CHECKING:
        # What the slots are, for type checkers.

        def __getattr__(self, name: str) -> int: ...

        def __setattr__(self, name: str, value: int) -> None: ...

    def __init__(self) -> None:
        self.reset()

    def missed(self, reason: MissReason, blocks: int) -> None:
        """``blocks`` were missed for a reason."""
        name = f"missed_blocks_{reason}"
        setattr(self, name, getattr(self, name) + blocks)

    def as_metrics(self) -> KVCacheMetrics:
        """A snapshot."""
        return KVCacheMetrics(**{name: getattr(self, name) for name in NAMES})

    def take_back_tokens(self, before: KVCacheMetrics) -> None:
        """Tokens, hits and misses as they were ``before``; copies have been made all the same."""
        for name in NAMES:
            if name.endswith(("_tokens", "_served")) or name.startswith("missed"):
                setattr(self, name, getattr(before, name))

    def reset(self) -> None:
        """Set all to zero."""
        for name in NAMES:
            setattr(self, name, 0)
