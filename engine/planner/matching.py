"""Finding the cached prefix of a request, and what an allocation would take; changes nothing.

Rules ALLOC-3 to ALLOC-8 and METRIC-6, and the probes of ALLOC-14.
"""

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import cast

from pagedkv.engine.planner.fates import MissReason
from pagedkv.engine.planner.pages import PagePool
from pagedkv.engine.planner.state import Load, Request, State, source_name
from pagedkv.reference.context import Context
from pagedkv.reference.identity import PageKey
from pagedkv.reference.lengths import identifiable_tokens, required_pages
from pagedkv.reference.metrics import PrefixCacheHits
from pagedkv.reference.tier_names import TierName

NO_HITS = PrefixCacheHits()
"""Of the many allocations that find nothing, or have nothing to look up."""

Hits = list["int | Load"]
"""Blocks of a cached prefix: the device page that holds one, or where it has to come from."""


@dataclass(slots=True)
class Need:
    """What an allocation would take, worked out without changing anything."""

    hits: Sequence["int | Load"]
    """The cached prefix that it would use."""
    loads: bool
    """Whether any of it is not on the device yet."""
    kept: int
    """Leading pages that the request holds and keeps in their places."""
    moved: int
    """Pages after them that it keeps, but for tokens after the hit."""
    fresh: int
    """Pages to take from the pool."""
    shared: Sequence[int]
    """Pages of the pool that are hit, or on their way, and only get one more holder."""
    waited_for: int
    """Leading pages that were found and may be used: none of them is a miss."""
    found: int
    """Leading pages that were found: those that are not waited for were too slow (ALLOC-15)."""
    on_device: Sequence[int | None] = ()
    """Of each page that was looked up: which device page holds its content, if one does."""

    def free_for(self, pool: PagePool) -> int:
        """Pages that may be taken for it: those it hits are not among them (ALLOC-7)."""
        return pool.takeable(excluding=self.shared)


def need_of(
    state: State,
    request: Request,
    ctx: Context,
    replica_idx: int,
    count: int,
    hit_limit: int | None = None,
) -> Need:
    """What ``alloc`` would take: nothing if the request's pages suffice (ALLOC-3).

    Otherwise pages for the blocks to load and for the tokens to compute (ALLOC-8). The first
    ``count`` pages are looked up; of those found, no more than ``hit_limit`` are used (ALLOC-15).

    Raises:
        ValueError: ``hit_limit`` is negative.
    """
    if hit_limit is not None and hit_limit < 0:
        raise ValueError(f"hit_limit is {hit_limit}; use 0 or more, or None for no limit")
    needed, held = required_pages(ctx, state.params), len(request.pages)
    if needed <= held or request.dummy:
        return Need((), False, held, 0, 0, (), count, count)
    hits, loads, on_device = _match(state, request, replica_idx, count)
    found = request.committed + len(hits)
    if hit_limit is not None:
        hits = hits[:hit_limit]
    waited_for = request.committed + len(hits)
    if hits and state.drafts_look_ahead:
        # It was written before another successor (DRAFT-1).
        hits.pop()
    if (request.committed + len(hits)) * state.page_size <= ctx.tokens.processed_length:
        hits = []
    kept = request.committed if hits else held
    moved = min(held - kept, needed - kept - len(hits))
    shared: Sequence[int]
    if loads:
        shared = [page for hit in hits if (page := page_of(hit)) is not None]
    else:
        shared = cast("list[int]", hits)
    fresh = needed - kept - moved - len(shared)
    return Need(hits, loads, kept, moved, fresh, shared, waited_for, found, on_device)


def page_of(hit: "int | Load") -> int | None:
    """The device page that holds a block, or receives it already."""
    return hit.page if isinstance(hit, Load) else hit


def misses_of(
    state: State, request: Request, ctx: Context, replica_idx: int, need: Need, count: int
) -> dict[MissReason, int]:
    """Why the blocks that are looked up for the first time are nowhere (METRIC-6)."""
    if not need.on_device:
        return {}
    known = max(request.looked_up, ctx.tokens.processed_length // state.page_size)
    first = max(known, need.found)
    keys, pages = request.keys[first:count], need.on_device[first - request.committed :]
    pool, avoided = state.pools[replica_idx], request.avoided
    # A block behind the gap that is still somewhere is no loss, only out of reach.
    missing = [key for key, page in zip(keys, pages, strict=True) if page is None]
    if not state.is_alone or pool.loading:
        missing = [key for key in missing if not is_somewhere(state, replica_idx, key, avoided)]
    reasons: dict[MissReason, int]
    if avoided:
        reasons = dict(Counter(why_missing(state, request, key) for key in missing))
    else:
        reasons = state.fates.tally(missing)
    too_slow = need.found - max(known, need.waited_for)
    if too_slow > 0:
        reasons["too_slow"] = reasons.get("too_slow", 0) + too_slow
    return reasons


def fast_prefix(state: State, ctx: Context, replica_idx: int) -> int | None:
    """Blocks of the hit before the first that is below host memory; ``None`` if there is none."""
    request = state.settled_request(ctx.request_id, replica_idx, "alloc")
    count = lookup_count(state, request, ctx)
    hits = need_of(state, request, ctx, replica_idx, count).hits
    slow = (n for n, hit in enumerate(hits) if isinstance(hit, Load) and hit.tier in SLOW_TIERS)
    return next(slow, None)


SLOW_TIERS: tuple[TierName, ...] = ("disk", "store")
"""What an allocation may be told not to wait for (ALLOC-15)."""


def lookup_count(state: State, request: Request, ctx: Context) -> int:
    """How many leading pages may be hit: at least one active token stays (ALLOC-5).

    Their identities are known afterwards.
    """
    if not state.caching or request.dummy:
        return 0
    if not request.admitted:
        # However short the request: a missing image hash must not surface in a step.
        _ = ctx.hash_overrides
    if ctx.tokens.active_length == 1:
        return request.committed
    tokens = min(identifiable_tokens(ctx), ctx.tokens.current_position - 1)
    count = max(tokens // state.page_size, request.committed)
    state.identify(ctx, request, count)
    return count


def hits_of(need: Need) -> PrefixCacheHits:
    """What would be hit, by tier."""
    if not need.hits:
        return NO_HITS
    if not need.loads:
        return PrefixCacheHits(device_blocks=len(need.hits))
    by_tier = Counter(hit.tier if isinstance(hit, Load) else "device" for hit in need.hits)
    return PrefixCacheHits(**{f"{tier}_blocks": n for tier, n in by_tier.items()})


def used_fraction_after(state: State, ctx: Context, replica_idx: int) -> float:
    """Share of the replica's pages in use if ``ctx`` were allocated now, 0 to 1 (ALLOC-14)."""
    request = state.settled_request(
        ctx.request_id, replica_idx, "get_pct_used_blocks_after_allocation"
    )
    pool = state.pools[replica_idx]
    need = need_of(state, request, ctx, replica_idx, lookup_count(state, request, ctx))
    idle_hits = sum(1 for p in need.shared if p in pool.idle and p not in pool.pins)
    given_back = len(request.pages) - need.kept - need.moved
    used = pool.total - pool.num_free + need.fresh + idle_hits - given_back
    return min(1.0, used / pool.total)


def hit_counts(state: State, ctx: Context) -> list[PrefixCacheHits]:
    """By replica: the cached prefix that ``ctx`` would find there; changes nothing (ALLOC-14)."""
    stranger = Request(replica=0)
    count = lookup_count(state, stranger, ctx)
    return [
        hits_of(need_of(state, stranger, ctx, replica, count))
        if replica not in state.poisoned
        else PrefixCacheHits()
        for replica in range(len(state.pools))
    ]


def _match(
    state: State, request: Request, replica_idx: int, count: int
) -> tuple[Hits, bool, list[int | None]]:
    """The contiguous cached run after the committed pages (ALLOC-4 to ALLOC-6).

    And whether any of it is not on the device yet, and what is on the device, behind the run too.
    """
    if not state.caching or request.fenced:
        return [], False, []
    pool = state.pools[replica_idx]
    keys = request.keys[request.committed : count]
    on_device = pool.page_of.find(keys)
    gap = on_device.index(None) if None in on_device else len(on_device)
    hits = cast("Hits", on_device[:gap])
    if state.is_alone and not pool.loading:
        return hits, False, on_device
    loads = False
    for key, page in zip(keys[gap:], on_device[gap:], strict=True):
        hit = page if page is not None else _find(state, replica_idx, key, request.avoided)
        if hit is None:
            break
        hits.append(hit)
        loads = loads or page is None
    return hits, loads, on_device


def _find(
    state: State, replica_idx: int, key: PageKey, avoided: Collection[tuple[str, PageKey]]
) -> Load | None:
    """The fastest tier that can bring ``key`` to a replica that lacks it (ALLOC-6, ALLOC-10)."""
    coming = state.pools[replica_idx].loading.get(key)
    if coming is not None:
        page, load = coming
        if (source_name(load.source, load.source_replica), key) in avoided:
            return None
        return Load(key, load.source, page=page, joined=load)
    peer = _find_peer(state, replica_idx, key, avoided)
    if peer is not None:
        return Load(key, "peer", peer=peer)
    below = state.lower.fastest(key, avoided)
    return None if below is None else Load(key, below)


def _find_peer(
    state: State, replica_idx: int, key: PageKey, avoided: Collection[tuple[str, PageKey]]
) -> int | None:
    if len(state.pools) == 1 or not state.copies_from_peers:
        return None
    for peer, other in enumerate(state.pools):
        usable = peer not in state.poisoned and (source_name("peer", peer), key) not in avoided
        if peer != replica_idx and usable and key in other.page_of:
            return peer
    return None


def is_somewhere(
    state: State, replica_idx: int, key: PageKey, avoided: Collection[tuple[str, PageKey]]
) -> bool:
    """Whether a block can be hit, were it not for a gap before it."""
    pool = state.pools[replica_idx]
    return (
        key in pool.page_of
        or key in pool.loading
        or _find_peer(state, replica_idx, key, ()) is not None
        or state.lower.fastest(key, avoided) is not None
    )


def why_missing(state: State, request: Request, key: PageKey) -> MissReason:
    """The reason of a miss: what failed this request, or what became of the block (METRIC-6)."""
    for (_, avoided), reason in request.avoided.items():
        if avoided == key:
            return reason
    return state.fates.of(key)
