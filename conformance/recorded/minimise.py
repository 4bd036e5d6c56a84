"""Making a run that diverges as short as possible, so that people can see why it does.

Leaving out an event changes what follows: page ids, hits, transfers. So what is left of a run is
made once more on the specification, whose answers are allowed by definition. The recorded event
that diverged comes last. What was right about it is taken from the specification's answer again;
what was wrong stays as it was recorded, but for the numbers of pages and the names of transfers.
The shorter run is good if this event is then wrong in the same fields, where the same was expected.
"""

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TypeVar

from pagedkv.conformance.recorded.mistake import carry_over, same_mistake
from pagedkv.conformance.recorded.rerun import Rerun
from pagedkv.conformance.recorded.specification import SpecificationFactory
from pagedkv.conformance.validation import Divergence, Follower, validate
from pagedkv.reference.events import Event, Released
from pagedkv.traces.events.setup import EventTraceHeader

Unit = TypeVar("Unit")

BUDGET = 1_000_000
"""Events that are played by default before the shortest run so far has to do."""


@dataclass(frozen=True)
class MinimalRun:
    """A short run that diverges at its last event, as a longer one did."""

    events: tuple[Event, ...]
    """Its events."""
    divergence: Divergence
    """What is wrong with the last one, or what is missing after it."""
    played: int
    """Events that were played to find it."""
    is_shortest: bool
    """Whether nothing more can be left out; otherwise the budget was spent before."""


def minimise(
    header: EventTraceHeader,
    events: Iterable[Event],
    specification: SpecificationFactory,
    *,
    budget: int = BUDGET,
    on_progress: Callable[[int], None] = lambda played: None,
) -> MinimalRun:
    """The shortest run that can be found to diverge in the same way; always the same one.

    First whole requests are left out, then single events.

    Args:
        header: Of the trace.
        events: Its events; those after the divergence are not looked at.
        specification: Makes the specification, many times.
        budget: Events to play at most.
        on_progress: Called with the number of events played so far.

    Raises:
        ValueError: The run is allowed.
    """
    history: list[Event] = []
    follower = Follower(header.setup, specification, header.start)
    for event in events:
        in_call = not follower.between_calls
        divergence = follower.follow(event)
        if divergence is not None:
            break
        history.append(event)
    else:
        in_call = not follower.between_calls
        divergence = follower.unfinished()
    if divergence is None:
        raise ValueError("the run is allowed; there is no divergence to keep")
    search = _Search(header, history, divergence, in_call, specification, budget, on_progress)
    return search.run()


class _Search:
    """The state of one search; :meth:`keeps` remembers the shortest run so far."""

    def __init__(
        self,
        header: EventTraceHeader,
        history: Sequence[Event],
        divergence: Divergence,
        in_call: bool,
        specification: SpecificationFactory,
        budget: int,
        on_progress: Callable[[int], None],
    ) -> None:
        self.header = header
        self.history = history
        self.wanted = divergence
        self.in_call = in_call
        self.specification = specification
        self.budget = budget
        self.on_progress = on_progress
        self.played = len(history)
        self.is_spent = False
        last = () if divergence.seen is None else (divergence.seen,)
        self.best = (*history, *last), divergence

    def run(self) -> MinimalRun:
        lives, others = self.lives()
        kept = smallest(lives, lambda some: self.keeps(sorted([*others, *chain(*some)])))
        smallest(sorted([*others, *chain(*kept)]), self.keeps)
        return MinimalRun(*self.best, self.played, not self.is_spent)

    def lives(self) -> tuple[list[list[int]], list[int]]:
        """Places of the events of each request, from its claim to its release; and all others."""
        lives: dict[Hashable, list[int]] = {}
        ended: list[list[int]] = []
        others: list[int] = []
        for place, event in enumerate(self.history):
            name = getattr(event, "request_id", None)
            if name is None:
                others.append(place)
                continue
            lives.setdefault(name, []).append(place)
            if isinstance(event, Released):
                ended.append(lives.pop(name))
        return sorted([*ended, *lives.values()]), others

    def keeps(self, places: Sequence[int]) -> bool:
        """Whether the events at these places still lead to the same divergence."""
        if self.played + 2 * len(places) > self.budget:
            self.is_spent = True
            return False
        self.played += 2 * len(places)
        self.on_progress(self.played)
        events = self.remade([self.history[place] for place in places])
        if events is None:
            return False
        found = validate(self.header.setup, events, self.specification, self.header.start)
        if not isinstance(found, Divergence) or not same_mistake(found, self.wanted):
            return False
        self.best = tuple(events), found
        return True

    def remade(self, events: Iterable[Event]) -> list[Event] | None:
        """What the specification answers to these events, and then the one that diverged."""
        rerun = Rerun(self.header, self.specification)
        rerun.make_all(events)
        seen, was = self.wanted.seen, self.wanted.expected
        if self.in_call:
            # The latest call reported less than it should: it ends before such an event again.
            call = rerun.calls.pop() if rerun.calls else []
            places = (n for n, event in enumerate(call) if n and type(event) is type(was))
            end = next(places, None)
            if end is None:
                return None
            rerun.calls.append(call[:end])
            now: Event | None = call[end]
        else:
            assert seen is not None, "a run that ends too early ends within a call"
            now = rerun.make_last(seen)
        if seen is None:
            return [*chain(*rerun.calls)]
        was = None if was is None else rerun.renamed(was)
        return [*chain(*rerun.calls), carry_over(rerun.renamed(rerun.adapted(seen)), was, now)]


def smallest(units: Sequence[Unit], keeps: Callable[[Sequence[Unit]], bool]) -> Sequence[Unit]:
    """The units that are left when none of them can be left out any more by itself.

    All units together are known to keep what is wanted. The latest matter most, so the shortest
    tail that will do is looked for first; then ever smaller groups are left out.
    """
    width = 1
    while width < len(units):
        if keeps(units[-width:]):
            units = units[-width:]
            break
        width *= 2
    size = len(units)
    while size:
        end, shorter = len(units), False
        while end > 0:
            rest = [*units[: max(0, end - size)], *units[end:]]
            if keeps(rest):
                units, shorter = rest, True
            end -= size
        size = size if shorter and size == 1 else size // 2
    return units
