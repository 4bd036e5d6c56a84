"""Giving requests their pages: take what they need, load what is elsewhere, wait, or undo.

Rules ALLOC-1 to ALLOC-13. An allocation is planned in one indivisible step, waits for its loads,
and is then finished, or undone if a load has failed.
"""

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import replace
from typing import NoReturn

from pagedkv.reference.context import Context
from pagedkv.reference.errors import (
    AllocPendingError,
    InsufficientBlocksError,
    KVLoadFailed,
    KVLoadRefused,
    NoPlannedAllocError,
)
from pagedkv.reference.events import (
    AllocCancelled,
    AllocPlanned,
    AllocRefused,
    AllocReturned,
    IssuedTransfer,
)
from pagedkv.reference.identity import PageKey
from pagedkv.reference.lengths import required_pages
from pagedkv.reference.matching import Need, further_stores, lookup_digests, need_of
from pagedkv.reference.state import AllocPlan, Hit, Request, State, source_name
from pagedkv.reference.store_answers import report_answers
from pagedkv.reference.tier_names import LowerTier
from pagedkv.reference.tiers import Tier
from pagedkv.reference.transfer import Transfer
from pagedkv.reference.transfers import issue


def begin_alloc(
    state: State, ctx: Context, replica_idx: int, hit_limit: int | None = None
) -> AllocPlan:
    """Plan the allocation of ``ctx``: match, take, issue the loads, wait for nothing.

    Of the blocks that are found, no more than ``hit_limit`` are used (ALLOC-15).

    Raises:
        InsufficientBlocksError: It does not fit; nothing was changed (ALLOC-2).
        UnknownRequestError, ReplicaIndexError: See :meth:`State.request`.
        AllocPendingError: An earlier plan of the request is not finished (ALLOC-13).
    """
    # CHECK
    request = state.settled_request(ctx.request_id, replica_idx, "alloc")
    pool = state.pools[replica_idx]

    # MATCH: the longest cached prefix, each block from the fastest tier that holds it
    digests = lookup_digests(state, request, ctx)
    stores = further_stores(state, ctx)
    report_answers(state, state.keys(digests)[request.committed :], stores)
    need = need_of(state, request, ctx, replica_idx, digests, hit_limit)
    if need.fresh > need.free_for(pool):
        _refuse(state, ctx, replica_idx, need, digests, hit_limit)
    request.digests = digests

    # TAKE: hold what is hit, so that taking the rest cannot evict it, then the oldest pages
    for page in need.shared:
        pool.hold(page)
    fresh, evicted = pool.take(need.fresh)
    _note_evicted(state, evicted)

    # MOVE: what is not on this device yet, one transfer per tier
    supply = iter(fresh)
    hit_pages = [next(supply) if hit.page is None else hit.page for hit in need.hits]
    issued = _load(state, request, need.hits, hit_pages, list(stores.values()))
    joined = [hit.joined for hit in need.hits if hit.joined is not None]

    # RECORD
    own = request.pages[need.kept :]
    committed_by_hits = request.committed + len(need.hits)
    request.plan = plan = AllocPlan(
        request_id=ctx.request_id,
        pages=(*request.pages[: need.kept], *hit_pages, *own[: need.moved], *supply),
        hits=need.hits,
        added=(*need.shared, *fresh),
        replaced=tuple(own[need.moved :]),
        transfers=tuple(dict.fromkeys([*joined, *(t.transfer for t in issued)])),
        processed=(
            committed_by_hits * state.params.page_size if need.hits else ctx.tokens.processed_length
        ),
        misses=need.misses,
        looked_up=len(digests),
    )
    state.emit(
        AllocPlanned(
            ctx.request_id,
            replica_idx,
            replace(state.snapshot(ctx, request.digests), stores=tuple(stores)),
            plan.pages,
            plan.hit_counts,
            tuple(issued),
            plan.transfers,
            hit_limit,
        )
    )
    return plan


def finish_alloc(state: State, ctx: Context, replica_idx: int) -> AllocPlan:
    """Complete a planned allocation: the request gets its pages, the context moves past the hit.

    Raises:
        NoPlannedAllocError: There is no plan (ALLOC-13).
        AllocPendingError: A load has neither settled nor been submitted (ALLOC-13).
        KVLoadFailed: A load has failed: the plan was undone, plan again (ALLOC-11).
    """
    # CHECK
    state.check_works(replica_idx)
    request = state.request(ctx.request_id, replica_idx)
    plan = request.plan
    if plan is None:
        raise NoPlannedAllocError(ctx.request_id)
    loads = [state.in_flight[name] for name in plan.transfers if name in state.in_flight]
    if not all(load.submitted for load in loads):
        raise AllocPendingError(ctx.request_id, "finish_alloc")
    if request.failed:
        failed = tuple(sorted(request.failed))
        _undo(state, request)
        state.emit(AllocCancelled(ctx.request_id, failed))
        raise KVLoadFailed(ctx.request_id, failed)

    # TAKE: the pages are the request's; what a hit has replaced goes back, tail first
    pool = state.pools[replica_idx]
    request.plan = None
    request.pages = list(plan.pages)
    request.committed += len(plan.hits)
    for page in reversed(plan.replaced):
        pool.release(page)

    # RECORD
    _record(state, request, ctx, plan)
    state.emit(AllocReturned(ctx.request_id, ctx.tokens.processed_length))
    return plan


def cancel_alloc(state: State, request_id: Hashable, replica_idx: int) -> None:
    """Undo a planned allocation; loads in flight go on, their pages stay pinned (ALLOC-12).

    Raises:
        NoPlannedAllocError: There is no plan (ALLOC-13).
    """
    request = state.request(request_id, replica_idx)
    if request.plan is None:
        raise NoPlannedAllocError(request_id)
    _undo(state, request)
    state.emit(AllocCancelled(request_id))


def _load(
    state: State,
    request: Request,
    hits: Sequence[Hit],
    pages: Sequence[int],
    further: Sequence[Tier],
) -> list[IssuedTransfer]:
    """Issue the loads of ``hits`` into ``pages``, one per source; refresh what was hit (TIER-4)."""
    chain = state.keys(request.digests)[: request.committed + len(hits)]
    issued: list[IssuedTransfer] = []
    coming = [(hit, page) for hit, page in zip(hits, pages, strict=True) if hit.page is None]
    for peer in range(len(state.pools)):
        group = [(hit, page) for hit, page in coming if hit.peer == peer]
        if group:
            issued.append(issue(state, _peer_copy(state, request.replica, peer, group, chain)))
    lower: tuple[LowerTier, ...] = ("host", "disk", "store")
    for tier in lower:
        group = [(hit, page) for hit, page in coming if hit.tier == tier]
        if group:
            keys = [hit.key for hit, _ in group]
            pages_of_group = [page for _, page in group]
            try:
                transfer = state.connector.load(
                    tier, keys, pages_of_group, request.replica, chain, further
                )
            except KVLoadRefused:
                state.count(load_blocks_failed=len(keys))
                request.failed.add(f"load refused by {tier}")
                request.avoided.update({(source_name(tier), key): "failed" for key in keys})
            else:
                issued.append(issue(state, transfer))
    if hits:
        state.connector.touch(chain)
    return issued


def _peer_copy(
    state: State,
    replica_idx: int,
    peer: int,
    group: Sequence[tuple[Hit, int]],
    chain: Sequence[PageKey],
) -> Transfer:
    """The copy of ``group`` from a peer, where all of the chain is renewed: leaf before root."""
    pool = state.pools[peer]
    source_pages = [pool.page_of[hit.key] for hit, _ in group]
    pool.refresh([pool.page_of[key] for key in chain if key in pool.page_of])
    return Transfer(
        kind="onload",
        source="peer",
        target="device",
        keys=tuple(hit.key for hit, _ in group),
        replica=replica_idx,
        pages=tuple(page for _, page in group),
        source_replica=peer,
        source_pages=tuple(source_pages),
    )


def _refuse(
    state: State,
    ctx: Context,
    replica_idx: int,
    need: Need,
    digests: Sequence[bytes],
    hit_limit: int | None,
) -> NoReturn:
    """Report that it does not fit, and nothing else (EVENT-4)."""
    pool = state.pools[replica_idx]
    free = need.free_for(pool)
    context = replace(state.snapshot(ctx, digests), stores=tuple(further_stores(state, ctx)))
    state.emit(AllocRefused(ctx.request_id, replica_idx, context, need.fresh, free, hit_limit))
    raise InsufficientBlocksError(
        needed=need.fresh,
        free=free,
        total=pool.total,
        can_ever_fit=required_pages(ctx, state.params) <= pool.total,
    )


def _undo(state: State, request: Request) -> None:
    """Give back what the plan took, tail first; the request is as before ``begin_alloc``."""
    assert request.plan is not None
    order = {page: place for place, page in enumerate(request.plan.pages)}
    for page in sorted(request.plan.added, key=lambda p: order[p], reverse=True):
        state.pools[request.replica].release(page)
    request.plan = None
    request.failed.clear()


def _record(state: State, request: Request, ctx: Context, plan: AllocPlan) -> None:
    """Advance the context (EVENT-3), and count what the cache served (METRIC-1, METRIC-4).

    Only here, so that a refused or undone allocation has counted nothing (METRIC-3).
    """
    if request.dummy:
        return
    processed = ctx.tokens.processed_length
    if not request.admitted:
        request.admitted = True
        request.counted = processed
        request.repeated = len(ctx.tokens) if ctx.preempted else 0
        if ctx.cached_prefix_length is None:
            ctx.cached_prefix_length = plan.processed - processed
    if plan.hits:
        ctx.tokens.skip_processing(plan.processed - processed)
    if processed < request.repeated:
        state.count(preempted_blocks_served=len(plan.hits))
    else:
        hits = plan.hit_counts
        state.count(
            device_blocks_served=hits.device_blocks,
            peer_blocks_served=hits.peer_blocks,
            host_blocks_served=hits.host_blocks,
            disk_blocks_served=hits.disk_blocks,
            store_blocks_served=hits.store_blocks,
            **{f"missed_blocks_{why}": n for why, n in Counter(w for _, w in plan.misses).items()},
        )
    request.looked_up = max(request.looked_up, plan.looked_up)
    if plan.hits:
        state.count_computed(request, processed)
        again, new = request.count_up_to(plan.processed)
        state.count(cache_tokens=new, preempted_cache_tokens=again)


def _note_evicted(state: State, keys: Sequence[PageKey]) -> None:
    """A block that leaves the device without being anywhere else was evicted, or never stored."""
    connector = state.connector
    for key in keys:
        stored = connector.first is None or connector.holds(key)
        evicted = stored or state.fates.of(key) == "evicted"
        state.fates.note([key], "evicted" if evicted else "not_stored")
