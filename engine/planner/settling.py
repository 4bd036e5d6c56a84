"""Submitting, landing and failing transfers; only the last two take their pins off.

Rules XFER-2 to XFER-5, XFER-8 and FAIL-2.
"""

from collections.abc import Collection, Iterable

from pagedkv.engine.planner.fates import MissReason
from pagedkv.engine.planner.lower_tiers import gives_up
from pagedkv.engine.planner.state import State, source_name
from pagedkv.engine.planner.transfer import Transfer
from pagedkv.reference.errors import SubmittedTransferError, UnknownTransferError
from pagedkv.reference.events import (
    ReplicaPoisoned,
    TransferFailed,
    TransferLanded,
    TransferSubmitted,
)
from pagedkv.reference.identity import PageKey
from pagedkv.reference.tier_names import FailReason


def submit(state: State, transfer_id: str) -> None:
    """What can fail of a load has been done: who has hit it may go on (XFER-8).

    Raises:
        UnknownTransferError: It is not in flight (XFER-2).
        SubmittedTransferError: It was submitted before, or is no load from below into a device.
    """
    transfer = find(state, transfer_id)
    check_can_be_submitted(transfer)
    transfer.submitted = True
    if state.tracer is not None:
        state.tracer.emit(TransferSubmitted(transfer_id))


def check_can_be_submitted(transfer: Transfer) -> None:
    """Refuse what can only land or fail.

    Raises:
        SubmittedTransferError: It was submitted before, or is no load from below into a device.
    """
    if transfer.submitted or transfer.target != "device" or transfer.source == "peer":
        raise SubmittedTransferError(transfer.id, "be submitted", submitted=transfer.submitted)


def land(state: State, transfer_id: str) -> None:
    """All bytes of a transfer have arrived, and are those that were written (XFER-3).

    Raises:
        UnknownTransferError: It is not in flight (XFER-2).
    """
    transfer = find(state, transfer_id)
    follow_ups: list[Transfer] = []
    if transfer.source_replica is not None:
        state.counters.cross_replica_blocks_copied += len(transfer.keys)
        state.counters.cross_replica_bytes_copied += len(transfer.keys) * state.page_nbytes
    else:
        follow_ups = state.lower.land(transfer)
    _settle(state, transfer, visible=not transfer.fenced)
    issued = tuple(state.issue(follow_up) for follow_up in follow_ups)
    if state.tracer is not None:
        state.tracer.emit(TransferLanded(transfer_id, issued))


def fail(
    state: State, transfer_id: str, reason: FailReason, keys: Iterable[PageKey] | None = None
) -> None:
    """A transfer has failed and moved nothing (XFER-4).

    ``keys`` names the blocks at fault, by default all. After ``io_error``, ``corrupt`` and
    ``missing`` the source gives these blocks up; the others stay where they are (TIER-6).

    Raises:
        UnknownTransferError: It is not in flight (XFER-2).
        SubmittedTransferError: It was submitted, and its device works (XFER-8).
        ValueError: ``keys`` names a block that the transfer does not carry.
    """
    transfer = find(state, transfer_id)
    if transfer.submitted and transfer.replica not in state.poisoned:
        raise SubmittedTransferError(transfer_id, "fail", submitted=True)
    at_fault = transfer.keys if keys is None else tuple(keys)
    if not set(at_fault) <= set(transfer.keys) or not at_fault:
        raise ValueError(
            f"keys must name blocks of transfer {transfer_id}, at least one; it carries "
            f"{[key.hex() for key in transfer.keys]}"
        )
    if transfer.source_replica is None:
        state.lower.fail(transfer, reason, at_fault)
    else:
        state.counters.load_blocks_failed += len(at_fault)
    _settle(state, transfer, visible=False)
    if transfer.kind == "onload":
        _tell_waiting(state, transfer, reason, at_fault)
    if state.tracer is not None:
        state.tracer.emit(TransferFailed(transfer_id, reason, at_fault))


def poison(state: State, replica_idx: int, reason: str) -> None:
    """The device of a replica has failed: its transfers fail, it takes no more work (FAIL-2)."""
    pool = state.pool(replica_idx)
    # First, because the failures that follow are reported as its consequence.
    state.poisoned[replica_idx] = reason
    pool.make_clean(list(pool.dirty))
    if state.tracer is not None:
        state.tracer.emit(ReplicaPoisoned(replica_idx, reason))
    for transfer in list(state.in_flight.values()):
        if replica_idx in (transfer.replica, transfer.source_replica):
            fail(state, transfer.id, "unavailable")


def find(state: State, transfer_id: str) -> Transfer:
    """A transfer in flight.

    Raises:
        UnknownTransferError: It is not (XFER-2).
    """
    if transfer_id not in state.in_flight:
        raise UnknownTransferError(transfer_id)
    return state.in_flight[transfer_id]


def _settle(state: State, transfer: Transfer, *, visible: bool) -> None:
    """Take the pins off; pages that were loaded become visible or lose their content."""
    del state.in_flight[transfer.id]
    if transfer.source_replica is not None:
        state.pools[transfer.source_replica].unpin(transfer.source_pages)
    if transfer.replica is None:
        return
    pool = state.pools[transfer.replica]
    pool.unpin(transfer.pages)
    if transfer.kind == "onload":
        for page in transfer.pages:
            pool.end_load(page, visible=visible)
    else:
        # Landed or failed, the tier below has had its chance: the page may be evicted (TIER-7).
        pool.make_clean(transfer.pages)


def _tell_waiting(
    state: State, transfer: Transfer, reason: FailReason, at_fault: Collection[PageKey]
) -> None:
    """Every allocation that waits for a failed load is undone when it would return (ALLOC-11)."""
    lost = gives_up(transfer, reason)
    if lost and not transfer.fenced:
        state.fates.note(at_fault, "failed", transfer.source)
    miss: MissReason = "too_slow" if reason == "timeout" else "failed"
    source = source_name(transfer.source, transfer.source_replica)
    for request in state.requests.values():
        if request.plan is not None and transfer.id in request.plan.transfers:
            request.failed.add(transfer.id)
            if not lost:
                request.avoided.update({(source, key): miss for key in at_fault})
