"""What a workload looks like: counts, lengths, sharing."""

from array import array
from collections import Counter
from dataclasses import dataclass
from itertools import islice

from pagedkv.traces.infinite_cache import InfiniteCache
from pagedkv.traces.percentile import percentile
from pagedkv.traces.reader import Workload


@dataclass(frozen=True)
class Lengths:
    """How a length is distributed over the requests, in tokens."""

    total: int
    """Sum over all requests."""
    p50: int
    """Median: half of the requests have at most this many."""
    p99: int
    """99 of 100 requests have at most this many."""
    max: int
    """The longest."""

    @classmethod
    def of(cls, values: "array[int]") -> "Lengths":
        """Summarise ``values``; all zero if there are none."""
        ordered = sorted(values)
        return cls(
            sum(ordered),
            percentile(ordered, 50),
            percentile(ordered, 99),
            ordered[-1] if ordered else 0,
        )


@dataclass(frozen=True)
class Summary:
    """Facts about one workload."""

    requests: int
    """Number of requests."""
    sessions: int
    """Number of distinct sessions; 0 if the trace names none."""
    types: dict[str, int]
    """Requests by type, most frequent first; empty if the trace names none."""
    duration_s: float
    """Seconds between the start of the trace and the last arrival."""
    input_tokens: Lengths
    """Prompt lengths."""
    output_tokens: Lengths
    """Generated lengths."""
    page_size: int
    """Tokens per page in the following counts."""
    pages_referenced: int
    """Full prompt pages of all requests."""
    distinct_pages: int
    """How many of them differ: the pages a cache needs in order to forget nothing."""
    infinite_cache_hits: int
    """Prefix hits of a cache without bound: no cache can have more."""

    @property
    def infinite_cache_hit_rate(self) -> float:
        """The bound as a share of ``pages_referenced``, 0 to 1; 0.0 without pages."""
        return self.infinite_cache_hits / self.pages_referenced if self.pages_referenced else 0.0


def summarise(
    workload: Workload, page_size: int | None = None, limit: int | None = None
) -> Summary:
    """Read ``workload`` once.

    Keeps one entry per distinct page, and two numbers per request.

    Args:
        workload: The file.
        page_size: Tokens per page; by default the block size of the trace.
        limit: Look at the first requests only; by default at all.

    Raises:
        TraceError: The file is malformed.
    """
    page_size = page_size or workload.header.block_size
    cache = InfiniteCache(page_size, workload.header.block_size)
    inputs, outputs = array("q"), array("q")
    sessions: set[str] = set()
    types: Counter[str] = Counter()
    latest_ms = 0.0
    full = hit = 0
    for request in islice(workload, limit):
        inputs.append(request.input_length)
        outputs.append(request.output_length)
        latest_ms = max(latest_ms, request.arrival_ms)
        if request.session is not None:
            sessions.add(request.session)
        if request.type is not None:
            types[request.type] += 1
        pages = cache.admit(request)
        full += pages.full
        hit += pages.hit
    return Summary(
        requests=len(inputs),
        sessions=len(sessions),
        types=dict(types.most_common()),
        duration_s=latest_ms / 1000,
        input_tokens=Lengths.of(inputs),
        output_tokens=Lengths.of(outputs),
        page_size=page_size,
        pages_referenced=full,
        distinct_pages=cache.distinct_pages,
        infinite_cache_hits=hit,
    )
