"""Who wants to know what the engine does: the methods that observers fill in."""

from collections.abc import Hashable
from typing import TYPE_CHECKING

from pagedkv.engine.observability.records import (
    AllocRecord,
    CopyRecord,
    DiskOperation,
    TransferRecord,
)
from pagedkv.engine.planner.state import AllocPlan, Request

if TYPE_CHECKING:
    from pagedkv.engine.observability.watch import Watch


class Observer:
    """Is told of what happens, when it happens, on the event loop; by default it ignores it.

    A method must return soon, must not raise, and must not call the manager. Records belong to
    the watch and go on changing.
    """

    def attached(self, watch: "Watch") -> None:
        """From now on it is told; ``watch`` has the clock, and the planner's state to read."""

    def detached(self) -> None:
        """It is told no more."""

    def alloc_began(self, alloc: AllocRecord) -> None:
        """``alloc`` was called. Runs in the task of the caller, as all methods about allocs."""

    def alloc_planned(self, request_id: Hashable, request: Request, plan: AllocPlan) -> None:
        """A request has pages, from ``alloc`` or ``begin_alloc``; next, its loads are issued."""

    def alloc_ended(self, alloc: AllocRecord) -> None:
        """``alloc`` returns or raises."""

    def transfer_issued(self, record: TransferRecord) -> None:
        """A transfer is in flight. Runs in the task whose call has caused it."""

    def blocks_read(self, record: TransferRecord) -> None:
        """A load from disk has all its blocks in host memory, and goes on to the device."""

    def copied(self, copy: CopyRecord) -> None:
        """A copy to, from or between devices is over."""

    def disk_operated(self, operation: DiskOperation, seconds: float, *, failed: bool) -> None:
        """One block was read or written: the time of its transfer's call, queue included."""

    def transfer_settled(self, record: TransferRecord) -> None:
        """A transfer has landed or failed."""

    def released(self, request_id: Hashable) -> None:
        """A request is forgotten."""
