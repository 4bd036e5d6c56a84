"""A page allocator without a prefix cache: a start for checking a manager of your own.

Check it with ``PYTHONPATH=examples pagedkv conformance --impl first_fit:implementation``.
"""

from collections.abc import Hashable, Sequence

from pagedkv.conformance import Implementation, ManagerSetup
from pagedkv.reference import (
    AlreadyClaimedError,
    BatchesError,
    BlocksNotAllocatedError,
    Context,
    InsufficientBlocksError,
    ReplicaIndexError,
    UnknownRequestError,
)


class FirstFit:
    """Takes the lowest free pages, and shares none."""

    def __init__(self, setup: ManagerSetup) -> None:
        self.size, self.total = setup.page_size, setup.total_num_pages
        self.free = list(range(self.total))
        self.tables: dict[Hashable, list[int]] = {}

    def claim(self, request_id: Hashable, replica_idx: int) -> None:
        self.check(replica_idx)
        if request_id in self.tables:
            raise AlreadyClaimedError(request_id, replica_idx, lives_on=0)
        self.tables[request_id] = []

    def alloc(self, data: Context, replica_idx: int) -> None:
        table = self.table(data.request_id, replica_idx)
        tokens = data.tokens.current_position + 1 - max(1, data.pending_future_count)
        needed = -(-tokens // self.size) - len(table)
        if needed > len(self.free):
            raise InsufficientBlocksError(needed=needed, free=len(self.free), total=self.total)
        table += [self.free.pop(0) for _ in range(needed)]
        if data.cached_prefix_length is None:
            data.cached_prefix_length = 0  # nothing is ever found cached

    def step(self, batches: Sequence[Sequence[Context]]) -> None:
        if len(batches) != 1 or len({c.request_id for c in batches[0]}) < len(batches[0]):
            raise BatchesError("give one batch, and each request once")
        for ctx in batches[0]:
            held = len(self.table(ctx.request_id, 0))
            written = -(-ctx.tokens.processed_length // self.size)
            if written > held:
                raise BlocksNotAllocatedError(ctx.request_id, needed=written, allocated=held)

    def release(self, request_id: Hashable, replica_idx: int) -> None:
        self.free = sorted(self.free + self.table(request_id, replica_idx))
        del self.tables[request_id]

    def get_req_blocks(self, request_id: Hashable, replica_idx: int) -> list[int]:
        return list(self.table(request_id, replica_idx))

    def num_free_blocks(self, replica_idx: int = 0) -> int:
        self.check(replica_idx)
        return len(self.free)

    def table(self, request_id: Hashable, replica_idx: int) -> list[int]:
        self.check(replica_idx)
        if request_id not in self.tables:
            raise UnknownRequestError(request_id, replica_idx)
        return self.tables[request_id]

    def check(self, replica_idx: int) -> None:
        if replica_idx != 0:
            raise ReplicaIndexError(replica_idx, num_replicas=1)


implementation = Implementation(
    name="first fit", version="1", make=FirstFit, capabilities=frozenset({"device"})
)
