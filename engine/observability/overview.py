"""Everything that can be counted now, as one frozen tree; taken without a walk over pages."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pagedkv.engine.planner.state import State
from pagedkv.reference.metrics import KVCacheMetrics
from pagedkv.reference.tier_names import LowerTier


@dataclass(frozen=True, slots=True)
class ReplicaOverview:
    """The pages of one replica. Held, pinned and free ones add up to ``total_pages``."""

    total_pages: int
    """Pages, without the null page."""
    held_pages: int
    """Pages that requests hold."""
    pinned_pages: int
    """Pages that only a transfer reads or writes."""
    free_pages: int
    """Pages that nobody holds or pins; what is cached in them goes when they are taken."""
    cached_pages: int
    """Pages that can be hit, whoever holds them."""
    dirty_pages: int
    """Cached pages that must be offloaded before they may be taken."""
    waiting_requests: int
    """Requests that stand in line for pages."""
    poisoned: str | None
    """How its device has failed; ``None`` if it works."""


@dataclass(frozen=True, slots=True)
class TierOverview:
    """The slots of one tier below the devices."""

    capacity: int
    """Slots."""
    used: int
    """Slots in use, those in flight included."""
    writes_left: int | None
    """Blocks that may be written until the daily budget is renewed; ``None`` without a budget."""


@dataclass(frozen=True, slots=True)
class Overview:
    """A whole manager."""

    replicas: Sequence[ReplicaOverview]
    """By replica."""
    tiers: Mapping[LowerTier, TierOverview]
    """The tiers below the devices that exist."""
    claimed_requests: int
    """Requests that are claimed, dummies included."""
    transfers_in_flight: Mapping[str, int]
    """By way, such as ``host_to_device``; ways without any are not here."""
    metrics: KVCacheMetrics
    """Counters since the start or the last reset."""

    def __repr__(self) -> str:
        free = sum(replica.free_pages for replica in self.replicas)
        total = sum(replica.total_pages for replica in self.replicas)
        tiers = "".join(f", {name} {t.used}/{t.capacity}" for name, t in self.tiers.items())
        return (
            f"Overview({self.claimed_requests} requests, {free}/{total} pages free{tiers}, "
            f"{sum(self.transfers_in_flight.values())} transfers in flight, "
            f"hit rate {self.metrics.cache_hit_rate:.0%})"
        )


def overview_of(state: State, waiting: Sequence[int], metrics: KVCacheMetrics) -> Overview:
    """Take it; on the event loop only.

    Args:
        state: The planner's state.
        waiting: By replica: requests that stand in line for pages.
        metrics: The counters.
    """
    return Overview(
        replicas=tuple(_replica(state, n, length) for n, length in enumerate(waiting)),
        tiers={
            name: TierOverview(tier.capacity, tier.used, tier.writes_left)
            for name, tier in state.lower.tiers.items()
        },
        claimed_requests=len(state.requests),
        transfers_in_flight=Counter(f"{t.source}_to_{t.target}" for t in state.in_flight.values()),
        metrics=metrics,
    )


def _replica(state: State, replica_idx: int, waiting: int) -> ReplicaOverview:
    pool = state.pools[replica_idx]
    pinned = sum(page in pool.idle for page in pool.pins)
    return ReplicaOverview(
        total_pages=pool.total,
        held_pages=pool.total - pool.num_free - pinned,
        pinned_pages=pinned,
        free_pages=pool.num_free,
        cached_pages=len(pool.page_of),
        dirty_pages=len(pool.dirty),
        waiting_requests=waiting,
        poisoned=state.poisoned.get(replica_idx),
    )
