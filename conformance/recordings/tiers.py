"""Host memory, disk, and what is written to them when."""

from contextlib import suppress
from typing import Any

from pagedkv.conformance.recordings.recording import recording
from pagedkv.conformance.recordings.stage import MakeStage, Stage, hits_in
from pagedkv.reference.errors import InsufficientBlocksError
from pagedkv.reference.events import Cleaned, Closed, DiskOpened, Stepped
from pagedkv.reference.media import Media
from pagedkv.reference.metrics import PrefixCacheHits


@recording("POOL-7 REL-3 STEP-5 TIER-1 XFER-1 XFER-3 TIER-10")
def offloads_that_linger(make: MakeStage) -> Stage:
    """Pages of a request that is gone are not taken while their offload still reads them, and
    cannot be hit in host memory before it has landed."""
    stage = make(total_num_pages=4, host_pages=8)
    ctx = stage.admit("first", stage.prompt(3))
    stage.forward(ctx)
    stage.release(ctx)
    hit = stage.admit("hits the device", stage.prompt(3))
    stage.release(hit)
    small = stage.admit("gets the page that is left", range(50, 53))
    stage.land(target="host")
    stage.release(small)
    stage.serve("takes them all", stage.prompt(3, start=50))
    stage.serve("first again", stage.prompt(3))
    assert hits_in(stage)[-1] == PrefixCacheHits(host_blocks=3)
    return stage


@recording("ALLOC-4 ALLOC-6 ALLOC-13 TIER-2 TIER-4 XFER-1 XFER-3 STEP-5")
def loads_that_are_joined(make: MakeStage) -> Stage:
    """A prefix is loaded from host memory; a second request joins the load, a third is served from
    two tiers; each waits for what it needs and no longer."""
    stage = make(total_num_pages=10, host_pages=16)
    stage.serve("writer", stage.prompt(3))
    stage.serve("filler", range(100, 140))
    first = stage.claim("first", stage.prompt(2))
    stage.begin(first)
    second = stage.claim("second", stage.prompt(3))
    stage.begin(second)
    joined, own = stage.in_flight(source="host")
    stage.manager.land(own)
    stage.manager.land(joined)
    stage.finish(first)
    stage.finish(second)
    stage.forward(first, second)
    stage.release(first, second)
    stage.land()
    assert hits_in(stage)[-2:] == [PrefixCacheHits(host_blocks=2), PrefixCacheHits(host_blocks=3)]
    return stage


@recording("XFER-8 ALLOC-6 ALLOC-13 REL-3")
def loads_that_are_submitted(make: MakeStage) -> Stage:
    """Allocations return before their loads have landed; one request is gone before that, another
    has joined, and another replica does not copy what is still on its way."""
    stage = make(total_num_pages=10, host_pages=16, replicas=2)
    stage.serve("writer", stage.prompt(3))
    stage.serve("filler", range(100, 140))
    first, second = (stage.claim(name, stage.prompt(3)) for name in ("first", "second"))
    stage.begin(first)
    stage.begin(second)
    for load in stage.in_flight(source="host"):
        stage.manager.submit(load)
    stage.finish(first)
    stage.forward(first)
    stage.release(first)
    stage.finish(second)
    elsewhere = stage.claim("elsewhere", stage.prompt(3), 1)
    stage.begin(elsewhere)
    stage.forward(second)
    stage.land()
    stage.finish(elsewhere)
    stage.forward(second, elsewhere)
    stage.release(second, elsewhere)
    stage.land()
    assert hits_in(stage)[-3:] == [PrefixCacheHits(host_blocks=3)] * 3
    return stage


@recording("XFER-5 ALLOC-6")
def overtaken_load(make: MakeStage) -> Stage:
    """While a load is under way, a request that has computed the same commits it; what lands later
    changes nothing."""
    stage = make(total_num_pages=8, host_pages=8)
    early = stage.admit("early", stage.prompt(2))
    stage.serve("writer", stage.prompt(2))
    stage.serve("filler", range(100, 120))
    loading = stage.claim("loading", stage.prompt(2))
    stage.begin(loading)
    stage.forward(early)
    stage.land()
    stage.finish(loading)
    stage.forward(loading)
    stage.release(early, loading)
    stage.serve("later", stage.prompt(2))
    return stage


@recording("TIER-1 TIER-2 TIER-4 TIER-9 XFER-3 TIER-10")
def three_tiers(make: MakeStage) -> Stage:
    """What does not fit into host memory is on disk; what is read from there gets a host slot
    again, and blocks without room are dropped with all that follow them."""
    stage = make(total_num_pages=6, host_pages=3, disk_pages=6)
    for start in (0, 100, 200):
        stage.serve(f"writer {start}", stage.prompt(2, start))
    stage.serve("reader", stage.prompt(2))
    stage.serve("longer than host memory", stage.prompt(4, start=300))
    stage.serve("once more", stage.prompt(4, start=300))
    stage.serve("reader again", stage.prompt(2, start=100))
    assert any(hits.disk_blocks for hits in hits_in(stage))
    return stage


@recording("ALLOC-15 TIER-11 TIER-6")
def waiting_for_a_turn(make: MakeStage) -> Stage:
    """The device is full, and the prefix of a request that waits is read from disk meanwhile. That
    request gets pages before the prefix is there, and does not wait for it; the next one hits it in
    host memory. Another prefetch fails, and takes what it was to read with it."""
    stage = make(total_num_pages=4, host_pages=2, disk_pages=8)
    for start in (0, 100):
        stage.serve(f"writer {start}", stage.prompt(2, start))
    running = stage.admit("running", stage.prompt(3, start=200))
    waiting = stage.claim("waiting", stage.prompt(2))
    with suppress(InsufficientBlocksError):
        stage.begin(waiting, hit_limit=1)
    stage.manager.prefetch(waiting)
    stage.release(running)
    stage.begin(waiting, hit_limit=0)
    stage.finish(waiting)
    stage.release(waiting)
    stage.land()
    stage.serve("served by host memory", stage.prompt(2))
    for _ in range(2):
        stage.manager.prefetch(stage.context("only asks", stage.prompt(2, start=100)))
        for _ in stage.in_flight(target="host"):
            stage.fail("io_error")
    stage.serve("computed again", stage.prompt(2, start=100))
    assert hits_in(stage)[-3:] == [
        PrefixCacheHits(),
        PrefixCacheHits(host_blocks=2),
        PrefixCacheHits(),
    ]
    return stage


@recording("NS-4 TIER-2 TIER-4")
def warm_disk(make: MakeStage) -> Stage:
    """After a restart the disk has what had landed, oldest first; that is also the order in which
    it gives it up."""
    media = Media()
    tiers: dict[str, Any] = {"host_pages": 4, "disk_pages": 4, "media": media}
    before = make(**tiers, model_fingerprint="weights")
    before.serve("older", before.prompt(2))
    before.serve("newer", before.prompt(2, start=100))
    before.manager.shutdown()
    stage = make(**tiers, model_fingerprint="weights")
    assert isinstance(stage.events[0], DiskOpened) and len(stage.events[0].keys) == 4
    stage.serve("older again", stage.prompt(2))
    stage.serve("something else", stage.prompt(2, start=200))
    stage.serve("newer again", stage.prompt(2, start=100))
    assert [hits.disk_blocks for hits in hits_in(stage)] == [2, 0, 0]
    return stage


@recording("NS-2 NS-4")
def cold_disk(make: MakeStage) -> Stage:
    """Without a name for the weights, nobody can say whose blocks a disk holds: it starts cold."""
    media = Media()
    before = make(host_pages=4, disk_pages=4, media=media)
    before.serve("before", before.prompt(2))
    before.manager.shutdown()
    stage = make(host_pages=4, disk_pages=4, media=media)
    stage.serve("after", stage.prompt(2))
    assert hits_in(stage) == [PrefixCacheHits()]
    return stage


@recording("TIER-7 CLOSE-1")
def write_back(make: MakeStage) -> Stage:
    """Committed pages stay dirty until they are cleaned, and are not evicted before; what is dirty
    at the end is written."""
    stage = make(total_num_pages=6, host_pages=8, write_policy="write_back")
    stage.serve("first", stage.prompt(2))
    stage.serve("second", stage.prompt(2, start=100))
    large = stage.claim("large", stage.prompt(3, start=200))
    stage.manager.clean(0, 1)
    stage.fail("timeout", target="host")
    stage.manager.clean(0, 1)
    stage.land()
    stage.alloc(large)
    stage.forward(large)
    stage.manager.shutdown()
    assert sum(isinstance(event, Cleaned) for event in stage.events) == 7
    assert isinstance(stage.events[-1], Closed)
    return stage


@recording("TIER-8")
def second_use(make: MakeStage) -> Stage:
    """Under `reuse`, a block is offloaded when it is used for the second time."""
    stage = make(host_pages=8, write_policy="reuse")
    for name in ("first", "second", "third"):
        stage.serve(name, stage.prompt(2))
    offloaded = [len(event.issued) for event in stage.events if isinstance(event, Stepped)]
    assert offloaded == [0, 1, 0]
    return stage


@recording("TIER-8 TIER-9")
def write_budget(make: MakeStage) -> Stage:
    """The disk takes no more than its budget; a write that fails has spent its share, and the next
    day brings a new budget."""
    stage = make(host_pages=12, disk_pages=12, disk_writes_per_day=3)
    ctx = stage.admit("first", stage.prompt(2))
    stage.forward(ctx)
    stage.land(target="host")
    stage.fail("io_error", target="disk")
    stage.release(ctx)
    stage.serve("second", stage.prompt(2, start=100))
    stage.manager.renew_write_budget()
    stage.serve("second again", stage.prompt(3, start=100))
    return stage


@recording("XFER-6 ALLOC-4 STEP-5 METRIC-5")
def synchronous(make: MakeStage) -> Stage:
    """A manager whose transfers land by themselves at the end of each call; its counters are reset
    in between, which changes nothing else."""
    stage = make(total_num_pages=5, host_pages=4, disk_pages=8, auto_land=True)
    for n, start in enumerate((0, 100, 0, 200, 100)):
        ctx = stage.claim(f"request {n}", stage.prompt(2, start))
        stage.manager.alloc(ctx, 0)
        stage.forward(ctx)
        stage.release(ctx)
        stage.manager.reset_metrics()
    stage.manager.shutdown()
    return stage
