"""The most pages any prefix cache can hit: those of a cache that never forgets."""

from dataclasses import dataclass

import numpy as np

from pagedkv.traces.prefix_ids import PrefixIds
from pagedkv.traces.workload import WorkloadRequest


@dataclass(frozen=True)
class PageCounts:
    """Pages of one request."""

    full: int
    """Full pages of the prompt."""
    hit: int
    """Those of them that a cache without bound would find."""


class InfiniteCache:
    """A prefix cache of unlimited size, as arithmetic on hash ids.

    The last token of a prompt is always computed, so a page that ends with it is never hit.
    Keeps one entry per distinct page.

    Args:
        page_size: Tokens per page of the cache, 1 or more.
        block_size: Tokens per hash id of the workload; the two need not divide each other.
    """

    def __init__(self, page_size: int, block_size: int) -> None:
        self._page_size = page_size
        self._block_size = block_size
        self._prefixes = PrefixIds[int]()
        self._seen: set[int] = set()

    @property
    def distinct_pages(self) -> int:
        """Pages that the cache holds."""
        return len(self._seen)

    def admit(self, request: WorkloadRequest) -> PageCounts:
        """Look a request up, then remember its pages."""
        chain = np.array(self._prefixes.chain(request.hash_ids), dtype=np.int64)
        ends = np.arange(self._page_size - 1, request.input_length, self._page_size)
        # Chained ids make every token stand for its whole prefix, so the last one names the page.
        pages = chain[ends // self._block_size] * self._block_size + ends % self._block_size
        names: list[int] = pages.tolist()
        hit, hittable = 0, (request.input_length - 1) // self._page_size
        while hit < hittable and names[hit] in self._seen:
            hit += 1
        self._seen.update(names)
        return PageCounts(len(names), hit)
