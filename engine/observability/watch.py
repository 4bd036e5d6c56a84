"""Measures what the manager and its movers do, and tells the observers: the only one with a clock.

The manager has one while anybody observes it, and otherwise ``None``.
"""

import logging
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from pagedkv.engine.disk.block import Block, Failures
from pagedkv.engine.observability.observer import Observer
from pagedkv.engine.observability.records import (
    AllocRecord,
    CopyRecord,
    DiskOperation,
    TransferRecord,
)
from pagedkv.engine.observability.watched_copies import WatchedCopies
from pagedkv.engine.planner.state import AllocPlan, State
from pagedkv.engine.planner.transfer import Transfer
from pagedkv.engine.streams.stream import Copy, StreamName, Streams
from pagedkv.reference.context import Context
from pagedkv.reference.tier_names import FailReason

logger = logging.getLogger("pagedkv.engine")


class Watch:
    """What is going on, with times.

    Args:
        state: The planner's; observers may read it while they are told something.
        streams: The devices' streams.
        clock: Seconds that never go back.
    """

    def __init__(
        self, state: State, streams: Streams, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self.state = state
        """The planner's state."""
        self.streams = streams
        """The devices' streams."""
        self.clock = clock
        """Seconds that never go back."""
        self.observers: list[Observer] = []
        """Who is told, in this order."""
        self.planning_s = 0.0
        """When the latest planning of an allocation began."""
        self.transfers: dict[str, TransferRecord] = {}
        """Transfers in flight, by name; those issued before anybody observed are not here."""
        self._waiting: dict[str, list[Hashable]] = {}
        self._allocs: dict[Hashable, AllocRecord] = {}
        self._num_allocs = 0
        self._block_nbytes = state.params.bytes_per_offloaded_block

    @contextmanager
    def allocating(self, ctx: Context, replica_idx: int) -> Iterator[None]:
        """Around a call of ``alloc``."""
        self._num_allocs += 1
        alloc = AllocRecord(self._num_allocs, ctx.request_id, replica_idx, self.clock())
        self._allocs[ctx.request_id] = alloc
        self._tell("alloc_began", alloc)
        try:
            yield
        except BaseException as error:
            alloc.error = error
            raise
        finally:
            alloc.ended_s = self.clock()
            if self._allocs.get(ctx.request_id) is alloc:
                del self._allocs[ctx.request_id]
            self._tell("alloc_ended", alloc)

    def alloc_planning(self) -> None:
        """An allocation looks for its blocks, and then takes pages from others."""
        self.planning_s = self.clock()

    def alloc_planned(self, ctx: Context, plan: AllocPlan) -> None:
        """An allocation has its pages; its loads are issued now."""
        alloc = self._allocs.get(ctx.request_id)
        if alloc is not None:
            alloc.plan = plan
            alloc.plans += 1
            if alloc.planned_s is None:
                alloc.planned_s = self.clock()
        about_to_be_issued = {transfer.id for transfer in self.state.issued}
        for transfer_id in plan.transfers:
            if transfer_id in self.transfers:
                self.transfers[transfer_id].requests.append(ctx.request_id)
            elif transfer_id in about_to_be_issued:
                self._waiting[transfer_id] = [ctx.request_id]
        self._tell("alloc_planned", ctx.request_id, self.state.requests[ctx.request_id], plan)

    def transfer_issued(self, transfer: Transfer) -> None:
        """A transfer is in flight."""
        from_peer = transfer.source == "peer"
        nbytes = len(transfer.keys) * (self.state.page_nbytes if from_peer else self._block_nbytes)
        waiting = self._waiting.pop(transfer.id, [])
        record = TransferRecord(transfer, nbytes, self.clock(), waiting)
        self.transfers[transfer.id] = record
        self._tell("transfer_issued", record)

    def blocks_read(self, transfer: Transfer) -> None:
        """All blocks of a load from disk are in host memory."""
        record = self.transfers.get(transfer.id)
        if record is not None:
            self._tell("blocks_read", record)

    def copies_of(self, transfer: Transfer) -> WatchedCopies:
        """Streams for the copies of a transfer."""
        return WatchedCopies(self, transfer)

    def copied(
        self,
        transfer: Transfer,
        device_idx: int,
        stream: StreamName,
        copies: Sequence[Copy],
        began_s: float,
    ) -> None:
        """Copies on one stream are over."""
        blocks = sum(copy.count for copy in copies)
        nbytes = blocks * copies[0].source.rows.shape[1]
        copy = CopyRecord(transfer, device_idx, stream, blocks, nbytes, began_s, self.clock())
        self._tell("copied", copy)

    @contextmanager
    def disk_operation(
        self, operation: DiskOperation, blocks: Sequence[Block]
    ) -> Iterator[Failures]:
        """Around the read or write of blocks: each is there when all are. Collects failures."""
        began_s, failures = self.clock(), Failures()
        yield failures
        seconds = self.clock() - began_s
        for block in blocks:
            self._tell("disk_operated", operation, seconds, failed=block.key in failures)

    def transfer_settled(self, transfer_id: str, reason: FailReason | None) -> None:
        """A transfer has landed, or failed for a ``reason``."""
        record = self.transfers.pop(transfer_id, None)
        if record is None:
            return
        record.ended_s, record.reason = self.clock(), reason
        self._tell("transfer_settled", record)

    def replica_poisoned(self) -> None:
        """A device has failed, and with it transfers that nobody has settled one by one."""
        for transfer_id in [name for name in self.transfers if name not in self.state.in_flight]:
            self.transfer_settled(transfer_id, "unavailable")

    def released(self, request_id: Hashable) -> None:
        """A request is forgotten."""
        self._tell("released", request_id)

    # Any: the arguments of whichever hook it is.
    def _tell(self, hook: str, *args: Any, **options: Any) -> None:
        """Call a hook of every observer. One that fails must not harm who is served: it goes."""
        for observer in tuple(self.observers):
            try:
                getattr(observer, hook)(*args, **options)
            except Exception:
                logger.exception("%r has failed in %s: it is told nothing any more", observer, hook)
                self.observers.remove(observer)
