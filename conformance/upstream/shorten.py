"""Leaving out of a story what its mistake does not need, by trying it on the system itself.

What a specification needs to see a mistake is less than what a system needs to make it: the request
that has left something behind may look innocent. So every shorter run is made on the system.
"""

from collections.abc import Callable, Hashable, Iterable, Sequence
from itertools import chain

from pagedkv.conformance.implementation import Implementation
from pagedkv.conformance.recorded.minimise import smallest
from pagedkv.conformance.recorded.specification import SpecificationFactory
from pagedkv.conformance.upstream.calls import Calls
from pagedkv.conformance.upstream.explanation import explain
from pagedkv.conformance.upstream.requests import Cast
from pagedkv.conformance.upstream.story import NoTestError, Story, story_of
from pagedkv.conformance.upstream.watched import watched
from pagedkv.reference.events import Event, Released
from pagedkv.traces.events.recorder import FlightRecorder
from pagedkv.traces.manager_setup import ManagerSetup
from pagedkv.traces.sync_adapter import as_sync


class NotReproducedError(NoTestError):
    """A system does not repeat the mistake of a story."""


def shortened(
    story: Story, implementation: Implementation, specification: SpecificationFactory
) -> Story:
    """The shortest story that can be found in which a system still makes the same mistake.

    First whole requests are left out, then single events.

    Args:
        story: What has happened.
        implementation: The system, of which many managers are made.
        specification: Makes the specification.

    Raises:
        NotReproducedError: It does not make it when everything is done again.
    """
    best: list[Story] = []
    events = (*story.events, story.last)

    def keeps(places: Iterable[int]) -> bool:
        again = _again(
            story, [events[place] for place in sorted(places)], implementation, specification
        )
        if again is None or not _same_mistake(again, story):
            return False
        best.append(again)
        return True

    lives, others = _lives(events)
    if not keeps(range(len(events))):
        raise NotReproducedError(
            f"{implementation.name} {implementation.version} does not repeat the mistake that was "
            f"recorded of {story.header.implementation}; install the version that was recorded, or "
            "keep all calls as they are"
        )
    kept = smallest(lives, lambda some: keeps([*others, *chain(*some)]))
    smallest(sorted([*others, *chain(*kept)]), keeps)
    return best[-1]


def _lives(events: Sequence[Event]) -> tuple[list[list[int]], list[int]]:
    """Places of the events of each request, from its claim to its release; and all others."""
    lives: dict[Hashable, list[int]] = {}
    ended: list[list[int]] = []
    others: list[int] = []
    for place, event in enumerate(events):
        name = getattr(event, "request_id", None)
        if name is None:
            others.append(place)
        else:
            lives.setdefault(name, []).append(place)
            if isinstance(event, Released):
                ended.append(lives.pop(name))
    return sorted([*ended, *lives.values()]), others


def _same_mistake(one: Story, other: Story) -> bool:
    same_request = getattr(one.last, "request_id", None) == getattr(other.last, "request_id", None)
    return same_request and explain(one).claim == explain(other).claim


def _again(
    story: Story,
    events: Sequence[Event],
    implementation: Implementation,
    specification: SpecificationFactory,
) -> Story | None:
    """How it goes wrong if only these calls are made; ``None`` if it does not."""
    recorder = FlightRecorder(capacity=2 * len(events) + 1)
    setup = ManagerSetup.model_validate(story.header.setup.model_dump() | {"tracer": recorder})
    manager = as_sync(implementation.make(setup.model_copy(update={"tracer": None})))
    calls = Calls(watched(manager, setup), Cast(events, setup.page_size), setup.replicas)
    try:
        for event in events:
            calls.make(event)
    except Exception:  # whatever the system raises at calls that make no sense any more
        return None
    finally:
        shutdown: Callable[[], object] | None = getattr(manager, "shutdown", None)
        if shutdown is not None:
            shutdown()
    try:
        name = f"{implementation.name} {implementation.version}"
        header = story.header.model_copy(update={"implementation": name})
        return story_of(header, recorder.events, specification)
    except NoTestError:
        return None
