"""Why a request hit or missed, block by block, for people and for programs."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from pagedkv.engine.planner.fates import MissReason
from pagedkv.reference.tier_names import TierName

Outcome: TypeAlias = Literal["hit", "missed", "behind_gap", "not_used"]
"""What became of a block: used; nowhere; somewhere, but after one that is nowhere; or found and
left alone all the same."""


@dataclass(frozen=True, slots=True)
class BlockRun:
    """Adjacent blocks of which the same can be said."""

    first: int
    """The first block, counted from the beginning of the request."""
    last: int
    """The last one."""
    outcome: Outcome
    """What became of them."""
    tier: TierName | None = None
    """Where they were; of blocks that are nowhere: which tier lost them, if that is remembered."""
    reason: MissReason | None = None
    """Why they are nowhere, or were left alone."""
    joined: bool = False
    """Whether another request's load brought them."""
    load_s: float | None = None
    """Seconds that their load took; ``None`` if there was none, or it is in flight."""
    lost_s_ago: float | None = None
    """Seconds since the last of them was lost when the request was allocated, as far as known."""

    def __str__(self) -> str:
        many = self.last > self.first
        blocks = f"blocks {self.first}-{self.last}" if many else f"block {self.first}"
        return f"{blocks}: {self._text()}"

    def _text(self) -> str:
        match self.outcome:
            case "hit" if self.load_s is not None:
                how = "joined a load of" if self.joined else "loaded in"
                return f"{self.tier} ({how} {duration(self.load_s)})"
            case "hit":
                return f"{self.tier}"
            case "behind_gap":
                return f"{self.tier}, but behind a gap"
            case "not_used" if self.reason == "too_slow":
                return f"{self.tier}, but too slow to wait for"
            case "not_used":
                return f"{self.tier}, but its draft KV follows another token"
            case "missed":
                return self._miss()

    def _miss(self) -> str:
        where = f" by {self.tier}" if self.tier else ""
        when = f" {duration(self.lost_s_ago)} ago" if self.lost_s_ago is not None else ""
        match self.reason:
            case "evicted":
                return f"evicted{where.replace(' by', ' from')}{when}"
            case "not_stored":
                return f"left the device{when} without being stored"
            case "failed":
                return f"its load failed, or it was damaged{where.replace(' by', ' on')}{when}"
            case "too_slow":
                return "its load took too long"
            case "other_namespace":
                return "known from before a reset, or under another model"
            case _:
                return "never seen"


@dataclass(frozen=True, slots=True)
class Explanation:
    """What the cache did for one request; ``str()`` of it is made to be read."""

    request_id: Hashable
    """The request."""
    replica: int
    """Where it was allocated."""
    runs: Sequence[BlockRun]
    """Its full blocks, in order, as far as they were looked up. The last token is always computed,
    and with it the block that it is in; so are blocks between an admission and a later hit."""
    plans: int
    """How often it was planned until it was admitted: more than once if a load failed."""
    queue_s: float | None = None
    """Seconds that it waited for pages; ``None`` if nobody waited with ``alloc``."""
    total_s: float | None = None
    """Seconds until it was admitted; ``None`` if it is not yet, or was not by ``alloc``."""
    released: bool = False
    """Whether it is over."""

    @property
    def hit_blocks(self) -> int:
        """Blocks that the cache served."""
        return sum(run.last - run.first + 1 for run in self.runs if run.outcome == "hit")

    @property
    def looked_up_blocks(self) -> int:
        """Full blocks that it was asked for."""
        return self.runs[-1].last + 1 if self.runs else 0

    def __str__(self) -> str:
        lines = [
            f"{self.request_id} on replica {self.replica}: "
            f"{self.hit_blocks} of {self.looked_up_blocks} blocks hit{self._times()}"
        ]
        return "\n  ".join([*lines, *map(str, self.runs)])

    def _times(self) -> str:
        parts: list[str] = []
        if self.total_s is not None:
            parts.append(f"admitted in {duration(self.total_s)}")
        if self.queue_s is not None and self.queue_s >= 1e-3:
            parts.append(f"{duration(self.queue_s)} of it in line for pages")
        if self.plans > 1:
            parts.append(f"planned {self.plans} times")
        return "".join(f", {part}" for part in parts)


def duration(seconds: float) -> str:
    """``seconds`` for people: two digits, and the unit that suits them."""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{_two_digits(seconds / size)} {unit}"
    return f"{_two_digits(seconds / 1e-6)} µs"


def _two_digits(number: float) -> str:
    return f"{number:.1f}" if number < 9.95 else f"{number:,.0f}"
