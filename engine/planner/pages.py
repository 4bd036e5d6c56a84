"""The device pages of one replica: who holds them, what they contain, which goes next.

Rules POOL-1 to POOL-11. The numbers of pages that may be taken are kept, not counted, so that no
call takes longer in a larger pool.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import filterfalse

from pagedkv.engine.planner.key_map import key_map
from pagedkv.engine.planner.recency import RecencyList
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
        self.sharers: dict[int, int] = {}
        """Of pages that several requests hold: how many do, besides the first."""
        self.pins: dict[int, int] = {}
        """Pages that transfers in flight read or write: how many do."""
        self.page_of = key_map(total)
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
        taken: list[int] = []
        staying: list[int] = []
        while len(taken) < count and (oldest := self.idle.take(count - len(taken))):
            if self.pins or self.dirty:
                staying += filterfalse(self._is_loose, oldest)
                oldest = list(filter(self._is_loose, oldest))
            taken += oldest
        self.idle.prepend(staying)
        if len(taken) < count:
            raise PoolCorruptedError(f"{count} pages were to be taken, only {len(taken)} can be")
        self.num_free -= count
        key_of = self.key_of
        evicted = [key for page in taken if (key := key_of[page]) is not None]
        for page in taken:
            key_of[page] = None
        self.page_of.drop(evicted)
        self.evictions += len(evicted)
        return taken, evicted

    def can_take(self, count: int, holding: Sequence[int]) -> bool:
        """Whether :meth:`take` could take ``count`` pages if those ``holding`` were held."""
        # Nearly always there is room to spare: then nobody has to look at the pages.
        if count <= self.num_free - self.num_cleanable - len(holding):
            return True
        return count <= self.takeable(excluding=holding)

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
        leaving, shared = self.idle.discard(pages)
        for page in shared:
            self.sharers[page] = self.sharers.get(page, 0) + 1
        self._count(leaving, -1)

    def release(self, pages: Iterable[int]) -> None:
        """One request less holds each page; the last one puts it in its place (POOL-4, POOL-5).

        Raises:
            PoolCorruptedError: Nobody holds one of them: a double free (POOL-6).
        """
        coming = self._leave_to_sharers(pages) if self.sharers else list(pages)
        key_of, loading_key_of = self.key_of, self.loading_key_of
        empty = [page for page in coming if key_of[page] is None and page not in loading_key_of]
        filled = coming
        if empty:
            none = set(empty)
            filled = [page for page in coming if page not in none]
        self.idle.prepend(empty[::-1])
        self.idle.extend(filled)
        self._count(coming, 1)

    def pin(self, pages: Iterable[int]) -> None:
        """A transfer reads or writes ``pages``: they are not taken before it settles (POOL-7)."""
        for page in pages:
            if page in self.pins:
                self.pins[page] += 1
                continue
            if page in self.idle:
                self._count((page,), -1)
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
                if page in self.idle:
                    self._count((page,), 1)

    def commit(self, pages: Sequence[int], keys: Sequence[PageKey]) -> list[int]:
        """Make the content of ``pages`` hittable under ``keys``, but for keys that are cached.

        Returns the page where each is cached now.
        """
        cached, key_of = self.page_of.add(keys, pages), self.key_of
        for page, key in zip(cached, keys, strict=True):
            key_of[page] = key
        return cached

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
            if visible:
                self.commit((page,), (key,))
        if page in self.idle and self.key_of[page] is None:
            self.idle.remove(page)
            self.idle.prepend((page,))

    def refresh(self, pages: Sequence[int]) -> None:
        """Make idle ``pages`` of one chain, root first, the youngest: leaf before root (POOL-8)."""
        self.idle.renew([page for page in reversed(pages) if page in self.idle])

    def holders(self, page: int) -> int:
        """How many requests hold the page."""
        return 0 if page in self.idle else 1 + self.sharers.get(page, 0)

    def reset(self) -> None:
        """Forget all content, also that which is on its way (RESET-1)."""
        self.page_of.clear()
        self.key_of = [None] * self.total
        self.loading.clear()
        self.loading_key_of.clear()
        self.make_clean(list(self.dirty))

    def statistics(self) -> PoolStatistics:
        """Count the pages by state (POOL-2)."""
        held = self.total - len(self.idle)
        pinned = sum(1 for page in self.pins if page in self.idle)
        cached = sum(1 for _, page in self.page_of.items() if self._may_go(page))
        return PoolStatistics(self.total, held, pinned, cached, self.num_free - cached)

    def _leave_to_sharers(self, pages: Iterable[int]) -> list[int]:
        """One request less holds each page; those that nobody holds any more."""
        sharers = self.sharers
        left: list[int] = []
        for page in pages:
            others = sharers.pop(page, 0)
            if not others:
                left.append(page)
            elif others > 1:
                sharers[page] = others - 1
        return left

    def _is_loose(self, page: int) -> bool:
        """Whether nothing but a request can keep ``page`` from being taken."""
        return page not in self.pins and page not in self.dirty

    def _may_go(self, page: int) -> bool:
        return page in self.idle and page not in self.pins

    def _count(self, pages: Collection[int], change: int) -> None:
        """``pages`` that nobody holds may be taken from now on, or not any more."""
        if not self.pins and not self.dirty:
            self.num_free += change * len(pages)
            return
        for page in pages:
            if page not in self.pins:
                self.num_free += change
                self.num_cleanable += change * (page in self.dirty)
