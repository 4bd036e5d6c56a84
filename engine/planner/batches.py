"""What ``runtime_inputs`` and ``step`` check of the batches they are given."""

from collections.abc import Hashable, Sequence

from pagedkv.engine.planner.state import Request, State
from pagedkv.reference.context import Context
from pagedkv.reference.errors import AllocPendingError, BatchesError


def check_one_per_replica(state: State, batches: Sequence[Sequence[Context]], call: str) -> None:
    """Refuse anything but one batch per replica (INPUT-1).

    Raises:
        BatchesError: There are more or fewer.
    """
    if len(batches) != len(state.pools):
        raise BatchesError(
            f"{call} got {len(batches)} batch(es) for {len(state.pools)} replica(s): "
            "pass one batch per replica, an empty one where there is nothing to do"
        )


def check_batches(
    state: State, batches: Sequence[Sequence[Context]], call: str
) -> list[list[tuple[Context, Request]]]:
    """By replica: the contexts of its batch with their requests (INPUT-1, INPUT-2).

    Raises:
        BatchesError: Not one batch per replica, or a request appears twice.
        UnknownRequestError: A request is not claimed on its batch's replica.
        AllocPendingError: An allocation still waits for transfers.
    """
    check_one_per_replica(state, batches, call)
    rows: list[list[tuple[Context, Request]]] = []
    seen: set[Hashable] = set()
    for replica, batch in enumerate(batches):
        row: list[tuple[Context, Request]] = []
        rows.append(row)
        if batch:
            state.check_works(replica)
        for ctx in batch:
            request_id = ctx.request_id
            if request_id in seen:
                raise BatchesError(f"{call} got request {request_id!r} twice: each may appear once")
            seen.add(request_id)
            request = state.request(request_id, replica)
            if request.plan is not None:
                raise AllocPendingError(request_id, call)
            row.append((ctx, request))
    return rows
