"""``step``: pages whose KV has been written enter the prefix cache and are offloaded.

Rules STEP-1 to STEP-6.
"""

from collections.abc import Sequence

from pagedkv.engine.planner.batches import check_batches
from pagedkv.engine.planner.state import Request, State
from pagedkv.reference.context import Context
from pagedkv.reference.errors import BlocksNotAllocatedError
from pagedkv.reference.events import IssuedTransfer, Stepped
from pagedkv.reference.lengths import ceil_div, written_tokens


def step(state: State, batches: Sequence[Sequence[Context]]) -> None:
    """Commit what the requests of ``batches`` have computed since their last step (STEP-2).

    Raises:
        BlocksNotAllocatedError: A request has computed more than its pages hold (STEP-1).
        See also :func:`check_batches`.
    """
    # CHECK, and identify every page before any is committed
    size = state.page_size
    plan: list[tuple[Context, Request, int]] = []
    for batch in check_batches(state, batches, "step"):
        for ctx, request in batch:
            if request.dummy:
                continue
            written = written_tokens(ctx)
            needed = ceil_div(written, size)
            if needed > len(request.pages):
                raise BlocksNotAllocatedError(
                    ctx.request_id, needed=needed, allocated=len(request.pages)
                )
            full = max(request.committed, written // size)
            commits = full > request.offered and state.caching and not request.fenced
            if commits:
                state.identify(ctx, request, full)
            plan.append((ctx, request, full if commits else 0))

    for ctx, request, full in plan:
        # TAKE: full pages enter the cache, or give way to those that are there
        issued: list[IssuedTransfer] = []
        if full:
            _commit(state, request, full)
            # MOVE
            issued = _offload(state, request)

        # RECORD
        computed = ctx.tokens.processed_length
        if full or computed > request.counted:
            state.count_computed(request, computed)
            if state.tracer is not None:
                snapshot = state.snapshot(ctx, request.keys[:full])
                state.tracer.emit(
                    Stepped(ctx.request_id, snapshot, tuple(request.pages), tuple(issued))
                )


def _commit(state: State, request: Request, full: int) -> None:
    """The pages up to ``full`` become hittable; what is cached already is shared (STEP-4)."""
    pool, pages, start = state.pools[request.replica], request.pages, request.committed
    keys, mine = request.keys[start:full], pages[start:full].tolist()
    if not state.is_alone:
        # Where content is on one device or nowhere, its fate is noted anew when it leaves.
        state.fates.forget(keys)
    where = pool.commit(mine, keys)
    if where != mine and state.swaps:
        for n, (own, cached) in enumerate(zip(mine, where, strict=True), start):
            if cached != own:
                pool.hold((cached,))
                pool.release((own,))
                pages[n] = cached
    request.committed = full


def _offload(state: State, request: Request) -> list[IssuedTransfer]:
    """Offer the committed chain to the tiers below, in prefix order (STEP-5)."""
    new = request.committed - request.offered
    request.offered = request.committed
    if not new or not state.lower.tiers:
        return []
    chain = request.keys[: request.committed]
    pool, lower = state.pools[request.replica], state.lower
    unsaved = lower.unsaved(chain[-new:])
    pool.make_dirty(page for key in unsaved if (page := pool.page_of.get(key)) is not None)
    transfers = lower.offload(
        chain, request.pages, request.replica, new=new, arriving=pool.loading_key_of
    )
    return [state.issue(transfer) for transfer in transfers]
