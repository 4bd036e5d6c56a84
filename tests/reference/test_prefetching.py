"""Loading what a waiting request could hit into host memory: rule TIER-11."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.reference.conftest import DISK, STORE, Making, Recorder, prompt

from pagedkv.reference import (
    FailReason,
    InsufficientBlocksError,
    KVLoadFailed,
    ManagerClosedError,
    Media,
    PagedKVCacheManager,
    PrefixCacheHits,
)
from pagedkv.reference.events import Prefetched
from pagedkv.reference.tiers import Block

NAMED: dict[str, Any] = {"model_fingerprint": "weights"}
"""Makes what is on disk and in a store outlive the manager."""

TIERS: dict[str, dict[str, Any]] = {"disk": {"disk_pages": 16}, "store": {"store": STORE}}
"""Options of managers with one tier below host memory, by its name."""

every_slow_tier = pytest.mark.parametrize("tier", TIERS)


# The options of a manager's parameters are passed through.
def having_stored(
    make: Making,
    *prompts: range,
    host_pages: int = 8,
    pages: int = 8,
    media: Media | None = None,
    tracer: Recorder | None = None,
    policy: str = "through",
    **options: Any,
) -> PagedKVCacheManager:
    """A manager that finds ``prompts`` below host memory, where another one has left them."""
    media = media or Media()
    tiers = {name: options[name] for name in ("disk_pages", "store") if name in options}
    first = make.manager(
        make.tiered_params(extras=NAMED, **tiers), pages=16, host_pages=16, media=media
    )
    for tokens in prompts:
        make.serve(first, tokens)
    first.shutdown()
    extras = NAMED | {"write_policy": policy}
    return make.manager(
        make.isolated_params(extras=extras, **options),
        pages=pages,
        host_pages=host_pages,
        media=media,
        tracer=tracer,
        auto_land=False,
    )


def prefetch(make: Making, manager: PagedKVCacheManager, tokens: range) -> list[str]:
    return manager.prefetch(make.context(tokens))


def blocks_on_disk(media: Media) -> list[Block]:
    """Root first, because recency is leaf first (TIER-4)."""
    return list(reversed(media.disks[DISK].blocks.values()))


# --- what is loaded, and what is not --------------------------------------------------------------


@pytest.mark.rule("TIER-11", "TIER-1")
@every_slow_tier
def test_what_a_request_could_hit_is_in_host_memory_once_it_has_landed(
    make: Making, tier: str
) -> None:
    manager = having_stored(make, prompt(3), **TIERS[tier])
    (issued,) = prefetch(make, manager, prompt(3))
    (transfer,) = manager.in_flight()
    assert (transfer.id, transfer.kind) == (issued, "onload")
    assert (transfer.source, transfer.target, transfer.replica) == (tier, "host", None)
    assert len(transfer.keys) == manager.get_num_used_host_pages(0) == 3
    assert make.hits_below(manager, prompt(3)).host_blocks == 0
    make.land_all(manager)
    assert make.hits_below(manager, prompt(3)) == PrefixCacheHits(host_blocks=3)


@pytest.mark.rule("TIER-11", "TIER-3")
@every_slow_tier
def test_what_was_prefetched_has_the_bytes_that_were_stored(make: Making, tier: str) -> None:
    media = Media()
    first = make.manager(make.tiered_params(extras=NAMED, **TIERS[tier]), host_pages=4, media=media)
    ctx = make.admit(first, prompt(2))
    (memory,) = first.get_device_buffer(0).to_memory()
    memory.buffer[:] = torch.randint(256, memory.buffer.shape, dtype=torch.uint8)
    written = memory.buffer[first.get_req_blocks(ctx.request_id, 0)[:2]].tolist()
    make.forward(first, ctx)
    first.shutdown()

    manager = having_stored(make, media=media, **TIERS[tier])
    prefetch(make, manager, prompt(2))
    make.land_all(manager)
    loading, plan = make.begin(manager, prompt(2))
    make.land_all(manager)
    manager.finish_alloc(loading, 0)
    (memory,) = manager.get_device_buffer(0).to_memory()
    assert plan.hit_counts == PrefixCacheHits(host_blocks=2)
    assert memory.buffer[list(plan.pages[:2])].tolist() == written


@pytest.mark.rule("TIER-11")
@every_slow_tier
def test_nothing_is_claimed_and_no_page_of_a_device_is_used(make: Making, tier: str) -> None:
    manager = having_stored(make, prompt(3), pages=4, **TIERS[tier])
    ctx = make.context(prompt(3))
    manager.prefetch(ctx)
    assert not manager.contains(ctx.request_id, 0)
    assert [manager.num_free_blocks(replica) for replica in range(3)] == [4, 4, 4]
    assert not any(manager.pending_transfers_exist(replica) for replica in range(3))
    assert (ctx.tokens.processed_length, ctx.cached_prefix_length) == (0, None)


@pytest.mark.rule("TIER-11", "ALLOC-5")
def test_what_no_hit_may_use_is_not_prefetched(make: Making) -> None:
    manager = having_stored(make, prompt(3), disk_pages=8)
    assert prefetch(make, manager, range(12)) != []
    assert manager.get_num_used_host_pages(0) == 2, "a token of the third page has to be computed"
    chunked = make.context(prompt(3))
    chunked.chunk(1)
    assert manager.prefetch(chunked) == []


@pytest.mark.rule("TIER-11", "ALLOC-4")
def test_nothing_after_the_first_gap_is_prefetched(make: Making) -> None:
    media = Media()
    having_stored(make, prompt(3), disk_pages=8, media=media)
    del media.disks[DISK].blocks[blocks_on_disk(media)[1].name]
    manager = having_stored(make, disk_pages=8, media=media)
    prefetch(make, manager, prompt(3))
    assert manager.get_num_used_host_pages(0) == 1


@pytest.mark.rule("TIER-11")
def test_what_is_in_host_memory_or_on_its_way_there_is_left_alone(make: Making) -> None:
    manager = having_stored(make, prompt(3), disk_pages=8)
    assert len(prefetch(make, manager, prompt(2))) == 1
    (second,) = prefetch(make, manager, prompt(3))
    assert [len(transfer.keys) for transfer in manager.in_flight()] == [2, 1]
    assert prefetch(make, manager, prompt(3)) == []
    make.land_all(manager)
    assert prefetch(make, manager, prompt(3)) == []
    assert second not in [transfer.id for transfer in manager.in_flight()]


@pytest.mark.rule("TIER-11")
@pytest.mark.parametrize("landed", [False, True])
def test_what_is_on_a_device_or_on_its_way_there_is_left_alone(make: Making, landed: bool) -> None:
    manager = having_stored(make, prompt(2), prompt(2, 100), disk_pages=8, host_pages=2)
    (busy,) = prefetch(make, manager, prompt(2, 100))
    make.begin(manager, prompt(2), 1)
    manager.land(busy)
    if landed:
        make.land_all(manager)
    assert make.hits_below(manager, prompt(2)) == PrefixCacheHits(disk_blocks=2)
    assert prefetch(make, manager, prompt(2)) == []


@pytest.mark.rule("TIER-11", "TIER-9")
def test_a_block_whose_parent_is_on_a_device_alone_is_out_of_reach_for_host_memory(
    make: Making,
) -> None:
    manager = having_stored(make, prompt(1), prompt(1, 100), disk_pages=8, host_pages=1)
    loading, _ = make.begin(manager, prompt(1))
    make.land_all(manager)
    manager.finish_alloc(loading, 0)
    prefetch(make, manager, prompt(1, 100))
    make.land_all(manager)
    assert make.hits_below(manager, prompt(1)) == PrefixCacheHits(disk_blocks=1)
    make.forward(manager, loading)
    assert prefetch(make, manager, prompt(1)) == []


@pytest.mark.rule("TIER-11", "FAIL-2")
def test_what_only_a_failed_device_has_besides_is_prefetched(make: Making) -> None:
    manager = having_stored(make, prompt(2), disk_pages=8, host_pages=4, pages=4)
    loading, plan = make.begin(manager, prompt(2))
    for transfer in plan.transfers:
        manager.land(transfer)
    manager.finish_alloc(loading, 0)
    for start in (100, 200):  # They take the host slots from it.
        make.serve(manager, prompt(2, start), 1)
        make.land_all(manager)
    assert make.hits_below(manager, prompt(2)) == PrefixCacheHits(disk_blocks=2)
    assert prefetch(make, manager, prompt(2)) == []
    manager.poison(0, "fell off the bus")
    assert len(prefetch(make, manager, prompt(2))) == 1


@pytest.mark.rule("TIER-11", "DRAFT-1")
def test_where_drafts_look_ahead_the_last_block_is_not_prefetched(make: Making) -> None:
    params = make.tiered_params(disk_pages=8, speculative_method="eagle", num_draft_tokens=1)
    manager = make.manager(params, pages=4, host_pages=3)
    for start in (0, 100):
        make.serve(manager, prompt(3, start))
    assert make.hits(manager, prompt(3)) == PrefixCacheHits(disk_blocks=2)
    prefetch(make, manager, prompt(3))
    assert make.hits(manager, prompt(3)) == PrefixCacheHits(host_blocks=2)
    assert manager.get_metrics_aggregated().disk_blocks_read == 2


@pytest.mark.rule("TIER-11")
def test_without_host_memory_there_is_nothing_to_prefetch_into(make: Making) -> None:
    manager = having_stored(make, prompt(2), store=STORE, host_pages=0)
    assert make.hits_below(manager, prompt(2)) == PrefixCacheHits(store_blocks=2)
    assert prefetch(make, manager, prompt(2)) == []
    assert prefetch(make, make.manager(), prompt(2)) == []


@pytest.mark.rule("TIER-11")
def test_without_prefix_caching_nothing_is_prefetched(make: Making) -> None:
    manager = make.manager(make.params(enable_prefix_caching=False))
    assert prefetch(make, manager, prompt(2)) == []


# --- slots ----------------------------------------------------------------------------------------


@pytest.mark.rule("TIER-11", "TIER-9")
@every_slow_tier
@given(host_pages=st.integers(1, 5), blocks=st.integers(1, 5))
def test_slots_run_out_root_first(tier: str, host_pages: int, blocks: int) -> None:
    make = Making()
    manager = having_stored(make, prompt(blocks), host_pages=host_pages, **TIERS[tier])
    prefetch(make, manager, prompt(blocks))
    make.land_all(manager)
    loaded = min(host_pages, blocks)
    assert make.hits_below(manager, prompt(loaded)) == PrefixCacheHits(host_blocks=loaded)
    assert manager.get_num_used_host_pages(0) == loaded


@pytest.mark.rule("TIER-11")
def test_blocks_that_find_no_slot_are_not_pinned(make: Making) -> None:
    manager = having_stored(make, prompt(3), disk_pages=3, host_pages=1)
    (transfer,) = prefetch(make, manager, prompt(3))
    on_disk = manager.snapshot().tiers["disk"].blocks
    assert sorted(block.used_by for block in on_disk) == [(), (), (transfer,)]


@pytest.mark.rule("TIER-11", "TIER-4")
def test_the_oldest_make_room_but_never_the_chain_itself(make: Making) -> None:
    manager = having_stored(make, prompt(3), disk_pages=8, host_pages=3)
    make.serve(manager, prompt(1, 100))
    make.land_all(manager)
    prefetch(make, manager, prompt(2))
    make.land_all(manager)
    prefetch(make, manager, prompt(3))
    make.land_all(manager)
    assert make.hits_below(manager, prompt(3)) == PrefixCacheHits(host_blocks=3)
    assert make.hits_below(manager, prompt(1, 100)).host_blocks == 0


@pytest.mark.rule("TIER-11", "XFER-1")
def test_a_slot_in_use_makes_no_room(make: Making) -> None:
    manager = having_stored(make, prompt(1), prompt(1, 100), disk_pages=8, host_pages=1)
    assert len(prefetch(make, manager, prompt(1))) == 1
    assert prefetch(make, manager, prompt(1, 100)) == []
    make.land_all(manager)
    assert len(prefetch(make, manager, prompt(1, 100))) == 1


@pytest.mark.rule("TIER-11")
@pytest.mark.parametrize("policy", ["through", "write_back"])
@pytest.mark.parametrize("host_pages", [1, 2, 3])
def test_slots_run_out_root_first_where_tiers_alternate(
    make: Making, policy: str, host_pages: int
) -> None:
    media = Media()
    tiers: dict[str, Any] = {"disk_pages": 8, "store": STORE}
    having_stored(make, prompt(3), media=media, **tiers)
    del media.disks[DISK].blocks[blocks_on_disk(media)[1].name]
    manager = having_stored(make, media=media, host_pages=host_pages, policy=policy, **tiers)
    assert make.hits_below(manager, prompt(3)) == PrefixCacheHits(disk_blocks=2, store_blocks=1)
    prefetch(make, manager, prompt(3))
    make.land_all(manager)
    hits = make.hits_below(manager, prompt(host_pages))
    assert hits == PrefixCacheHits(host_blocks=host_pages)


@pytest.mark.rule("TIER-11", "TIER-7")
@every_slow_tier
def test_under_write_back_it_is_the_same(make: Making, tier: str) -> None:
    manager = having_stored(make, prompt(2), policy="write_back", **TIERS[tier])
    prefetch(make, manager, prompt(2))
    make.land_all(manager)
    assert make.hits_below(manager, prompt(2)) == PrefixCacheHits(host_blocks=2)
    assert manager.clean(0, 9) == []


@pytest.mark.rule("TIER-11", "TIER-2")
def test_what_comes_from_a_store_is_written_to_disk_when_it_lands(make: Making) -> None:
    media = Media()
    having_stored(make, prompt(2), store=STORE, media=media)
    manager = having_stored(make, disk_pages=8, store=STORE, media=media)
    (transfer,) = prefetch(make, manager, prompt(2))
    manager.land(transfer)
    (write,) = manager.in_flight()
    assert (write.kind, write.source, write.target) == ("write", "host", "disk")


# --- recency --------------------------------------------------------------------------------------


@pytest.mark.rule("TIER-11", "TIER-4")
def test_it_renews_what_is_there_already(make: Making) -> None:
    manager = make.manager(make.isolated_params(), host_pages=2, auto_land=False)
    for start in (0, 100):
        make.serve(manager, prompt(1, start))
        make.land_all(manager)
    assert prefetch(make, manager, prompt(1)) == []
    make.serve(manager, prompt(1, 200))
    make.land_all(manager)
    assert make.hits_below(manager, prompt(1)).host_blocks == 1
    assert make.hits_below(manager, prompt(1, 100)).host_blocks == 0


@pytest.mark.rule("TIER-11", "TIER-4")
def test_it_renews_what_it_reads(make: Making) -> None:
    manager = having_stored(make, prompt(1), prompt(1, 100), disk_pages=2, host_pages=1)
    prefetch(make, manager, prompt(1))
    make.land_all(manager)
    make.serve(manager, prompt(1, 200))
    make.land_all(manager)
    assert make.hits_below(manager, prompt(1)) == PrefixCacheHits(disk_blocks=1)
    assert make.hits_below(manager, prompt(1, 100)).total_blocks == 0


@pytest.mark.rule("TIER-11", "TIER-4")
def test_what_it_loads_is_lost_leaf_first(make: Making) -> None:
    manager = having_stored(make, prompt(3), disk_pages=8, host_pages=3)
    prefetch(make, manager, prompt(3))
    make.land_all(manager)
    make.serve(manager, prompt(1, 100))
    make.land_all(manager)
    assert make.hits_below(manager, prompt(3)) == PrefixCacheHits(host_blocks=2, disk_blocks=1)


# --- together with an allocation ------------------------------------------------------------------


@pytest.mark.rule("TIER-11", "ALLOC-4")
@every_slow_tier
@pytest.mark.parametrize("landed", [False, True])
def test_an_allocation_hits_host_memory_after_the_landing_and_the_tier_itself_before(
    make: Making, tier: str, landed: bool
) -> None:
    manager = having_stored(make, prompt(2), **TIERS[tier])
    prefetch(make, manager, prompt(2))
    if landed:
        make.land_all(manager)
    ctx, plan = make.begin(manager, prompt(2))
    assert plan.hit_counts == PrefixCacheHits(**{f"{'host' if landed else tier}_blocks": 2})
    make.land_all(manager)
    manager.finish_alloc(ctx, 0)
    assert ctx.cached_prefix_length == 8
    assert manager.get_num_used_host_pages(0) == 2, "each block has one slot"


@pytest.mark.rule("TIER-11", "TIER-9")
def test_what_an_allocation_has_brought_behind_a_failed_prefetch_is_dropped(make: Making) -> None:
    manager = having_stored(make, prompt(2), disk_pages=8)
    (prefetched,) = prefetch(make, manager, prompt(1))
    ctx, plan = make.begin(manager, prompt(2))
    manager.fail(prefetched, "timeout")
    for transfer in plan.transfers:
        manager.land(transfer)
    assert manager.finish_alloc(ctx, 0).hit_counts == PrefixCacheHits(disk_blocks=2)
    assert manager.get_num_used_host_pages(0) == 0


@pytest.mark.rule("TIER-11", "METRIC-2", "METRIC-1")
@every_slow_tier
def test_a_prefetch_counts_as_read_and_not_as_copied_to_a_device(make: Making, tier: str) -> None:
    manager = having_stored(make, prompt(2), **TIERS[tier])
    read = f"{tier}_blocks_read"
    prefetch(make, manager, prompt(2))
    metrics = manager.get_metrics_aggregated()
    assert (getattr(metrics, read), metrics.inflight_disk_ops) == (0, int(tier == "disk"))
    make.land_all(manager)
    metrics = manager.get_metrics_aggregated()
    assert (getattr(metrics, read), metrics.h2d_blocks_copied, metrics.cache_tokens) == (2, 0, 0)
    ctx, _ = make.begin(manager, prompt(2))
    make.land_all(manager)
    manager.finish_alloc(ctx, 0)
    metrics = manager.get_metrics_aggregated()
    assert (getattr(metrics, read), metrics.h2d_blocks_copied) == (2, 2)
    assert (metrics.host_blocks_served, metrics.cache_tokens) == (2, 8)


@pytest.mark.rule("TIER-11", "POOL-2")
def test_it_goes_on_while_the_device_is_full(make: Making) -> None:
    manager = having_stored(make, prompt(2), disk_pages=8, pages=3)
    running, _ = make.begin(manager, prompt(2, 100))
    waiting = make.context(prompt(2))
    manager.claim(waiting.request_id, 0)
    with pytest.raises(InsufficientBlocksError):
        manager.begin_alloc(waiting, 0)
    manager.prefetch(waiting)
    make.land_all(manager)
    manager.release(running.request_id, 0)
    assert manager.begin_alloc(waiting, 0).hit_counts == PrefixCacheHits(host_blocks=2)


# --- failures, resets and the end -----------------------------------------------------------------


@pytest.mark.rule("TIER-11", "TIER-6", "XFER-4")
@every_slow_tier
@pytest.mark.parametrize(
    ("reason", "given_up_by"),
    [
        ("io_error", {"disk"}),
        ("missing", {"disk"}),
        ("corrupt", {"disk", "store"}),
        ("timeout", set[str]()),
        ("unavailable", set[str]()),
        ("no_space", set[str]()),
    ],
)
def test_a_failed_prefetch_gives_its_slots_back_and_its_source_what_was_at_fault(
    make: Making, tier: str, reason: FailReason, given_up_by: set[str]
) -> None:
    manager = having_stored(make, prompt(2), **TIERS[tier])
    (transfer,) = prefetch(make, manager, prompt(2))
    (root, _) = manager.in_flight()[0].keys
    manager.fail(transfer, reason, [root])
    assert manager.get_num_used_host_pages(0) == 0
    assert manager.get_metrics_aggregated().load_blocks_failed == 1
    assert make.hits_below(manager, prompt(2)).total_blocks == (0 if tier in given_up_by else 2)


@pytest.mark.rule("TIER-11", "ALLOC-11")
def test_a_failed_prefetch_fails_nobody(make: Making) -> None:
    manager = having_stored(make, prompt(2), disk_pages=8)
    (prefetched,) = prefetch(make, manager, prompt(2))
    ctx, _ = make.begin(manager, prompt(2))
    manager.fail(prefetched, "timeout")
    make.land_all(manager)
    assert manager.finish_alloc(ctx, 0).hit_counts == PrefixCacheHits(disk_blocks=2)


@pytest.mark.rule("TIER-11", "TIER-5")
@every_slow_tier
def test_damaged_blocks_are_found_out_and_deleted(make: Making, tier: str) -> None:
    media = Media()
    manager = having_stored(make, prompt(2), media=media, **TIERS[tier])
    blocks = media.disks[DISK].blocks if tier == "disk" else media.stores[STORE]
    for block in blocks.values():
        assert block.content is not None
        block.content[0][0] ^= 1
    prefetch(make, manager, prompt(2))
    make.land_all(manager)
    assert make.hits_below(manager, prompt(2)).total_blocks == 0
    assert manager.get_num_used_host_pages(0) == len(blocks) == 0
    assert manager.get_metrics_aggregated().load_blocks_failed == 2


@pytest.mark.rule("TIER-11", "METRIC-6")
def test_what_a_failed_prefetch_has_lost_is_missed_as_failed(make: Making) -> None:
    manager = having_stored(make, prompt(2), disk_pages=8)
    (transfer,) = prefetch(make, manager, prompt(2))
    manager.fail(transfer, "io_error")
    ctx, _ = make.begin(manager, prompt(2))
    manager.finish_alloc(ctx, 0)
    assert manager.get_metrics_aggregated().missed_blocks_failed == 2


@pytest.mark.rule("TIER-11", "RESET-2", "RESET-3")
@every_slow_tier
def test_a_prefetch_that_a_reset_has_fenced_shows_nothing_and_keeps_its_slots_till_it_lands(
    make: Making, tier: str
) -> None:
    manager = having_stored(make, prompt(2), **TIERS[tier])
    prefetch(make, manager, prompt(2))
    manager.reset_prefix_cache()
    assert manager.get_num_used_host_pages(0) == 2
    make.land_all(manager)
    assert manager.get_num_used_host_pages(0) == 0
    assert make.hits_below(manager, prompt(2)).total_blocks == 0


@pytest.mark.rule("TIER-11", "CLOSE-1")
def test_shutdown_lands_it_and_refuses_the_next(make: Making) -> None:
    manager = having_stored(make, prompt(2), disk_pages=8)
    prefetch(make, manager, prompt(2))
    manager.shutdown()
    with pytest.raises(ManagerClosedError):
        prefetch(make, manager, prompt(2))


@pytest.mark.rule("TIER-11", "STORE-4")
def test_further_stores_are_asked_too(make: Making) -> None:
    media = Media()
    having_stored(make, prompt(2), store="store:2", media=media)
    manager = having_stored(make, store=STORE, media=media)
    assert prefetch(make, manager, prompt(2)) == []
    ctx = make.context(prompt(2), external_block_metadata={"endpoints": ["store:2"]})
    assert len(manager.prefetch(ctx)) == 1
    make.land_all(manager)
    assert make.hits_below(manager, prompt(2)) == PrefixCacheHits(host_blocks=2)


# --- events ---------------------------------------------------------------------------------------


@pytest.mark.rule("TIER-11", "EVENT-2", "STORE-4")
@every_slow_tier
def test_its_event_says_whose_prefix_it_was_and_what_was_issued(
    make: Making, recorder: Recorder, tier: str
) -> None:
    manager = having_stored(make, prompt(2), tracer=recorder, **TIERS[tier])
    ctx = make.context(prompt(2), request_id="waits", cache_salt=None)
    issued = manager.prefetch(ctx)
    (event,) = recorder.of_kind(Prefetched)
    assert event.request_id == "waits"
    assert (event.context.length, event.context.processed) == (9, 0)
    assert [transfer.transfer for transfer in event.issued] == issued
    assert [(t.source, t.target, t.pages) for t in event.issued] == [(tier, "host", ())]
    assert event.issued[0].keys == event.context.keys


@pytest.mark.rule("TIER-11", "EVENT-1")
def test_a_prefetch_that_only_renews_is_reported_too(make: Making, recorder: Recorder) -> None:
    manager = make.manager(make.tiered_params(), host_pages=4, tracer=recorder)
    make.serve(manager, prompt(1))
    prefetch(make, manager, prompt(1))
    (event,) = recorder.of_kind(Prefetched)
    assert event.issued == ()


@pytest.mark.rule("TIER-11", "ALLOC-11")
def test_a_request_that_a_tier_has_failed_may_still_prefetch_from_it(make: Making) -> None:
    manager = having_stored(make, prompt(2), disk_pages=8)
    ctx, plan = make.begin(manager, prompt(2))
    for transfer in plan.transfers:
        manager.fail(transfer, "timeout")
    with pytest.raises(KVLoadFailed):
        manager.finish_alloc(ctx, 0)
    assert len(manager.prefetch(ctx)) == 1
    make.land_all(manager)
    assert manager.begin_alloc(ctx, 0).hit_counts == PrefixCacheHits(host_blocks=2)
