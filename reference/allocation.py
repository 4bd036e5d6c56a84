"""Giving requests their pages: match the cached prefix, take pages, load what is elsewhere.

Rules ALLOC-1 to ALLOC-14. An allocation is planned in one indivisible step, waits for its loads,
and is then finished, or undone if a load has failed.
"""

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

from pagedkv.reference.context import Context, ExternalBlockMetadata
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
    Cleaned,
    ContextSnapshot,
    IssuedTransfer,
)
from pagedkv.reference.fates import MissReason
from pagedkv.reference.identity import PageKey, page_digests
from pagedkv.reference.lengths import identifiable_tokens, required_pages
from pagedkv.reference.metrics import PrefixCacheHits
from pagedkv.reference.pool import PagePool
from pagedkv.reference.state import AllocPlan, Hit, Request, State, count_hits
from pagedkv.reference.tier_names import LowerTier, TierName
from pagedkv.reference.tiers import Tier
from pagedkv.reference.transfer import Transfer
from pagedkv.reference.transfers import issue


@dataclass(frozen=True, slots=True)
class Need:
    """What an allocation would take, worked out without changing anything."""

    hits: tuple[Hit, ...]
    """The cached prefix that it would use."""
    kept: int
    """Leading pages that the request holds and keeps in their places."""
    moved: int
    """Pages after them that it keeps, but for tokens after the hit."""
    fresh: int
    """Pages to take from the pool."""
    shared: tuple[int, ...]
    """Pages of the pool that are hit, or on their way, and only get one more holder."""
    misses: tuple[tuple[PageKey, MissReason], ...] = ()
    """The blocks that were looked up and not found, and why."""

    def free_for(self, pool: PagePool) -> int:
        """Pages that may be taken for it: those it hits are not among them (ALLOC-7)."""
        return pool.takeable(excluding=self.shared)


def begin_alloc(state: State, ctx: Context, replica_idx: int) -> AllocPlan:
    """Plan the allocation of ``ctx``: match, take, issue the loads, wait for nothing.

    Raises:
        InsufficientBlocksError: It does not fit; nothing was changed (ALLOC-2).
        UnknownRequestError, ReplicaIndexError: See :meth:`State.request`.
        AllocPendingError: An earlier plan of the request is not finished (ALLOC-13).
    """
    # CHECK
    request = state.settled_request(ctx.request_id, replica_idx, "alloc")
    pool = state.pools[replica_idx]

    # MATCH: the longest cached prefix, each block from the fastest tier that holds it
    digests = _digests(state, request, ctx)
    need = _need(state, request, ctx, replica_idx, digests)
    if need.fresh > need.free_for(pool):
        _refuse(state, ctx, need, pool)
    request.digests = digests

    # TAKE: hold what is hit, so that taking the rest cannot evict it, then the oldest pages
    for page in need.shared:
        pool.hold(page)
    fresh, evicted = pool.take(need.fresh)
    _note_evicted(state, evicted)

    # MOVE: what is not on this device yet, one transfer per tier
    supply = iter(fresh)
    hit_pages = [next(supply) if hit.page is None else hit.page for hit in need.hits]
    issued = _load(state, ctx, request, need.hits, hit_pages)
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
    )
    state.emit(
        AllocPlanned(
            ctx.request_id,
            replica_idx,
            snapshot(state, ctx, request.digests),
            plan.pages,
            plan.hit_counts,
            tuple(issued),
            plan.transfers,
        )
    )
    return plan


def finish_alloc(state: State, ctx: Context, replica_idx: int) -> AllocPlan:
    """Complete a planned allocation: the request gets its pages, the context moves past the hit.

    Raises:
        NoPlannedAllocError: There is no plan (ALLOC-13).
        AllocPendingError: A load is still in flight (ALLOC-13).
        KVLoadFailed: A load has failed: the plan was undone, plan again (ALLOC-11).
    """
    # CHECK
    state.check_works(replica_idx)
    request = state.request(ctx.request_id, replica_idx)
    plan = request.plan
    if plan is None:
        raise NoPlannedAllocError(ctx.request_id)
    if any(transfer in state.in_flight for transfer in plan.transfers):
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


def clean(state: State, replica_idx: int, count: int, sparing: Sequence[PageKey] = ()) -> list[str]:
    """Offload the ``count`` oldest dirty pages that nobody holds, so that they may go (TIER-7).

    A page that finds no slot below is no longer dirty either: its content may be lost, and
    losing cached content is a miss. Blocks in ``sparing`` are not given up to make a slot.
    Returns the transfers that were issued.
    """
    pool = state.pool(replica_idx)
    idle = [p for p in pool.idle if p in pool.dirty and p not in pool.pins]
    return clean_pages(state, replica_idx, idle[:count], sparing)


def clean_pages(
    state: State, replica_idx: int, pages: Sequence[int], sparing: Sequence[PageKey] = ()
) -> list[str]:
    """Offload these dirty pages, whoever holds them."""
    pool = state.pools[replica_idx]
    if not pages:
        return []
    keys = [pool.key_of[page] for page in pages]
    transfers = state.connector.clean(keys, pages, replica_idx, sparing)
    moving = {page for transfer in transfers for page in transfer.pages}
    pool.dirty.difference_update(set(pages) - moving)
    issued = tuple(issue(state, transfer) for transfer in transfers)
    state.emit(Cleaned(replica_idx, tuple(pages), issued))
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
    need = _need(state, request, ctx, replica_idx, _digests(state, request, ctx))
    lacking = need.fresh - need.free_for(pool)
    if not 0 < lacking <= pool.cleanable(excluding=need.shared):
        return None
    dirty = (p for p in pool.idle if p in pool.dirty and p not in (*pool.pins, *need.shared))
    return next(dirty), tuple(hit.key for hit in need.hits)


def used_fraction_after(state: State, ctx: Context, replica_idx: int) -> float:
    """Share of the replica's pages in use if ``ctx`` were allocated now, 0 to 1 (ALLOC-14)."""
    request = state.settled_request(
        ctx.request_id, replica_idx, "get_pct_used_blocks_after_allocation"
    )
    pool = state.pools[replica_idx]
    need = _need(state, request, ctx, replica_idx, _digests(state, request, ctx))
    idle_hits = sum(1 for page in need.shared if page in pool.idle and page not in pool.pins)
    given_back = len(request.pages) - need.kept - need.moved
    used = pool.total - pool.num_free + need.fresh + idle_hits - given_back
    return min(1.0, used / pool.total)


def hit_counts(state: State, ctx: Context) -> list[PrefixCacheHits]:
    """By replica: the cached prefix that ``ctx`` would find there; changes nothing (ALLOC-14)."""
    stranger = Request(replica=0)
    digests = _digests(state, stranger, ctx)
    return [
        count_hits(_need(state, stranger, ctx, replica, digests).hits)
        if replica not in state.poisoned
        else PrefixCacheHits()
        for replica in range(len(state.pools))
    ]


def snapshot(state: State, ctx: Context, digests: Sequence[bytes]) -> ContextSnapshot:
    """What an event says of a context (EVENT-2)."""
    return ContextSnapshot(
        length=len(ctx.tokens),
        processed=ctx.tokens.processed_length,
        position=ctx.tokens.current_position,
        keys=state.keys(digests),
        placeholders=ctx.pending_future_count,
        drafts_to_verify=len(ctx.spec_decoding_state.draft_tokens_to_verify),
        maybe_accepted_drafts=len(ctx.spec_decoding_state.maybe_accepted_draft_tokens),
        preempted=ctx.preempted,
    )


def _need(
    state: State, request: Request, ctx: Context, replica_idx: int, digests: Sequence[bytes]
) -> Need:
    """What ``alloc`` would take: nothing if the request's pages suffice (ALLOC-3).

    Otherwise pages for the blocks to load and for the tokens to compute (ALLOC-8).
    """
    needed = required_pages(ctx, state.params)
    if needed <= len(request.pages) or request.dummy:
        return Need(hits=(), kept=len(request.pages), moved=0, fresh=0, shared=())
    hits, misses = _match(state, request, ctx, replica_idx, digests)
    if (request.committed + len(hits)) * state.params.page_size <= ctx.tokens.processed_length:
        hits = ()
    kept = request.committed if hits else len(request.pages)
    moved = min(len(request.pages) - kept, needed - kept - len(hits))
    shared = tuple(hit.page for hit in hits if hit.page is not None)
    return Need(hits, kept, moved, needed - kept - moved - len(shared), shared, misses)


def _match(
    state: State, request: Request, ctx: Context, replica_idx: int, digests: Sequence[bytes]
) -> tuple[tuple[Hit, ...], tuple[tuple[PageKey, MissReason], ...]]:
    """The contiguous cached run after the committed pages, and the blocks that it lacks.

    Rules ALLOC-4, ALLOC-5, ALLOC-6 and METRIC-6.
    """
    keys = state.keys(digests)[request.committed :]
    if not keys or not state.params.enable_prefix_caching or request.fenced:
        return (), ()
    peers = _peer_stores(state, ctx)
    below = state.connector.lookup(keys, request.avoided, peers)
    hits: list[Hit] = []
    for key, tier in zip(keys, below, strict=True):
        hit = _find(state, replica_idx, key, tier, request.avoided)
        if hit is None:
            break
        hits.append(hit)
    misses = tuple((key, _why_missing(state, request, key)) for key in keys[len(hits) :])
    if hits and state.params.speculative_method in ("eagle", "mtp"):
        # The draft KV of a page's last position depends on the token after the page (DRAFT-1).
        hits.pop()
    return tuple(hits), misses


def _why_missing(state: State, request: Request, key: PageKey) -> MissReason:
    """The reason of a miss: what failed this request, or what became of the block (METRIC-6)."""
    for (_, avoided), reason in request.avoided.items():
        if avoided == key:
            return reason
    return state.fates.of(key)


def _note_evicted(state: State, keys: Sequence[PageKey]) -> None:
    """A block that leaves the device without being anywhere else was evicted, or never stored."""
    connector = state.connector
    for key in keys:
        stored = connector.first is None or connector.holds(key)
        if stored or state.fates.of(key) == "evicted":
            state.fates.note([key], "evicted")
        else:
            state.fates.note([key], "not_stored")


def _find(
    state: State,
    replica_idx: int,
    key: PageKey,
    below: LowerTier | None,
    avoided: Mapping[tuple[TierName, PageKey], MissReason],
) -> Hit | None:
    """The fastest tier that holds ``key``, seen from a replica (ALLOC-4, ALLOC-6, ALLOC-10)."""
    pool = state.pools[replica_idx]
    if key in pool.page_of:
        return Hit(key, "device", page=pool.page_of[key])
    if key in pool.loading:
        load = next(t for t in state.in_flight.values() if _brings(t, replica_idx, key))
        if (load.source, key) in avoided:
            return None
        return Hit(key, load.source, page=pool.loading[key], joined=load.id)
    if state.params.enable_dp_cross_replica_prefix_copy and ("peer", key) not in avoided:
        for peer, other in enumerate(state.pools):
            if peer != replica_idx and key in other.page_of and peer not in state.poisoned:
                return Hit(key, "peer", peer=peer)
    return None if below is None else Hit(key, below)


def _brings(transfer: Transfer, replica_idx: int, key: PageKey) -> bool:
    return (
        transfer.kind == "onload"
        and transfer.replica == replica_idx
        and not transfer.fenced
        and key in transfer.keys
    )


def _digests(state: State, request: Request, ctx: Context) -> list[bytes]:
    """Digests of the pages that may be hit: at least one active token stays (ALLOC-5)."""
    if not state.params.enable_prefix_caching or request.dummy or ctx.tokens.active_length == 1:
        return request.digests[: request.committed]
    # Ask for it now, however short the request: a missing image hash must not surface in a step.
    _ = ctx.hash_overrides
    size = state.params.page_size
    count = min(identifiable_tokens(ctx), ctx.tokens.current_position - 1) // size
    return page_digests(
        ctx,
        count=max(count, request.committed),
        page_size=size,
        algorithm=state.params.kv_hash_algo,
        seed=state.params.kv_hash_seed,
        known=request.digests,
    )


def _peer_stores(state: State, ctx: Context) -> list[Tier]:
    """Other block stores that the request names (STORE-4)."""
    endpoints = ExternalBlockMetadata.parse(ctx.external_block_metadata).endpoints
    own = state.connector.tiers.get("store")
    if own is None:
        return []
    return [
        Tier(None, verifies=True, prefix=own.prefix, blocks=state.media.open_store(endpoint))
        for endpoint in endpoints
    ]


def _load(
    state: State, ctx: Context, request: Request, hits: Sequence[Hit], pages: Sequence[int]
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
                    tier, keys, pages_of_group, request.replica, chain, _peer_stores(state, ctx)
                )
            except KVLoadRefused:
                request.failed.add(f"load refused by {tier}")
                request.avoided.update({(tier, key): "failed" for key in keys})
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


def _refuse(state: State, ctx: Context, need: Need, pool: PagePool) -> None:
    """Report the refusal and raise it; no counter moves (EVENT-4, METRIC-3)."""
    free = need.free_for(pool)
    state.emit(AllocRefused(ctx.request_id, need.fresh, free))
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
    """Advance the context (EVENT-3), and count what the cache served (METRIC-1, METRIC-4)."""
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
    if plan.hits:
        count_computed(state, request, processed)
        again, new = request.count_up_to(plan.processed)
        state.count(cache_tokens=new, preempted_cache_tokens=again)


def count_computed(state: State, request: Request, position: int) -> None:
    """Count the tokens before ``position`` as computed, unless they were counted (METRIC-1)."""
    again, new = request.count_up_to(position)
    state.count(input_tokens=new, preempted_input_tokens=again)
