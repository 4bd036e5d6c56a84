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
    # CHECK
    host = state.connector.tiers.get("host")

    # MATCH: the blocks that are somewhere, up to the first that is nowhere
    digests = lookup_digests(state, Request(replica=0), ctx)
    keys = state.keys(digests)
    stores = further_stores(state, ctx)
    report_answers(state, keys, stores)
    further = list(stores.values())
    chain: list[PageKey] = []
    slow: dict[LowerTier, list[PageKey]] = {"disk": [], "store": []}
    for key, tier in zip(keys, state.connector.lookup(keys, (), further), strict=True):
        on_a_device = any(key in pool.page_of or key in pool.loading for pool in state.pools)
        if tier is None and not on_a_device:
            break
        chain.append(key)
        if host and not host.holds(key) and not on_a_device and tier in slow:
            slow[tier].append(key)

    # MOVE: root first, as far as there are host slots
    loads = [
        transfer
        for source, wanted in slow.items()
        if (transfer := state.connector.prefetch(source, wanted, chain, further)) is not None
    ]
    issued = tuple(issue(state, transfer) for transfer in loads)
    state.connector.touch(chain)

    # RECORD
    context = replace(state.snapshot(ctx, keys), stores=tuple(stores))
    state.emit(Prefetched(ctx.request_id, context, issued))
    return [transfer.transfer for transfer in issued]
