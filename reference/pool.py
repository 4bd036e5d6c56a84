"""The device pages of one replica: who holds them, what they contain, which goes next.

Rules POOL-1 to POOL-11. A page is always in exactly one of these states:

========  ==========================================  =====================
state     holders and pins                            content
========  ==========================================  =====================
held      requests hold it                            anything
pinned    only a transfer reads or writes it          anything
cached    nobody: may be taken                        committed, can be hit
free      nobody: may be taken                        nothing that is reusable
========  ==========================================  =====================
"""

from collections import OrderedDict
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from pagedkv.reference.errors import PoolCorruptedError
from pagedkv.reference.identity import PageKey


@dataclass(frozen=True, slots=True)
class PoolStatistics:
    """How many pages are in which state; the four add up to ``total`` (POOL-2)."""

    total: int
    """Pages, without the null page."""
    held: int
    """Pages that requests hold."""
    pinned: int
    """Pages that only a transfer reads or writes."""
    cached: int
    """Pages that nobody holds and that can be hit."""
    free: int
    """Pages that nobody holds and that contain nothing reusable."""


@dataclass
class PagePool:
    """The pages ``0 .. total - 1`` of one replica, and the null page ``total``."""

    total: int
    """Pages, without the null page."""
    holders: list[int] = field(init=False)
    """By page: how many requests hold it."""
    pins: dict[int, int] = field(default_factory=dict)
    """Pages that transfers in flight read or write: how many do."""
    idle: "OrderedDict[int, None]" = field(init=False)
    """Pages that no request holds, the next one to take first; fresh ones by id (POOL-11). A pinned
    one keeps its place."""
    page_of: dict[PageKey, int] = field(default_factory=dict)
    """Committed content that can be hit: identity to page."""
    key_of: dict[int, PageKey] = field(default_factory=dict)
    """The same, page to identity."""
    loading: dict[PageKey, int] = field(default_factory=dict)
    """Content on its way into a page: it can be joined, but is no source yet (ALLOC-6)."""
    loading_key_of: dict[int, PageKey] = field(default_factory=dict)
    """The same, page to identity."""
    dirty: set[int] = field(default_factory=set)
    """Cached pages that must be offloaded before they may be taken (TIER-7)."""
    evictions: int = 0
    """Pages whose committed content was given up to make room."""

    def __post_init__(self) -> None:
        self.holders = [0] * self.total
        self.idle = OrderedDict.fromkeys(range(self.total))

    @property
    def null_page(self) -> int:
        """The page that unused table entries point at; it is never taken (POOL-1)."""
        return self.total

    @property
    def num_free(self) -> int:
        """Pages that may be taken: cached and free ones."""
        return len(self.idle) - sum(1 for page in self.pins if page in self.idle)

    def take(self, count: int) -> tuple[list[int], list[PageKey]]:
        """Hold ``count`` pages, oldest first, and give up what they cache (POOL-3, POOL-10).

        Returns the pages, and the identities of the content that was given up.

        The caller has checked that there are enough: see :meth:`takeable`.
        """
        taken: list[int] = []
        for page in self.idle:
            if len(taken) == count:
                break
            if page not in self.pins and page not in self.dirty:
                taken.append(page)
        if len(taken) < count:
            raise PoolCorruptedError(f"{count} pages were to be taken, only {len(taken)} can be")
        evicted = [self.key_of[page] for page in taken if page in self.key_of]
        self.evictions += len(evicted)
        for page in taken:
            if page in self.key_of:
                self.forget(page)
            del self.idle[page]
            self.holders[page] = 1
        return taken, evicted

    def takeable(self, excluding: Iterable[int] = ()) -> int:
        """Pages that :meth:`take` could take now if those ``excluding`` were held."""
        excluded = set(excluding)
        count = self.num_free - sum(1 for page in excluded if self._may_go(page))
        return count - self.cleanable(excluded)

    def cleanable(self, excluding: Collection[int] = ()) -> int:
        """Pages that could be taken if they were not dirty."""
        return sum(1 for page in self.dirty if page not in excluding and self._may_go(page))

    def hold(self, page: int) -> None:
        """One more request holds ``page``."""
        self.idle.pop(page, None)
        self.holders[page] += 1

    def release(self, page: int) -> None:
        """One request less holds ``page``; the last one puts it in its place (POOL-4, POOL-5).

        Raises:
            PoolCorruptedError: Nobody holds it: a double free (POOL-6).
        """
        if not self.holders[page]:
            raise PoolCorruptedError(f"page {page} was released, but no request holds it")
        self.holders[page] -= 1
        if self.holders[page]:
            return
        self.idle[page] = None
        if page not in self.key_of and page not in self.loading_key_of:
            self.idle.move_to_end(page, last=False)

    def pin(self, pages: Iterable[int]) -> None:
        """A transfer reads or writes ``pages``: they are not taken before it settles (POOL-7)."""
        for page in pages:
            self.pins[page] = self.pins.get(page, 0) + 1

    def unpin(self, pages: Iterable[int]) -> None:
        """The transfer has settled.

        Raises:
            PoolCorruptedError: A page was not pinned (POOL-6).
        """
        for page in pages:
            if page not in self.pins:
                raise PoolCorruptedError(f"page {page} was unpinned, but no transfer pins it")
            self.pins[page] -= 1
            if not self.pins[page]:
                del self.pins[page]

    def commit(self, page: int, key: PageKey) -> None:
        """Make the content of ``page`` hittable under ``key``, which is not cached yet."""
        self.page_of[key] = page
        self.key_of[page] = key

    def forget(self, page: int) -> None:
        """Make the content of ``page`` unhittable."""
        del self.page_of[self.key_of.pop(page)]
        self.dirty.discard(page)

    def begin_load(self, page: int, key: PageKey) -> None:
        """``key`` is on its way into ``page``, which the caller has taken and pinned."""
        self.loading[key] = page
        self.loading_key_of[page] = key

    def end_load(self, page: int, *, visible: bool) -> None:
        """The load into ``page`` has settled; if ``visible``, its content can be hit from now on.

        Content that another page has got in the meantime stays there (XFER-5). A page that lost
        its load holds nothing reusable and goes to the old end (POOL-5).
        """
        key = self.loading_key_of.pop(page, None)
        if key is not None:
            del self.loading[key]
            if visible and key not in self.page_of:
                self.commit(page, key)
        if page in self.idle and page not in self.key_of:
            self.idle.move_to_end(page, last=False)

    def refresh(self, pages: list[int]) -> None:
        """Make idle ``pages`` of one chain, root first, the youngest: leaf before root (POOL-8)."""
        for page in reversed(pages):
            if page in self.idle:
                self.idle.move_to_end(page)

    def reset(self) -> None:
        """Forget all content, also that which is on its way (RESET-1)."""
        self.page_of.clear()
        self.key_of.clear()
        self.loading.clear()
        self.loading_key_of.clear()
        self.dirty.clear()

    def statistics(self) -> PoolStatistics:
        """Count the pages by state (POOL-2)."""
        held = sum(1 for n in self.holders if n)
        pinned = sum(1 for page in self.pins if page in self.idle)
        cached = sum(1 for page in self.key_of if self._may_go(page))
        free = len(self.idle) - pinned - cached
        return PoolStatistics(self.total, held, pinned, cached, free)

    def _may_go(self, page: int) -> bool:
        return page in self.idle and page not in self.pins
