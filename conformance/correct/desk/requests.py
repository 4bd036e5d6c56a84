"""The claimed requests, and what every call has to check of them.  Rules CLAIM-1 to CLAIM-4."""

from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field

from pagedkv.reference.context import Context
from pagedkv.reference.errors import (
    AllocPendingError,
    AlreadyClaimedError,
    BatchesError,
    ManagerClosedError,
    ReplicaIndexError,
    UnknownRequestError,
)


@dataclass(eq=False)
class Request:
    """A claimed request."""

    replica: int
    """Where it lives."""
    dummy: bool = False
    """Whether it is mapped to the null page."""
    pages: list[int] = field(default_factory=list)
    """Its page table."""
    chain: list[bytes] = field(default_factory=list)
    """Digests of the blocks it has committed or hit; they are in the first pages of the table."""
    pending: bool = False
    """Whether an allocation was begun and waits for its loads."""
    avoided: set[tuple[str, bytes]] = field(default_factory=set)
    """Tiers that have failed it, each with the block in question (ALLOC-11)."""
    offered: int = 0
    """Leading blocks that it has offered to the tiers below (STEP-5)."""
    outdated: bool = False
    """Whether it has lived through a reset: it neither hits nor commits any more (RESET-2)."""
    kept_apart: int | None = None
    """Leading tokens that count as preempted (METRIC-4); ``None`` before the first admission."""
    counted: int = 0
    """Leading tokens that are counted."""
    served: Counter[str] = field(default_factory=Counter)
    """What it has added to the counters of hits, in case that has to be taken back."""


class RequestBook:
    """Who is claimed where.

    Args:
        replicas: How many there are.
        null_page: Id of the null page.
    """

    def __init__(self, replicas: int, null_page: int) -> None:
        self.replicas = replicas
        self.null_page = null_page
        self.closed = False
        """Whether every call is refused from now on (CLOSE-1)."""
        self._requests: dict[Hashable, Request] = {}

    def __iter__(self) -> Iterator[Request]:
        return iter(self._requests.values())

    def __contains__(self, request_id: Hashable) -> bool:
        return request_id in self._requests

    def claim(self, request_id: Hashable, replica: int, *, dummy: bool = False) -> None:
        """Add a request; a dummy has the null page from the beginning."""
        self.check_replica(replica)
        if request_id in self:
            raise AlreadyClaimedError(request_id, replica, self._requests[request_id].replica)
        pages = [self.null_page] if dummy else []
        self._requests[request_id] = Request(replica, dummy, pages)

    def forget(self, request_id: Hashable) -> None:
        """Remove a request: its id can be claimed again."""
        del self._requests[request_id]

    def find(self, request_id: Hashable, replica: int, call: str = "") -> Request:
        """The request; ``call`` names what cannot be done while an allocation is pending."""
        self.check_replica(replica)
        request = self._requests.get(request_id)
        if request is None or request.replica != replica:
            lives_on = None if request is None else request.replica
            raise UnknownRequestError(request_id, replica, lives_on)
        if call and request.pending:
            raise AllocPendingError(request_id, call)
        return request

    def is_on(self, request_id: Hashable, replica: int) -> bool:
        """Whether the request is claimed on that replica."""
        self.check_replica(replica)
        request = self._requests.get(request_id)
        return request is not None and request.replica == replica

    def find_all(
        self, batches: Sequence[Sequence[Context]], call: str
    ) -> list[list[tuple[Context, Request]]]:
        """Each context with its request, batch by batch (INPUT-1, INPUT-2, STEP-1)."""
        self.check_batches(batches, call)
        names = Counter(ctx.request_id for batch in batches for ctx in batch)
        for request_id, times in names.items():
            if times > 1:
                raise BatchesError(
                    f"{call} names request {request_id!r} {times} times; name it once"
                )
        return [
            [(ctx, self.find(ctx.request_id, replica, call)) for ctx in batch]
            for replica, batch in enumerate(batches)
        ]

    def check_batches(self, batches: Sequence[Sequence[Context]], call: str) -> None:
        """Demand one batch per replica (INPUT-1)."""
        self.check_open()
        if len(batches) != self.replicas:
            raise BatchesError(
                f"{call} got {len(batches)} batch(es), the manager has {self.replicas} replica(s); "
                "give one batch for each, an empty one where there is nothing to do"
            )

    def check_replica(self, replica: int) -> None:
        """Demand that the replica exists (CLAIM-3)."""
        self.check_open()
        if replica not in range(self.replicas):
            raise ReplicaIndexError(replica, self.replicas)

    def check_open(self) -> None:
        """Demand that the manager was not shut down (CLOSE-1)."""
        if self.closed:
            raise ManagerClosedError
