"""What ``runtime_inputs`` and ``step`` check of the batches they are given."""

from collections.abc import Hashable, Sequence

from pagedkv.engine.planner.state import Request, State
from pagedkv.reference.context import Context
from pagedkv.reference.errors import BatchesError


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
        rows.append([])
        for ctx in batch:
            if ctx.request_id in seen:
                raise BatchesError(
                    f"{call} got request {ctx.request_id!r} twice: each may appear once"
                )
            seen.add(ctx.request_id)
            request = state.settled_request(ctx.request_id, replica, call)
            rows[replica].append((ctx, request))
    return rows
