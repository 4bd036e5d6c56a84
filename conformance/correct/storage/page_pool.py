"""The device pages of a manager that gives up the least often used, and lets transfers pin them."""

from collections import Counter

from pagedkv.conformance.correct.storage.least_used import LeastUsed


class PagePool:
    """Who holds which page, which transfers use it, and what is cached in it."""

    def __init__(self, num_pages: int) -> None:
        self.holders: Counter[int] = Counter()
        """Requests by page."""
        self.pins: Counter[int] = Counter()
        """Transfers in flight by page."""
        self.block_in: dict[int, bytes] = {}
        """The visible block in a page, by its digest."""
        self.page_of: dict[bytes, int] = {}
        """The same the other way round."""
        self._uses: Counter[int] = Counter()
        self._queue: LeastUsed[int] = LeastUsed()
        """Pages that nobody holds, pinned ones too: they keep their place (POOL-7)."""
        for page in range(num_pages):
            self._queue.add(page, 0)

    @property
    def num_free(self) -> int:
        """Pages that may be taken."""
        return len(self._queue) - sum(page in self._queue for page in self.pins)

    def is_idle(self, page: int) -> bool:
        """Whether a page may be taken."""
        return page in self._queue and page not in self.pins

    def next(self) -> int:
        """The page to take next. One must be free."""
        return next(page for page in self._queue if page not in self.pins)

    def hold(self, page: int) -> None:
        """One more request has the page."""
        self._queue.discard(page)
        self.holders[page] += 1
        self._uses[page] += 1

    def let_go(self, page: int) -> None:
        """One request fewer has the page."""
        _subtract_one(self.holders, page)
        if page not in self.holders:
            if page not in self.block_in and page not in self.pins:
                del self._uses[page]
            self._queue.add(page, self._uses[page])

    def pin(self, page: int) -> None:
        """One more transfer uses the page."""
        self.pins[page] += 1

    def unpin(self, page: int) -> None:
        """One transfer fewer uses the page."""
        _subtract_one(self.pins, page)

    def cache(self, page: int, block: bytes) -> None:
        """The page holds the block from now on, unless another one does (XFER-5)."""
        if block not in self.page_of and page not in self.block_in:
            self.block_in[page], self.page_of[block] = block, page

    def forget(self, page: int) -> None:
        """Whatever the page holds is cached no more."""
        if page in self.block_in:
            del self.page_of[self.block_in.pop(page)]
        del self._uses[page]

    def forget_all(self) -> None:
        """Nothing is cached any more."""
        self.block_in.clear()
        self.page_of.clear()


def _subtract_one(counts: Counter[int], page: int) -> None:
    assert counts[page] > 0, f"page {page} is let go by more than have it"
    counts[page] -= 1
    if not counts[page]:
        del counts[page]
