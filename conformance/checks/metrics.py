"""METRIC: counters, which count everything once."""

from dataclasses import fields
from typing import Any

from pagedkv.conformance.bench import Bench, Skip
from pagedkv.conformance.check import check
from pagedkv.conformance.driver import Driver
from pagedkv.conformance.violation import demand, expect
from pagedkv.reference.metrics import KVCacheMetrics
from pagedkv.reference.tier_names import FailReason

SERVED = ("device", "peer", "host", "disk", "store")
"""Tiers under which hit blocks are counted."""

NAMED = {"model_fingerprint": "weights"}
"""Makes what is on disk and in a store outlive the manager."""


def served(driver: Driver) -> dict[str, int]:
    """Hit blocks by tier, without the tiers that have served none."""
    metrics = driver.metrics()
    counts = {tier: getattr(metrics, f"{tier}_blocks_served") for tier in SERVED}
    return {tier: count for tier, count in counts.items() if count}


# --- METRIC-1: tokens and hits --------------------------------------------------------------------


@check("METRIC-1", "ALLOC-3", needs=("metrics",))
def every_token_counts_once(bench: Bench) -> None:
    """Chunks, decoding, and calls that are made twice count each token once, when it is due."""
    driver = bench.driver()
    ctx = driver.claim(driver.request(bench.prompt(3)))
    driver.chunk(ctx, bench.size + 1)
    for token in range(bench.size + 2):
        for _ in range(2):
            driver.alloc(ctx)
        driver.forward(ctx, token=token)
        driver.step(ctx)
    computed = driver.metrics().input_tokens
    expect("METRIC-1", computed, ctx.tokens.processed_length, "tokens counted as computed")


@check("METRIC-1", needs=("metrics", "prefix"))
def served_tokens_count_when_they_are_served(bench: Bench) -> None:
    """Hit tokens count at the allocation, and the computed rest at the step after the forward."""
    driver = bench.driver()
    driver.serve(bench.prompt(2))
    ctx = driver.admit(bench.prompt(3))
    counts = driver.metrics().input_tokens, driver.metrics().cache_tokens
    expected = (2 * bench.size + 1, 2 * bench.size)
    expect("METRIC-1", counts, expected, "tokens computed and served after the allocation")
    driver.forward(ctx)
    counts = driver.metrics().input_tokens, driver.metrics().cache_tokens
    expected = (3 * bench.size + 2, 2 * bench.size)
    expect("METRIC-1", counts, expected, "tokens computed and served after the step")


@check("METRIC-1", needs=("metrics", "prefix"))
def hits_of_one_forward_later_count_too(bench: Bench) -> None:
    """What a chunked request finds cached after its first chunk counts as served."""
    driver = bench.driver(total_num_pages=12)
    ctx = driver.claim(driver.request(bench.prompt(4)))
    driver.chunk(ctx, bench.size)
    driver.alloc(ctx)
    driver.forward(ctx)
    driver.serve(bench.prompt(3))
    driver.alloc(ctx)
    driver.forward(ctx)
    counted = driver.metrics().input_tokens + driver.metrics().cache_tokens
    expect("METRIC-1", counted, 4 * bench.size + 1 + 3 * bench.size + 1, "tokens of both requests")


@check("METRIC-1", "ALLOC-4", needs=("metrics", "prefix"))
def device_hits_count_as_device_hits(bench: Bench) -> None:
    """Each hit block counts under the device, and its tokens as served."""
    driver = bench.driver()
    driver.serve(bench.prompt(2))
    expect("METRIC-1", served(driver), {}, "blocks served of a first request")
    for times in (1, 2):
        driver.hit(bench.prompt(2))
        expect("METRIC-1", served(driver), {"device": 2 * times}, "blocks served")
        tokens = driver.metrics().cache_tokens
        expect("METRIC-1", tokens, 2 * times * bench.size, "tokens served")


@check("METRIC-1", "ALLOC-4", needs=("metrics", "host"))
def host_hits_count_as_host_hits(bench: Bench) -> None:
    """Blocks that come from host memory count there; those that are on the device, there."""
    driver = bench.driver(host_pages=8)
    driver.serve(bench.prompt(3))
    driver.evict_all()
    driver.hit(bench.prompt(1))
    expect("METRIC-1", served(driver), {"host": 1}, "blocks served")
    driver.hit(bench.prompt(3))
    expect("METRIC-1", served(driver), {"host": 3, "device": 1}, "blocks served")


@check("METRIC-1", "ALLOC-4", needs=("metrics", "disk"))
def disk_hits_count_as_disk_hits(bench: Bench) -> None:
    """Blocks that come from disk count there, although they pass through host memory."""
    before = bench.driver(host_pages=8, disk_pages=8, **NAMED)
    before.serve(bench.prompt(2))
    driver = bench.restart(before)
    if not driver.hit(bench.prompt(2)):
        raise Skip("what is in host memory is not on disk")
    expect("METRIC-1", served(driver), {"disk": 2}, "blocks served")


@check("METRIC-1", "ALLOC-4", needs=("metrics", "store"))
def store_hits_count_as_store_hits(bench: Bench) -> None:
    """Blocks that come from a block store count there."""
    driver = bench.driver(store=True)
    driver.serve(bench.prompt(2))
    driver.evict_all()
    driver.hit(bench.prompt(2))
    expect("METRIC-1", served(driver), {"store": 2}, "blocks served")


@check("METRIC-1", "ALLOC-10", needs=("metrics", "replicas", "prefix"))
def peer_hits_count_as_peer_hits(bench: Bench) -> None:
    """Blocks that come from another replica count as that, once."""
    driver = bench.driver(replicas=2)
    driver.serve(bench.prompt(2))
    copied = driver.hit(bench.prompt(2), 1)
    if not copied:
        raise Skip(f"{bench.implementation.name} has no copies between replicas")
    expect("METRIC-1", served(driver), {"peer": copied}, "blocks served")


@check("METRIC-1", "ALLOC-6", needs=("metrics", "host", "transfers"))
def joined_loads_count_under_their_source(bench: Bench) -> None:
    """Two requests that wait for one load have both been served from host memory."""
    driver = bench.with_chain_below(2)
    waiting = [driver.claim(driver.request(bench.prompt(2))) for _ in range(2)]
    for ctx in waiting:
        driver.begin(ctx)
    expect("METRIC-1", served(driver), {}, "blocks served before the load has landed")
    driver.land_all()
    for ctx in waiting:
        driver.finish(ctx)
    expect("METRIC-1", served(driver), {"host": 4}, "blocks served")
    expect("METRIC-2", driver.metrics().h2d_blocks_copied, 2, "blocks copied")


# --- METRIC-2: copies -----------------------------------------------------------------------------


@check("METRIC-2", needs=("metrics", "host"))
def copies_up_and_down_are_counted(bench: Bench) -> None:
    """A block that goes down and comes up again is copied once each way."""
    driver = bench.driver(host_pages=8)
    driver.serve(bench.prompt(2))
    for times in (1, 2):
        driver.evict_all()
        driver.hit(bench.prompt(2))
        metrics = driver.metrics()
        counts = metrics.d2h_blocks_copied, metrics.h2d_blocks_copied
        expect("METRIC-2", counts, (2, 2 * times), "blocks copied to and from host memory")


@check("METRIC-2", needs=("metrics", "disk"))
def disk_reads_count_as_copies_to_the_device(bench: Bench) -> None:
    """A block that comes from disk counts as read there and as copied to the device."""
    before = bench.driver(host_pages=8, disk_pages=8, **NAMED)
    before.serve(bench.prompt(2))
    if not before.used("disk"):
        raise Skip("what is in host memory is not on disk")
    expect("METRIC-2", before.metrics().disk_blocks_written, 2, "blocks written to disk")
    driver = bench.restart(before)
    driver.hit(bench.prompt(2))
    counts = driver.metrics().disk_blocks_read, driver.metrics().h2d_blocks_copied
    expect("METRIC-2", counts, (2, 2), "blocks read from disk, and copied to the device")


@check("METRIC-2", needs=("metrics", "store"))
def store_reads_count_as_copies_to_the_device(bench: Bench) -> None:
    """A block that comes from a store counts as read there and as copied to the device."""
    driver = bench.driver(store=True)
    driver.serve(bench.prompt(2))
    driver.evict_all()
    driver.hit(bench.prompt(2))
    metrics = driver.metrics()
    counts = (
        metrics.store_blocks_written,
        metrics.store_blocks_read,
        metrics.h2d_blocks_copied,
    )
    expect("METRIC-2", counts, (2, 2, 2), "blocks put, fetched, and copied to the device")


@check("METRIC-2", needs=("metrics", "host", "transfers"))
def copies_count_when_they_land(bench: Bench) -> None:
    """What is in flight is not copied yet, and what fails never is."""
    bench.writes("through")
    driver = bench.controlled(host_pages=8, write_policy="through")
    driver.serve(bench.prompt(2))
    expect("METRIC-2", driver.metrics().d2h_blocks_copied, 0, "blocks copied before they land")
    driver.land_all()
    expect("METRIC-2", driver.metrics().d2h_blocks_copied, 2, "blocks copied when they have landed")
    driver.serve(bench.prompt(1, 50))
    for transfer in driver.in_flight():
        driver.fail(transfer, "io_error")
    expect("METRIC-2", driver.metrics().d2h_blocks_copied, 2, "blocks copied after a failure")
    driver.evict_all()
    ctx = driver.claim(driver.request(bench.prompt(2)))
    driver.begin(ctx)
    expect("METRIC-2", driver.metrics().h2d_blocks_copied, 0, "blocks copied before they land")
    driver.land_all()
    expect("METRIC-2", driver.metrics().h2d_blocks_copied, 2, "blocks copied when they have landed")
    driver.finish(ctx)


@check("METRIC-2", "ALLOC-10", needs=("metrics", "replicas", "memory", "prefix"))
def copies_between_replicas_count_blocks_and_bytes(bench: Bench) -> None:
    """Bytes of a copy between replicas are those of all its shards."""
    for cache in ["mha"] + ["mla"] * ("mla" in bench.implementation.capabilities):
        driver = bench.driver(replicas=2, shards=2, cache=cache)
        driver.serve(bench.prompt(2))
        if not driver.hit(bench.prompt(2), 1):
            raise Skip(f"{bench.implementation.name} has no copies between replicas")
        buffers = driver.manager.get_device_buffer(0).all_buffers
        nbytes = sum(buffer[0].nbytes for buffer in buffers)
        metrics = driver.metrics()
        counts = metrics.cross_replica_blocks_copied, metrics.cross_replica_bytes_copied
        expect("METRIC-2", counts, (2, 2 * nbytes), "blocks and bytes copied between replicas")


# --- METRIC-3: what does not count ----------------------------------------------------------------


@check("METRIC-3", "ALLOC-2", needs=("metrics", "prefix"))
def refused_allocations_count_nothing(bench: Bench) -> None:
    """A refused allocation that would have hit moves no counter, however often it is tried."""
    driver = bench.driver()
    driver.serve(bench.prompt(2))
    driver.admit(bench.prompt(3, 50))
    before = driver.metrics()
    greedy = driver.claim(driver.request(bench.prompt(6)))
    for _ in range(3):
        demand("METRIC-3", not driver.fits(greedy), "seven pages fit where four are free")
    expect("METRIC-3", driver.metrics(), before, "counters after refusals")


@check("METRIC-3", "ALLOC-14", needs=("metrics", "probes", "prefix"))
def probes_count_nothing(bench: Bench) -> None:
    """Look-ups, of claimed and unclaimed requests, move no counter."""
    driver = bench.driver()
    driver.serve(bench.prompt(2))
    ctx = driver.claim(driver.request(bench.prompt(3)))
    before = driver.metrics()
    driver.probe(ctx)
    driver.probe(driver.request(bench.prompt(2, 50)))
    driver.manager.get_pct_used_blocks_after_allocation(ctx, 0)
    expect("METRIC-3", driver.metrics(), before, "counters after probes")


@check("METRIC-3", "ALLOC-12", needs=("metrics", "host", "transfers"))
def failed_and_cancelled_allocations_count_nothing(bench: Bench) -> None:
    """An allocation that is undone has served no token and no block."""
    driver = bench.with_chain_below(2)
    before = driver.metrics().cache_tokens, served(driver), driver.missed()
    for fails in (True, False):
        ctx = driver.claim(driver.request(bench.prompt(2)))
        driver.begin(ctx)
        if fails:
            for transfer in driver.in_flight():
                driver.fail(transfer, "timeout")
            driver.finish(ctx)
        else:
            driver.cancel(ctx)
        after = driver.metrics().cache_tokens, served(driver), driver.missed()
        expect("METRIC-3", after, before, "tokens and blocks that were counted")
        driver.release(ctx)


# --- METRIC-4: preemption -------------------------------------------------------------------------


@check("METRIC-4", needs=("metrics", "prefix"))
def what_is_served_again_is_kept_apart(bench: Bench) -> None:
    """A preempted request that finds its pages cached raises no hit rate."""
    driver = bench.driver()
    ctx = driver.serve(bench.prompt(2))
    before = driver.metrics()
    driver.start_over(ctx)
    driver.claim(ctx)
    driver.alloc(ctx)
    driver.forward(ctx)
    after = driver.metrics()
    for name in ("input_tokens", "cache_tokens", "device_blocks_served"):
        expect("METRIC-4", getattr(after, name), getattr(before, name), f"{name} after a return")
    apart = after.preempted_cache_tokens, after.preempted_blocks_served
    expect("METRIC-4", apart, (2 * bench.size, 2), "tokens and blocks served again")
    driver.alloc(ctx)
    driver.forward(ctx)
    expect("METRIC-4", driver.metrics().input_tokens, before.input_tokens + 1, "input_tokens")


@check("METRIC-4", needs=("metrics",))
def what_is_computed_again_is_kept_apart(bench: Bench) -> None:
    """A preempted request that finds nothing computes its tokens again, in chunks, apart."""
    driver = bench.driver()
    ctx = driver.serve(bench.prompt(2))
    driver.evict_all()
    before = driver.metrics()
    driver.start_over(ctx)
    driver.claim(ctx)
    driver.chunk(ctx, bench.size + 1)
    for _ in range(2):
        driver.alloc(ctx)
        driver.forward(ctx)
    after = driver.metrics()
    expect("METRIC-4", after.input_tokens, before.input_tokens, "input_tokens after a return")
    again = after.preempted_input_tokens - before.preempted_input_tokens
    expect("METRIC-4", again, 2 * bench.size + 2, "tokens computed again")


@check("METRIC-4", needs=("metrics",))
def what_was_not_computed_yet_is_kept_apart_as_well(bench: Bench) -> None:
    """A request that is preempted after its first chunk has all its tokens counted apart."""
    driver = bench.driver()
    ctx = driver.claim(driver.request(bench.prompt(2)))
    driver.chunk(ctx, 1)
    driver.alloc(ctx)
    driver.forward(ctx)
    driver.release(ctx)
    driver.start_over(ctx)
    driver.claim(ctx)
    driver.alloc(ctx)
    driver.forward(ctx)
    metrics = driver.metrics()
    counts = metrics.input_tokens, metrics.preempted_input_tokens
    expect("METRIC-4", counts, (1, 2 * bench.size + 1), "tokens computed first, and again")


@check("METRIC-4", needs=("metrics", "prefix"))
def misses_after_a_preemption_have_no_reason(bench: Bench) -> None:
    """Blocks that a preempted request has lost are not counted as misses."""
    bench.follows("METRIC-6")
    driver = bench.driver()
    ctx = driver.serve(bench.prompt(2))
    driver.evict_all()
    before = driver.missed()
    driver.start_over(ctx)
    driver.claim(ctx)
    driver.alloc(ctx)
    expect("METRIC-4", driver.missed(), before, "missed blocks after a return")


# --- METRIC-5: sums and zero ----------------------------------------------------------------------


@check("METRIC-5", needs=("vocabulary",))
def counters_add_up_field_by_field(bench: Bench) -> None:
    """The sum of two managers' counters is the sum of every field."""
    names = [field.name for field in fields(KVCacheMetrics)]
    one = KVCacheMetrics(**{name: n for n, name in enumerate(names, 1)})
    two = KVCacheMetrics(**{name: n * n for n, name in enumerate(names, 1)})
    for n, name in enumerate(names, 1):
        expect("METRIC-5", getattr(one + two, name), n + n * n, f"{name} of two managers")
    expect("METRIC-5", one + KVCacheMetrics(), one, "counters of a busy and an idle manager")
    expect("METRIC-5", one.prompt_tokens, one.input_tokens + one.cache_tokens, "prompt_tokens")
    expect("METRIC-5", KVCacheMetrics().cache_hit_rate, 0.0, "hit rate before the first token")
    rate = KVCacheMetrics(input_tokens=1, cache_tokens=3, preempted_cache_tokens=9).cache_hit_rate
    expect("METRIC-5", rate, 0.75, "hit rate, which preemptions do not raise")


@check("METRIC-5", needs=("metrics", "host", "replicas"))
def what_replicas_share_is_added_up_for_none(bench: Bench) -> None:
    """Each replica tells the one host tier as it is, and its copies are counted once."""
    driver = bench.driver(replicas=2, host_pages=4, enable_dp_cross_replica_prefix_copy=False)
    for replica in range(2):
        driver.serve(bench.prompt(2, 50 * replica), replica)
        driver.evict_all(replica)
    manager = driver.manager
    for replica in range(2):
        told = manager.get_num_host_pages(replica), manager.get_num_used_host_pages(replica)
        expect("METRIC-5", told, (4, 4), f"host pages, and those in use, by replica {replica}")
    expect("METRIC-5", driver.metrics().d2h_blocks_copied, 4, "blocks copied to host memory")


def busy(bench: Bench, **options: Any) -> Driver:
    """A manager most of whose counters have moved."""
    tiers = {"host_pages": 3} if "host" in bench.implementation.capabilities else {}
    driver = bench.driver(**(tiers | options))
    for n in range(4):
        driver.serve(bench.prompt(2, 50 * n))
        driver.hit(bench.prompt(2, 50 * (n // 2)))
    ctx = driver.serve(bench.prompt(1))
    driver.start_over(ctx)
    driver.claim(ctx)
    driver.alloc(ctx)
    driver.forward(ctx)
    return driver


@check("METRIC-5", needs=("metrics",))
def reset_metrics_sets_all_to_zero(bench: Bench) -> None:
    """Every counter is zero afterwards, and counts on from there."""
    driver = busy(bench)
    before = driver.observe()
    driver.reset_metrics()
    metrics = driver.metrics()
    for field in fields(KVCacheMetrics):
        expect("METRIC-5", getattr(metrics, field.name), 0, f"{field.name} after a reset")
    after = driver.observe()
    expect("METRIC-5", after.tables, before.tables, "page tables after a reset of the counters")
    (ctx,) = driver.contexts.values()
    driver.alloc(ctx)
    driver.step(ctx)
    expect("METRIC-5", driver.metrics().input_tokens, 0, "tokens that were counted before")
    driver.forward(ctx)
    expect("METRIC-5", driver.metrics().input_tokens, 1, "tokens computed since")


@check("METRIC-5", needs=("metrics", "prefix"))
def reset_metrics_changes_nothing_else(bench: Bench) -> None:
    """What is cached, and what is evicted next, does not depend on when counters were reset."""

    def run(driver: Driver, extra: bool) -> object:
        for n in range(3):
            driver.serve(bench.prompt(1, 50 * n))
            if extra:
                driver.reset_metrics()
        driver.release(driver.admit(range(10**6, 10**6 + 6 * bench.size)))
        return [driver.hit(bench.prompt(1, 50 * n)) for n in range(3)]

    bench.makes_no_difference("METRIC-5", run, "a reset of the counters")


@check("METRIC-5", needs=("metrics", "host", "disk", "transfers"))
def disk_operations_in_flight_are_a_level(bench: Bench) -> None:
    """``inflight_disk_ops`` is what is in flight now, whenever counters were reset."""
    bench.writes("through")
    driver = bench.controlled(host_pages=8, disk_pages=8, write_policy="through")
    driver.serve(bench.prompt(2))
    for transfer in driver.in_flight():
        driver.land(transfer)
    writes = len([transfer for transfer in driver.in_flight() if transfer.target == "disk"])
    if not writes:
        raise Skip("what lands in host memory is not written to disk at once")
    expect("METRIC-5", driver.metrics().inflight_disk_ops, writes, "disk operations in flight")
    driver.reset_metrics()
    expect("METRIC-5", driver.metrics().inflight_disk_ops, writes, "the same after a reset")
    driver.land_all()
    expect("METRIC-5", driver.metrics().inflight_disk_ops, 0, "the same when all has landed")


@check("METRIC-1", "LEN-3", needs=("metrics",))
def tokens_that_are_computed_again_count_once(bench: Bench) -> None:
    """A window that is moved back over tokens that were counted counts them no second time."""
    driver = bench.driver()
    ctx = driver.admit(bench.prompt(2))
    driver.forward(ctx)
    driver.rewind(ctx, 3)
    driver.alloc(ctx)
    driver.forward(ctx)
    expect("METRIC-1", driver.metrics().input_tokens, len(ctx.tokens) - 1, "tokens computed")


@check("METRIC-2", needs=("metrics", "disk", "transfers"))
def failed_loads_copy_nothing(bench: Bench) -> None:
    """A load that fails counts as failed, and neither as read nor as copied."""
    reasons: tuple[FailReason, ...] = ("timeout", "io_error")
    for reason in reasons:
        before = bench.driver(host_pages=4, disk_pages=4, model_fingerprint="weights")
        before.serve(bench.prompt(2))
        driver = bench.restart(before, auto_land=False)
        ctx = driver.claim(driver.request(bench.prompt(2)))
        driver.begin(ctx)
        failed = sum(len(load.keys) for load in driver.loads())
        driver.fail_loads(reason)
        metrics = driver.metrics()
        counts = metrics.h2d_blocks_copied, metrics.disk_blocks_read, metrics.load_blocks_failed
        expect("METRIC-2", counts, (0, 0, failed), "blocks copied, read and failed")


@check("METRIC-4", needs=("metrics",))
def what_is_new_after_a_return_counts_as_new(bench: Bench) -> None:
    """A step over tokens that a preempted request had, and one that it had not, parts them."""
    driver = bench.driver()
    ctx = driver.serve(bench.prompt(2))
    driver.evict_all()
    before = driver.metrics().input_tokens
    driver.start_over(ctx)
    had = len(ctx.tokens)
    driver.claim(ctx)
    for token in (1, 2):
        driver.alloc(ctx)
        driver.compute(ctx)
        driver.update(ctx, token)
    driver.step(ctx)
    metrics = driver.metrics()
    counts = metrics.input_tokens - before, metrics.preempted_input_tokens
    expect("METRIC-4", counts, (1, had), "tokens computed that are new, and again")


@check("METRIC-5", needs=("metrics", "host", "disk", "transfers"))
def only_disk_operations_are_counted_as_that(bench: Bench) -> None:
    """``inflight_disk_ops`` counts reads and writes of the disk, and no other transfers."""
    before = bench.driver(host_pages=8, disk_pages=8, model_fingerprint="weights")
    before.serve(bench.prompt(2))
    driver = bench.restart(before, auto_land=False)
    driver.serve(bench.prompt(2, 50))
    driver.begin(driver.claim(driver.request(bench.prompt(2))))
    while True:
        on_disk = [t for t in driver.in_flight() if "disk" in (t.source, t.target)]
        ops = driver.metrics().inflight_disk_ops
        expect("METRIC-5", ops, len(on_disk), "disk operations in flight")
        if not driver.in_flight():
            break
        driver.land(driver.in_flight()[0])


@check("METRIC-7", "METRIC-2", needs=("metrics", "host", "transfers"))
def failed_offloads_count_as_dropped(bench: Bench) -> None:
    """A block that does not arrive below, through whatever fault, counts as dropped, once."""
    bench.writes("through")
    driver = bench.controlled(host_pages=8, write_policy="through")
    driver.serve(bench.prompt(3))
    offered = sum(len(transfer.keys) for transfer in driver.in_flight())
    for transfer in driver.in_flight():
        driver.fail(transfer, "io_error", transfer.keys[:1])
    metrics = driver.metrics()
    counts = metrics.offload_blocks_dropped, metrics.d2h_blocks_copied
    expect("METRIC-7", counts, (offered, 0), "blocks dropped and copied")


@check("METRIC-5", needs=("metrics", "replicas"))
def reset_metrics_concerns_all_replicas(bench: Bench) -> None:
    """What replicas count of their own is added up, and zero after a reset."""
    driver = bench.driver(replicas=2)
    evicted = []
    for replica in range(2):
        driver.serve(bench.prompt(2), replica)
        driver.evict_all(replica)
        evicted.append(driver.metrics().device_blocks_evicted)
    expect("METRIC-5", evicted[1], 2 * evicted[0], "evictions on two replicas that do the same")
    driver.reset_metrics()
    for field in fields(KVCacheMetrics):
        expect("METRIC-5", getattr(driver.metrics(), field.name), 0, f"{field.name} after a reset")


@check("POOL-10", "METRIC-5", needs=("metrics",))
def only_what_was_cached_is_evicted(bench: Bench) -> None:
    """Neither taking a free page nor a reset of the cache counts as an eviction."""
    tiers = {"host_pages": 8} if "host" in bench.implementation.capabilities else {}
    driver = bench.driver(**tiers)
    driver.evict_all()
    driver.serve(bench.prompt(2))
    if driver.can("reset"):
        driver.reset()
    driver.evict_all()
    metrics = driver.metrics()
    names = [
        field.name for field in fields(KVCacheMetrics) if field.name.endswith("_blocks_evicted")
    ]
    most = 0 if driver.can("reset") else 2
    for name in names:
        demand("POOL-10", getattr(metrics, name) <= most, f"{name}: {getattr(metrics, name)}")


@check("METRIC-7", "TIER-1", needs=("metrics", "host", "disk"))
def what_was_written_is_there_or_evicted(bench: Bench) -> None:
    """Where nothing fails, blocks written to a tier and not in it any more were evicted."""
    bench.writes("through")
    driver = bench.driver(host_pages=3, disk_pages=4, write_policy="through")
    for n in range(6):
        driver.serve(bench.prompt(1, 50 * n))
    metrics = driver.metrics()
    for tier, written in (
        ("host", metrics.d2h_blocks_copied),
        ("disk", metrics.disk_blocks_written),
    ):
        gone = written - getattr(driver.manager, f"get_num_used_{tier}_pages")(0)
        expect("METRIC-7", getattr(metrics, f"{tier}_blocks_evicted"), gone, f"evicted from {tier}")


@check("METRIC-4", needs=("metrics", "prefix"))
def what_is_served_later_after_a_return_is_kept_apart(bench: Bench) -> None:
    """Blocks that a preempted request hits after its first chunk count apart as well."""
    driver = bench.driver(total_num_pages=12)
    ctx = driver.serve(bench.prompt(4))
    driver.evict_all()
    driver.start_over(ctx)
    driver.claim(ctx)
    driver.chunk(ctx, bench.size + 1)
    driver.alloc(ctx)
    driver.forward(ctx)
    driver.serve(bench.prompt(3))
    before = served(driver)
    driver.alloc(ctx)
    expect("METRIC-4", served(driver), before, "blocks served by tier")
    expect("METRIC-4", driver.metrics().preempted_blocks_served, 2, "blocks served again")


@check("METRIC-5", "METRIC-4", needs=("metrics",))
def a_reset_of_the_counters_does_not_end_a_preemption(bench: Bench) -> None:
    """Tokens that a preempted request computes again count apart, whenever counters were reset."""
    driver = bench.driver()
    ctx = driver.serve(bench.prompt(2))
    driver.evict_all()
    driver.start_over(ctx)
    driver.claim(ctx)
    driver.alloc(ctx)
    driver.reset_metrics()
    driver.forward(ctx)
    metrics = driver.metrics()
    counts = metrics.input_tokens, metrics.preempted_input_tokens
    expect("METRIC-5", counts, (0, 2 * bench.size + 2), "tokens computed first, and again")


@check("METRIC-1", "LEN-3", needs=("metrics", "prefix"))
def a_hit_after_a_window_was_moved_back_counts_what_is_new(bench: Bench) -> None:
    """Tokens that were computed, given up and then hit stay computed; those behind are served."""
    driver, size = bench.driver(total_num_pages=16), bench.size
    ctx = driver.claim(driver.request(bench.prompt(5)))
    driver.chunk(ctx, 2 * size + size // 2)
    driver.alloc(ctx)
    driver.forward(ctx)
    driver.rewind(ctx, size // 2)
    driver.serve(bench.prompt(4))
    before = driver.metrics()
    driver.alloc(ctx)
    after = driver.metrics()
    counts = after.input_tokens - before.input_tokens, after.cache_tokens - before.cache_tokens
    expect("METRIC-1", counts, (0, 2 * size - size // 2), "tokens counted as computed, and served")


# --- METRIC-7: what was given up, dropped or lost -------------------------------------------------


@check("METRIC-7", "POOL-10", needs=("metrics", "prefix"))
def every_cached_page_that_is_taken_is_an_eviction(bench: Bench) -> None:
    """As many blocks were evicted from the device as pages with content were taken."""
    driver = bench.driver()
    for n in range(1, 4):
        driver.serve(bench.prompt(2, 50))
        driver.evict_all()
        # The request that has taken all pages was never stepped: nothing of it is cached.
        expect("METRIC-7", driver.metrics().device_blocks_evicted, 2 * n, "blocks evicted")


@check("METRIC-7", "TIER-9", needs=("metrics", "host"))
def blocks_without_a_slot_count_as_dropped(bench: Bench) -> None:
    """Of a chain that is too long for host memory, what finds no slot counts as dropped."""
    bench.writes("through")
    driver = bench.driver(host_pages=2, write_policy="through")
    driver.serve(bench.prompt(3))
    metrics = driver.metrics()
    counts = metrics.d2h_blocks_copied, metrics.offload_blocks_dropped
    expect("METRIC-7", counts, (2, 1), "blocks copied and dropped")


@check("METRIC-7", "TIER-6", needs=("metrics", "host", "transfers"))
def blocks_at_fault_count_as_failed(bench: Bench) -> None:
    """Of a load that fails through one of its blocks, that one counts as failed."""
    driver = bench.with_chain_below(3)
    ctx = driver.claim(driver.request(bench.prompt(3)))
    driver.begin(ctx)
    driver.fail_block(ctx, 1, "io_error")
    expect("METRIC-7", driver.metrics().load_blocks_failed, 1, "blocks failed")
    demand("ALLOC-11", not driver.finish(ctx), "an allocation was served by a failed load")
