"""Loading what a waiting request could hit into host memory (TIER-11)."""

from dataclasses import replace

from pagedkv.reference.context import Context
from pagedkv.reference.events import Prefetched
from pagedkv.reference.identity import PageKey
from pagedkv.reference.matching import further_stores, lookup_digests
from pagedkv.reference.state import Request, State
from pagedkv.reference.store_answers import report_answers
from pagedkv.reference.tier_names import LowerTier
from pagedkv.reference.transfers import issue


def prefetch(state: State, ctx: Context) -> list[str]:
    """Issue loads into host slots, one per tier below; the transfers' ids."""
    # MATCH: the blocks that are somewhere, up to the first that is nowhere
    digests = lookup_digests(state, Request(replica=0), ctx)
    keys = state.keys(digests)
    stores = further_stores(state, ctx)
    report_answers(state, keys, stores)
    further = list(stores.values())
    chain: list[PageKey] = []
    below: list[tuple[PageKey, LowerTier]] = []
    for key, tier in zip(keys, state.connector.lookup(keys, (), further), strict=True):
        on_a_device = _is_on_a_device(state, key)
        if tier is None and not on_a_device:
            break
        chain.append(key)
        if tier is not None and not on_a_device:
            below.append((key, tier))
    if chain and state.drafts_look_ahead:
        # No hit uses the last one (DRAFT-1).
        last = chain.pop()
        below = [place for place in below if place[0] != last]

    # MOVE: root first, as far as there are host slots
    loads = state.connector.prefetch(below, chain, further)
    issued = tuple(issue(state, transfer) for transfer in loads)
    state.connector.touch(chain)

    # RECORD
    context = replace(state.snapshot(ctx, digests), stores=tuple(stores))
    state.emit(Prefetched(ctx.request_id, context, issued))
    return [transfer.transfer for transfer in issued]


def _is_on_a_device(state: State, key: PageKey) -> bool:
    """Whether a device that works has the block, or is getting it (FAIL-2)."""
    return any(
        key in pool.page_of or key in pool.loading
        for replica, pool in enumerate(state.pools)
        if replica not in state.poisoned
    )
