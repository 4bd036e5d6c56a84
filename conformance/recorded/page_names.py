"""A recorded run with the specification's names of pages, for managers that number them otherwise.

Who chooses pages as the reference does need not hand out fresh ones in the order of their ids
(POOL-11 is a SHOULD). From its first use on, a page stands for one page of the specification.
"""

from collections.abc import Hashable, Iterable, Iterator
from dataclasses import replace

from pagedkv.conformance.recorded.specification import SpecificationFactory
from pagedkv.conformance.validation import Follower
from pagedkv.reference.events import AllocPlanned, Claimed, Cleaned, Event, Stepped
from pagedkv.traces.events.setup import RunSetup
from pagedkv.traces.events.start import RunStart


class PageNames:
    """Which page of a run stands for which of the specification, by replica.

    Args:
        setup: How the recorded manager was set up.
        start: Where the run begins; pages that were in use or cached there keep their names.
    """

    def __init__(self, setup: RunSetup, start: RunStart | None = None) -> None:
        null_page = setup.total_num_pages
        self._own = {(replica, null_page): null_page for replica in range(setup.replicas)}
        self._replicas: dict[Hashable, int] = {}
        if start is not None:
            self._replicas = {r.request_id: r.replica for r in start.state.requests}
            moving = {page for t in start.state.in_flight for page in (*t.pages, *t.source_pages)}
            for replica, pool in enumerate(start.state.pools):
                fresh = set(pool.idle) - {page for page, _ in pool.cached} - moving
                used = set(range(null_page)) - fresh
                self._own |= {(replica, page): page for page in used}
        self._taken = {(replica, own) for (replica, _), own in self._own.items()}

    def own(self, event: Event) -> Event:
        """The event with the specification's names; a page without one has a negative number."""
        if isinstance(event, Claimed):
            self._replicas[event.request_id] = event.replica
        if not isinstance(event, AllocPlanned | Stepped | Cleaned):
            return event
        replica = self._replica(event)

        def renamed(pages: tuple[int, ...]) -> tuple[int, ...]:
            return tuple(self._own.get((replica, page), -1 - page) for page in pages)

        issued = tuple(
            replace(transfer, pages=renamed(transfer.pages)) for transfer in event.issued
        )
        return replace(event, pages=renamed(event.pages), issued=issued)

    def pair(self, seen: Event, expected: Event) -> None:
        """Where both have a page that was not used before, one stands for the other."""
        pages = getattr(seen, "pages", ()), getattr(expected, "pages", ())
        replica = self._replica(seen)
        for page, own in zip(*pages, strict=False):
            if (replica, page) not in self._own and (replica, own) not in self._taken:
                self._own[replica, page] = own
                self._taken.add((replica, own))

    def _replica(self, event: Event) -> int:
        replica: int = getattr(event, "replica", None) or self._replicas.get(
            getattr(event, "request_id", None), 0
        )
        return replica


class RenamedRun:
    """The events of a run by the specification's names of pages, as often as wanted.

    Args:
        setup: How the recorded manager was set up.
        events: What it has reported; gone through as often as this is.
        specification: Makes the specification.
        start: Where the run stood before the first of ``events``.
    """

    def __init__(
        self,
        setup: RunSetup,
        events: Iterable[Event],
        specification: SpecificationFactory,
        start: RunStart | None = None,
    ) -> None:
        self._setup, self._events, self._start = setup, events, start
        self._specification = specification

    def __iter__(self) -> Iterator[Event]:
        names = PageNames(self._setup, self._start)
        follower = Follower(self._setup, self._specification, self._start, names)
        diverges = False
        for event in self._events:
            diverges = diverges or follower.follow(event) is not None
            yield names.own(event)
