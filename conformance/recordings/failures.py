"""Loads that fail, allocations that are given up, caches that are reset, devices that break."""

from contextlib import suppress

from pagedkv.conformance.recordings.recording import recording
from pagedkv.conformance.recordings.stage import MakeStage, Stage, hits_in
from pagedkv.reference.errors import KVLoadFailed
from pagedkv.reference.metrics import PrefixCacheHits
from pagedkv.reference.tier_names import FailReason


@recording("ALLOC-11 FAIL-1 TIER-6 XFER-4 POOL-5")
def loads_that_fail(make: MakeStage) -> Stage:
    """Loads fail in every way, from host memory and then from disk, and requests compute what they
    could not get; tiers give up what is lost and keep what was only slow."""
    stage = make(total_num_pages=6, host_pages=8, disk_pages=24)
    stage.serve("writer", stage.prompt(2))
    stage.serve("filler", stage.prompt(5, start=100))
    reasons: tuple[FailReason, ...] = ("timeout", "unavailable", "no_space", "io_error", "missing")
    for n, reason in enumerate(reasons):
        ctx = stage.claim(f"reader {n}", stage.prompt(2))
        while stage.begin(ctx).transfers:
            stage.fail(reason, target="device")
            with suppress(KVLoadFailed):
                stage.finish(ctx)
        stage.finish(ctx)
        stage.forward(ctx)
        stage.release(ctx)
        stage.land()
        stage.serve(f"filler {n}", stage.prompt(5, start=200 + 50 * n))
    return stage


@recording("TIER-5 TIER-6 ALLOC-11")
def damaged_block(make: MakeStage) -> Stage:
    """One block on the disk turns out to be damaged: the request uses what comes before it, and the
    disk loses this block alone."""
    stage = make(total_num_pages=5, host_pages=3, disk_pages=8)
    stage.serve("writer", stage.prompt(3))
    stage.serve("filler", stage.prompt(4, start=100))
    ctx = stage.claim("reader", stage.prompt(3))
    stage.begin(ctx)
    (load,) = (t for t in stage.manager.in_flight() if t.source == "disk")
    stage.fail("corrupt", source="disk", keys=load.keys[-1:])
    stage.settle(ctx)
    stage.release(ctx)
    stage.serve("another filler", stage.prompt(4, start=200))
    stage.serve("next reader", stage.prompt(3))
    assert [hits.disk_blocks for hits in hits_in(stage)] == [0, 0, 3, 2, 0, 2]
    return stage


@recording("TIER-6 TIER-9 XFER-4 STEP-5")
def offloads_that_fail(make: MakeStage) -> Stage:
    """An offload fails and gives its slots back; the chain is offered again when it has grown."""
    stage = make(total_num_pages=12, host_pages=8, disk_pages=8)
    ctx = stage.admit("chat", range(7))
    stage.forward(ctx)
    stage.fail("no_space", target="host")
    for _ in range(2):
        stage.alloc(ctx)
        stage.forward(ctx)
    stage.land(target="host")
    stage.fail("unavailable", target="disk")
    stage.release(ctx)
    stage.serve("next turn", range(11))
    return stage


@recording("ALLOC-12 ALLOC-13 REL-4 REL-3 POOL-7")
def given_up(make: MakeStage) -> Stage:
    """Allocations are cancelled, one by the release of its request, while their loads go on; what
    lands is cached all the same."""
    stage = make(total_num_pages=6, host_pages=12)
    for start in (0, 100):
        stage.serve(f"writer {start}", stage.prompt(2, start))
    stage.serve("filler", stage.prompt(5, start=200))
    cancelled = stage.claim("cancelled", stage.prompt(2))
    stage.begin(cancelled)
    stage.cancel(cancelled)
    released = stage.claim("released", stage.prompt(2, start=100))
    stage.begin(released)
    stage.release(released)
    joins = stage.claim("joins what is under way", stage.prompt(2))
    stage.begin(joins)
    stage.land(source="host")
    stage.finish(joins)
    stage.alloc(cancelled)
    stage.release(joins, cancelled)
    stage.serve("finds it on the device", stage.prompt(2, start=100))
    assert hits_in(stage)[-1] == PrefixCacheHits(device_blocks=2)
    return stage


@recording("RESET-1 RESET-2 RESET-3 STEP-3")
def reset(make: MakeStage) -> Stage:
    """The cache is reset while requests run and transfers are under way: nothing from before is
    found after, slots in use count until they are let go, and requests live on without sharing."""
    stage = make(total_num_pages=12, host_pages=3, disk_pages=6)
    stage.serve("before", stage.prompt(2))
    stage.serve("filler", range(100, 145))
    running = stage.admit("running", stage.prompt(1, start=300))
    stage.forward(running)
    waiting = stage.claim("waiting", stage.prompt(2))
    stage.begin(waiting)
    untouched = stage.claim("claimed only", stage.prompt(2))
    stage.manager.reset_prefix_cache()
    after = stage.claim("after", stage.prompt(2))
    stage.alloc(after)
    stage.forward(after)
    stage.land()
    stage.finish(waiting)
    for ctx in (running, waiting):
        stage.alloc(ctx)
        stage.forward(ctx)
    stage.release(after, running, waiting)
    stage.land()
    stage.alloc(untouched)
    assert hits_in(stage)[-1] == PrefixCacheHits(device_blocks=2)
    return stage


@recording("FAIL-2 EVENT-1")
def broken_device(make: MakeStage) -> Stage:
    """The device of a replica breaks: its transfers fail, also those that others read from it, and
    it only lets go; the other replica works on without it."""
    stage = make(replicas=2, host_pages=12)
    stage.serve("writer", stage.prompt(2))
    running = stage.admit("running", stage.prompt(3, start=100))
    stage.forward(running)
    reader = stage.claim("reader", stage.prompt(2), replica=1)
    stage.begin(reader)
    stage.manager.poison(0, "an illegal memory access")
    stage.settle(reader)
    stage.release(running)
    stage.serve("next reader", stage.prompt(2), replica=1)
    return stage
