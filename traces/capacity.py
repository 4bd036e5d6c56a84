"""A first pass over a workload: how many requests it has, and how many pages they could need."""

from collections.abc import Iterable
from dataclasses import dataclass

from pagedkv.traces.ceil_div import ceil_div
from pagedkv.traces.workload import WorkloadRequest


@dataclass(frozen=True)
class Demand:
    """What a workload asks of a cache at most."""

    requests: int
    """Number of requests."""
    pages: int
    """Pages if every request kept its own for ever: with as many, nothing is ever evicted."""


def demand_of(requests: Iterable[WorkloadRequest], page_size: int, *, decode: bool) -> Demand:
    """Count requests and pages, with the generated tokens if ``decode`` is set.

    Args:
        requests: The workload; holds one request at a time.
        page_size: Tokens per page, 1 or more.
        decode: Whether the answers are generated and need pages, too.
    """
    count = pages = 0
    for request in requests:
        count += 1
        tokens = request.input_length + (request.output_length if decode else 0)
        pages += ceil_div(tokens, page_size)
    return Demand(count, pages)
