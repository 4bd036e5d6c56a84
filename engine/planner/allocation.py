"""Giving requests their pages: take what they need, issue the loads, finish, or undo.

Rules ALLOC-1 to ALLOC-13. Planning is one indivisible step; the manager waits for the loads in
between.
"""

from array import array
from collections.abc import Hashable, Sequence
from typing import NoReturn

from pagedkv.engine.planner.fates import MissReason
from pagedkv.engine.planner.matching import (
    Need,
    hits_of,
    lookup_count,
    misses_of,
    need_of,
    page_of,
)
from pagedkv.engine.planner.state import LOWER_TIERS, AllocPlan, Load, Request, State
from pagedkv.engine.planner.transfer import Transfer
from pagedkv.reference.context import Context, ExternalBlockMetadata
from pagedkv.reference.errors import (
    AllocPendingError,
    InsufficientBlocksError,
    KVLoadFailed,
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
    count = lookup_count(state, request, ctx)
    if ctx.external_block_metadata is not None:
        ExternalBlockMetadata.parse(ctx.external_block_metadata)
    need = need_of(state, request, ctx, replica_idx, count, hit_limit)
    if need.fresh and not pool.can_take(need.fresh, holding=need.shared):
        _refuse(state, ctx, replica_idx, need, count, hit_limit)
    misses = misses_of(state, request, ctx, replica_idx, need, count)

    # TAKE: hold what is hit, so that taking the rest cannot evict it, then the oldest pages
    pool.hold(need.shared)
    fresh: list[int] = []
    if need.fresh:
        fresh, evicted = pool.take(need.fresh)
        _note_evicted(state, evicted)

    # MOVE: what is not on this device yet, one transfer per source
    hit_pages, rest = need.shared, fresh
    transfers: list[str] = []
    issued: list[IssuedTransfer] = []
    if need.loads:
        supply = iter(fresh)
        hit_pages = [p if (p := page_of(hit)) is not None else next(supply) for hit in need.hits]
        rest = list(supply)
        transfers = [hit.joined.id for hit in need.hits if isinstance(hit, Load) and hit.joined]
        issued = _load(state, request, need.hits, hit_pages)
        transfers += [transfer.transfer for transfer in issued]
    if need.hits:
        state.lower.touch(request.keys[: request.committed + len(need.hits)])

    # RECORD
    own = request.pages[need.kept :]
    pages = request.pages
    if need.hits or need.fresh:
        pages = pages[: need.kept] + array("i", hit_pages) + own[: need.moved] + array("i", rest)
    request.plan = plan = AllocPlan(
        pages=pages,
        hits=hits_of(need),
        added=[*need.shared, *fresh],
        replaced=own[need.moved :],
        transfers=list(dict.fromkeys(transfers)),
        processed=(
            (request.committed + len(need.hits)) * state.page_size
            if need.hits
            else ctx.tokens.processed_length
        ),
        looked_up=count,
        misses=misses,
        found=need.hits,
    )
    if state.tracer is not None:
        state.tracer.emit(
            AllocPlanned(
                ctx.request_id,
                replica_idx,
                state.snapshot(ctx, request.keys[:count]),
                tuple(plan.pages),
                plan.hits,
                tuple(issued),
                tuple(plan.transfers),
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
    arriving = [name for name in plan.transfers if name in state.in_flight]
    if not all(state.in_flight[name].submitted for name in arriving):
        raise AllocPendingError(ctx.request_id, "finish_alloc")
    if request.failed:
        failed = tuple(sorted(request.failed))
        _undo(state, request, plan)
        if state.tracer is not None:
            state.tracer.emit(AllocCancelled(ctx.request_id, failed))
        raise KVLoadFailed(ctx.request_id, failed)

    # TAKE: the pages are the request's; what a hit has replaced goes back, tail first
    request.plan = None
    request.pages = plan.pages
    request.arriving += arriving
    request.committed += plan.hits.total_blocks
    if plan.replaced:
        state.pools[replica_idx].release(reversed(plan.replaced))

    # RECORD
    _record(state, request, ctx, plan)
    if state.tracer is not None:
        state.tracer.emit(AllocReturned(ctx.request_id, ctx.tokens.processed_length))
    return plan


def cancel_alloc(state: State, request_id: Hashable, replica_idx: int) -> None:
    """Undo a planned allocation; loads in flight go on, their pages stay pinned (ALLOC-12).

    Raises:
        NoPlannedAllocError: There is no plan (ALLOC-13).
    """
    request = state.request(request_id, replica_idx)
    if request.plan is None:
        raise NoPlannedAllocError(request_id)
    _undo(state, request, request.plan)
    if state.tracer is not None:
        state.tracer.emit(AllocCancelled(request_id))


def refusal(state: State, ctx: Context, replica_idx: int) -> InsufficientBlocksError:
    """Why an allocation that waits for its turn has no pages yet; changes nothing."""
    request = state.settled_request(ctx.request_id, replica_idx, "alloc")
    need = need_of(state, request, ctx, replica_idx, lookup_count(state, request, ctx))
    return _insufficient(state, ctx, replica_idx, need)


def _load(
    state: State, request: Request, hits: Sequence["int | Load"], pages: Sequence[int]
) -> list[IssuedTransfer]:
    """Issue the loads of ``hits`` into ``pages``, one per source."""
    chain = request.keys[: request.committed + len(hits)]
    coming = [
        (hit, page)
        for hit, page in zip(hits, pages, strict=True)
        if isinstance(hit, Load) and hit.joined is None
    ]
    issued: list[IssuedTransfer] = []
    for peer in range(len(state.pools)):
        group = [(hit.key, page) for hit, page in coming if hit.peer == peer]
        if group:
            issued.append(state.issue(_peer_copy(state, request.replica, peer, group, chain)))
    for tier in LOWER_TIERS:
        group = [(hit.key, page) for hit, page in coming if hit.tier == tier]
        if group:
            keys, into = zip(*group, strict=True)
            load = state.lower.load(tier, keys, into, request.replica, chain)
            issued.append(state.issue(load))
    return issued


def _peer_copy(
    state: State,
    replica_idx: int,
    peer: int,
    group: Sequence[tuple[PageKey, int]],
    chain: Sequence[PageKey],
) -> Transfer:
    """The copy of ``group`` from a peer, where all of the chain is renewed: leaf before root."""
    pool = state.pools[peer]
    source_pages = tuple(pool.page_of[key] for key, _ in group)
    pool.refresh([page for key in chain if (page := pool.page_of.get(key)) is not None])
    return Transfer(
        kind="onload",
        source="peer",
        target="device",
        keys=tuple(key for key, _ in group),
        replica=replica_idx,
        pages=tuple(page for _, page in group),
        source_replica=peer,
        source_pages=source_pages,
    )


def _refuse(
    state: State,
    ctx: Context,
    replica_idx: int,
    need: Need,
    count: int,
    hit_limit: int | None,
) -> NoReturn:
    """Report that it does not fit, and nothing else (EVENT-4)."""
    error = _insufficient(state, ctx, replica_idx, need)
    if state.tracer is not None:
        context = state.snapshot(ctx, state.requests[ctx.request_id].keys[:count])
        state.tracer.emit(
            AllocRefused(ctx.request_id, replica_idx, context, error.needed, error.free, hit_limit)
        )
    raise error


def _insufficient(
    state: State, ctx: Context, replica_idx: int, need: Need
) -> InsufficientBlocksError:
    pool = state.pools[replica_idx]
    return InsufficientBlocksError(
        needed=need.fresh,
        free=need.free_for(pool),
        total=pool.total,
        can_ever_fit=required_pages(ctx, state.params) <= pool.total,
    )


def _undo(state: State, request: Request, plan: AllocPlan) -> None:
    """Give back what the plan took, tail first; the request is as before ``begin_alloc``."""
    order = {page: place for place, page in enumerate(plan.pages)}
    tail_first = sorted(plan.added, key=order.__getitem__, reverse=True)
    state.pools[request.replica].release(tail_first)
    request.plan = None
    request.failed.clear()


def _record(state: State, request: Request, ctx: Context, plan: AllocPlan) -> None:
    """Advance the context (EVENT-3), and count what the cache served (METRIC-1, METRIC-4).

    Only here, so that a refused or undone allocation has counted nothing (METRIC-3).
    """
    if request.dummy:
        return
    processed, counters = ctx.tokens.processed_length, state.counters
    num_hits = plan.hits.total_blocks
    if not request.admitted:
        request.admitted = True
        request.counted = processed
        request.repeated = len(ctx.tokens) if ctx.preempted else 0
        if ctx.cached_prefix_length is None:
            ctx.cached_prefix_length = plan.processed - processed
    if num_hits:
        ctx.tokens.skip_processing(plan.processed - processed)
    if processed < request.repeated:
        counters.preempted_blocks_served += num_hits
    else:
        if num_hits:
            counters.device_blocks_served += plan.hits.device_blocks
            counters.peer_blocks_served += plan.hits.peer_blocks
            counters.host_blocks_served += plan.hits.host_blocks
            counters.disk_blocks_served += plan.hits.disk_blocks
            counters.store_blocks_served += plan.hits.store_blocks
        for reason, blocks in plan.misses.items():
            counters.missed(reason, blocks)
    request.looked_up = max(request.looked_up, plan.looked_up)
    if num_hits:
        state.count_computed(request, processed)
        again, new = request.count_up_to(plan.processed)
        counters.cache_tokens += new
        counters.preempted_cache_tokens += again


def _note_evicted(state: State, keys: Sequence[PageKey]) -> None:
    """A block that leaves the device without being anywhere else was evicted, or never stored."""
    lower, fates = state.lower, state.fates
    if lower.first is None:
        fates.note(keys, "evicted", "device")
        return
    by_reason: dict[MissReason, list[PageKey]] = {"evicted": [], "not_stored": []}
    for key in keys:
        evicted = lower.holds(key) or fates.of(key) == "evicted"
        by_reason["evicted" if evicted else "not_stored"].append(key)
    for reason, lost in by_reason.items():
        fates.note(lost, reason, "device")
