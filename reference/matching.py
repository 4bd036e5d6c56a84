"""Finding the cached prefix of a request, and what an allocation would take; changes nothing.

Rules ALLOC-3 to ALLOC-8 and METRIC-6, and the probes of ALLOC-14.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pagedkv.reference.context import Context, ExternalBlockMetadata
from pagedkv.reference.fates import MissReason
from pagedkv.reference.identity import PageKey
from pagedkv.reference.lengths import identifiable_tokens, required_pages
from pagedkv.reference.metrics import PrefixCacheHits
from pagedkv.reference.pool import PagePool
from pagedkv.reference.state import Hit, Request, State, count_hits, source_name
from pagedkv.reference.tier_names import LowerTier
from pagedkv.reference.tiers import Tier
from pagedkv.reference.transfer import Transfer


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


def need_of(
    state: State,
    request: Request,
    ctx: Context,
    replica_idx: int,
    digests: Sequence[bytes],
    hit_limit: int | None = None,
) -> Need:
    """What ``alloc`` would take: nothing if the request's pages suffice (ALLOC-3).

    Otherwise pages for the blocks to load and for the tokens to compute (ALLOC-8). Of the blocks
    that are found, no more than ``hit_limit`` are used (ALLOC-15).

    Raises:
        ValueError: ``hit_limit`` is negative.
    """
    if hit_limit is not None and hit_limit < 0:
        raise ValueError(f"hit_limit is {hit_limit}; use 0 or more, or None for no limit")
    needed = required_pages(ctx, state.params)
    if needed <= len(request.pages) or request.dummy:
        return Need(hits=(), kept=len(request.pages), moved=0, fresh=0, shared=())
    hits, misses = _match(state, request, ctx, replica_idx, digests, hit_limit)
    if (request.committed + len(hits)) * state.params.page_size <= ctx.tokens.processed_length:
        hits = ()
    kept = request.committed if hits else len(request.pages)
    moved = min(len(request.pages) - kept, needed - kept - len(hits))
    shared = tuple(hit.page for hit in hits if hit.page is not None)
    return Need(hits, kept, moved, needed - kept - moved - len(shared), shared, misses)


def _match(
    state: State,
    request: Request,
    ctx: Context,
    replica_idx: int,
    digests: Sequence[bytes],
    hit_limit: int | None,
) -> tuple[tuple[Hit, ...], tuple[tuple[PageKey, MissReason], ...]]:
    """The contiguous cached run after the committed pages, and the blocks that it lacks.

    Rules ALLOC-4, ALLOC-5, ALLOC-6, ALLOC-15 and METRIC-6.
    """
    keys = state.keys(digests)[request.committed :]
    if not keys or not state.params.enable_prefix_caching or request.fenced:
        return (), ()
    further = list(further_stores(state, ctx).values())
    below = state.connector.lookup(keys, request.avoided, further)
    hits: list[Hit] = []
    for key, tier in zip(keys, below, strict=True):
        hit = _find(state, replica_idx, key, tier, request.avoided)
        if hit is None:
            break
        hits.append(hit)
    known = max(request.looked_up, ctx.tokens.processed_length // state.params.page_size)
    misses: tuple[tuple[PageKey, MissReason], ...] = tuple(
        (key, _why_missing(state, request, key))
        for n, (key, tier) in enumerate(zip(keys, below, strict=True), request.committed)
        # A block behind the gap that is still somewhere is no loss, only out of reach.
        if n >= max(known, request.committed + len(hits))
        and _find(state, replica_idx, key, tier, {}) is None
    )
    if hit_limit is not None:
        left = [(n, hit.key) for n, hit in enumerate(hits, request.committed)][hit_limit:]
        misses = (*((key, "too_slow") for n, key in left if n >= known), *misses)
        hits = hits[:hit_limit]
    if hits and state.drafts_look_ahead:
        # It was written before another successor (DRAFT-1).
        hits.pop()
    return tuple(hits), misses


def _why_missing(state: State, request: Request, key: PageKey) -> MissReason:
    """The reason of a miss: what failed this request, or what became of the block (METRIC-6)."""
    for (_, avoided), reason in request.avoided.items():
        if avoided == key:
            return reason
    return state.fates.of(key)


def _find(
    state: State,
    replica_idx: int,
    key: PageKey,
    below: LowerTier | None,
    avoided: Mapping[tuple[str, PageKey], MissReason],
) -> Hit | None:
    """The fastest tier that holds ``key``, seen from a replica (ALLOC-4, ALLOC-6, ALLOC-10)."""
    pool = state.pools[replica_idx]
    if key in pool.page_of:
        return Hit(key, "device", page=pool.page_of[key])
    if key in pool.loading:
        load = next(t for t in state.in_flight.values() if _brings(t, replica_idx, key))
        if (source_name(load.source, load.source_replica), key) in avoided:
            return None
        return Hit(key, load.source, page=pool.loading[key], joined=load.id)
    if state.params.enable_dp_cross_replica_prefix_copy:
        for peer, other in enumerate(state.pools):
            usable = peer not in state.poisoned and (source_name("peer", peer), key) not in avoided
            if peer != replica_idx and key in other.page_of and usable:
                return Hit(key, "peer", peer=peer)
    return None if below is None else Hit(key, below)


def _brings(transfer: Transfer, replica_idx: int, key: PageKey) -> bool:
    return (
        transfer.kind == "onload"
        and transfer.replica == replica_idx
        and not transfer.fenced
        and key in transfer.keys
    )


def lookup_digests(state: State, request: Request, ctx: Context) -> list[bytes]:
    """Digests of the pages that may be hit: at least one active token stays (ALLOC-5)."""
    if not state.params.enable_prefix_caching or request.dummy:
        return []
    # Ask for it now, however short the request: a missing image hash must not surface in a step.
    _ = ctx.hash_overrides
    if ctx.tokens.active_length == 1:
        return request.digests[: request.committed]
    tokens = min(identifiable_tokens(ctx), ctx.tokens.current_position - 1)
    count = max(tokens // state.params.page_size, request.committed)
    return state.digests(ctx, request, count)


def further_stores(state: State, ctx: Context) -> dict[str, Tier]:
    """Other block stores that the request names, by endpoint, in the order to ask (STORE-4)."""
    endpoints = ExternalBlockMetadata.parse(ctx.external_block_metadata).endpoints
    own = state.connector.tiers.get("store")
    return {} if own is None else {e: state.further_store(e, own) for e in endpoints}


def used_fraction_after(state: State, ctx: Context, replica_idx: int) -> float:
    """Share of the replica's pages in use if ``ctx`` were allocated now, 0 to 1 (ALLOC-14)."""
    request = state.settled_request(
        ctx.request_id, replica_idx, "get_pct_used_blocks_after_allocation"
    )
    pool = state.pools[replica_idx]
    need = need_of(state, request, ctx, replica_idx, lookup_digests(state, request, ctx))
    idle_hits = sum(1 for page in need.shared if page in pool.idle and page not in pool.pins)
    given_back = len(request.pages) - need.kept - need.moved
    used = pool.total - pool.num_free + need.fresh + idle_hits - given_back
    return min(1.0, used / pool.total)


def hit_counts(state: State, ctx: Context) -> list[PrefixCacheHits]:
    """By replica: the cached prefix that ``ctx`` would find there; changes nothing (ALLOC-14)."""
    stranger = Request(replica=0)
    digests = lookup_digests(state, stranger, ctx)
    return [
        count_hits(need_of(state, stranger, ctx, replica, digests).hits)
        if replica not in state.poisoned
        else PrefixCacheHits()
        for replica in range(len(state.pools))
    ]
