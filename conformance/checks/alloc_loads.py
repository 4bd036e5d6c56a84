"""ALLOC: allocations that wait for loads, which may be shared, fail or be cancelled."""

from pagedkv.conformance.bench import Bench, Skip
from pagedkv.conformance.check import check
from pagedkv.conformance.driver import Driver
from pagedkv.conformance.violation import demand, expect
from pagedkv.reference.context import TextContext
from pagedkv.reference.errors import AllocPendingError, NoPlannedAllocError
from pagedkv.reference.tier_names import FailReason


def _begun(bench: Bench, driver: Driver, pages: int = 2, replica: int = 0) -> TextContext:
    """A request for ``prompt(pages)`` that waits for what it loads."""
    ctx = driver.claim(driver.request(bench.prompt(pages)), replica)
    driver.begin(ctx)
    return ctx


def _loads(driver: Driver) -> set[str]:
    """Names of the loads in flight."""
    return {transfer.id for transfer in driver.loads()}


def _finish(driver: Driver, ctx: TextContext, tokens: int) -> None:
    """Complete an allocation that finds so many tokens cached."""
    demand("ALLOC-13", driver.finish(ctx), "an allocation whose loads have landed counts as failed")
    expect("ALLOC-4", ctx.tokens.processed_length, tokens, f"tokens of {ctx.request_id!r} cached")


@check("ALLOC-6", needs=("transfers", "host"))
def a_block_on_its_way_is_joined(bench: Bench) -> None:
    """Requests that hit the same block while it is being loaded wait for the same load."""
    driver, size = bench.with_chain_below(3), bench.size
    first = _begun(bench, driver, 3)
    loads = _loads(driver)
    longer, shorter = _begun(bench, driver, 4), _begun(bench, driver, 1)
    expect("ALLOC-6", _loads(driver), loads, "loads in flight when two more requests hit")
    expect("ALLOC-6", {*driver.pending[longer.request_id].transfers}, loads, "what one waits for")
    driver.land_all()
    for ctx, pages in ((longer, 3), (first, 3), (shorter, 1)):
        _finish(driver, ctx, pages * size)
    driver.forward(first, longer, shorter)


@check("ALLOC-6", "METRIC-1", needs=("transfers", "host", "metrics"))
def a_joined_block_counts_where_it_comes_from(bench: Bench) -> None:
    """Each request that waits for a load counts its blocks under the tier that is read."""
    driver = bench.with_chain_below(2)
    before = driver.metrics()
    waiting = [_begun(bench, driver) for _ in range(2)]
    if driver.can("probes"):
        [told] = driver.probe(driver.request(bench.prompt(2)))
        expect("ALLOC-6", (told.device_blocks, told.host_blocks), (0, 2), "device and host blocks")
    driver.land_all()
    for ctx in waiting:
        _finish(driver, ctx, 2 * bench.size)
    after = driver.metrics()
    for tier, blocks in (("host", 4), ("device", 0)):
        field = f"{tier}_blocks_served"
        expect("ALLOC-6", getattr(after, field) - getattr(before, field), blocks, field)


@check("ALLOC-6", "ALLOC-11", needs=("transfers", "host"))
def all_who_wait_for_a_load_fail_together(bench: Bench) -> None:
    """When a joined load fails, every allocation that waits for it is undone."""
    driver = bench.with_chain_below(2)
    waiting = [_begun(bench, driver) for _ in range(3)]
    driver.fail_loads("io_error")
    for ctx in waiting:
        demand("ALLOC-6", not driver.finish(ctx), "an allocation was served by a failed load")
    expect("ALLOC-6", driver.manager.num_free_blocks(0), 8, "free pages after all were undone")
    for ctx in waiting:
        driver.begin(ctx)
        _finish(driver, ctx, 0)
        driver.release(ctx)


@check("ALLOC-6", "ALLOC-12", needs=("transfers", "host"))
def who_joins_a_load_does_not_depend_on_who_began_it(bench: Bench) -> None:
    """If the request that issued a load goes, those who have joined it still get the block."""
    for undo in (Driver.cancel, Driver.release):
        driver = bench.with_chain_below(2)
        first, second = _begun(bench, driver), _begun(bench, driver)
        undo(driver, first)
        driver.land_all()
        _finish(driver, second, 2 * bench.size)
        driver.forward(second)


@check("ALLOC-6", needs=("transfers", "host", "replicas"))
def a_block_on_its_way_is_no_source(bench: Bench) -> None:
    """While a replica is still loading a block, no other replica copies it from there."""
    driver = bench.with_chain_below(2, replicas=2)
    first, second = _begun(bench, driver), _begun(bench, driver, replica=1)
    loads = {(transfer.source, transfer.replica) for transfer in driver.loads()}
    expect("ALLOC-6", loads, {("host", 0), ("host", 1)}, "where replicas load the blocks from")
    for transfer in reversed(driver.in_flight()):
        driver.land(transfer)
    for ctx in (second, first):
        _finish(driver, ctx, 2 * bench.size)
    driver.forward(first, second)


@check("ALLOC-11", needs=("transfers", "host"))
def after_a_failed_load_the_request_is_as_before(bench: Bench) -> None:
    """Pages, window and noted prefix of a request whose load has failed are those it had."""
    for reason in ("io_error", "timeout", "missing", "unavailable"):
        driver = bench.with_chain_below(3)
        ctx = driver.request(bench.prompt(4))
        driver.chunk(ctx, bench.size)
        driver.claim(ctx)
        driver.begin(ctx)
        _finish(driver, ctx, 0)
        driver.compute(ctx)
        driver.update(ctx)
        pages = driver.pages(ctx)
        driver.begin(ctx)
        driver.fail_loads(reason)
        demand("ALLOC-11", not driver.finish(ctx), "an allocation was served by a failed load")
        expect("ALLOC-11", driver.pages(ctx), pages, "pages of the request")
        expect("ALLOC-11", ctx.tokens.processed_length, bench.size, "start of its window")
        driver.alloc(ctx)
        driver.forward(ctx)


@check("ALLOC-11", needs=("transfers", "host"))
def a_source_that_failed_is_not_asked_again(bench: Bench) -> None:
    """A request computes what could not be loaded, even if the block is still there."""
    driver = bench.with_chain_below(2)
    ctx = _begun(bench, driver)
    driver.fail_loads("timeout")
    demand("ALLOC-11", not driver.finish(ctx), "an allocation was served by a failed load")
    driver.begin(ctx)
    expect("ALLOC-11", _loads(driver), set(), "loads of blocks that have failed this request")
    _finish(driver, ctx, 0)
    expect("ALLOC-9", ctx.cached_prefix_length, 0, "tokens found cached")
    other = _begun(bench, driver)
    demand("ALLOC-11", bool(_loads(driver)), "another request does not ask for the block at all")
    driver.land_all()
    _finish(driver, other, 2 * bench.size)
    driver.forward(ctx, other)


@check("ALLOC-11", needs=("transfers", "host"))
def only_the_blocks_at_fault_are_avoided(bench: Bench) -> None:
    """Blocks before the one at fault are loaded again, and hit."""
    reasons: tuple[FailReason, ...] = ("io_error", "timeout")
    for reason in reasons:
        driver = bench.with_chain_below(3)
        ctx = _begun(bench, driver, 3)
        driver.fail_block(ctx, 1, reason)
        demand("ALLOC-11", not driver.finish(ctx), "an allocation was served by a failed load")
        driver.begin(ctx)
        driver.land_all()
        _finish(driver, ctx, bench.size)
        driver.forward(ctx)


@check("ALLOC-11", needs=("transfers", "host", "disk"))
def after_a_failure_the_next_source_serves(bench: Bench) -> None:
    """A block that host memory fails to deliver is loaded from disk; if that fails, computed."""
    for disk_works in (True, False):
        driver = bench.with_chain_below(2, disk_pages=16)
        if driver.used("disk") < 2:
            raise Skip("what is in host memory is not on disk")
        ctx = _begun(bench, driver)
        for source in ("host", "disk"):
            asked = {load.source for load in driver.loads()}
            expect("ALLOC-11", asked, {source}, "the source that is asked")
            if source == "disk" and disk_works:
                driver.land_all()
                _finish(driver, ctx, 2 * bench.size)
                break
            driver.fail_loads("timeout")
            demand("ALLOC-11", not driver.finish(ctx), "a failed load counts as landed")
            driver.begin(ctx)
        else:
            expect("ALLOC-11", _loads(driver), set(), "loads when every source has failed")
            _finish(driver, ctx, 0)
        driver.forward(ctx)


@check("ALLOC-11", needs=("transfers", "replicas", "host"))
def each_peer_is_a_source_of_its_own(bench: Bench) -> None:
    """When a copy from one replica fails, the block comes from elsewhere."""
    driver = bench.controlled(replicas=2, host_pages=16)
    driver.serve(bench.prompt(2), replica=1)
    driver.land_all()
    if driver.used("host") < 2:
        raise Skip("a committed page is not offloaded at once")
    ctx = _begun(bench, driver)
    first = {(load.source, load.source_replica) for load in driver.loads()}
    driver.fail_loads("timeout")
    demand("ALLOC-11", not driver.finish(ctx), "an allocation was served by a failed load")
    driver.begin(ctx)
    again = {(load.source, load.source_replica) for load in driver.loads()}
    demand("ALLOC-11", again != first, f"{first} has failed, and is asked again")
    driver.land_all()
    demand("ALLOC-11", driver.finish(ctx), "the second source has failed, too")
    driver.forward(ctx)


@check("ALLOC-12", needs=("transfers", "host"))
def a_cancelled_allocation_leaves_its_loads(bench: Bench) -> None:
    """Loads of a cancelled request go on: their pages are pinned until then, and cached after."""
    for undo in (Driver.cancel, Driver.release):
        driver = bench.with_chain_below(2)
        ctx = _begun(bench, driver, 3)
        undo(driver, ctx)
        expect("ALLOC-12", driver.manager.num_free_blocks(0), 6, "free pages during the loads")
        driver.land_all()
        expect("ALLOC-12", driver.manager.num_free_blocks(0), 8, "free pages after the loads")
        late = _begun(bench, driver)
        expect("ALLOC-12", _loads(driver), set(), "loads of what has landed already")
        _finish(driver, late, 2 * bench.size)
        driver.forward(late)


@check("ALLOC-12", needs=("transfers", "host"))
def an_allocation_is_cancelled_at_any_time(bench: Bench) -> None:
    """Before, between and after the landings of what it waits for, a plan can be given up."""
    for landed in (0, 1, 2):
        driver = bench.with_chain_below(2, disk_pages=16)
        ctx = _begun(bench, driver)
        for transfer in driver.in_flight()[:landed]:
            driver.land(transfer)
        driver.cancel(ctx)
        expect("ALLOC-12", driver.pages(ctx), [], "pages of the request")
        expect("ALLOC-12", ctx.tokens.processed_length, 0, "start of its window")
        expect("ALLOC-9", ctx.cached_prefix_length, None, "what it has found cached")
        driver.begin(ctx)
        driver.land_all()
        _finish(driver, ctx, 2 * bench.size)
        driver.forward(ctx)


@check("ALLOC-12", needs=("transfers", "prefix"))
def a_cancelled_hit_is_let_go(bench: Bench) -> None:
    """Pages that a plan had hit on the device are free again, and still cached."""
    driver = bench.controlled()
    driver.serve(bench.prompt(3))
    ctx = _begun(bench, driver, 3)
    driver.cancel(ctx)
    expect("ALLOC-12", driver.manager.num_free_blocks(0), 8, "free pages")
    driver.begin(ctx)
    _finish(driver, ctx, 3 * bench.size)
    driver.forward(ctx)


@check("ALLOC-12", needs=("transfers", "host"))
def a_cancelled_request_keeps_what_it_had(bench: Bench) -> None:
    """A running request whose next allocation is cancelled has the pages it had before."""
    driver, size = bench.with_chain_below(3), bench.size
    ctx = driver.request(bench.prompt(4))
    driver.chunk(ctx, size)
    driver.claim(ctx)
    driver.begin(ctx)
    _finish(driver, ctx, 0)
    driver.compute(ctx)
    driver.update(ctx)
    pages = driver.pages(ctx)
    for _ in range(2):
        driver.begin(ctx)
        driver.cancel(ctx)
        expect("ALLOC-12", driver.pages(ctx), pages, "pages of the request")
        expect("ALLOC-12", ctx.tokens.processed_length, size, "start of its window")
    driver.begin(ctx)
    driver.land_all()
    _finish(driver, ctx, 3 * size)
    driver.forward(ctx)


@check("ALLOC-12", "XFER-4", needs=("transfers", "host"))
def a_load_that_fails_after_a_cancellation_leaves_nothing(bench: Bench) -> None:
    """If the loads of a cancelled request fail, their pages are free, and hold nothing."""
    driver = bench.with_chain_below(2)
    ctx = _begun(bench, driver)
    driver.cancel(ctx)
    driver.fail_loads("io_error")
    expect("ALLOC-12", driver.manager.num_free_blocks(0), 8, "free pages")
    driver.begin(ctx)
    _finish(driver, ctx, 0)
    driver.forward(ctx)


@check("ALLOC-13", needs=("transfers", "host"))
def a_plan_is_carried_out(bench: Bench) -> None:
    """``begin_alloc`` moves nothing of the context; ``finish_alloc`` gives what was planned."""
    driver = bench.with_chain_below(2)
    ctx = driver.claim(driver.request(bench.prompt(2)))
    plan = driver.begin(ctx)
    expect("ALLOC-13", ctx.tokens.processed_length, 0, "start of the window in between")
    expect("ALLOC-9", ctx.cached_prefix_length, None, "what it has found cached in between")
    demand("ALLOC-13", bool(plan.transfers), "a plan that loads blocks waits for nothing")
    expect("ALLOC-13", {*plan.transfers}, _loads(driver), "loads that it waits for")
    driver.land_all()
    _finish(driver, ctx, 2 * bench.size)
    expect("ALLOC-13", driver.pages(ctx), list(plan.pages), "pages that the request gets")


@check("ALLOC-13", needs=("transfers", "prefix"))
def a_plan_without_loads_is_complete_at_once(bench: Bench) -> None:
    """With nothing to load, an allocation waits for nothing."""
    driver = bench.controlled()
    driver.serve(bench.prompt(2))
    for start, tokens in ((0, 2 * bench.size), (50, 0)):
        ctx = driver.claim(driver.request(bench.prompt(2, start)))
        expect("ALLOC-13", driver.begin(ctx).transfers, (), "transfers to wait for")
        _finish(driver, ctx, tokens)
        driver.forward(ctx)


@check("ALLOC-13", needs=("transfers", "host"))
def a_request_that_waits_is_not_used(bench: Bench) -> None:
    """A waiting request is neither allocated nor stepped nor computed, only finished or undone."""
    driver = bench.with_chain_below(2)
    other = driver.admit(bench.prompt(1, 50))
    ctx = _begun(bench, driver)
    refused = driver.refused
    for _ in range(2):
        refused("ALLOC-13", AllocPendingError, "finish_alloc", ctx, 0)
        refused("ALLOC-13", AllocPendingError, "begin_alloc", ctx, 0)
        refused("ALLOC-13", AllocPendingError, "alloc", ctx, 0)
        refused("ALLOC-13", AllocPendingError, "step", [[other, ctx]])
        if driver.can("inputs"):
            refused("ALLOC-13", AllocPendingError, "runtime_inputs", [[other, ctx]])
        if driver.can("probes"):
            method = "get_pct_used_blocks_after_allocation"
            refused("ALLOC-13", AllocPendingError, method, ctx, 0)
    driver.forward(other)
    driver.land_all()
    _finish(driver, ctx, 2 * bench.size)
    driver.begin(ctx)
    if driver.can("inputs"):  # It has all that it needs, and yet it waits.
        refused("ALLOC-13", AllocPendingError, "runtime_inputs", [[other, ctx]])
    driver.finish(ctx)
    driver.forward(ctx, other)


@check("ALLOC-13", needs=("transfers", "host"))
def what_was_not_begun_is_not_finished(bench: Bench) -> None:
    """Without a plan, before one, after one or after a cancellation, there is nothing to end."""
    driver = bench.with_chain_below(2)
    ctx = driver.claim(driver.request(bench.prompt(2)))

    def nothing_is_planned() -> None:
        driver.refused("ALLOC-13", NoPlannedAllocError, "finish_alloc", ctx, 0)
        driver.refused("ALLOC-13", NoPlannedAllocError, "cancel_alloc", ctx.request_id, 0)

    nothing_is_planned()
    driver.begin(ctx)
    driver.cancel(ctx)
    nothing_is_planned()
    driver.begin(ctx)
    driver.land_all()
    _finish(driver, ctx, 2 * bench.size)
    nothing_is_planned()
    driver.forward(ctx)


@check("ALLOC-13", needs=("transfers", "host"))
def an_allocation_waits_for_all_of_its_loads(bench: Bench) -> None:
    """With loads from two tiers, one that has landed does not complete the allocation."""
    driver = bench.with_chain_below(1)
    driver.serve(bench.prompt(3))
    driver.land_all()
    driver.evict_all()
    driver.land_all()
    first = _begun(bench, driver, 1)
    second = _begun(bench, driver, 3)
    loads = driver.loads()
    demand("ALLOC-13", len(loads) > 1, "blocks that one load brings and others are not loaded")
    for load in loads[:0:-1]:
        driver.land(load)
        driver.refused("ALLOC-13", AllocPendingError, "finish_alloc", second, 0)
    driver.land(loads[0])
    for ctx, pages in ((second, 3), (first, 1)):
        _finish(driver, ctx, pages * bench.size)
    driver.forward(first, second)


@check("ALLOC-13", "INPUT-2", needs=("transfers", "host"))
def others_go_on_while_a_request_waits(bench: Bench) -> None:
    """Other requests are allocated, computed and released while one waits for its loads."""
    driver = bench.with_chain_below(2, total_num_pages=12)
    ctx = _begun(bench, driver)
    for n in range(3):
        driver.serve(bench.prompt(2, 50 + 10 * n))
    driver.land_all()
    _finish(driver, ctx, 2 * bench.size)
    driver.forward(ctx)


@check("ALLOC-11", "ALLOC-4", needs=("transfers", "host"))
def a_source_is_avoided_by_whom_it_failed(bench: Bench) -> None:
    """A request that was there when the load of another failed still hits the block."""
    driver = bench.with_chain_below(2)
    bystander = driver.claim(driver.request(bench.prompt(2)))
    unlucky = _begun(bench, driver)
    driver.fail_loads("timeout")
    demand("ALLOC-11", not driver.finish(unlucky), "an allocation was served by a failed load")
    driver.begin(bystander)
    driver.land_all()
    _finish(driver, bystander, 2 * bench.size)
    driver.forward(bystander)


@check("ALLOC-11", needs=("transfers", "replicas"))
def after_a_failed_copy_another_replica_serves(bench: Bench) -> None:
    """Of two replicas that have a block, the second one is asked when the first has failed."""
    driver = bench.controlled(replicas=3)
    twins = [driver.admit(bench.prompt(2), replica) for replica in (1, 2)]
    driver.forward(*twins)
    ctx = _begun(bench, driver)
    first = {load.source_replica for load in driver.loads()}
    if not first:
        raise Skip("replicas do not copy from each other")
    driver.fail_loads("timeout")
    demand("ALLOC-11", not driver.finish(ctx), "an allocation was served by a failed load")
    driver.begin(ctx)
    second = {load.source_replica for load in driver.loads()}
    expect("ALLOC-11", second, {1, 2} - first, f"replicas that are asked after {first}")
    driver.land_all()
    _finish(driver, ctx, 2 * bench.size)
    driver.forward(ctx)


@check("ALLOC-12", "ALLOC-8", needs=("transfers", "host"))
def a_cancelled_hit_over_own_pages_gives_all_back(bench: Bench) -> None:
    """A request that holds pages for what it would hit holds those, and no more, afterwards."""
    driver, size = bench.controlled(host_pages=16, total_num_pages=12), bench.size
    ctx = driver.request(bench.prompt(5))
    driver.chunk(ctx, 3 * size)
    driver.claim(ctx)
    driver.begin(ctx)
    _finish(driver, ctx, 0)
    driver.compute(ctx)
    driver.update(ctx)
    driver.rewind(ctx, 3 * size)
    own = driver.pages(ctx)
    driver.serve(bench.prompt(5))
    driver.land_all()
    driver.evict_all()
    driver.land_all()
    for _ in range(2):
        driver.begin(ctx)
        driver.cancel(ctx)
        driver.land_all()
        expect("ALLOC-12", driver.pages(ctx), own, "pages of the request")
        driver.evict_all()
    driver.begin(ctx)
    driver.land_all()
    _finish(driver, ctx, 5 * size)
    driver.forward(ctx)


@check("ALLOC-11", needs=("transfers", "host"))
def a_source_is_avoided_as_long_as_the_request_lives(bench: Bench) -> None:
    """A block whose load has failed is not asked for again when the request needs more pages."""
    driver, size = bench.with_chain_below(3), bench.size
    ctx = _begun(bench, driver, 3)
    driver.fail_block(ctx, 2, "timeout")
    demand("ALLOC-11", not driver.finish(ctx), "an allocation was served by a failed load")
    driver.chunk(ctx, 2 * size + 1)
    driver.begin(ctx)
    driver.land_all()
    _finish(driver, ctx, 2 * size)
    driver.forward(ctx)
    driver.begin(ctx)
    expect("ALLOC-11", _loads(driver), set(), "loads of a block that has failed this request")
    _finish(driver, ctx, 2 * size + 1)
    driver.forward(ctx)


@check("ALLOC-11", "STORE-4", needs=("transfers", "store"))
def all_stores_are_one_source(bench: Bench) -> None:
    """A block that a store has failed to deliver is asked for in no further store."""
    driver = bench.controlled(store=True, model_fingerprint="weights")
    endpoint = f"{driver.setup.store_endpoint}-further"
    for other in (bench.beside(driver), bench.beside(driver, store_endpoint=endpoint)):
        other.serve(bench.prompt(2))
        other.evict_all()
        other.land_all()
    driver.may_ask_the_store_of(other)
    request = driver.request(bench.prompt(2), external_block_metadata={"endpoints": [endpoint]})
    ctx = driver.claim(request)
    driver.begin(ctx)
    demand("ALLOC-11", bool(driver.loads()), "nothing is loaded from a store")
    driver.fail_loads("timeout")
    demand("ALLOC-11", not driver.finish(ctx), "an allocation was served by a failed load")
    driver.begin(ctx)
    expect("ALLOC-11", _loads(driver), set(), "loads from stores when one has failed")
    _finish(driver, ctx, 0)
