"""EVENT: what a manager reports of itself, so that a run can be followed from outside."""

from collections.abc import Callable, Sequence
from typing import Any

from pagedkv.conformance.bench import Bench, Recording, Skip
from pagedkv.conformance.check import check
from pagedkv.conformance.driver import Driver
from pagedkv.conformance.spec_text import should_rules
from pagedkv.conformance.validation import Divergence, validate
from pagedkv.conformance.violation import demand, expect
from pagedkv.reference.context import TextContext
from pagedkv.reference.errors import (
    AlreadyClaimedError,
    BatchesError,
    BlocksNotAllocatedError,
    ReplicaIndexError,
    UnknownRequestError,
    UnknownTransferError,
)
from pagedkv.reference.events import (
    AllocCancelled,
    AllocPlanned,
    AllocRefused,
    AllocReturned,
    Claimed,
    Cleaned,
    Closed,
    DiskOpened,
    Event,
    InputsBuilt,
    MetricsReset,
    PrefixCacheReset,
    Released,
    ReplicaPoisoned,
    Stepped,
    StoreAnswered,
    TransferFailed,
    TransferLanded,
    WriteBudgetRenewed,
)
from pagedkv.reference.identity import page_key
from pagedkv.traces.events.codec import decode, encode

VALIDATED = should_rules() - {"XFER-6"}
"""SHOULD rules that a validated run has to follow; when transfers land, it says itself."""


def reported(events: Recording, call: Callable[[], object]) -> list[Event]:
    """What is reported while a call is made."""
    before = len(events)
    call()
    return events[before:]


def kinds(events: Sequence[Event]) -> list[type[Event]]:
    """Of each event, what it is."""
    return [type(event) for event in events]


def is_allowed(bench: Bench, driver: Driver, events: Sequence[Event]) -> None:
    """Feed a recorded run to the specification, which has to come to the same.

    Raises:
        Skip: There is no specification at hand, or the manager chooses otherwise.
        Violation: It comes to something else.
    """
    if bench.specification is None:
        raise Skip("there is no specification to validate a run against")
    outcome = validate(driver.setup.run_setup(), events, bench.specification)
    if isinstance(outcome, Divergence):
        demand("EVENT-1", False, f"event {outcome.seq} of the run is wrong: {outcome.reason}")


def busy(driver: Driver, prompt: Callable[[int, int], range]) -> None:
    """Requests that hit, miss, share, evict, are chunked, preempted and refused, and a reset."""
    replicas = driver.setup.replicas
    for n in range(5):
        driver.serve(prompt(3, 50 * (n % 2)), n % replicas)
    live = [driver.admit(prompt(2, 50 * n), n % replicas) for n in range(2)]
    driver.forward(*live)
    greedy = driver.claim(driver.request(prompt(9, 90)))
    driver.fits(greedy)
    driver.release(greedy)
    for token in range(driver.setup.page_size):
        for ctx in live:
            driver.alloc(ctx)
        driver.forward(*live, token=token)
    driver.release(live[0])
    driver.start_over(live[0])
    driver.claim(live[0])
    driver.chunk(live[0], driver.setup.page_size)
    driver.alloc(live[0])
    driver.evict_all()
    driver.serve(prompt(2, 0))
    if driver.can("reset"):
        driver.reset()
    driver.serve(prompt(2, 0))
    for ctx in live:
        driver.release(ctx)


# --- EVENT-1: everything, in order ----------------------------------------------------------------


@check("EVENT-1", needs=("events", "inputs"))
def a_request_is_reported_step_by_step(bench: Bench) -> None:
    """Each call of a request's life is reported within that call, by its own event."""
    driver, events = bench.recorded()
    ctx = driver.request(bench.prompt(2))
    calls: list[tuple[Callable[[], object], list[type[Event]]]] = [
        (lambda: driver.claim(ctx), [Claimed]),
        (lambda: driver.alloc(ctx), [AllocPlanned, AllocReturned]),
        (lambda: driver.compute(ctx), [InputsBuilt]),
        (lambda: driver.update(ctx), []),
        (lambda: driver.step(ctx), [Stepped]),
        (lambda: driver.release(ctx), [Released]),
    ]
    for call, expected in calls:
        expect("EVENT-1", kinds(reported(events, call)), expected, "events of one call")


@check("EVENT-1", needs=("events",))
def everything_else_that_changes_something_is_reported(bench: Bench) -> None:
    """Dummies, resets, failing devices and the end are reported within their calls."""
    driver, events = bench.recorded()
    calls: list[tuple[str, Callable[[], object], type[Event]]] = [
        ("dummy", lambda: driver.claim_dummy("padding"), Claimed),
        ("reset", driver.reset, PrefixCacheReset),
        ("metrics", driver.reset_metrics, MetricsReset),
        ("poison", lambda: driver.poison(0), ReplicaPoisoned),
        ("shutdown", driver.shutdown, Closed),
    ]
    for capability, call, kind in calls:
        if driver.can(capability):  # type: ignore[arg-type]
            expect("EVENT-1", kinds(reported(events, call)), [kind], f"events of {capability}")


@check("EVENT-1", needs=("events", "reserve"))
def a_reservation_is_reported_as_what_it_does(bench: Bench) -> None:
    """Its requests are claimed, allocated and released, and so it says."""
    driver, events = bench.recorded()

    def reserve() -> None:
        with driver.reserve([driver.request(bench.prompt(1)), driver.request(bench.prompt(2))]):
            pass

    seen = kinds(reported(events, reserve))
    for kind in (Claimed, AllocPlanned, AllocReturned, Released):
        expect("EVENT-1", seen.count(kind), 2, f"{kind.__name__} events of two requests")


@check("EVENT-1", needs=("events",))
def every_request_of_a_step_is_reported(bench: Bench) -> None:
    """A step over several requests reports each of them, in the order of the batch."""
    driver, events = bench.recorded()
    batch = [driver.admit(bench.prompt(1, 50 * n)) for n in range(3)]
    driver.compute(*batch)
    for ctx in batch:
        driver.update(ctx)
    steps = reported(events, lambda: driver.step(*reversed(batch)))
    names = [event.request_id for event in steps if isinstance(event, Stepped)]
    expect("EVENT-1", names, [ctx.request_id for ctx in reversed(batch)], "requests of the step")


@check("EVENT-1", "XFER-2", needs=("events", "host", "transfers"))
def landings_and_failures_are_reported(bench: Bench) -> None:
    """Each transfer is reported when it is issued, and once more when it lands or fails."""
    bench.writes("through")
    events = Recording()
    driver = bench.controlled(host_pages=8, write_policy="through", tracer=events)
    driver.serve(bench.prompt(1))
    driver.serve(bench.prompt(1, 50))
    issued = [transfer.transfer for event in events for transfer in getattr(event, "issued", ())]
    landing, *failing = driver.in_flight()
    expect("EVENT-1", issued, [t.id for t in (landing, *failing)], "transfers that were issued")
    (landed,) = reported(events, lambda: driver.land(landing))
    demand("EVENT-1", isinstance(landed, TransferLanded), f"a landing is reported as {landed}")
    expect("EVENT-1", getattr(landed, "transfer", None), landing.id, "transfer that has landed")
    for transfer in failing:
        (failed,) = reported(events, lambda: driver.fail(transfer, "timeout"))  # noqa: B023
        expected = TransferFailed(transfer.id, "timeout", tuple(transfer.keys))
        expect("EVENT-1", failed, expected, "event of a failure")


@check("EVENT-1", "ALLOC-11", needs=("events", "host", "transfers"))
def undone_allocations_are_reported(bench: Bench) -> None:
    """A cancelled allocation and one whose load has failed say so, and why."""
    for fails in (True, False):
        driver = bench.with_chain_below(1, tracer=(events := Recording()))
        ctx = driver.claim(driver.request(bench.prompt(1)))
        driver.begin(ctx)
        loads = driver.in_flight()
        for transfer in loads if fails else ():
            driver.fail(transfer, "timeout")
        end = driver.finish if fails else driver.cancel
        (undone,) = reported(events, lambda: end(ctx))  # noqa: B023
        causes = tuple(transfer.id for transfer in loads) if fails else ()
        expect("EVENT-1", undone, AllocCancelled(ctx.request_id, causes), "event of the end")


@check("EVENT-1", "TIER-7", needs=("events", "host"))
def saving_pages_is_reported_before_they_are_taken(bench: Bench) -> None:
    """Under ``write_back`` an allocation that needs dirty pages reports their cleaning first."""
    bench.writes("write_back")
    driver, events = bench.recorded(host_pages=8, write_policy="write_back")
    driver.serve(bench.prompt(2))
    seen = kinds(reported(events, driver.evict_all))
    demand("EVENT-1", Cleaned in seen, "dirty pages were taken and no cleaning was reported")
    last = max(n for n, kind in enumerate(seen) if kind is Cleaned)
    demand("EVENT-1", last < seen.index(AllocPlanned), "pages were taken before they were clean")


@check("EVENT-1", "STEP-6", needs=("events",))
def what_changes_nothing_is_not_reported(bench: Bench) -> None:
    """Idle steps, probes and questions leave no event."""
    driver, events = bench.recorded()
    ctx = driver.admit(bench.prompt(1))
    driver.forward(ctx)
    before = len(events)
    driver.step(ctx)
    driver.step()
    if driver.can("probes"):
        driver.probe(driver.request(bench.prompt(2)))
        driver.fraction_after(ctx)
    expect("EVENT-1", events[before:], [], "events of calls that change nothing")


@check("EVENT-1", "EVENT-2", needs=("events",))
def a_run_is_one_that_the_specification_allows(bench: Bench) -> None:
    """Fed to the specification, event by event, a busy run comes to the same."""
    bench.follows(*VALIDATED)
    has = bench.implementation.capabilities.__contains__
    setups: list[dict[str, Any]] = [{}, {"deduplication": "keep"}]
    if has("replicas"):
        setups.append({"replicas": 2})
    if has("host"):
        setups += [
            {"host_pages": 4, "write_policy": policy}
            for policy in bench.implementation.write_policies
        ]
    if has("disk"):
        setups.append({"host_pages": 3, "disk_pages": 5, "disk_writes_per_day": 7})
    if has("store"):
        setups.append({"store": True})
    if has("speculative"):
        setups.append({"speculative_method": "eagle", "num_draft_tokens": 1, "total_num_pages": 14})
    for options in setups:
        driver, events = bench.recorded(**({"total_num_pages": 10} | options))
        busy(driver, bench.prompt)
        is_allowed(bench, driver, events)


@check("EVENT-1", "XFER-3", needs=("events", "host", "disk", "transfers"))
def a_run_with_late_landings_is_one_that_the_specification_allows(bench: Bench) -> None:
    """The same where transfers land late, out of order, or not at all."""
    bench.follows(*VALIDATED)
    events = Recording()
    driver = bench.controlled(total_num_pages=12, host_pages=4, disk_pages=6, tracer=events)
    for n in range(6):
        ctx = driver.claim(driver.request(bench.prompt(2, 50 * (n % 4))))
        if driver.begins(ctx):
            for transfer in driver.in_flight():
                if transfer.kind == "onload":
                    driver.land(transfer)
            driver.finish(ctx)
            driver.forward(ctx)
        driver.release(ctx)
        if n == 3:
            driver.evict_all()
        in_flight = driver.in_flight()
        if in_flight and n % 3:
            driver.land(in_flight[-1])
        if len(in_flight) > 1:
            driver.fail(in_flight[0], "no_space")
    is_allowed(bench, driver, events)


# --- EVENT-2: what events say ---------------------------------------------------------------------


@check("EVENT-2", needs=("events",))
def events_carry_what_was_given_and_decided(bench: Bench) -> None:
    """Names, lengths, identities, page tables and hits are those of the call."""
    driver, events = bench.recorded()
    driver.serve(bench.prompt(2))
    ctx = driver.request(bench.prompt(3), request_id="watched")
    claimed, planned, returned = reported(events, lambda: (driver.claim(ctx), driver.alloc(ctx)))
    expect("EVENT-2", claimed, Claimed("watched", 0), "event of the claim")
    assert isinstance(planned, AllocPlanned)
    given = planned.context
    lengths = (given.length, given.processed, given.position)
    expect("EVENT-2", lengths, (len(ctx.tokens), 0, len(ctx.tokens)), "lengths as they were given")
    blocks = [driver.block_of(key, ctx) for key in given.keys]
    expect("EVENT-2", blocks, driver.model.digests(ctx, 3), "blocks that were looked up")
    decided = (planned.request_id, planned.replica, list(planned.pages), planned.hits.total_blocks)
    expect("EVENT-2", decided, ("watched", 0, driver.pages(ctx), 2), "what was decided")
    expect("EVENT-2", returned, AllocReturned("watched", 2 * bench.size), "event of the return")
    driver.compute(ctx)
    driver.update(ctx)
    (stepped,) = reported(events, lambda: driver.step(ctx))
    assert isinstance(stepped, Stepped)
    expect("EVENT-2", stepped.request_id, "watched", "request that was stepped")
    blocks = [driver.block_of(key, ctx) for key in stepped.context.keys]
    expect("EVENT-2", blocks, driver.model.digests(ctx, 3), "blocks that were committed")
    expect("EVENT-2", list(stepped.pages), driver.pages(ctx), "page table after the step")


@check("EVENT-2", needs=("events", "inputs", "replicas"))
def inputs_are_reported_as_they_were_asked_for(bench: Bench) -> None:
    """The event of ``runtime_inputs`` has the batches by replica, the windows and the options."""
    driver, events = bench.recorded(replicas=2)
    here, there = driver.admit(bench.prompt(2)), driver.admit(bench.prompt(1), 1)
    (built,) = reported(
        events,
        lambda: driver.manager.runtime_inputs([[here], [there]], max_cache_length=4 * bench.size),
    )
    assert isinstance(built, InputsBuilt)
    names = ((here.request_id,), (there.request_id,))
    expect("EVENT-2", built.batches, names, "requests by replica")
    expect("EVENT-2", built.max_cache_length, 4 * bench.size, "max_cache_length")
    windows = [[snapshot.position for snapshot in row] for row in built.contexts]
    expect("EVENT-2", windows, [[len(here.tokens)], [len(there.tokens)]], "ends of the windows")


@check("EVENT-2", needs=("events", "host"))
def loads_are_reported_with_their_blocks_and_pages(bench: Bench) -> None:
    """What an allocation waits for says from where to where it goes, and through which pages."""
    driver, events = bench.recorded(host_pages=8)
    driver.serve(bench.prompt(2))
    driver.evict_all()
    ctx = driver.claim(driver.request(bench.prompt(2)))
    seen = reported(events, lambda: driver.alloc(ctx))
    (planned,) = [event for event in seen if isinstance(event, AllocPlanned)]
    expect("EVENT-2", planned.hits.host_blocks, 2, "hits in host memory")
    ways = {(load.kind, load.source, load.target) for load in planned.issued}
    expect("EVENT-2", ways, {("onload", "host", "device")}, "ways of the loads")
    pages = [page for load in planned.issued for page in load.pages]
    expect("EVENT-2", pages, driver.pages(ctx)[:2], "pages that are loaded")
    waits = tuple(load.transfer for load in planned.issued)
    expect("EVENT-2", planned.waits_for, waits, "transfers that the allocation waits for")


@check("EVENT-2", needs=("events",))
def the_same_run_is_reported_in_the_same_words(bench: Bench) -> None:
    """Two managers to which the same is done report the same."""
    tiers = {"host_pages": 4} if "host" in bench.implementation.capabilities else {}
    runs = []
    for _ in range(2):
        driver, events = bench.recorded(total_num_pages=10, **tiers)
        busy(driver, bench.prompt)
        runs.append([event for event in events if not isinstance(event, TransferLanded)])
    expect("EVENT-2", runs[1], runs[0], "events of the same calls")


@check("EVENT-2", needs=("events",))
def events_are_plain_data(bench: Bench) -> None:
    """What is reported can be written down and read again."""
    tiers = {"host_pages": 4} if "host" in bench.implementation.capabilities else {}
    driver, events = bench.recorded(total_num_pages=10, **tiers)
    busy(driver, bench.prompt)
    for n, event in enumerate(events):
        _, again = decode(encode(n, event).decode())
        expect("EVENT-2", again, event, "an event that was written down and read")


# --- EVENT-3: who advances a context --------------------------------------------------------------


class Witness(Recording):
    """A tracer that notes where the window of a request begins at each event."""

    def __init__(self) -> None:
        super().__init__()
        self.windows: list[tuple[type[Event], int]] = []
        self.watched: TextContext | None = None

    def emit(self, event: Event) -> None:
        """Keep one event, and the window as it is."""
        super().emit(event)
        if self.watched is not None:
            self.windows.append((type(event), self.watched.tokens.processed_length))


@check("EVENT-3", needs=("events",))
def only_a_returning_allocation_advances_a_context(bench: Bench) -> None:
    """Until ``AllocReturned`` the window is as it was; from then on it is where that says."""
    tiers = {"host_pages": 8} if "host" in bench.implementation.capabilities else {}
    witness = Witness()
    driver = bench.driver(tracer=witness, **tiers)
    driver.serve(bench.prompt(2))
    if tiers:
        driver.evict_all()
    witness.watched = ctx = driver.request(bench.prompt(2))
    driver.claim(ctx)
    driver.alloc(ctx)
    driver.compute(ctx)
    driver.step(ctx)
    driver.release(ctx)
    returned = [kind for kind, _ in witness.windows].index(AllocReturned)
    before = {window for _, window in witness.windows[:returned]}
    expect("EVENT-3", before, {0}, "starts of the window before the allocation returns")
    after = {window for _, window in witness.windows[returned + 1 :]}
    expect("EVENT-3", after, {2 * bench.size}, "starts of the window from then on")
    (event,) = [
        event
        for event in witness
        if isinstance(event, AllocReturned) and event.request_id == ctx.request_id
    ]
    expect("EVENT-3", event.processed, 2 * bench.size, "start of the window as it was reported")


# --- EVENT-4: refusals ----------------------------------------------------------------------------


@check("EVENT-4", "ALLOC-2", needs=("events",))
def a_refused_allocation_reports_at_most_the_refusal(bench: Bench) -> None:
    """An allocation that does not fit reports nothing but that, with true numbers."""
    driver, events = bench.recorded()
    driver.admit(bench.prompt(4, 50))
    greedy = driver.claim(driver.request(bench.prompt(5)))
    seen = reported(events, lambda: driver.fits(greedy))
    for event in seen:
        demand("EVENT-4", isinstance(event, AllocRefused), f"a refused call has reported {event}")
        assert isinstance(event, AllocRefused)
        numbers = event.request_id, event.needed, event.free
        expect("EVENT-4", numbers, (greedy.request_id, 6, 3), "what was refused, needed and free")
    expect("EVENT-4", len(seen) <= 1, True, "whether a refusal is reported once")


@check("EVENT-4", needs=("events",))
def other_refused_calls_report_nothing(bench: Bench) -> None:
    """Calls with wrong names, replicas or batches leave no event."""
    driver, events = bench.recorded()
    ctx, stranger = driver.admit(bench.prompt(1)), driver.request(bench.prompt(1))
    starved = driver.claim(driver.request(bench.prompt(1)))
    before = len(events)
    driver.refused("EVENT-4", AlreadyClaimedError, "claim", ctx.request_id, 0)
    driver.refused("EVENT-4", ReplicaIndexError, "claim", "new", 7)
    driver.refused("EVENT-4", UnknownRequestError, "alloc", stranger, 0)
    driver.refused("EVENT-4", UnknownRequestError, "release", stranger.request_id, 0)
    driver.refused("EVENT-4", BatchesError, "step", [[ctx, ctx]])
    if driver.can("inputs"):
        driver.refused("EVENT-4", BlocksNotAllocatedError, "runtime_inputs", [[ctx, starved]])
    if driver.can("transfers"):
        driver.refused("EVENT-4", UnknownTransferError, "land", "no-such-transfer")
    expect("EVENT-4", events[before:], [], "events of refused calls")


# --- EVENT-5: what others do in a store -----------------------------------------------------------


@check("EVENT-5", "STORE-2", needs=("events", "store"))
def answers_that_are_news_come_before_what_depends_on_them(bench: Bench) -> None:
    """Blocks that another manager has put are reported before the allocation that hits them."""
    driver = bench.driver(store=True, model_fingerprint="weights")
    events = Recording()
    other = bench.beside(driver, tracer=events)
    for start in (0, 50):
        driver.serve(bench.prompt(2, start))
        ctx = other.claim(other.request(bench.prompt(2, start)))
        seen = reported(events, lambda: other.alloc(ctx))  # noqa: B023
        place = kinds(seen).index(AllocPlanned)
        answers = [event for event in seen[:place] if isinstance(event, StoreAnswered)]
        planned = seen[place]
        assert isinstance(planned, AllocPlanned)
        expect("EVENT-5", planned.hits.store_blocks, 2, "blocks hit in the store")
        hit = {key for load in planned.issued for key in load.keys}
        news = {key for answer in answers for key in answer.found}
        expect("EVENT-5", hit - news, set(), "blocks that were hit and not reported before")
    bench.follows(*VALIDATED)
    is_allowed(bench, other, events)


@check("EVENT-5", "STORE-2", needs=("events", "store"))
def what_others_have_put_is_not_put_again_without_a_word(bench: Bench) -> None:
    """A commit that leaves out blocks because others have put them says so before."""
    bench.follows(*VALIDATED)
    driver = bench.driver(store=True, model_fingerprint="weights")
    events = Recording()
    other = bench.beside(driver, tracer=events)
    ctx = other.admit(bench.prompt(2))
    driver.serve(bench.prompt(2))
    other.forward(ctx)
    other.evict_all()
    is_allowed(bench, other, events)


# --- EVENT-1 again: what follows, and what fails in part ------------------------------------------


@check("EVENT-1", "XFER-3", needs=("events", "host", "disk", "transfers"))
def whatever_is_in_flight_was_reported(bench: Bench) -> None:
    """Every transfer is reported by the call or the landing that issues it, follow-ups as well."""
    events = Recording()
    driver = bench.controlled(host_pages=4, disk_pages=8, tracer=events)
    driver.serve(bench.prompt(2))
    driver.evict_all()
    while transfers := driver.in_flight():
        told = {t.transfer for event in events for t in getattr(event, "issued", ())}
        unknown = [transfer.id for transfer in transfers if transfer.id not in told]
        expect("EVENT-1", unknown, [], "transfers in flight that were not reported")
        driver.land(transfers[0])


@check("EVENT-2", "TIER-6", needs=("events", "host", "transfers"))
def a_failure_names_the_blocks_at_fault(bench: Bench) -> None:
    """The event of a failure carries its reason and the blocks that were given, and no others."""
    driver = bench.with_chain_below(3, tracer=(events := Recording()))
    ctx = driver.claim(driver.request(bench.prompt(3)))
    driver.begin(ctx)
    for load in driver.loads():
        at_fault = list(load.keys[-1:])
        seen = reported(events, lambda: driver.fail(load, "timeout", at_fault))  # noqa: B023
        told = [event for event in seen if isinstance(event, TransferFailed)]
        expected = [TransferFailed(load.id, "timeout", tuple(at_fault))]
        expect("EVENT-2", told, expected, "event of a failure")
    demand("ALLOC-11", not driver.finish(ctx), "an allocation was served by a failed load")
    seen = reported(events, lambda: driver.release(ctx))
    expect("EVENT-1", kinds(seen), [Released], "events of the release of who was failed")


@check("EVENT-1", "CLOSE-1", needs=("events", "host", "transfers", "shutdown"))
def nothing_is_reported_after_the_end(bench: Bench) -> None:
    """What lands at the end is reported before the end itself."""
    events = Recording()
    driver = bench.controlled(host_pages=8, tracer=events)
    driver.serve(bench.prompt(2))
    seen = reported(events, driver.shutdown)
    places = [n for n, kind in enumerate(kinds(seen)) if kind is Closed]
    expect("EVENT-1", places, [len(seen) - 1], f"places of the end among {len(seen)} events")


@check("EVENT-1", "NS-4", needs=("events", "disk"))
def what_a_disk_holds_is_reported_when_it_is_opened(bench: Bench) -> None:
    """The blocks that a restart finds are those that it has reported."""
    driver = bench.driver(host_pages=8, disk_pages=8, model_fingerprint="weights")
    ctx = driver.serve(bench.prompt(3))
    restarted = bench.restart(driver, tracer=(events := Recording()))
    told = {key for event in events if isinstance(event, DiskOpened) for key in event.keys}
    found = driver.model.digests(ctx, restarted.hit(bench.prompt(3)))
    keys = {page_key(digest, driver.setup.hash_algorithm) for digest in found}
    expect("EVENT-1", keys - told, set(), "blocks that were found on disk and not reported")


@check("EVENT-1", "TIER-8", needs=("events", "disk"))
def a_new_budget_is_reported(bench: Bench) -> None:
    """Where the write budget can be renewed, that is an event."""
    driver, events = bench.recorded(host_pages=8, disk_pages=8, disk_writes_per_day=1)
    renew = getattr(driver.manager, "renew_write_budget", None)
    if not callable(renew):
        raise Skip(f"{bench.implementation.name} has no renew_write_budget")
    expect("EVENT-1", kinds(reported(events, renew)), [WriteBudgetRenewed], "events of a renewal")


@check("EVENT-1", "FAIL-2", needs=("events", "poison", "host", "transfers"))
def a_failing_device_is_reported_before_what_it_takes_along(bench: Bench) -> None:
    """First comes which device has failed, and why; then the failures of its transfers."""
    bench.writes("through")
    driver = bench.controlled(host_pages=8, write_policy="through", tracer=(events := Recording()))
    driver.serve(bench.prompt(2))
    lost = [TransferFailed(t.id, "unavailable", tuple(t.keys)) for t in driver.in_flight()]
    demand("EVENT-1", bool(lost), "nothing is offloaded when a step has committed something")
    seen = reported(events, lambda: driver.poison(0, "it fell off the bus"))
    expect("EVENT-1", seen, [ReplicaPoisoned(0, "it fell off the bus"), *lost], "events")


@check("EVENT-5", "STORE-2", needs=("events", "host", "store", "transfers"))
def what_a_landing_leaves_out_was_reported_before_it(bench: Bench) -> None:
    """A block that lands in host memory goes on to the store, unless that has said it is there."""
    bench.writes("through")
    driver = bench.controlled(
        host_pages=8,
        store=True,
        write_policy="through",
        model_fingerprint="weights",
        tracer=(events := Recording()),
    )
    driver.serve(bench.prompt(2))
    offloads = driver.in_flight()
    bench.beside(driver, auto_land=True, tracer=None).serve(bench.prompt(2))
    for offload in offloads:
        seen = reported(events, lambda: driver.land(offload))  # noqa: B023
        landing = kinds(seen).index(TransferLanded)
        told = {key for e in seen[:landing] if isinstance(e, StoreAnswered) for key in e.found}
        put = {key for transfer in driver.in_flight() for key in transfer.keys}
        expect("EVENT-5", set(offload.keys) - told - put, set(), "blocks neither put nor known")
