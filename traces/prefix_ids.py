"""Gives every distinct prefix of blocks one small id."""

from collections.abc import Hashable, Iterable
from typing import Generic, TypeVar

from pagedkv.traces.workload import WorkloadRequest

NO_PARENT = -1
"""Stands before the first block."""

Block = TypeVar("Block", bound=Hashable)
"""Whatever tells blocks apart when nothing stands before them."""


class PrefixIds(Generic[Block]):
    """Numbers block prefixes densely from 0, in the order in which they are first seen.

    Two sequences get equal ids exactly as far as they are equal from the start, which makes ids
    *chained*: each has one parent. Keeps one entry per distinct prefix.
    """

    def __init__(self) -> None:
        self._ids: dict[tuple[int, Block], int] = {}

    def __len__(self) -> int:
        """Number of distinct prefixes seen."""
        return len(self._ids)

    def chain(self, blocks: Iterable[Block]) -> tuple[int, ...]:
        """One id per block, each naming the block and everything before it."""
        parent = NO_PARENT
        ids = []
        for block in blocks:
            parent = self._ids.setdefault((parent, block), len(self._ids))
            ids.append(parent)
        return tuple(ids)


def chained(requests: Iterable[WorkloadRequest]) -> Iterable[WorkloadRequest]:
    """The same requests with ids that are dense and chained, whatever they were before."""
    prefixes = PrefixIds[int]()
    for request in requests:
        yield request.model_copy(update={"hash_ids": prefixes.chain(request.hash_ids)})
