"""Loading what a waiting request could hit into host memory (TIER-11)."""

from pagedkv.engine.planner.matching import SLOW_TIERS, lookup_count
from pagedkv.engine.planner.state import LOWER_TIERS, Request, State
from pagedkv.reference.context import Context
from pagedkv.reference.events import Prefetched
from pagedkv.reference.identity import PageKey
from pagedkv.reference.tier_names import LowerTier


def prefetch(state: State, ctx: Context) -> list[str]:
    """Issue loads into host slots, one per tier below; the transfers' names."""
    stranger = Request(replica=0)
    keys = stranger.keys[: lookup_count(state, stranger, ctx)]
    chain: list[PageKey] = []
    slow: dict[LowerTier, list[PageKey]] = {}
    host = state.lower.tiers.get("host")
    working = [pool for n, pool in enumerate(state.pools) if n not in state.poisoned]
    for key in keys:
        tier = state.lower.fastest(key)
        on_a_device = any(key in pool.page_of or key in pool.loading for pool in working)
        if tier is None and not on_a_device:
            break
        chain.append(key)
        if host and tier in SLOW_TIERS and not on_a_device and not host.holds(key):
            slow.setdefault(tier, []).append(key)
    if chain and state.drafts_look_ahead:
        # No hit uses the last one (DRAFT-1).
        last = chain.pop()
        slow = {source: [key for key in found if key != last] for source, found in slow.items()}
    loads = [
        load
        for source in LOWER_TIERS
        if source in slow and (load := state.lower.prefetch(source, slow[source], chain))
    ]
    issued = tuple(state.issue(load) for load in loads)
    state.lower.touch(chain)
    if state.tracer is not None:
        state.tracer.emit(Prefetched(ctx.request_id, state.snapshot(ctx, keys), issued))
    return [load.id for load in loads]
