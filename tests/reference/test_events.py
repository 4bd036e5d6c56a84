"""What a manager reports of itself: rules EVENT-1 to EVENT-4."""

from collections.abc import Sequence
from typing import get_args

import pytest
from tests.reference.conftest import DISK, Making, Recorder, prompt

from pagedkv.reference import (
    BatchesError,
    BlocksNotAllocatedError,
    InsufficientBlocksError,
    Media,
    PagedKVError,
    PrefixCacheHits,
    TextContext,
)
from pagedkv.reference.events import (
    AllocCancelled,
    AllocPlanned,
    AllocRefused,
    AllocReturned,
    Claimed,
    Cleaned,
    Closed,
    Event,
    InputsBuilt,
    MetricsReset,
    Prefetched,
    PrefixCacheReset,
    Released,
    Stepped,
    StoreAnswered,
    TransferFailed,
    TransferLanded,
    TransferSubmitted,
    WriteBudgetRenewed,
)


class Witness(Recorder):
    """Remembers with every event how far a context was processed when it came."""

    watched: TextContext
    processed: list[int]

    def watch(self, ctx: TextContext) -> None:
        self.watched, self.processed = ctx, []
        self.events.clear()

    def emit(self, event: Event) -> None:
        super().emit(event)
        if hasattr(self, "watched"):
            self.processed.append(self.watched.processed_length)


def kinds(events: Sequence[Event]) -> list[type[Event]]:
    return [type(event) for event in events]


def run(make: Making, recorder: Recorder) -> None:
    """A run with almost every kind of event, under fixed names."""
    params = make.tiered_params(disk_pages=8, replicas=2)
    manager = make.manager(params, host_pages=4, tracer=recorder, auto_land=False)
    for n, (tokens, replica) in enumerate([(prompt(2), 0), (prompt(2), 1), (prompt(3), 0)]):
        ctx, plan = make.begin(manager, tokens, replica, request_id=f"r{n}")
        if n == 1:
            manager.fail(plan.transfers[0], "timeout")
            manager.cancel_alloc(ctx.request_id, replica)
            continue
        manager.finish_alloc(ctx, replica)
        manager.runtime_inputs([[ctx], []], max_cache_length=16)
        make.forward(manager, ctx, replica)
        manager.land(manager.in_flight()[0].id)
        manager.release(ctx.request_id, replica)
    with pytest.raises(InsufficientBlocksError):
        make.begin(manager, range(100), request_id="too long")
    manager.alloc_dummy("padding", 1)
    manager.reset_prefix_cache()
    manager.reset_metrics()
    manager.renew_write_budget()
    manager.poison(1, "a kernel failed")
    manager.shutdown()


@pytest.mark.rule("EVENT-1")
def test_a_request_is_reported_step_by_step(make: Making, recorder: Recorder) -> None:
    manager = make.manager(make.tiered_params(disk_pages=8), host_pages=4, tracer=recorder)
    recorder.events.clear()
    ctx = make.admit(manager, prompt(1))
    manager.runtime_inputs([[ctx]])
    make.forward(manager, ctx)
    manager.release(ctx.request_id, 0)
    assert kinds(recorder.events) == [
        Claimed,
        AllocPlanned,
        AllocReturned,
        InputsBuilt,
        Stepped,
        TransferLanded,
        TransferLanded,
        Released,
    ]


@pytest.mark.rule("EVENT-1")
def test_every_other_call_that_changes_something_is_reported(
    make: Making, recorder: Recorder
) -> None:
    params = make.tiered_params(extras={"write_policy": "write_back"})
    manager = make.manager(params, host_pages=4, tracer=recorder, auto_land=False)
    make.serve(manager, prompt(1))
    recorder.events.clear()
    (offload,) = manager.clean(0, 1)
    manager.fail(offload, "timeout")
    ctx, _ = make.begin(manager, prompt(1))
    manager.cancel_alloc(ctx.request_id, 0)
    manager.alloc_dummy("padding", 0)
    manager.reset_prefix_cache()
    manager.reset_metrics()
    manager.renew_write_budget()
    manager.shutdown()
    assert kinds(recorder.events) == [
        Cleaned,
        TransferFailed,
        Claimed,
        AllocPlanned,
        AllocCancelled,
        Claimed,
        PrefixCacheReset,
        MetricsReset,
        WriteBudgetRenewed,
        Closed,
    ]


@pytest.mark.rule("EVENT-1", "ALLOC-11")
def test_an_allocation_whose_load_fails_is_reported_as_undone_and_planned_again(
    make: Making, recorder: Recorder
) -> None:
    media = Media()
    params = make.tiered_params(disk_pages=4, extras={"model_fingerprint": "weights"})
    make.serve(make.manager(params, host_pages=4, media=media), prompt(1))
    (block,) = media.disks[DISK].blocks.values()
    assert block.content is not None
    block.content[0][0] ^= 1
    manager = make.manager(params, host_pages=4, media=media, tracer=recorder)
    recorder.events.clear()
    ctx = make.admit(manager, prompt(1))
    _, planned, failed, cancelled, again, returned = recorder.events
    assert isinstance(planned, AllocPlanned)
    (issued,) = planned.issued
    assert failed == TransferFailed(issued.transfer, "corrupt", issued.keys)
    assert cancelled == AllocCancelled(ctx.request_id, planned.waits_for)
    assert isinstance(again, AllocPlanned) and again.waits_for == ()
    assert returned == AllocReturned(ctx.request_id, processed=0)


@pytest.mark.rule("EVENT-1", "STEP-6", "ALLOC-14")
def test_what_changes_nothing_is_not_reported(make: Making, recorder: Recorder) -> None:
    manager = make.manager(tracer=recorder)
    ctx = make.admit(manager, prompt(1))
    make.forward(manager, ctx)
    recorder.events.clear()
    manager.step([[ctx]])
    make.hits(manager, prompt(1))
    manager.get_pct_used_blocks_after_allocation(ctx, 0)
    manager.num_free_blocks()
    manager.get_metrics_aggregated()
    assert recorder.events == []


@pytest.mark.rule("EVENT-2")
def test_events_carry_what_was_decided(make: Making, recorder: Recorder) -> None:
    manager = make.manager(make.isolated_params(), host_pages=4, tracer=recorder)
    make.serve(manager, prompt(2), request_id="first")
    recorder.events.clear()
    ctx = make.admit(manager, prompt(2), replica=1, request_id="second")
    manager.runtime_inputs([[], [ctx], []], max_cache_length=12)
    claimed, planned, landed, returned, built = recorder.events
    assert claimed == Claimed("second", 1)
    assert isinstance(planned, AllocPlanned)
    (issued,) = planned.issued
    pages = tuple(manager.get_req_blocks("second", 1))
    assert (issued.kind, issued.source, issued.target) == ("onload", "host", "device")
    assert issued.pages == pages[:2]
    assert issued.keys == planned.context.keys
    context = planned.context
    assert (context.length, context.processed, context.position) == (9, 0, 9)
    assert (planned.request_id, planned.replica, planned.pages) == ("second", 1, pages)
    assert planned.hits == PrefixCacheHits(host_blocks=2)
    assert planned.waits_for == (issued.transfer,)
    assert landed == TransferLanded(issued.transfer)
    assert returned == AllocReturned("second", processed=8)
    assert isinstance(built, InputsBuilt)
    assert (built.batches, built.max_cache_length) == (((), ("second",), ()), 12)
    assert [c.processed for c in built.contexts[1]] == [8]


@pytest.mark.rule("EVENT-2", "STEP-4")
def test_a_step_reports_its_chain_and_the_page_table_afterwards(
    make: Making, recorder: Recorder
) -> None:
    manager = make.manager(tracer=recorder)
    first, twin = (make.admit(manager, prompt(2)) for _ in range(2))
    make.forward(manager, first)
    make.forward(manager, twin)
    one, other = recorder.of_kind(Stepped)
    assert one.context.keys == other.context.keys and len(one.context.keys) == 2
    assert one.pages == tuple(manager.get_req_blocks(first.request_id, 0))
    assert other.pages == tuple(manager.get_req_blocks(twin.request_id, 0))
    assert one.pages[:2] == other.pages[:2], "the twin's own pages were swapped for the cached ones"


@pytest.mark.rule("EVENT-2", "ID-3")
def test_the_same_run_is_reported_in_the_same_words(make: Making) -> None:
    first, second = Recorder(), Recorder()
    run(make, first)
    run(make, second)
    assert first.events == second.events
    told_elsewhere = {Cleaned, Prefetched, StoreAnswered, TransferSubmitted}
    assert set(kinds(first.events)) == set(get_args(Event)) - told_elsewhere


@pytest.mark.rule("EVENT-3")
def test_only_a_returning_allocation_advances_a_context(make: Making) -> None:
    witness = Witness()
    params = make.isolated_params(disk_pages=8)
    manager = make.manager(params, host_pages=4, tracer=witness, auto_land=False)
    make.serve(manager, prompt(2))
    make.land_all(manager)
    ctx = make.context(prompt(2))
    witness.watch(ctx)
    manager.claim(ctx.request_id, 1)
    plan = manager.begin_alloc(ctx, 1)
    manager.land(plan.transfers[0])
    manager.finish_alloc(ctx, 1)
    manager.runtime_inputs([[], [ctx], []])
    manager.step([[], [ctx], []])
    manager.release(ctx.request_id, 1)
    advanced = kinds(witness.events).index(AllocReturned)
    assert witness.processed[:advanced] == [0] * advanced
    assert set(witness.processed[advanced:]) == {8}


@pytest.mark.rule("EVENT-4", "ALLOC-2")
def test_a_refused_allocation_reports_the_refusal_and_nothing_else(
    make: Making, recorder: Recorder
) -> None:
    manager = make.manager(pages=2, tracer=recorder)
    ctx = make.context(prompt(2))
    manager.claim(ctx.request_id, 0)
    recorder.events.clear()
    with pytest.raises(InsufficientBlocksError):
        manager.alloc(ctx, 0)
    (refused,) = recorder.events
    assert isinstance(refused, AllocRefused)
    assert (refused.request_id, refused.needed, refused.free) == (ctx.request_id, 3, 2)
    assert (refused.replica, refused.context.length) == (0, 9)


@pytest.mark.rule("EVENT-4")
def test_other_refused_calls_report_nothing(make: Making, recorder: Recorder) -> None:
    manager = make.manager(tracer=recorder, auto_land=False)
    ctx, unclaimed, starved = (make.context(prompt(1)) for _ in range(3))
    manager.claim(ctx.request_id, 0)
    manager.begin_alloc(ctx, 0)
    manager.claim(starved.request_id, 0)
    recorder.events.clear()
    for call in (
        lambda: manager.claim(ctx.request_id, 0),
        lambda: manager.alloc_dummy(ctx.request_id, 0),
        lambda: manager.alloc(unclaimed, 0),
        lambda: manager.begin_alloc(ctx, 0),
        lambda: manager.finish_alloc(unclaimed, 0),
        lambda: manager.cancel_alloc(starved.request_id, 0),
        lambda: manager.release(unclaimed.request_id, 0),
        lambda: manager.step([[ctx]]),
        lambda: manager.land("offload-1"),
        lambda: manager.fail("offload-1", "timeout"),
        lambda: manager.clean(1, 1),
    ):
        with pytest.raises(PagedKVError):
            call()
    with pytest.raises(BlocksNotAllocatedError):
        manager.runtime_inputs([[starved]])
    with pytest.raises(BatchesError):
        manager.step([])
    assert recorder.events == []
