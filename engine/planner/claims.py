"""Claiming and releasing requests.  Rules CLAIM-1 to CLAIM-4 and REL-1 to REL-4."""

from array import array
from collections.abc import Hashable

from pagedkv.engine.planner.allocation import cancel_alloc
from pagedkv.engine.planner.state import Request, State
from pagedkv.reference.errors import AlreadyClaimedError
from pagedkv.reference.events import Claimed, Released


def claim(state: State, request_id: Hashable, replica_idx: int, *, dummy: bool = False) -> None:
    """Assign a request to a replica; a ``dummy`` is mapped to the null page (CLAIM-4).

    Raises:
        AlreadyClaimedError: It is claimed, on whatever replica (CLAIM-1).
        ReplicaIndexError: There is no such replica (CLAIM-3).
        ReplicaPoisonedError: The replica's device has failed (FAIL-2).
    """
    state.check_works(replica_idx)
    known = state.requests.get(request_id)
    if known is not None:
        raise AlreadyClaimedError(request_id, replica_idx, known.replica)
    pages = array("i", [state.pools[replica_idx].null_page] if dummy else [])
    state.requests[request_id] = Request(replica_idx, pages, dummy=dummy)
    if state.tracer is not None:
        state.tracer.emit(Claimed(request_id, replica_idx, dummy))


def release(state: State, request_id: Hashable, replica_idx: int) -> None:
    """Give back a request's pages, tail first, and forget it (REL-1, REL-2).

    Raises:
        UnknownRequestError, ReplicaIndexError: See :meth:`State.request`.
    """
    request = state.request(request_id, replica_idx)
    if request.plan is not None:
        cancel_alloc(state, request_id, replica_idx)  # REL-4
    if not request.dummy:
        state.pools[replica_idx].release(request.pages[::-1])
    del state.requests[request_id]
    if state.tracer is not None:
        state.tracer.emit(Released(request_id))
