"""Workloads without what they could tell of people: lengths, sharing and timing stay."""

from collections.abc import Iterable, Iterator

from pagedkv.traces.numbering import Numbering
from pagedkv.traces.prefix_ids import chained
from pagedkv.traces.workload import WorkloadHeader, WorkloadRequest


def anonymise_workload(
    header: WorkloadHeader, requests: Iterable[WorkloadRequest], *, coarsen_ms: float = 0
) -> tuple[WorkloadHeader, Iterator[WorkloadRequest]]:
    """The same workload with numbers for hash ids, sessions and types, and without its origin.

    Args:
        header: Of the workload.
        requests: Its requests; one at a time is held, and one entry per distinct block.
        coarsen_ms: Arrival times are rounded down to multiples of this; 0 keeps them.
    """
    return header.model_copy(update={"origin": None}), _anonymous(requests, coarsen_ms)


def _anonymous(requests: Iterable[WorkloadRequest], coarsen_ms: float) -> Iterator[WorkloadRequest]:
    sessions, types = Numbering("session"), Numbering("type")
    for request in chained(requests):
        arrival = request.arrival_ms
        yield request.model_copy(
            update={
                "arrival_ms": arrival - arrival % coarsen_ms if coarsen_ms else arrival,
                "session": request.session and sessions(request.session),
                "type": request.type and types(request.type),
            }
        )
