"""A part of a run is a run: it begins with the state before it, and is allowed or not as it was."""

from dataclasses import replace

import pytest
from tests.conformance.test_validation import a_run, setup_of
from tests.reference.conftest import Making, Recorder, prompt

from pagedkv.conformance.recorded.cutting import RunDivergesError, cut, start_at
from pagedkv.conformance.validation import Divergence, validate
from pagedkv.reference.events import (
    AllocPlanned,
    AllocReturned,
    DiskOpened,
    Event,
    ReplicaPoisoned,
    TransferFailed,
    TransferLanded,
)
from pagedkv.specification import reference_specification
from pagedkv.traces.errors import TraceError
from pagedkv.traces.events.codec import decode, encode
from pagedkv.traces.events.recorder import FlightRecorder
from pagedkv.traces.events.setup import EventTraceHeader


def header_of(run: tuple[object, list[Event]]) -> tuple[EventTraceHeader, list[Event]]:
    setup, events = run
    return EventTraceHeader(setup=setup), events  # type: ignore[arg-type]


def part(
    header: EventTraceHeader, events: list[Event], first: int, last: int | None = None
) -> tuple[EventTraceHeader, list[Event]]:
    cut_header, tail = cut(header, events, first, last, reference_specification)
    return cut_header, list(tail)


def outcome(header: EventTraceHeader, events: list[Event]) -> Divergence | int:
    return validate(header.setup, events, reference_specification, header.start)


def a_broken_device() -> tuple[EventTraceHeader, list[Event]]:
    """A run that ends with a call that reports two events."""
    make, recorder = Making(), Recorder()
    manager = make.manager(make.params(replicas=2), tracer=recorder, auto_land=False)
    make.serve(manager, prompt(2), 1)
    make.begin(manager, prompt(2), 0)
    manager.poison(1, "a kernel failed")
    assert isinstance(recorder.events[-1], TransferFailed)
    return EventTraceHeader(setup=setup_of(manager)), recorder.events


def test_a_part_keeps_the_numbers_of_its_events() -> None:
    header, events = header_of(a_run())
    middle, tail = part(header, events, 5, 9)
    assert middle.first_seq == 5
    assert tail == events[5:10]
    assert outcome(middle, tail) == 5


def test_a_part_of_a_part_is_one_of_the_whole() -> None:
    header, events = header_of(a_run())
    assert part(*part(header, events, 4), 8) == part(header, events, 8)


def test_a_part_from_the_beginning_needs_no_state() -> None:
    header, events = header_of(a_run())
    assert part(header, events, 0, 3) == (header, events[:4])


def test_a_call_is_not_cut_in_two() -> None:
    header, events = a_broken_device()
    call = next(n for n, event in enumerate(events) if isinstance(event, ReplicaPoisoned))
    assert part(header, events, call + 1) == part(header, events, call)
    assert part(header, events, 0, call) == (header, events)


def test_transfers_keep_the_names_that_the_trace_gives_them() -> None:
    header, events = header_of(a_run())
    lines = [encode(n, event).decode() for n, event in enumerate(events)]
    renamed = [decode(line.replace("load-", "copy/"))[1] for line in lines]
    place = max(n for n, event in enumerate(renamed) if isinstance(event, TransferLanded))
    middle, tail = part(header, renamed, place)
    assert middle.start is not None
    assert [t.transfer for t in middle.start.state.in_flight] == [renamed[place].transfer]  # type: ignore[union-attr]
    assert outcome(middle, tail) == len(tail)


def test_an_allocation_that_waits_goes_on_where_it_was_cut() -> None:
    header, events = header_of(a_run())
    place = max(n for n, event in enumerate(events) if isinstance(event, AllocPlanned)) + 1
    middle, tail = part(header, events, place)
    assert middle.start is not None and len(middle.start.contexts) == 1
    forged = [
        replace(event, processed=event.processed + 1) if isinstance(event, AllocReturned) else event
        for event in tail
    ]
    assert outcome(middle, tail) == len(tail)
    assert isinstance(outcome(middle, forged), Divergence)


def test_what_a_flight_recorder_kept_can_be_checked_by_itself() -> None:
    header, events = header_of(a_run())
    flight = FlightRecorder(7)
    for event in events:
        flight.emit(event)
    start = start_at(header, events, flight.first_seq, reference_specification)
    assert validate(header.setup, flight.events, reference_specification, start) == 7


def test_the_end_of_a_run_may_diverge_in_a_part_of_it() -> None:
    header, events = header_of(a_run())
    middle, tail = part(header, [*events, DiskOpened(())], len(events) - 2)
    divergence = outcome(middle, tail)
    assert isinstance(divergence, Divergence)
    assert divergence.seq == len(events)


def test_nothing_is_known_after_a_divergence() -> None:
    header, events = header_of(a_run())
    forged = [*events[:5], DiskOpened(()), *events[5:]]
    start_at(header, forged, 5, reference_specification)
    with pytest.raises(RunDivergesError, match="from event 5 on"):
        start_at(header, forged, 6, reference_specification)


def test_an_event_that_is_not_there_is_named() -> None:
    header, events = header_of(a_run())
    assert start_at(header, events, len(events), reference_specification).seq == len(events)
    with pytest.raises(ValueError, match="there is no event 99; they go from 0"):
        start_at(header, events, 99, reference_specification)
    with pytest.raises(ValueError, match="there is no event 3"):
        start_at(*part(header, events, 5), 3, reference_specification)


def test_a_state_that_does_not_fit_the_setup_is_an_error() -> None:
    header, events = header_of(a_run())
    middle, tail = part(header, events, 5)
    other = header.setup.model_copy(update={"total_num_pages": 3})
    with pytest.raises(TraceError, match="begins with a state that does not fit"):
        validate(other, tail, reference_specification, middle.start)
