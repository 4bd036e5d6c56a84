"""The errors a manager raises: one class per reason, its numbers as typed fields."""

from collections.abc import Hashable


class PagedKVError(Exception):
    """Base of every error in this module."""

    def __reduce__(self) -> tuple[object, ...]:
        # The numbers are keyword arguments, which pickling an exception would lose.
        return _restore, (type(self), self.args, self.__dict__)

    def __str__(self) -> str:
        # KeyError, a base of one subclass, would print the repr of the message.
        return str(self.args[0]) if self.args else self.__class__.__name__


def _restore(
    kind: type[PagedKVError], args: tuple[object, ...], fields: dict[str, object]
) -> PagedKVError:
    error = kind.__new__(kind)
    error.args = args
    error.__dict__.update(fields)
    return error


class InsufficientBlocksError(PagedKVError):
    """An allocation needs more pages than are free; nothing was changed (ALLOC-2).

    The request may be tried again when others have released pages, unless
    :attr:`can_ever_fit` is false: then it is larger than the whole pool.
    """

    def __init__(self, *, needed: int, free: int, total: int, can_ever_fit: bool = True) -> None:
        self.needed = needed
        """Pages this allocation would have taken."""
        self.free = free
        """Pages that were free for it."""
        self.total = total
        """Pages of the replica, without the null page."""
        self.can_ever_fit = can_ever_fit
        """Whether an empty replica could serve the request."""
        remedy = (
            "release or preempt another request and try again"
            if can_ever_fit
            else "it can never fit: raise total_num_pages or lower the maximum length"
        )
        super().__init__(
            f"the allocation needs {needed} free pages, but only {free} of the replica's {total} "
            f"are free; {remedy}"
        )


class UnknownRequestError(PagedKVError, KeyError, ValueError):
    """A call names a request that is not claimed on that replica (CLAIM-2)."""

    def __init__(self, request_id: Hashable, replica_idx: int, lives_on: int | None = None) -> None:
        self.request_id = request_id
        """The id that was given."""
        self.replica_idx = replica_idx
        """The replica that was given."""
        self.lives_on = lives_on
        """The replica that has claimed the id, if another one has."""
        where = (
            "call claim() first"
            if lives_on is None
            else f"it was claimed on replica {lives_on}: use that one"
        )
        super().__init__(f"request {request_id!r} is not claimed on replica {replica_idx}; {where}")


class AlreadyClaimedError(PagedKVError, ValueError):
    """A request is claimed a second time, on the same or another replica (CLAIM-1)."""

    def __init__(self, request_id: Hashable, replica_idx: int, lives_on: int) -> None:
        self.request_id = request_id
        """The id that was given."""
        self.replica_idx = replica_idx
        """The replica that was given."""
        self.lives_on = lives_on
        """The replica that has already claimed the id."""
        super().__init__(
            f"request {request_id!r} cannot be claimed on replica {replica_idx}: "
            f"replica {lives_on} has claimed it; release it there first, or use a fresh request id"
        )


class ReplicaIndexError(PagedKVError, IndexError, ValueError):
    """A call names a replica that does not exist (CLAIM-3)."""

    def __init__(self, replica_idx: int, num_replicas: int) -> None:
        self.replica_idx = replica_idx
        """The replica that was given."""
        self.num_replicas = num_replicas
        """The manager's data-parallel degree."""
        super().__init__(
            f"replica_idx is {replica_idx}, but the manager has {num_replicas} replica(s): "
            f"use 0 to {num_replicas - 1}"
        )


class BatchesError(PagedKVError, ValueError):
    """The batches of ``runtime_inputs`` or ``step`` do not fit the manager (INPUT-1, INPUT-2)."""


class BlocksNotAllocatedError(PagedKVError, RuntimeError, ValueError):
    """A request lacks the pages that its next forward would write (INPUT-3)."""

    def __init__(self, request_id: Hashable, *, needed: int, allocated: int) -> None:
        self.request_id = request_id
        """The request in question."""
        self.needed = needed
        """Pages the length rule asks for."""
        self.allocated = allocated
        """Pages the request holds."""
        super().__init__(
            f"request {request_id!r} needs {needed} pages for its next forward and holds "
            f"{allocated}; call alloc() for it first"
        )


class AllocPendingError(PagedKVError, RuntimeError):
    """A request with a planned allocation is used before that allocation returned (ALLOC-13)."""

    def __init__(self, request_id: Hashable, call: str) -> None:
        self.request_id = request_id
        """The request in question."""
        self.call = call
        """The call that came too early."""
        super().__init__(
            f"{call} was called for request {request_id!r} while its allocation still waits for "
            "transfers; finish_alloc() or cancel_alloc() it first"
        )


class NoPlannedAllocError(PagedKVError, RuntimeError):
    """``finish_alloc`` or ``cancel_alloc`` without ``begin_alloc`` (ALLOC-13)."""

    def __init__(self, request_id: Hashable) -> None:
        self.request_id = request_id
        """The request in question."""
        super().__init__(f"request {request_id!r} has no planned allocation; call begin_alloc()")


class KVLoadRefused(PagedKVError):
    """A connector does not start a load that its look-up had promised: a failed load (TIER-6)."""


class KVLoadFailed(PagedKVError):
    """A transfer that an allocation waited for has failed; the allocation was undone (ALLOC-11).

    The failed blocks are not asked for again, so planning once more makes progress.
    """

    def __init__(self, request_id: Hashable, transfers: tuple[str, ...]) -> None:
        self.request_id = request_id
        """The request whose allocation was undone."""
        self.transfers = transfers
        """The transfers that failed."""
        super().__init__(
            f"transfer(s) {', '.join(transfers)} failed, so the allocation of request "
            f"{request_id!r} was undone; allocate again: the failed blocks now count as missing"
        )


class ReplicaPoisonedError(PagedKVError, RuntimeError):
    """A replica whose device has failed is asked for more than to let go (FAIL-2)."""

    def __init__(self, replica_idx: int, reason: str) -> None:
        self.replica_idx = replica_idx
        """The replica in question."""
        self.reason = reason
        """What happened to its device."""
        super().__init__(
            f"replica {replica_idx} takes no more work, because its device has failed ({reason}); "
            "release its requests and restart the process"
        )


class UnknownTransferError(PagedKVError, KeyError, ValueError):
    """``submit``, ``land`` or ``fail`` names a transfer that is not in flight (XFER-2)."""

    def __init__(self, transfer_id: str) -> None:
        self.transfer_id = transfer_id
        """The id that was given."""
        super().__init__(
            f"transfer {transfer_id!r} is not in flight: it was never issued or is settled"
        )


class SubmittedTransferError(PagedKVError, ValueError):
    """A transfer is to be submitted that cannot be, or to fail although it was (XFER-8)."""

    def __init__(self, transfer_id: str, wish: str, *, submitted: bool) -> None:
        self.transfer_id = transfer_id
        """The id that was given."""
        self.submitted = submitted
        """Whether it was submitted before."""
        reason = (
            "it was submitted: it lands, or its replica's device fails"
            if submitted
            else "only loads from host memory, disk or a store into a device are submitted"
        )
        super().__init__(f"transfer {transfer_id!r} cannot {wish}: {reason}")


class LayoutMismatchError(PagedKVError, ValueError):
    """A disk directory holds blocks of another layout (NS-3)."""

    def __init__(self, directory: str, *, found: str, wanted: str) -> None:
        self.directory = directory
        """The directory in question."""
        self.found = found
        """Layout fingerprint of the blocks that are there."""
        self.wanted = wanted
        """Layout fingerprint of this manager."""
        super().__init__(
            f"disk_offload_dir {directory!r} holds blocks of layout {found[:12]}, this manager has "
            f"layout {wanted[:12]}; clear the directory or choose another one"
        )


class PoolCorruptedError(PagedKVError, RuntimeError):
    """An invariant of the pool does not hold: a double free, a negative count (POOL-6)."""


class ManagerClosedError(PagedKVError, RuntimeError):
    """A manager is used after ``shutdown`` (CLOSE-1)."""

    def __init__(self) -> None:
        super().__init__("the manager was shut down; create a new one")
