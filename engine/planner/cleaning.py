"""Under ``write_back``: offloading dirty pages so that they may be evicted (TIER-7)."""

from collections.abc import Sequence
from itertools import islice

from pagedkv.engine.planner.matching import lookup_count, need_of
from pagedkv.engine.planner.state import Load, State
from pagedkv.reference.context import Context
from pagedkv.reference.events import Cleaned
from pagedkv.reference.identity import PageKey


def clean(state: State, replica_idx: int, count: int) -> list[str]:
    """Offload the ``count`` oldest dirty pages that nobody holds; the transfers' names (TIER-7).

    Raises:
        ValueError: ``count`` is negative.
    """
    state.check_works(replica_idx)
    if count < 0:
        raise ValueError(f"count is {count}; it must be 0 or more")
    oldest = islice(state.pools[replica_idx].idle_dirty(), count)
    return clean_pages(state, replica_idx, list(oldest))


def clean_pages(
    state: State, replica_idx: int, pages: Sequence[int], sparing: Sequence[PageKey] = ()
) -> list[str]:
    """Offload these dirty pages, whoever holds them; ``sparing`` are not given up for a slot."""
    pool = state.pools[replica_idx]
    if not pages:
        return []
    keys = [key for page in pages if (key := pool.key_of[page]) is not None]
    transfers = state.lower.clean(keys, pages, replica_idx, sparing)
    moving = {page for transfer in transfers for page in transfer.pages}
    pool.make_clean(set(pages) - moving)
    issued = tuple(state.issue(transfer) for transfer in transfers)
    if state.tracer is not None:
        state.tracer.emit(Cleaned(replica_idx, tuple(pages), tuple(sparing), issued))
    return [transfer.transfer for transfer in issued]


def page_to_clean(
    state: State, ctx: Context, replica_idx: int, hit_limit: int | None = None
) -> tuple[int, tuple[PageKey, ...]] | None:
    """The next dirty page that stands in the way of ``ctx``, and the blocks that it would hit.

    Pages are cleaned one at a time, because each landing makes room below for the next.
    """
    request = state.settled_request(ctx.request_id, replica_idx, "alloc")
    pool = state.pools[replica_idx]
    if not pool.dirty:
        return None
    count = lookup_count(state, request, ctx)
    need = need_of(state, request, ctx, replica_idx, count, hit_limit)
    lacking = need.fresh - need.free_for(pool)
    if not 0 < lacking <= pool.cleanable(excluding=need.shared):
        return None
    start = request.committed
    hit_keys = tuple(
        hit.key if isinstance(hit, Load) else request.keys[start + n]
        for n, hit in enumerate(need.hits)
    )
    return next(page for page in pool.idle_dirty() if page not in need.shared), hit_keys


def next_dirty_page(state: State, replica_idx: int) -> int:
    """Of all dirty pages the one to clean first: a leaf before its root (TIER-4)."""
    pool = state.pools[replica_idx]
    for page in pool.idle:
        if page in pool.dirty:
            return page
    for request in state.requests.values():
        if request.replica == replica_idx:
            for page in reversed(request.pages):
                if page in pool.dirty:
                    return page
    return next(iter(pool.dirty))
