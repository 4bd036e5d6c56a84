"""What is shared: between replicas, and with other managers through a block store."""

from contextlib import suppress
from typing import Any

from pagedkv.conformance.recordings.recording import recording
from pagedkv.conformance.recordings.stage import MakeStage, Stage, hits_in
from pagedkv.reference.errors import KVLoadFailed
from pagedkv.reference.events import StoreAnswered
from pagedkv.reference.media import Media
from pagedkv.reference.metrics import PrefixCacheHits


@recording("ALLOC-10 ALLOC-6 ALLOC-11 XFER-4")
def replicas(make: MakeStage) -> Stage:
    """A prefix on another replica is copied from there; if the copy fails, host memory serves, and
    a replica that has its own copy is not asked for another's."""
    stage = make(replicas=3, host_pages=8)
    stage.serve("writer", stage.prompt(3))
    reader = stage.claim("reader", stage.prompt(3), replica=1)
    stage.begin(reader)
    twin = stage.claim("twin", stage.prompt(2), replica=1)
    stage.begin(twin)
    stage.land(source="peer")
    stage.finish(twin)
    stage.finish(reader)
    unlucky = stage.claim("unlucky", stage.prompt(3), replica=2)
    for _ in range(2):
        stage.begin(unlucky)
        stage.fail("unavailable", source="peer")
        with suppress(KVLoadFailed):
            stage.finish(unlucky)
    stage.alloc(unlucky)
    stage.forward(reader, twin, unlucky)
    stage.release(reader, twin, unlucky)
    assert hits_in(stage)[-1] == PrefixCacheHits(host_blocks=3)
    return stage


@recording("ALLOC-10 TIER-10")
def replicas_apart(make: MakeStage) -> Stage:
    """With copies between replicas switched off, they meet in host memory."""
    stage = make(replicas=2, host_pages=8, enable_dp_cross_replica_prefix_copy=False)
    stage.serve("writer", stage.prompt(2))
    stage.serve("reader", stage.prompt(2), replica=1)
    assert hits_in(stage)[-1] == PrefixCacheHits(host_blocks=2)
    return stage


@recording("STORE-2 STORE-3 EVENT-5 TIER-6 TIER-10")
def block_store(make: MakeStage) -> Stage:
    """Another manager has put blocks into the store: it answers that they are there, and later that
    one of them is gone. What was only slow is still there; what is damaged is deleted."""
    media = Media()
    shared: dict[str, Any] = {"store": True, "model_fingerprint": "weights", "media": media}
    other, stage = make(**shared), make(**shared)
    other.serve("theirs", other.prompt(3))
    slow = stage.claim("slow", stage.prompt(3))
    stage.begin(slow)
    stage.fail("timeout", source="store")
    stage.settle(slow)
    stage.release(slow)
    stage.serve("reader", stage.prompt(3))
    stage.serve("filler", stage.prompt(7, start=100))
    unlucky = stage.claim("unlucky", stage.prompt(3))
    (load,) = stage.begin(unlucky).transfers
    keys = next(t.keys for t in stage.manager.in_flight() if t.id == load)
    stage.manager.fail(load, "corrupt", keys[1:2])
    stage.settle(unlucky)
    stage.release(unlucky)
    damaged = other.claim("finds it damaged", other.prompt(3))
    other.serve("filler", other.prompt(7, start=200))
    other.begin(damaged)
    other.fail("corrupt", source="store", keys=keys[:1])
    stage.serve("another filler", stage.prompt(7, start=100))
    stage.serve("finds less", stage.prompt(3))
    answers = [event for event in stage.events if isinstance(event, StoreAnswered)]
    assert [(len(a.found), len(a.missing)) for a in answers] == [(3, 0), (0, 1)]
    return stage


@recording("RESET-4 STORE-2 TIER-2 TIER-10")
def store_behind_tiers(make: MakeStage) -> Stage:
    """A store behind host memory and disk gets what they get; after a reset, what it holds from
    before is not found any more."""
    stage = make(total_num_pages=4, host_pages=2, disk_pages=2, store=True)
    stage.serve("writer", stage.prompt(2))
    for n in range(2):
        stage.serve(f"filler {n}", stage.prompt(3, start=100 * n + 100))
    stage.serve("reader", stage.prompt(2))
    assert hits_in(stage)[-1].store_blocks
    stage.manager.reset_prefix_cache()
    stage.serve("after", stage.prompt(2))
    assert hits_in(stage)[-1] == PrefixCacheHits()
    return stage


@recording("STORE-4 EVENT-5")
def further_stores(make: MakeStage) -> Stage:
    """A request names another store to ask after the manager's own; the next one does not."""
    media = Media()
    shared: dict[str, Any] = {"store": True, "model_fingerprint": "weights", "media": media}
    far = make(**shared, store_endpoint="far away")
    for start in (0, 100):
        far.serve(f"theirs {start}", far.prompt(3, start))
    near, stage = make(**shared), make(**shared)
    near.serve("theirs", near.prompt(1))
    elsewhere = {"endpoints": ["far away"]}
    stage.serve("asks far away", stage.prompt(3), external_block_metadata=elsewhere)
    stage.serve("asks nobody else", stage.prompt(3, start=100))
    assert [hits.store_blocks for hits in hits_in(stage)] == [3, 0]
    return stage
