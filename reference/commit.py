"""``step``: pages whose KV has been written enter the prefix cache and are offloaded.

Rules STEP-1 to STEP-6.
"""

from collections.abc import Sequence

from pagedkv.reference.batches import check_batches
from pagedkv.reference.context import Context
from pagedkv.reference.errors import BlocksNotAllocatedError
from pagedkv.reference.events import IssuedTransfer, Stepped
from pagedkv.reference.lengths import ceil_div, written_tokens
from pagedkv.reference.state import Request, State
from pagedkv.reference.store_answers import report_answers
from pagedkv.reference.transfers import issue


def step(state: State, batches: Sequence[Sequence[Context]]) -> None:
    """Commit what the requests of ``batches`` have computed since their last step (STEP-2).

    Requests that may not commit only have their tokens counted (STEP-3); those that have neither
    computed nor committed anything new are left alone (STEP-6).

    Raises:
        BlocksNotAllocatedError: A request has computed more than its pages hold (STEP-1).
        See also :func:`check_batches`.
    """
    # CHECK, and identify every page before any is committed
    rows = check_batches(state, batches, "step")
    size = state.params.page_size
    plan: list[tuple[Context, Request, list[bytes]]] = []
    for _, ctx, request in rows:
        if request.dummy:
            continue
        needed = ceil_div(written_tokens(ctx), size)
        if needed > len(request.pages):
            raise BlocksNotAllocatedError(
                ctx.request_id, needed=needed, allocated=len(request.pages)
            )
        full = max(request.committed, written_tokens(ctx) // size)
        may_commit = state.params.enable_prefix_caching and not request.fenced
        commits = may_commit and full > request.offered
        plan.append((ctx, request, state.digests(ctx, request, full) if commits else []))

    for ctx, request, digests in plan:
        # TAKE: full pages enter the cache, or give way to those that are there
        issued: list[IssuedTransfer] = []
        if digests:
            report_answers(state, state.keys(digests))
            request.digests = digests
            _commit(state, request, len(digests))
            # MOVE
            issued = _offload(state, request)

        # RECORD
        computed = ctx.tokens.processed_length
        if digests or computed > request.counted:
            state.count_computed(request, computed)
            state.emit(
                Stepped(
                    ctx.request_id,
                    state.snapshot(ctx, digests),
                    tuple(request.pages),
                    tuple(issued),
                )
            )


def _commit(state: State, request: Request, full: int) -> None:
    """The pages up to ``full`` become hittable; what is cached already is shared (STEP-4)."""
    pool = state.pools[request.replica]
    # Draft KV of a cached page may have been written before another token (DRAFT-1).
    swaps = state.params.deduplication == "swap" and not state.drafts_look_ahead
    for n, key in enumerate(state.keys(request.digests[:full])):
        if n < request.committed:
            continue
        cached, own = pool.page_of.get(key), request.pages[n]
        state.fates.forget(key)
        if cached is None:
            pool.commit(own, key)
        elif swaps:
            pool.hold(cached)
            pool.release(own)
            request.pages[n] = cached
    request.committed = full


def _offload(state: State, request: Request) -> list[IssuedTransfer]:
    """Offer the committed chain to the tiers below, in prefix order (STEP-5)."""
    chain = state.keys(request.digests[: request.committed])
    new = request.committed - request.offered
    request.offered = request.committed
    if not new:
        return []
    pages = request.pages[: request.committed]
    pool, connector = state.pools[request.replica], state.connector
    unsaved = connector.unsaved(chain[-new:])
    pool.dirty.update(pool.page_of[key] for key in unsaved if key in pool.page_of)
    arriving = pool.loading_key_of.keys()
    transfers = connector.offload(chain, pages, request.replica, new=new, arriving=arriving)
    return [issue(state, transfer) for transfer in transfers]
