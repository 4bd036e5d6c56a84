"""The device pages of one replica: who holds them, what they contain, which goes next.

Rules POOL-1 to POOL-11. The numbers of pages that may be taken are kept, not counted, so that no
call takes longer in a larger pool.
"""

from array import array
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from pagedkv.engine.planner.key_map import KeyMap
from pagedkv.engine.planner.recency import ABSENT, RecencyList
from pagedkv.engine.planner.transfer import Transfer
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


class PagePool:
    """The pages ``0 .. total - 1`` of one replica, and the null page ``total``."""

    def __init__(self, total: int) -> None:
        self.total = total
        """Pages, without the null page."""
        self.num_free = total
        """Pages that may be taken: nobody holds or pins them; dirty ones count."""
        self.num_cleanable = 0
        """The dirty ones among them."""
        self.idle = RecencyList(total, full=True)
        """Pages that no request holds, the next one to take first; pinned ones keep their place."""
        self.holders = array("i", [0]) * total
        """By page: how many requests hold it."""
        self.pins: dict[int, int] = {}
        """Pages that transfers in flight read or write: how many do."""
        self.page_of = KeyMap()
        """Committed content that can be hit."""
        self.key_of: list[PageKey | None] = [None] * total
        """The same, page to identity."""
        self.loading: dict[PageKey, tuple[int, Transfer]] = {}
        """Content on its way into a page: it can be joined, but is no source yet (ALLOC-6)."""
        self.loading_key_of: dict[int, PageKey] = {}
        """The same, page to identity."""
        self.dirty: set[int] = set()
        """Cached pages that must be offloaded before they may be taken (TIER-7)."""
        self.evictions = 0
        """Pages whose committed content was given up to make room."""

    @property
    def null_page(self) -> int:
        """The page that unused table entries point at; it is never taken (POOL-1)."""
        return self.total

    def take(self, count: int) -> tuple[list[int], list[PageKey]]:
        """Hold ``count`` pages, oldest first, and give up what they cache (POOL-3, POOL-10).

        Returns the pages, and the identities of the content that was given up. The caller has
        checked that there are enough: see :meth:`takeable`.
        """
        idle = self.idle
        after, before, end = idle.after, idle.before, idle.end
        taken: list[int] = []
        if self.pins or self.dirty:
            for page in idle:
                if len(taken) == count:
                    break
                if page not in self.pins and page not in self.dirty:
                    taken.append(page)
            for page in taken:
                idle.remove(page)
        else:
            page = after[end]
            while len(taken) < count and page != end:
                taken.append(page)
                page = after[page]
            after[end], before[page] = page, end
            for page in taken:
                after[page] = ABSENT
        if len(taken) < count:
            raise PoolCorruptedError(f"{count} pages were to be taken, only {len(taken)} can be")
        self.num_free -= count
        holders, key_of, shards = self.holders, self.key_of, self.page_of.shards
        evicted: list[PageKey] = []
        for page in taken:
            holders[page] = 1
            key = key_of[page]
            if key is not None:
                evicted.append(key)
                key_of[page] = None
                del shards[key[-1]][key]
        self.evictions += len(evicted)
        return taken, evicted

    def takeable(self, excluding: Sequence[int] = ()) -> int:
        """Pages that :meth:`take` could take now if those ``excluding`` were held."""
        count = self.num_free - self.num_cleanable
        for page in set(excluding):
            if self._may_go(page) and page not in self.dirty:
                count -= 1
        return count

    def cleanable(self, excluding: Collection[int] = ()) -> int:
        """Pages that could be taken if they were not dirty."""
        return self.num_cleanable - sum(p in self.dirty and self._may_go(p) for p in set(excluding))

    def idle_dirty(self) -> Iterable[int]:
        """Dirty pages that could be taken if they were clean, oldest first."""
        if not self.num_cleanable:
            return ()
        return (page for page in self.idle if page in self.dirty and page not in self.pins)

    def hold(self, pages: Iterable[int]) -> None:
        """One more request holds each page."""
        holders, pins = self.holders, self.pins
        after, before = self.idle.after, self.idle.before
        for page in pages:
            if not holders[page]:
                if pins or self.dirty:
                    if page not in pins:
                        self._count(page, -1)
                else:
                    self.num_free -= 1
                older, younger = before[page], after[page]
                after[older], before[younger] = younger, older
                after[page] = ABSENT
            holders[page] += 1

    def release(self, pages: Iterable[int]) -> None:
        """One request less holds each page; the last one puts it in its place (POOL-4, POOL-5).

        Raises:
            PoolCorruptedError: Nobody holds one of them: a double free (POOL-6).
        """
        holders, key_of, loading_key_of = self.holders, self.key_of, self.loading_key_of
        after, before, end = self.idle.after, self.idle.before, self.idle.end
        youngest = before[end]
        come_free: list[int] = []
        try:
            for page in pages:
                left = holders[page] - 1
                if left < 0:
                    raise PoolCorruptedError(f"page {page} was released, but no request holds it")
                holders[page] = left
                if left:
                    continue
                come_free.append(page)
                if key_of[page] is not None or page in loading_key_of or youngest == end:
                    after[youngest], before[page] = page, youngest
                    youngest = page
                else:
                    oldest = after[end]
                    after[end] = before[oldest] = page
                    before[page], after[page] = end, oldest
        finally:
            after[youngest], before[end] = end, youngest
        if not self.pins and not self.dirty:
            self.num_free += len(come_free)
            return
        for page in come_free:
            if page not in self.pins:
                self._count(page, 1)

    def pin(self, pages: Iterable[int]) -> None:
        """A transfer reads or writes ``pages``: they are not taken before it settles (POOL-7)."""
        for page in pages:
            if page in self.pins:
                self.pins[page] += 1
                continue
            if not self.holders[page]:
                self._count(page, -1)
            self.pins[page] = 1

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
                if not self.holders[page]:
                    self._count(page, 1)

    def commit(self, page: int, key: PageKey) -> None:
        """Make the content of ``page`` hittable under ``key``, which is not cached yet."""
        self.page_of[key] = page
        self.key_of[page] = key

    def make_dirty(self, pages: Iterable[int]) -> None:
        """The tiers below lack the content of ``pages``."""
        for page in pages:
            if page not in self.dirty:
                self.dirty.add(page)
                self.num_cleanable += self._may_go(page)

    def make_clean(self, pages: Iterable[int]) -> None:
        """The tiers below have had their chance."""
        for page in pages:
            if page in self.dirty:
                self.dirty.remove(page)
                self.num_cleanable -= self._may_go(page)

    def begin_load(self, page: int, key: PageKey, transfer: Transfer) -> None:
        """``key`` is on its way into ``page``, which the caller has taken and pinned."""
        self.loading[key] = (page, transfer)
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
        if page in self.idle and self.key_of[page] is None:
            self.idle.remove(page)
            self.idle.prepend(page)

    def refresh(self, pages: Sequence[int]) -> None:
        """Make idle ``pages`` of one chain, root first, the youngest: leaf before root (POOL-8)."""
        self.idle.renew(page for page in reversed(pages) if page in self.idle)

    def reset(self) -> None:
        """Forget all content, also that which is on its way (RESET-1)."""
        self.page_of.clear()
        self.key_of = [None] * self.total
        self.loading.clear()
        self.loading_key_of.clear()
        self.make_clean(list(self.dirty))

    def statistics(self) -> PoolStatistics:
        """Count the pages by state (POOL-2)."""
        held = sum(1 for n in self.holders if n)
        pinned = sum(1 for page in self.pins if not self.holders[page])
        cached = sum(1 for _, page in self.page_of.items() if self._may_go(page))
        return PoolStatistics(self.total, held, pinned, cached, self.num_free - cached)

    def _may_go(self, page: int) -> bool:
        return not self.holders[page] and page not in self.pins

    def _count(self, page: int, change: int) -> None:
        """``page`` may be taken from now on, or not any more."""
        self.num_free += change
        if page in self.dirty:
            self.num_cleanable += change
