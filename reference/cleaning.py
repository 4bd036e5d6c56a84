"""Under ``write_back``: offloading dirty pages so that they may be evicted (TIER-7)."""

from collections.abc import Sequence

from pagedkv.reference.context import Context
from pagedkv.reference.events import Cleaned
from pagedkv.reference.identity import PageKey
from pagedkv.reference.matching import lookup_digests, need_of
from pagedkv.reference.state import State
from pagedkv.reference.store_answers import report_answers
from pagedkv.reference.transfers import issue


def clean(state: State, replica_idx: int, count: int) -> list[str]:
    """Offload the ``count`` oldest dirty pages that nobody holds, so that they may go (TIER-7).

    A page that finds no slot below is no longer dirty either: its content may be lost, and
    losing cached content is a miss. Returns the transfers that were issued.
    """
    state.check_works(replica_idx)
    if count < 0:
        raise ValueError(f"count is {count}; it must be 0 or more")
    pool = state.pools[replica_idx]
    idle = [p for p in pool.idle if p in pool.dirty and p not in pool.pins]
    return clean_pages(state, replica_idx, idle[:count])


def clean_pages(
    state: State, replica_idx: int, pages: Sequence[int], sparing: Sequence[PageKey] = ()
) -> list[str]:
    """Offload these dirty pages, whoever holds them; ``sparing`` are not given up for a slot."""
    pool = state.pools[replica_idx]
    if not pages:
        return []
    keys = [pool.key_of[page] for page in pages]
    report_answers(state, keys)
    transfers = state.connector.clean(keys, pages, replica_idx, sparing)
    moving = {page for transfer in transfers for page in transfer.pages}
    pool.dirty.difference_update(set(pages) - moving)
    issued = tuple(issue(state, transfer) for transfer in transfers)
    state.emit(Cleaned(replica_idx, tuple(pages), tuple(sparing), issued))
    return [transfer.transfer for transfer in issued]


def page_to_clean(
    state: State, ctx: Context, replica_idx: int
) -> tuple[int, tuple[PageKey, ...]] | None:
    """The next dirty page that stands in the way of ``ctx``, and the blocks that it would hit.

    Pages are cleaned one at a time, because each landing makes room below for the next.
    """
    request = state.settled_request(ctx.request_id, replica_idx, "alloc")
    pool = state.pools[replica_idx]
    if not pool.dirty:
        return None
    need = need_of(state, request, ctx, replica_idx, lookup_digests(state, request, ctx))
    lacking = need.fresh - need.free_for(pool)
    if not 0 < lacking <= pool.cleanable(excluding=need.shared):
        return None
    dirty = (p for p in pool.idle if p in pool.dirty and p not in (*pool.pins, *need.shared))
    return next(dirty), tuple(hit.key for hit in need.hits)


def next_dirty_page(state: State, replica_idx: int) -> int:
    """Of all dirty pages the one to clean first: a leaf before its root (TIER-4)."""
    pool = state.pools[replica_idx]
    own = [r.pages for r in state.requests.values() if r.replica == replica_idx]
    held = (page for pages in own for page in reversed(pages))
    return next(page for page in (*pool.idle, *held, *pool.dirty) if page in pool.dirty)
