"""ALLOC-15 and TIER-11: allocations that leave slow tiers out, and loads ahead of them."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from pagedkv.conformance.bench import Bench, Recording, Skip
from pagedkv.conformance.check import check
from pagedkv.conformance.driver import Driver
from pagedkv.conformance.generated import play_runs, slow_tier_runs
from pagedkv.conformance.violation import demand, expect
from pagedkv.reference.context import TextContext
from pagedkv.reference.errors import InsufficientBlocksError
from pagedkv.reference.events import AllocPlanned, AllocRefused, Prefetched
from pagedkv.reference.identity import page_key
from pagedkv.reference.metrics import PrefixCacheHits

# Any, below: fields of setups, which check them.

SLOW_TIERS: dict[str, dict[str, Any]] = {"disk": {"disk_pages": 16}, "store": {"store": True}}
"""What lies below host memory, and is large enough for everything."""


def _slow_tiers(bench: Bench) -> list[str]:
    """Those that the implementation has.

    Raises:
        Skip: It has none.
    """
    tiers: list[str] = [tier for tier in SLOW_TIERS if tier in bench.implementation.capabilities]
    if not tiers:
        raise Skip(f"{bench.implementation.name} has neither disk nor store")
    return tiers


def _having_stored(
    bench: Bench,
    tier: str,
    *prompts: range,
    layout: Mapping[str, Any] = MappingProxyType({}),
    **changes: Any,
) -> Driver:
    """A manager that finds ``prompts`` in a slow tier, where an earlier one has left them.

    Raises:
        Skip: They are not there: when a block goes further down is policy (TIER-2).
    """
    bench.writes("through")
    before = bench.driver(
        host_pages=16,
        write_policy="through",
        model_fingerprint="weights",
        **SLOW_TIERS[tier],
        **layout,
    )
    for tokens in prompts:
        before.serve(tokens)
    driver = bench.restart(before, **({"host_pages": 8} | changes))
    for tokens in prompts:
        found = _found(driver, tokens)
        if getattr(found, f"{tier}_blocks") < found.total_blocks or not found.total_blocks:
            raise Skip(f"{bench.implementation.name} does not keep all blocks in the {tier} tier")
    return driver


def _found(driver: Driver, tokens: range) -> PrefixCacheHits:
    """What a fresh request would hit on the first replica, by tier."""
    return driver.probe(driver.request(tokens))[0]


def _prefetch(driver: Driver, tokens: range) -> None:
    driver.prefetch(driver.request(tokens))


# --- ALLOC-15: no waiting -------------------------------------------------------------------------


def _begun(driver: Driver, tokens: range, hit_limit: int | None) -> TextContext:
    """A request that waits for what it loads."""
    ctx = driver.claim(driver.request(tokens))
    driver.begin(ctx, hit_limit)
    return ctx


@check("ALLOC-15", "ALLOC-4", needs=("transfers", "prefetch", "host"))
def a_limited_hit_has_so_many_blocks(bench: Bench) -> None:
    """Of four blocks that are found, as many are loaded and used as the limit says."""
    for limit, used in ((0, 0), (1, 1), (3, 3), (4, 4), (9, 4)):
        driver = bench.with_chain_below(4)
        ctx = _begun(driver, bench.prompt(4), limit)
        loaded = sum(len(transfer.keys) for transfer in driver.loads())
        expect("ALLOC-15", loaded, used, f"blocks that are loaded for a limit of {limit}")
        driver.land_all()
        demand("ALLOC-15", driver.finish(ctx), "an allocation whose loads have landed has failed")
        window = ctx.tokens.processed_length
        expect("ALLOC-15", window, used * bench.size, f"tokens hit for a limit of {limit}")
        driver.forward(ctx)


@check("ALLOC-15", "ALLOC-4", needs=("transfers", "prefetch", "prefix"))
def blocks_on_the_device_count_against_the_limit(bench: Bench) -> None:
    """A limit is one on the whole hit, wherever its blocks are."""
    driver = bench.controlled()
    driver.serve(bench.prompt(3))
    driver.land_all()
    ctx = _begun(driver, bench.prompt(3), 2)
    driver.land_all()
    demand("ALLOC-15", driver.finish(ctx), "an allocation without loads has failed")
    expect("ALLOC-15", ctx.tokens.processed_length, 2 * bench.size, "tokens that were hit")


@check("ALLOC-15", "METRIC-6", needs=("transfers", "prefetch", "host", "metrics"))
def blocks_behind_the_limit_are_too_slow(bench: Bench) -> None:
    """What was found and not waited for is missed, once, and for that reason."""
    bench.follows("METRIC-6")
    driver = bench.with_chain_below(4)
    driver.reset_metrics()
    ctx = _begun(driver, bench.prompt(5), 1)
    driver.land_all()
    driver.finish(ctx)
    expected = {"too_slow": 3, "never_seen": 1}
    expect("ALLOC-15", driver.missed(), expected, "blocks missed by reason")
    driver.forward(ctx)
    driver.begin(ctx, 0)
    driver.finish(ctx)
    expect("ALLOC-15", driver.missed(), expected, "blocks missed when the request goes on")


@check("ALLOC-15", "ALLOC-12", needs=("transfers", "prefetch", "host"))
def a_limit_is_of_one_call(bench: Bench) -> None:
    """Who was cancelled may wait for everything the next time."""
    driver = bench.with_chain_below(3)
    ctx = _begun(driver, bench.prompt(3), 0)
    driver.cancel(ctx)
    driver.begin(ctx)
    driver.land_all()
    demand("ALLOC-15", driver.finish(ctx), "an allocation whose loads have landed has failed")
    expect("ALLOC-15", ctx.tokens.processed_length, 3 * bench.size, "tokens hit without a limit")


@check("ALLOC-15", "EVENT-2", needs=("transfers", "prefetch", "host", "events"))
def its_event_says_the_limit(bench: Bench) -> None:
    """A plan and a refusal are reported with the limit that they were given, or none."""
    driver, events = bench.recorded(host_pages=16, auto_land=False, total_num_pages=4)
    driver.serve(bench.prompt(2))
    driver.land_all()
    _begun(driver, bench.prompt(2), 1)
    refused = driver.claim(driver.request(bench.prompt(3, 50)))
    driver.refused("ALLOC-15", InsufficientBlocksError, "begin_alloc", refused, 0, 2)
    limits = [event.hit_limit for event in events if isinstance(event, AllocPlanned)]
    expect("ALLOC-15", limits, [None, 1], "limits of the plans reported")
    limits = [event.hit_limit for event in events if isinstance(event, AllocRefused)]
    expect("ALLOC-15", limits, [2], "limits of the refusals reported")


@check("ALLOC-15", "TIER-11", needs=("prefetch", "host", "transfers"))
def any_limits_and_landings(bench: Bench) -> None:
    """Whatever is left out, and whenever what was prefetched lands or fails: no byte is wrong."""
    bench.writes("through")
    _slow_tiers(bench)
    play_runs(bench, slow_tier_runs(bench.implementation, controlled=True), controlled=True)


# --- TIER-11: ahead of time -----------------------------------------------------------------------


@check("TIER-11", "TIER-3", needs=("prefetch", "host", "probes"))
def what_was_prefetched_is_hit_in_host_memory(bench: Bench) -> None:
    """All that a request could hit in a slow tier is in host memory afterwards, with its bytes."""
    for tier in _slow_tiers(bench):
        driver = _having_stored(bench, tier, bench.prompt(3))
        _prefetch(driver, bench.prompt(3))
        found = _found(driver, bench.prompt(3))
        expect("TIER-11", found.host_blocks, 3, f"blocks in host memory that the {tier} tier had")
        expect("TIER-11", driver.used("host"), 3, "host pages in use")
        expect("TIER-11", driver.hit(bench.prompt(3)), 3, "blocks hit after the prefetch")


@check("TIER-11", "TIER-9", needs=("prefetch", "host", "probes"))
def slots_run_out_root_first(bench: Bench) -> None:
    """As many blocks are loaded as there are slots, from the root on."""
    for tier in _slow_tiers(bench):
        driver = _having_stored(bench, tier, bench.prompt(4), host_pages=2)
        _prefetch(driver, bench.prompt(4))
        expect("TIER-11", driver.used("host"), 2, "host pages in use")
        found = _found(driver, bench.prompt(2))
        expect("TIER-11", found.host_blocks, 2, "of the first two blocks, those in host memory")


@check("TIER-11", "TIER-4", needs=("prefetch", "host", "probes"))
def a_chain_makes_no_room_for_itself(bench: Bench) -> None:
    """What a longer prefetch finds in host memory stays there, whatever else it loads."""
    for tier in _slow_tiers(bench):
        driver = _having_stored(bench, tier, bench.prompt(4), host_pages=3)
        for pages in (2, 4):
            _prefetch(driver, bench.prompt(pages))
        found = _found(driver, bench.prompt(3))
        expect("TIER-11", found.host_blocks, 3, "of the first three blocks, those in host memory")


@check("TIER-11", needs=("prefetch", "host", "probes"))
def what_no_hit_may_use_is_not_prefetched(bench: Bench) -> None:
    """The page of a request's last token is computed, so that it need not be loaded (ALLOC-5)."""
    for tier in _slow_tiers(bench):
        driver = _having_stored(bench, tier, bench.prompt(3))
        _prefetch(driver, bench.prompt(3, more=0))
        expect("TIER-11", driver.used("host"), 2, "host pages in use")


@check("TIER-11", needs=("prefetch", "host", "probes"))
def what_is_on_a_device_is_left_there(bench: Bench) -> None:
    """A block that a device holds gets no slot that another block has."""
    for tier in _slow_tiers(bench):
        driver = _having_stored(bench, tier, bench.prompt(1), bench.prompt(1, 50), host_pages=1)
        driver.hit(bench.prompt(1))
        _prefetch(driver, bench.prompt(1, 50))
        _prefetch(driver, bench.prompt(1))
        expect("TIER-11", _found(driver, bench.prompt(1)).device_blocks, 1, "blocks on the device")
        found = _found(driver, bench.prompt(1, 50))
        expect("TIER-11", found.host_blocks, 1, "blocks of the other request in host memory")


@check("TIER-11", needs=("prefetch", "host", "probes", "speculative"))
def where_drafts_look_ahead_the_last_block_is_left_out(bench: Bench) -> None:
    """The last block of a hit is not used (DRAFT-1), so that it need not be loaded."""
    drafts = {"speculative_method": "eagle", "num_draft_tokens": 1}
    for tier in _slow_tiers(bench):
        driver = _having_stored(bench, tier, bench.prompt(3), layout=drafts)
        _prefetch(driver, bench.prompt(3))
        expect("TIER-11", driver.used("host"), 2, "host pages in use")


@check("TIER-11", "POOL-2", needs=("prefetch", "host", "probes"))
def a_full_device_is_no_obstacle(bench: Bench) -> None:
    """Who waits for pages may have its prefix loaded meanwhile; it needs no page for that."""
    for tier in _slow_tiers(bench):
        driver = _having_stored(bench, tier, bench.prompt(3))
        running = driver.admit(bench.prompt(8, 50, more=0))
        waiting = driver.claim(driver.request(bench.prompt(3)))
        demand("TIER-11", not driver.fits(waiting), "eight pages were taken, and there are more")
        driver.prefetch(waiting)
        driver.release(running)
        found = _found(driver, bench.prompt(3))
        expect("TIER-11", found.host_blocks, 3, "blocks in host memory")
        expect("TIER-11", driver.alloc(waiting), 3, "blocks that are hit once there are pages")


@check("TIER-11", "TIER-4", needs=("prefetch", "host", "probes"))
def a_prefetch_renews_what_a_request_could_hit(bench: Bench) -> None:
    """What it finds in host memory is the youngest there."""
    bench.follows("TIER-4")
    bench.writes("through")
    driver = bench.driver(host_pages=2, write_policy="through")
    for start in (0, 50):
        driver.serve(bench.prompt(1, start))
    _prefetch(driver, bench.prompt(1))
    driver.serve(bench.prompt(1, 90))
    driver.evict_all()
    expect("TIER-11", _found(driver, bench.prompt(1)).host_blocks, 1, "blocks that were renewed")
    expect("TIER-11", _found(driver, bench.prompt(1, 50)).host_blocks, 0, "blocks that were not")


@check("TIER-11", "METRIC-2", needs=("prefetch", "host", "probes", "metrics"))
def a_prefetch_is_no_copy_to_a_device(bench: Bench) -> None:
    """It counts where it reads; the blocks are served by host memory later."""
    for tier in _slow_tiers(bench):
        driver = _having_stored(bench, tier, bench.prompt(3))
        _prefetch(driver, bench.prompt(3))
        driver.hit(bench.prompt(3))
        metrics = driver.metrics()
        for field in (f"{tier}_blocks_read", "h2d_blocks_copied", "host_blocks_served"):
            expect("TIER-11", getattr(metrics, field), 3, field)
        expect("TIER-11", getattr(metrics, f"{tier}_blocks_served"), 0, f"{tier}_blocks_served")


@check("TIER-11", "TIER-1", needs=("prefetch", "host", "probes", "transfers"))
def nothing_is_in_host_memory_before_it_has_landed(bench: Bench) -> None:
    """What is on its way counts against the slots, is loaded once, and is not there yet."""
    for tier in _slow_tiers(bench):
        driver = _having_stored(bench, tier, bench.prompt(3), auto_land=False)
        for _ in range(2):
            _prefetch(driver, bench.prompt(3))
        [load] = driver.in_flight()
        way = (load.source, load.target, load.replica, len(load.keys), list(load.pages))
        expect("TIER-11", way, (tier, "host", None, 3, []), "what is in flight")
        expect("TIER-11", driver.used("host"), 3, "host pages in use before the landing")
        expect("TIER-11", _found(driver, bench.prompt(3)).host_blocks, 0, "blocks in host memory")
        driver.land_all()
        expect("TIER-11", _found(driver, bench.prompt(3)).host_blocks, 3, "blocks in host memory")


@check("TIER-11", "ALLOC-11", needs=("prefetch", "host", "probes", "transfers"))
def an_allocation_need_not_wait_for_a_prefetch(bench: Bench) -> None:
    """It reads the slow tier itself, and does not mind what becomes of the prefetch."""
    for tier in _slow_tiers(bench):
        driver = _having_stored(bench, tier, bench.prompt(2), auto_land=False)
        _prefetch(driver, bench.prompt(2))
        [prefetched] = driver.in_flight()
        ctx = driver.claim(driver.request(bench.prompt(2)))
        driver.begin(ctx)
        driver.fail(prefetched, "timeout")
        driver.land_all()
        demand("TIER-11", driver.finish(ctx), "an allocation has failed with a prefetch")
        expect("TIER-11", ctx.tokens.processed_length, 2 * bench.size, "tokens that were hit")


@check("TIER-11", "TIER-6", needs=("prefetch", "host", "probes", "transfers"))
def a_failed_prefetch_leaves_nothing_behind(bench: Bench) -> None:
    """Its slots are free again; what the tier has still is hit there."""
    for tier in _slow_tiers(bench):
        driver = _having_stored(bench, tier, bench.prompt(2), auto_land=False)
        _prefetch(driver, bench.prompt(2))
        [load] = driver.in_flight()
        driver.fail(load, "timeout")
        expect("TIER-11", driver.used("host"), 0, "host pages in use")
        found = getattr(_found(driver, bench.prompt(2)), f"{tier}_blocks")
        expect("TIER-11", found, 2, f"blocks in the {tier} tier")


@check("TIER-11", "RESET-2", needs=("prefetch", "host", "probes", "transfers", "reset"))
def a_reset_fences_a_prefetch(bench: Bench) -> None:
    """What was on its way when the cache was reset is not found when it lands."""
    for tier in _slow_tiers(bench):
        driver = _having_stored(bench, tier, bench.prompt(2), auto_land=False)
        _prefetch(driver, bench.prompt(2))
        driver.reset()
        expect("TIER-11", driver.used("host"), 2, "host pages in use before the landing")
        driver.land_all()
        expect("TIER-11", driver.used("host"), 0, "host pages in use")
        expect("TIER-11", _found(driver, bench.prompt(2)).total_blocks, 0, "blocks found")


@check("TIER-11", "ALLOC-4", needs=("prefetch", "host"))
def any_prefetches(bench: Bench) -> None:
    """Whatever is prefetched in whatever order: hits are right, and no byte is wrong."""
    bench.writes("through")
    _slow_tiers(bench)
    play_runs(bench, slow_tier_runs(bench.implementation, controlled=False), controlled=False)


@check("TIER-11", "EVENT-1", needs=("prefetch", "host", "probes", "events"))
def a_prefetch_is_reported(bench: Bench) -> None:
    """Its event says for whom it was, and what was issued: loads into host memory."""
    for tier in _slow_tiers(bench):
        events = Recording()
        driver = _having_stored(bench, tier, bench.prompt(2), tracer=events)
        ctx = driver.request(bench.prompt(2))
        driver.prefetch(ctx)
        [event] = [event for event in events if isinstance(event, Prefetched)]
        digests = driver.model.digests(ctx, 2)
        keys = tuple(page_key(digest, driver.setup.hash_algorithm) for digest in digests)
        expect("TIER-11", event.request_id, ctx.request_id, "the request of the event")
        issued = [(load.kind, load.source, load.target, load.keys) for load in event.issued]
        expect("TIER-11", issued, [("onload", tier, "host", keys)], "what was issued")
