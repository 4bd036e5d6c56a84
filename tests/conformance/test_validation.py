"""Recorded runs are fed to the reference: true ones pass, forged ones are found out."""

from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize
from tests.reference.conftest import Making, Recorder
from tests.reference.test_random_runs import RandomRuns, state_of

from pagedkv.conformance.recorded.cutting import cut, start_at
from pagedkv.conformance.recorded.page_names import RenamedRun
from pagedkv.conformance.validation import Divergence, validate
from pagedkv.reference import KVCacheParamInterface, PagedKVCacheManager, PrefixCacheHits
from pagedkv.reference.events import (
    AllocPlanned,
    AllocReturned,
    Cleaned,
    Event,
    Stepped,
    TransferLanded,
)
from pagedkv.reference.snapshot import Snapshot
from pagedkv.specification import reference_specification
from pagedkv.traces.events.codec import decode, decode_header, encode, encode_header
from pagedkv.traces.events.reader import EventTrace
from pagedkv.traces.events.setup import EventTraceHeader, RunSetup
from pagedkv.traces.events.shipped import recorded_runs


def setup_of(manager: PagedKVCacheManager) -> RunSetup:
    """How a reference manager was set up, as a trace says it."""
    params: KVCacheParamInterface = manager.params
    tiers = state_of(manager).connector.tiers
    return RunSetup(
        page_size=params.page_size,
        total_num_pages=manager.total_num_blocks(),
        replicas=params.data_parallel_degree,
        max_batch_size=8,
        host_pages=tiers["host"].capacity if "host" in tiers else None,
        disk_pages=tiers["disk"].capacity if "disk" in tiers else None,
        store="store" in tiers,
        enable_prefix_caching=params.enable_prefix_caching,
        write_policy=state_of(manager).connector.policy,
        deduplication=params.deduplication,
        speculative_method=params.speculative_method,
        num_draft_tokens=params.num_draft_tokens,
    )


def written_and_read(events: list[Event]) -> list[Event]:
    """The events as a trace file would hold them."""
    return [decode(encode(n, event).decode())[1] for n, event in enumerate(events)]


class RecordedRuns(RandomRuns):
    """Every random run of the reference, whatever its interleaving, is one that it allows.

    So is what is left of it wherever it is cut, from the state that it had there.
    """

    share = 0.5
    """Where it is cut, as a share of its events."""

    @initialize(share=st.floats(0, 1))
    def cut_somewhere(self, share: float) -> None:
        self.share = share

    def teardown(self) -> None:
        if not hasattr(self, "manager"):
            return
        header = EventTraceHeader(setup=setup_of(self.manager))
        super().teardown()
        events = written_and_read(self.recorder.events)
        assert validate(header.setup, events, reference_specification) == len(events)
        assert_knows_the_same(
            start_at(header, events, None, reference_specification).state, self.manager.snapshot()
        )
        self.check_tail(header, events, round(self.share * len(events)))

    def check_tail(self, header: EventTraceHeader, events: list[Event], place: int) -> None:
        cut_header, tail = cut(header, events, place, None, reference_specification)
        header = decode_header(encode_header(cut_header).decode())
        assert header == cut_header
        left = list(tail)
        setup, start = header.setup, header.start
        assert (
            validate(setup, left, reference_specification, start)
            == len(left)
            >= (len(events) - place)
        )
        for n, event in enumerate(left):
            if isinstance(event, AllocReturned):
                left[n] = replace(event, processed=event.processed + 1)
                divergence = validate(setup, left, reference_specification, start)
                assert isinstance(divergence, Divergence)
                assert divergence.seq == header.first_seq + n
                break


def assert_knows_the_same(follower: Snapshot, followed: Snapshot) -> None:
    """Whoever follows the events knows what the manager knows, but for the size of its pages."""
    nbytes = followed.served.cross_replica_bytes_copied
    served = replace(follower.served, cross_replica_bytes_copied=nbytes)
    assert replace(follower, served=served) == followed


RecordedRuns.TestCase.settings = settings(max_examples=120, stateful_step_count=40)
TestRecordedRuns = RecordedRuns.TestCase


def a_run() -> tuple[RunSetup, list[Event]]:
    """Three requests, the last of which finds its prefix in two tiers."""
    make, recorder = Making(), Recorder()
    manager = make.manager(make.tiered_params(), pages=4, host_pages=8, tracer=recorder)
    for n, tokens in enumerate((range(9), range(100, 109), range(9))):
        ctx = make.admit(manager, tokens, request_id=f"r{n}")
        make.forward(manager, ctx)
        manager.release(ctx.request_id, 0)
    return setup_of(manager), recorder.events


def forge(
    kind: type[Event], change: Callable[..., Event], *, last: bool = True
) -> tuple[RunSetup, list[Event], int]:
    """The run with one event changed, and its place."""
    setup, events = a_run()
    places = [n for n, event in enumerate(events) if isinstance(event, kind)]
    place = places[-1 if last else 0]
    events[place] = change(events[place])
    return setup, events, place


def test_a_true_run_passes() -> None:
    setup, events = a_run()
    assert validate(setup, events, reference_specification) == len(events)


def test_transfers_may_have_other_names() -> None:
    setup, events = a_run()
    lines = [encode(n, event).decode() for n, event in enumerate(events)]
    renamed = [decode(line.replace("load-", "copy/"))[1] for line in lines]
    assert renamed != events
    assert validate(setup, renamed, reference_specification) == len(events)


def with_other_pages(events: list[Event], number: Callable[[int], int]) -> list[Event]:
    """The run of a manager that numbers its pages otherwise."""
    renamed = []
    for event in events:
        if isinstance(event, AllocPlanned | Stepped | Cleaned):
            issued = tuple(replace(t, pages=tuple(map(number, t.pages))) for t in event.issued)
            event = replace(event, pages=tuple(map(number, event.pages)), issued=issued)
        renamed.append(event)
    return renamed


@given(st.data())
def test_up_to_renaming_pages_may_have_any_numbers(data: st.DataObject) -> None:
    run = data.draw(st.sampled_from(sorted(set(recorded_runs()) - {"from_the_middle"})))
    trace = EventTrace(recorded_runs()[run].path)
    setup, events = trace.header.setup, list(trace)
    numbers = data.draw(st.permutations(range(setup.total_num_pages)))
    renamed = with_other_pages(events, [*numbers, setup.total_num_pages].__getitem__)
    own = RenamedRun(setup, renamed, reference_specification)
    assert list(own) == events
    assert validate(setup, own, reference_specification) == len(events)


def test_up_to_renaming_pages_that_were_in_use_where_a_run_begins_keep_their_numbers() -> None:
    trace = EventTrace(recorded_runs()["from_the_middle"].path)
    header = trace.header
    own = RenamedRun(header.setup, trace, reference_specification, header.start)
    assert list(own) == list(trace)
    assert header.start is not None
    last = header.setup.total_num_pages - 1
    forged = with_other_pages(list(trace), lambda page: last - page)
    own = RenamedRun(header.setup, forged, reference_specification, header.start)
    outcome = validate(header.setup, own, reference_specification, header.start)
    assert isinstance(outcome, Divergence)


def test_up_to_renaming_another_page_is_still_another_page() -> None:
    setup, events = a_run()
    renamed = with_other_pages(events, lambda page: 3 - page)
    place = max(n for n, event in enumerate(renamed) if isinstance(event, AllocPlanned))
    last = renamed[place]
    assert isinstance(last, AllocPlanned)
    renamed[place] = replace(last, pages=last.pages[::-1])
    divergence = validate(
        setup, RenamedRun(setup, renamed, reference_specification), reference_specification
    )
    assert isinstance(divergence, Divergence)
    assert (divergence.seq, "pages: expected" in divergence.reason) == (place, True)


@pytest.mark.parametrize(
    ("kind", "change", "reason"),
    [
        (AllocPlanned, lambda e: replace(e, hits=PrefixCacheHits()), "hits: expected"),
        (AllocPlanned, lambda e: replace(e, pages=e.pages[::-1]), "pages: expected"),
        (AllocPlanned, lambda e: replace(e, waits_for=()), "waits_for: expected"),
        (AllocReturned, lambda e: replace(e, processed=e.processed + 1), "processed: expected"),
        (Stepped, lambda e: replace(e, pages=()), "pages: expected"),
        (TransferLanded, lambda e: replace(e, transfer="offload-99"), "refuses"),
    ],
)
def test_a_forged_event_is_the_first_divergence(
    kind: type[Event], change: Callable[..., Event], reason: str
) -> None:
    setup, events, place = forge(kind, change)
    divergence = validate(setup, events, reference_specification)
    assert isinstance(divergence, Divergence)
    assert divergence.seq == place
    assert reason in divergence.reason


def test_an_implementation_that_always_misses_diverges() -> None:
    """Playing safe is no way to pass: the reference hits."""
    make, recorder = Making(), Recorder()
    manager = make.manager(tracer=recorder)
    for n in range(2):
        state_of(manager).pools[0].reset()
        make.serve(manager, range(9), request_id=f"r{n}")
    divergence = validate(setup_of(manager), recorder.events, reference_specification)
    assert isinstance(divergence, Divergence)
    assert isinstance(divergence.expected, AllocPlanned)
    assert divergence.expected.hits == PrefixCacheHits(device_blocks=2)


def test_an_allocation_cannot_return_before_its_load_has_landed() -> None:
    setup, events = a_run()
    returned = max(n for n, event in enumerate(events) if isinstance(event, AllocReturned))
    assert isinstance(events[returned - 1], TransferLanded)
    events[returned - 1], events[returned] = events[returned], events[returned - 1]
    divergence = validate(setup, events, reference_specification)
    assert isinstance(divergence, Divergence)
    assert divergence.seq == returned - 1
    assert "waits for transfers" in divergence.reason


def test_a_run_whose_last_call_is_reported_in_part_diverges() -> None:
    make, recorder = Making(), Recorder()
    manager = make.manager(make.params(replicas=2), tracer=recorder, auto_land=False)
    make.serve(manager, range(9), 1, request_id="first")
    make.begin(manager, range(9), 0, request_id="second")
    manager.poison(1, "a kernel failed")
    setup, events = setup_of(manager), recorder.events
    assert validate(setup, events, reference_specification) == len(events)
    divergence = validate(setup, events[:-1], reference_specification)
    assert isinstance(divergence, Divergence)
    assert (divergence.seen, divergence.expected) == (None, events[-1])
