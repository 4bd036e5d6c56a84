"""A recorded run in which pages may be called anything, as long as there are as many."""

from collections.abc import Iterable
from dataclasses import replace

from pagedkv.conformance.recorded.specification import SpecificationFactory
from pagedkv.conformance.validation import Follower
from pagedkv.reference.events import AllocPlanned, Event, Stepped
from pagedkv.traces.events.setup import EventTraceHeader


class AnyPages:
    """Takes the specification's pages for those of the run, wherever both have equally many."""

    def __init__(self) -> None:
        self._seen: Event | None = None
        self._pages: tuple[int, ...] = ()

    def pair(self, seen: Event, expected: Event) -> None:
        """Learn from an event and from what the specification reports in its place."""
        pages, own = getattr(seen, "pages", ()), getattr(expected, "pages", ())
        self._seen, self._pages = seen, own if len(pages) == len(own) else pages

    def own(self, event: Event) -> Event:
        """The event with the specification's pages, if it was the latest to be paired."""
        if event is self._seen and isinstance(event, AllocPlanned | Stepped):
            return replace(event, pages=self._pages)
        return event


def with_any_pages(
    header: EventTraceHeader, events: Iterable[Event], specification: SpecificationFactory
) -> list[Event]:
    """The events up to the first divergence that is not one of page numbers alone."""
    names = AnyPages()
    follower = Follower(header.setup, specification, header.start, names)
    renamed: list[Event] = []
    for event in events:
        divergence = follower.follow(event)
        renamed.append(names.own(event))
        if divergence is not None:
            break
    return renamed
