"""A long run that diverges becomes a short one that diverges in the same way."""

from collections.abc import Callable
from dataclasses import replace

import pytest
from tests.conformance.test_cutting import a_broken_device

from pagedkv.conformance.recorded.minimise import MinimalRun, minimise, smallest
from pagedkv.conformance.validation import Divergence, validate
from pagedkv.reference import PrefixCacheHits
from pagedkv.reference.events import (
    AllocPlanned,
    AllocRefused,
    AllocReturned,
    Claimed,
    Cleaned,
    DiskOpened,
    Event,
    Released,
    ReplicaPoisoned,
    Stepped,
    TransferFailed,
    TransferLanded,
)
from pagedkv.specification import reference_specification
from pagedkv.traces.events.reader import EventTrace
from pagedkv.traces.events.setup import EventTraceHeader
from pagedkv.traces.events.shipped import recorded_runs

Run = tuple[EventTraceHeader, list[Event]]


def recorded(name: str) -> Run:
    trace = EventTrace(recorded_runs()[name].path)
    return trace.header, list(trace)


def forged(name: str, kind: type[Event], change: Callable[..., Event | None]) -> Run:
    """A recorded run whose last event of a kind that ``change`` takes is another one."""
    header, events = recorded(name)
    for n in reversed(range(len(events))):
        if isinstance(events[n], kind) and (other := change(events[n])) is not None:
            return header, [*events[:n], other, *events[n + 1 :]]
    raise AssertionError(f"nothing to forge in {name}")


def kind_of(divergence: Divergence) -> object:
    seen, expected = type(divergence.seen), type(divergence.expected)
    return seen, expected, divergence.refusal, divergence.differing


def shortened(header: EventTraceHeader, events: list[Event]) -> MinimalRun:
    """The minimal run, after a look at what every minimal run has to be."""
    before = validate(header.setup, events, reference_specification, header.start)
    assert isinstance(before, Divergence)
    found = minimise(header, events, reference_specification)
    after = validate(header.setup, found.events, reference_specification, header.start)
    assert isinstance(after, Divergence) and after == found.divergence
    assert kind_of(after) == kind_of(before)
    assert after.seq - header.first_seq >= len(found.events) - 1, "it is the last event"
    assert found.is_shortest
    again = minimise(header, found.events, reference_specification)
    assert again.events == found.events, "nothing more can be left out"
    return found


def test_a_missed_hit_needs_who_wrote_and_who_missed() -> None:
    """The hit is of one page on the device, so no more than that is kept, of 250 events."""
    hit = PrefixCacheHits(device_blocks=1)
    run = forged(
        "busy",
        AllocPlanned,
        lambda e: replace(e, hits=PrefixCacheHits()) if e.hits == hit else None,
    )
    found = shortened(*run)
    assert [type(event) for event in found.events] == [
        DiskOpened,
        Claimed,
        AllocPlanned,
        AllocReturned,
        Stepped,
        Claimed,
        AllocPlanned,
    ]


@pytest.mark.parametrize(
    ("name", "kind", "change"),
    [
        ("busy", AllocPlanned, lambda e: replace(e, issued=()) if e.issued else None),
        ("busy", AllocPlanned, lambda e: replace(e, pages=e.pages[::-1])),
        ("busy", AllocPlanned, lambda e: AllocRefused(e.request_id, e.replica, e.context, 3, 1)),
        ("busy", AllocReturned, lambda e: replace(e, processed=e.processed + 1)),
        ("busy", Stepped, lambda e: replace(e, issued=()) if e.issued else None),
        ("busy", TransferLanded, lambda e: replace(e, issued=()) if e.issued else None),
        ("busy", TransferLanded, lambda e: TransferLanded("nobody knows it")),
        ("busy", TransferFailed, lambda e: replace(e, keys=())),
        ("from_the_middle", AllocPlanned, lambda e: replace(e, pages=(*e.pages, 9))),
        ("from_the_middle", Released, lambda e: Released("nobody")),
        ("write_back", Cleaned, lambda e: replace(e, issued=())),
        ("warm_disk", AllocPlanned, lambda e: replace(e, hits=PrefixCacheHits(disk_blocks=2))),
        ("full_pool", AllocRefused, lambda e: replace(e, free=e.free + 1)),
    ],
)
def test_what_is_wrong_stays_wrong_in_the_same_way(
    name: str, kind: type[Event], change: Callable[..., Event]
) -> None:
    header, events = forged(name, kind, change)
    assert len(shortened(header, events).events) < len(events)


def test_a_call_that_reports_too_little_still_does() -> None:
    header, events = a_broken_device()
    found = shortened(header, events[:-1])
    assert isinstance(found.events[-1], ReplicaPoisoned)
    assert found.divergence.seen is None
    interrupted = shortened(header, [*events[:-1], Claimed("next", 0)])
    assert [type(event) for event in interrupted.events[-2:]] == [ReplicaPoisoned, Claimed]


def test_the_search_always_finds_the_same() -> None:
    run = forged("busy", AllocPlanned, lambda e: replace(e, waits_for=()) if e.issued else None)
    assert shortened(*run) == shortened(*run)


def test_a_small_budget_leaves_more() -> None:
    header, events = forged("busy", AllocReturned, lambda e: replace(e, processed=99))
    played: list[int] = []
    found = minimise(header, events, reference_specification, budget=400, on_progress=played.append)
    assert not found.is_shortest
    assert found.played <= 400 and played == sorted(played)
    assert len(found.events) > len(shortened(header, events).events)


def test_an_allowed_run_has_nothing_to_keep() -> None:
    with pytest.raises(ValueError, match="the run is allowed"):
        minimise(*recorded("prefixes"), reference_specification)


def test_the_smallest_selection_that_keeps_is_found() -> None:
    assert list(smallest(range(50), lambda units: {3, 17} <= set(units))) == [3, 17]
    assert list(smallest(range(50), lambda units: True)) == []
    assert list(smallest(range(5), lambda units: len(units) == 5)) == [0, 1, 2, 3, 4]
