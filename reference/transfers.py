"""Issuing, landing and failing transfers: the only places where their pins go on and off.

Rules XFER-1 to XFER-8.
"""

from collections.abc import Iterable, Sequence

from pagedkv.reference.connector import gives_up
from pagedkv.reference.errors import SubmittedTransferError, UnknownTransferError
from pagedkv.reference.events import (
    IssuedTransfer,
    ReplicaPoisoned,
    TransferFailed,
    TransferLanded,
    TransferSubmitted,
)
from pagedkv.reference.fates import MissReason
from pagedkv.reference.identity import PageKey
from pagedkv.reference.page_bytes import copy_page
from pagedkv.reference.state import State, source_name
from pagedkv.reference.store_answers import report_answers
from pagedkv.reference.tier_names import FailReason
from pagedkv.reference.transfer import Transfer


def issue(state: State, transfer: Transfer) -> IssuedTransfer:
    """Put ``transfer`` in flight: name it and pin the device pages it uses (XFER-1, POOL-7)."""
    state.issued += 1
    transfer.id = f"{transfer.kind}-{state.issued}"
    state.in_flight[transfer.id] = transfer
    if transfer.replica is not None:
        pool = state.pools[transfer.replica]
        pool.pin(transfer.pages)
        if transfer.kind == "onload":
            for page, key in zip(transfer.pages, transfer.keys, strict=True):
                pool.begin_load(page, key)
    if transfer.source_replica is not None:
        state.pools[transfer.source_replica].pin(transfer.source_pages)
    return IssuedTransfer(
        transfer.id,
        transfer.kind,
        transfer.source,
        transfer.target,
        transfer.keys,
        transfer.pages,
    )


def submit(state: State, transfer_id: str) -> None:
    """What can fail of a load has been done: who has hit it may go on (XFER-8).

    Its bytes were read and verified, and the next forward finds them in its pages. Bytes that are
    not those that were written make it a failed transfer instead (TIER-5).

    Raises:
        UnknownTransferError: It is not in flight (XFER-2).
        SubmittedTransferError: It was submitted before, or is no load from below into a device.
    """
    # CHECK
    transfer = _find(state, transfer_id)
    if transfer.submitted or transfer.target != "device" or transfer.source == "peer":
        raise SubmittedTransferError(transfer_id, "be submitted", submitted=transfer.submitted)
    damaged = state.connector.damaged(transfer)
    if damaged:
        fail(state, transfer_id, "corrupt", damaged)
        return
    report_answers(state, transfer.chain)

    # MOVE: the bytes; the pins stay
    state.connector.submit(transfer)

    # RECORD
    state.emit(TransferSubmitted(transfer_id))


def land(state: State, transfer_id: str) -> None:
    """All bytes of a transfer have arrived (XFER-3).

    Bytes that are not those that were written make it a failed transfer instead (TIER-5).

    Raises:
        UnknownTransferError: It is not in flight (XFER-2).
    """
    # CHECK
    transfer = _find(state, transfer_id)
    damaged = () if transfer.submitted else state.connector.damaged(transfer)
    if damaged:
        fail(state, transfer_id, "corrupt", damaged)
        return
    report_answers(state, transfer.chain)

    # MOVE: the bytes, then the pins
    follow_ups: list[Transfer] = []
    if transfer.source_replica is not None:
        _copy_from_peer(state, transfer)
    else:
        follow_ups = state.connector.land(transfer)
    _settle(state, transfer, visible=not transfer.fenced)

    # RECORD
    state.emit(TransferLanded(transfer_id, tuple(issue(state, t) for t in follow_ups)))


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
    # CHECK
    transfer = _find(state, transfer_id)
    if transfer.submitted and transfer.replica not in state.poisoned:
        raise SubmittedTransferError(transfer_id, "fail", submitted=True)
    at_fault = transfer.keys if keys is None else tuple(keys)
    if not set(at_fault) <= set(transfer.keys) or not at_fault:
        raise ValueError(
            f"keys must name blocks of transfer {transfer_id}, at least one; it carries "
            f"{[key.hex() for key in transfer.keys]}"
        )

    # MOVE: nothing; the pins come off
    if transfer.source_replica is None:
        state.connector.fail(transfer, reason, at_fault)
    else:
        state.count(load_blocks_failed=len(at_fault))
    _settle(state, transfer, visible=False)
    if transfer.kind == "onload":
        _tell_waiting(state, transfer, reason, at_fault)

    # RECORD
    state.emit(TransferFailed(transfer_id, reason, at_fault))


def land_all(state: State) -> None:
    """Land whatever is in flight, in the order of issue, until nothing is (XFER-6)."""
    while state.in_flight:
        land(state, next(iter(state.in_flight)))


def poison(state: State, replica_idx: int, reason: str) -> None:
    """The device of a replica has failed: its transfers fail, it takes no more work (FAIL-2)."""
    # CHECK
    pool = state.pool(replica_idx)

    # RECORD: first, because the failures that follow are reported as its consequence
    state.poisoned[replica_idx] = reason
    pool.dirty.clear()
    state.emit(ReplicaPoisoned(replica_idx, reason))

    # MOVE: nothing more, from here or to here
    for transfer in list(state.in_flight.values()):
        if replica_idx in (transfer.replica, transfer.source_replica):
            fail(state, transfer.id, "unavailable")


def _find(state: State, transfer_id: str) -> Transfer:
    if transfer_id not in state.in_flight:
        raise UnknownTransferError(transfer_id)
    return state.in_flight[transfer_id]


def _copy_from_peer(state: State, transfer: Transfer) -> None:
    assert transfer.replica is not None and transfer.source_replica is not None
    nbytes = 0
    for source_page, page in zip(transfer.source_pages, transfer.pages, strict=True):
        nbytes += copy_page(
            state.memories[transfer.source_replica],
            source_page,
            state.memories[transfer.replica],
            page,
        )
    state.count(cross_replica_blocks_copied=len(transfer.keys), cross_replica_bytes_copied=nbytes)


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
        pool.dirty.difference_update(transfer.pages)


def _tell_waiting(
    state: State, transfer: Transfer, reason: FailReason, at_fault: Sequence[PageKey]
) -> None:
    """Every allocation that waits for a failed load is undone when it would return (ALLOC-11)."""
    lost = gives_up(transfer, reason)
    if lost and not transfer.fenced:
        state.fates.note(at_fault, "failed")
    miss: MissReason = "too_slow" if reason == "timeout" else "failed"
    for request in state.requests.values():
        if request.plan is not None and transfer.id in request.plan.transfers:
            request.failed.add(transfer.id)
            if not lost:
                source = source_name(transfer.source, transfer.source_replica)
                request.avoided.update({(source, key): miss for key in at_fault})
