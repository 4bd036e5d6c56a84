"""A divergence as a story: the calls before it, what went wrong in the last one, what is right."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from pagedkv.conformance.recorded.cutting import start_at
from pagedkv.conformance.recorded.specification import SpecificationFactory
from pagedkv.conformance.upstream.any_pages import with_any_pages
from pagedkv.conformance.validation import Divergence, validate
from pagedkv.reference.events import AllocPlanned, AllocRefused, Claimed, Event
from pagedkv.traces.events.codec import NAMES
from pagedkv.traces.events.setup import EventTraceHeader

Mistake = Literal["hits", "pages", "free", "refused", "not refused", "accepted"]
"""What went wrong: the wrong number of cached blocks, or of pages; pages that should be free and
are not; a call that was refused and should not have been, the other way round, and a call that
should be refused whatever the room."""


class NoTestError(ValueError):
    """A run cannot be turned into a test."""


class NoCounterpartError(NoTestError):
    """A call of the run has no counterpart in the system that the test is for."""

    def __init__(self, seq: int, event: Event, problem: str) -> None:
        self.seq = seq
        """Its number in the run."""
        self.event = event
        """The event."""
        super().__init__(f"event {seq}, {NAMES[type(event)]}: {problem}")


@dataclass(frozen=True)
class Story:
    """A run that goes wrong at its end."""

    header: EventTraceHeader
    """How the manager was set up, and what it was."""
    events: tuple[Event, ...]
    """What happens before, all of it allowed."""
    divergence: Divergence
    """What is wrong with the event that comes next."""
    mistake: Mistake
    """The same in a word."""
    free: tuple[int, ...]
    """Pages that nobody should hold before that event, by replica."""

    @property
    def last(self) -> Event:
        """The event that is wrong."""
        assert self.divergence.seen is not None, "a missing event is no mistake of any kind"
        return self.divergence.seen


def story_of(
    header: EventTraceHeader, events: Iterable[Event], specification: SpecificationFactory
) -> Story:
    """How a run diverges, with all that happens before.

    Numbers of pages are every manager's own: a divergence of nothing else is passed over.

    Args:
        header: Of the trace.
        events: Its events.
        specification: Makes the specification.

    Raises:
        NoTestError: The run is allowed, begins in the middle, or differs in what no test of
            another system can look at.
    """
    if header.start is not None:
        raise NoTestError("the run begins in the middle; use the run from its beginning")
    told = list(events)
    divergence = validate(header.setup, told, specification)
    if isinstance(divergence, Divergence) and _differs_in_numbers_only(divergence):
        told = with_any_pages(header, told, specification)
        divergence = validate(header.setup, told, specification)
    if not isinstance(divergence, Divergence):
        raise NoTestError("the run is allowed; there is nothing that a test could fail on")
    mistake = _mistake_of(divergence)
    state = start_at(header, told, divergence.seq, specification).state
    free = tuple(len(pool.idle) for pool in state.pools)
    return Story(header, tuple(told[: divergence.seq]), divergence, mistake, free)


def _differs_in_numbers_only(divergence: Divergence) -> bool:
    pages = [getattr(e, "pages", ()) for e in (divergence.seen, divergence.expected)]
    return divergence.differing == ("pages",) and len(pages[0]) == len(pages[1])


def _mistake_of(divergence: Divergence) -> Mistake:
    """What went wrong, in a word.

    Raises:
        NoTestError: Nothing that is known of every manager.
    """
    seen, expected = divergence.seen, divergence.expected
    mistake: Mistake | None = None
    match seen, expected:
        case AllocPlanned(), AllocPlanned() if seen.hits != expected.hits:
            mistake = "hits"
        case AllocPlanned(), AllocPlanned() if len(seen.pages) != len(expected.pages):
            mistake = "pages"
        case AllocRefused(), AllocRefused() if seen.free != expected.free:
            mistake = "free"
        case AllocRefused(), AllocPlanned():
            mistake = "refused"
        case AllocPlanned(), AllocRefused():
            mistake = "not refused"
        case ((Claimed() | AllocPlanned()), None) if divergence.refusal is not None:
            mistake = "accepted"
    if mistake is None:
        raise NoTestError(f"what differs is nothing that every manager shows: {divergence.reason}")
    return mistake
