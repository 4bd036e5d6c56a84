"""Host memory, disk and block store below the devices: rules TIER-1 to TIER-6, TIER-9, TIER-10."""

import dataclasses
from typing import Any, get_args

import pytest
import torch
from tests.reference.conftest import DISK, STORE, Making, prompt

from pagedkv.reference import (
    FailReason,
    KVCacheParamInterface,
    KVCacheQuantizationConfig,
    KVConnectorType,
    KVLoadFailed,
    KVLoadRefused,
    Media,
    MultiKVCacheParams,
    PagedKVCacheManager,
    PrefixCacheHits,
    TierConnector,
)

A, B, C = prompt(1), prompt(1, start=100), prompt(1, start=200)
"""Three prompts of one page each, without a common prefix."""

NAMED: dict[str, Any] = {"extras": {"model_fingerprint": "weights"}}
"""Makes what is on disk and in a store outlive the manager."""


# --- TIER-1: visibility -------------------------------------------------------------------------


@pytest.mark.rule("TIER-1", "XFER-3")
def test_a_block_is_visible_when_all_its_bytes_are_there_and_counts_from_before(
    make: Making,
) -> None:
    manager = make.manager(make.isolated_params(), host_pages=4, auto_land=False)
    make.serve(manager, prompt(2))
    assert make.hits_below(manager, prompt(2)).total_blocks == 0
    assert manager.get_num_used_host_pages(0) == 2
    make.land_all(manager)
    assert make.hits_below(manager, prompt(2)) == PrefixCacheHits(host_blocks=2)
    assert manager.get_num_used_host_pages(0) == 2


@pytest.mark.rule("TIER-1", "TIER-9")
def test_slots_in_flight_count_against_the_capacity(make: Making) -> None:
    manager = make.manager(make.isolated_params(), host_pages=1, auto_land=False)
    for tokens in (A, B):
        make.serve(manager, tokens)
    assert manager.get_num_used_host_pages(0) == 1
    make.land_all(manager)
    assert make.hits_below(manager, A).host_blocks == 1
    assert make.hits_below(manager, B).host_blocks == 0


# --- TIER-2: inclusion --------------------------------------------------------------------------


@pytest.mark.rule("TIER-2", "METRIC-2")
def test_what_lands_in_host_memory_is_written_to_every_tier_below(make: Making) -> None:
    manager = make.manager(make.tiered_params(disk_pages=4, store=STORE), host_pages=4)
    make.serve(manager, prompt(2))
    metrics = manager.get_metrics_aggregated()
    assert metrics.d2h_blocks_copied == 2
    assert metrics.disk_blocks_written == metrics.store_blocks_written == 2


@pytest.mark.rule("TIER-2")
def test_a_tier_that_has_a_block_is_not_written_again(make: Making) -> None:
    manager = make.manager(make.tiered_params(disk_pages=4, store=STORE), host_pages=4)
    for _ in range(2):
        make.serve(manager, prompt(2))
    metrics = manager.get_metrics_aggregated()
    assert metrics.d2h_blocks_copied == 2
    assert metrics.disk_blocks_written == metrics.store_blocks_written == 2


@pytest.mark.rule("TIER-2")
def test_a_disk_hit_gets_a_host_slot(make: Making) -> None:
    manager = make.manager(make.isolated_params(disk_pages=4), host_pages=2)
    for start in (0, 100):
        make.serve(manager, prompt(2, start))
    assert make.hits_below(manager, prompt(2)) == PrefixCacheHits(disk_blocks=2)
    make.admit(manager, prompt(2), replica=1)
    assert make.hits_below(manager, prompt(2)) == PrefixCacheHits(host_blocks=2)


@pytest.mark.rule("TIER-2")
def test_a_store_hit_gets_a_host_slot_and_is_written_to_disk(make: Making) -> None:
    media = Media()
    make.serve(make.manager(make.tiered_params(store=STORE, **NAMED), media=media), prompt(2))
    manager = make.manager(
        make.isolated_params(disk_pages=4, store=STORE, **NAMED), host_pages=4, media=media
    )
    make.admit(manager, prompt(2))
    assert manager.get_num_used_host_pages(0) == manager.get_num_used_disk_pages(0) == 2
    assert make.hits_below(manager, prompt(2)) == PrefixCacheHits(host_blocks=2)


@pytest.mark.rule("TIER-2")
def test_without_a_host_slot_to_give_up_a_disk_hit_is_served_all_the_same(make: Making) -> None:
    manager = make.manager(make.isolated_params(disk_pages=4), host_pages=1, auto_land=False)
    for tokens in (A, B):
        make.serve(manager, tokens)
        make.land_all(manager)
    make.begin(manager, B, replica=1)  # pins the only host slot
    ctx, _ = make.begin(manager, A, replica=1)
    make.land_all(manager)
    assert manager.finish_alloc(ctx, 1).hit_counts == PrefixCacheHits(disk_blocks=1)
    assert make.hits_below(manager, A) == PrefixCacheHits(disk_blocks=1)


# --- TIER-3: bytes ------------------------------------------------------------------------------

SHAPES: dict[str, dict[str, Any]] = {
    "one shard": {},
    "two shards": {"shards": 2},
    "two layers": {"num_layers": 2},
    "latent": {"is_mla": True},
    "latent, replicated": {"is_mla": True, "shards": 2},
    "scaled": {
        "dtype": torch.float8_e4m3fn,
        "kvcache_quant_config": KVCacheQuantizationConfig(quantization_granularity=1),
    },
}


def fill_at_random(manager: PagedKVCacheManager, replica: int) -> None:
    """Other bytes in every page of every memory unit; shards that replicate stay equal."""
    generator = torch.Generator().manual_seed(0)
    for unit in manager.get_device_buffer(replica).to_memory():
        unit.buffer.random_(0, 256, generator=generator)
        for buffer in unit.all_buffers:
            buffer.copy_(unit.buffer)


def bytes_of(manager: PagedKVCacheManager, replica: int, pages: list[int]) -> list[list[int]]:
    """By buffer, values and scales of every shard: what stands in ``pages``."""
    units = manager.get_device_buffer(replica).to_memory()
    return [buffer[pages].flatten().tolist() for unit in units for buffer in unit.all_buffers]


def copied(make: Making, manager: PagedKVCacheManager) -> tuple[PrefixCacheHits, bool]:
    """Compute two pages on replica 0, load them on replica 1: from where, and whether unchanged."""
    ctx = make.admit(manager, prompt(2))
    fill_at_random(manager, 0)
    make.forward(manager, ctx)
    hits = make.hits(manager, prompt(2), replica=1)
    twin = make.admit(manager, prompt(2), replica=1)
    written, loaded = (
        bytes_of(manager, r, manager.get_req_blocks(c.request_id, r)[:2])
        for r, c in enumerate((ctx, twin))
    )
    return hits, written == loaded


@pytest.mark.rule("TIER-3")
@pytest.mark.parametrize("shape", SHAPES)
def test_every_byte_of_every_shard_comes_back(make: Making, shape: str) -> None:
    manager = make.manager(make.isolated_params(**SHAPES[shape]), host_pages=4)
    assert copied(make, manager) == (PrefixCacheHits(host_blocks=2), True)


@pytest.mark.rule("TIER-3")
def test_every_byte_of_every_cache_comes_back(make: Making) -> None:
    target = make.isolated_params(shards=2, is_mla=True)
    params = MultiKVCacheParams.from_params(target=target, draft=make.isolated_params(shards=2))
    assert copied(make, make.manager(params, host_pages=4)) == (
        PrefixCacheHits(host_blocks=2),
        True,
    )


@pytest.mark.rule("TIER-3")
def test_bytes_come_back_from_the_block_store_too(make: Making) -> None:
    manager = make.manager(make.isolated_params(store=STORE))
    assert copied(make, manager) == (PrefixCacheHits(store_blocks=2), True)


@pytest.mark.rule("TIER-3", "SIZE-3")
@pytest.mark.parametrize("shape", SHAPES)
def test_a_block_takes_what_the_parameters_say_replicated_content_once(
    make: Making, shape: str
) -> None:
    media = Media()
    params = make.tiered_params(store=STORE, **SHAPES[shape])
    make.serve(make.manager(params, media=media), A)
    (block,) = media.stores[STORE].values()
    assert block.content is not None
    assert sum(row.nbytes for row in block.content) == params.bytes_per_offloaded_block


# --- TIER-4: eviction and recency -----------------------------------------------------------------


@pytest.mark.rule("TIER-4")
def test_a_chain_loses_its_leaf_first(make: Making) -> None:
    manager = make.manager(make.isolated_params(), host_pages=3)
    make.serve(manager, prompt(3))
    make.serve(manager, B)
    assert make.hits_below(manager, prompt(3)).host_blocks == 2


@pytest.mark.rule("TIER-4")
def test_a_chain_loses_its_leaf_first_though_its_root_has_landed_last(make: Making) -> None:
    manager = make.manager(make.isolated_params(), host_pages=2, auto_land=False)
    ctx = make.admit(manager, A)
    for token in range(5, 9):
        make.forward(manager, ctx, token=token)
        manager.alloc(ctx, 0)
    root, leaf = manager.in_flight()
    manager.land(leaf.id)
    manager.land(root.id)
    make.serve(manager, B)
    make.land_all(manager)
    assert make.hits_below(manager, ctx.tokens.all.tolist()) == PrefixCacheHits(host_blocks=1)


@pytest.mark.rule("TIER-4")
@pytest.mark.parametrize(
    ("served_from", "replica", "host_pages", "left_in"),
    [
        ("device", 0, 2, PrefixCacheHits(host_blocks=1)),
        ("host", 1, 2, PrefixCacheHits(host_blocks=1)),
        ("disk", 1, 1, PrefixCacheHits(disk_blocks=1)),
    ],
)
def test_a_hit_renews_a_block_where_it_served_and_below(
    make: Making, served_from: str, replica: int, host_pages: int, left_in: PrefixCacheHits
) -> None:
    manager = make.manager(make.isolated_params(disk_pages=2), host_pages=host_pages)
    for tokens in (A, B):
        make.serve(manager, tokens)
    _, plan = make.begin(manager, A, replica)
    assert plan.hits[0].tier == served_from
    make.serve(manager, C)
    assert make.hits_below(manager, A) == left_in
    assert make.hits_below(manager, B).total_blocks == 0


@pytest.mark.rule("TIER-4", "ALLOC-10")
def test_a_hit_on_another_replica_renews_the_page_there(make: Making) -> None:
    manager = make.manager(make.params(replicas=2), pages=3)
    for tokens in (A, B):
        make.serve(manager, tokens)
    _, plan = make.begin(manager, A, replica=1)
    assert plan.hit_counts == PrefixCacheHits(peer_blocks=1)
    make.begin(manager, range(200, 208))
    assert make.hits(manager, A).device_blocks == 1


@pytest.mark.rule("TIER-4")
def test_an_offered_chain_is_renewed_as_a_whole(make: Making) -> None:
    manager = make.manager(make.isolated_params(), host_pages=3)
    ctx = make.admit(manager, A)
    make.forward(manager, ctx, token=5)
    make.serve(manager, B)
    for token in range(6, 9):
        manager.alloc(ctx, 0)
        make.forward(manager, ctx, token=token)
    make.serve(manager, C)
    assert make.hits_below(manager, ctx.tokens.all.tolist()).host_blocks == 2
    assert make.hits_below(manager, B).host_blocks == 0


@pytest.mark.rule("TIER-4", "TIER-9")
def test_a_chain_does_not_make_room_for_itself(make: Making) -> None:
    manager = make.manager(make.isolated_params(), host_pages=2)
    make.serve(manager, prompt(4))
    assert make.hits_below(manager, prompt(4)).host_blocks == 2
    assert manager.get_metrics_aggregated().host_blocks_evicted == 0


# --- TIER-5: damage -------------------------------------------------------------------------------


@pytest.mark.rule("TIER-5", "TIER-6", "STORE-3")
@pytest.mark.parametrize("tier", ["disk", "store"])
def test_a_damaged_block_is_computed_again_and_deleted(make: Making, tier: str) -> None:
    params = (
        make.tiered_params(disk_pages=4, **NAMED)
        if tier == "disk"
        else make.tiered_params(store=STORE, **NAMED)
    )
    media = Media()
    first = make.manager(params, host_pages=4 if tier == "disk" else 0, media=media)
    make.serve(first, prompt(2))
    first.shutdown()

    manager = make.manager(params, host_pages=4 if tier == "disk" else 0, media=media)
    blocks = media.disks[DISK].blocks if tier == "disk" else media.stores[STORE]
    leaf = next(block for block in blocks.values() if block.parent is not None)
    assert leaf.content is not None
    leaf.content[0][3] ^= 1
    ctx = make.admit(manager, prompt(2))
    assert ctx.cached_prefix_length == 4, "the root is intact"
    assert manager.get_metrics_aggregated().load_blocks_failed == 1
    assert [block.parent for block in blocks.values()] == [None]
    make.forward(manager, ctx)
    assert len(blocks) == 2, "what was deleted is written again"


# --- TIER-6: failures -----------------------------------------------------------------------------


@pytest.mark.rule("TIER-6", "ALLOC-11", "METRIC-3")
@pytest.mark.parametrize("reason", get_args(FailReason))
def test_a_failed_load_is_a_miss_for_its_request(make: Making, reason: FailReason) -> None:
    manager = make.manager(make.isolated_params(), host_pages=4, auto_land=False)
    make.serve(manager, A)
    make.land_all(manager)
    ctx, plan = make.begin(manager, A, replica=1)
    manager.fail(plan.transfers[0], reason)
    with pytest.raises(KVLoadFailed):
        manager.finish_alloc(ctx, 1)
    manager.begin_alloc(ctx, 1)
    manager.finish_alloc(ctx, 1)
    assert ctx.cached_prefix_length == 0

    kept = reason in ("timeout", "unavailable", "no_space")
    assert manager.get_num_used_host_pages(0) == make.hits_below(manager, A).host_blocks == kept
    manager.release(ctx.request_id, 1)
    assert manager.get_num_used_pages(1) == 0


@pytest.mark.rule("TIER-6", "ALLOC-10")
def test_a_failed_copy_from_another_replica_is_a_miss_and_takes_nothing_there(
    make: Making,
) -> None:
    manager = make.manager(make.params(replicas=2), auto_land=False)
    make.serve(manager, prompt(2))
    ctx, plan = make.begin(manager, prompt(2), replica=1)
    assert plan.hit_counts == PrefixCacheHits(peer_blocks=2)
    manager.fail(plan.transfers[0], "io_error")
    with pytest.raises(KVLoadFailed):
        manager.finish_alloc(ctx, 1)
    assert manager.begin_alloc(ctx, 1).hits == ()
    assert manager.get_metrics_aggregated().load_blocks_failed == 2
    assert make.hits(manager, prompt(2)).device_blocks == 2


@pytest.mark.rule("TIER-6")
def test_only_the_blocks_at_fault_are_given_up(make: Making) -> None:
    manager = make.manager(make.isolated_params(), host_pages=4, auto_land=False)
    make.serve(manager, prompt(3))
    make.land_all(manager)
    make.begin(manager, prompt(3), replica=1)
    (load,) = manager.in_flight()
    manager.fail(load.id, "io_error", [load.keys[1]])
    assert make.hits_below(manager, prompt(3)).host_blocks == 1
    assert manager.get_num_used_host_pages(0) == 2
    assert manager.get_metrics_aggregated().load_blocks_failed == 1


@pytest.mark.rule("TIER-6", "METRIC-7")
def test_a_load_that_is_refused_is_a_miss(make: Making, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise KVLoadRefused("busy")

    manager = make.manager(make.isolated_params(), host_pages=4)
    make.serve(manager, A)
    monkeypatch.setattr(TierConnector, "load", refuse)
    assert make.admit(manager, A, replica=1).cached_prefix_length == 0
    assert manager.get_metrics_aggregated().load_blocks_failed == 1


@pytest.mark.rule("TIER-6")
def test_a_failed_write_does_not_stand_in_the_way_of_the_next(make: Making) -> None:
    manager = make.manager(make.isolated_params(), host_pages=4, auto_land=False)
    make.serve(manager, A)
    manager.fail(manager.in_flight()[0].id, "no_space")
    assert manager.get_num_used_host_pages(0) == 0
    make.serve(manager, A)
    make.land_all(manager)
    assert make.hits_below(manager, A).host_blocks == 1


# --- TIER-9: what finds no slot -------------------------------------------------------------------


@pytest.mark.rule("TIER-9")
def test_descendants_of_a_dropped_block_are_dropped_and_offered_again(make: Making) -> None:
    manager = make.manager(make.isolated_params(), host_pages=3, auto_land=False)
    make.serve(manager, prompt(2, start=100))  # two slots are in use until this has landed
    ctx = make.admit(manager, prompt(3))
    make.forward(manager, ctx, token=13)
    assert manager.get_metrics_aggregated().offload_blocks_dropped == 2
    make.land_all(manager)
    assert make.hits_below(manager, prompt(3)).host_blocks == 1
    for token in range(14, 17):
        manager.alloc(ctx, 0)
        make.forward(manager, ctx, token=token)
    make.land_all(manager)
    assert make.hits_below(manager, prompt(3)).host_blocks == 3


@pytest.mark.rule("TIER-9")
def test_a_block_is_not_taken_when_its_parent_has_failed_to_arrive(make: Making) -> None:
    manager = make.manager(make.isolated_params(disk_pages=4), host_pages=4, auto_land=False)
    ctx = make.admit(manager, A)
    for token in range(5, 9):
        make.forward(manager, ctx, token=token)
        manager.alloc(ctx, 0)
    for offload in manager.in_flight():
        manager.land(offload.id)
    root, leaf = manager.in_flight()
    assert (root.target, leaf.target) == ("disk", "disk")
    manager.fail(root.id, "io_error")
    manager.land(leaf.id)
    assert manager.get_num_used_disk_pages(0) == 0
    assert manager.get_metrics_aggregated().offload_blocks_dropped == 2


# --- TIER-10: which tiers there are ---------------------------------------------------------------


def tiers_of(manager: PagedKVCacheManager) -> dict[str, int]:
    """Capacity of each tier below the devices."""
    tiers = manager._state.connector.tiers
    return {name: manager._state.connector.num_blocks(name) for name in tiers}


@pytest.mark.rule("TIER-10")
def test_the_connector_says_which_tiers_there_are(make: Making) -> None:
    def tiers(params: KVCacheParamInterface, host_pages: int) -> dict[str, int]:
        return tiers_of(make.manager(params, host_pages=host_pages))

    assert tiers(make.params(), 0) == {}
    assert tiers(make.params(kv_connector="null"), 0) == {}
    assert tiers(make.tiered_params(), 5) == {"host": 5}
    tiered = make.tiered_params(disk_pages=7)
    assert tiers(tiered, 5) == {"host": 5, "disk": 7}
    assert tiers(dataclasses.replace(tiered, kv_connector=KVConnectorType.local), 5) == {"host": 5}
    assert tiers(make.tiered_params(store=STORE), 0) == {"store": 0}
    assert tiers(make.tiered_params(store=STORE), 5) == {"host": 5, "store": 0}
    assert tiers(make.tiered_params(store=STORE, disk_pages=7), 5) == {
        "host": 5,
        "disk": 7,
        "store": 0,
    }


@pytest.mark.rule("TIER-10", "METRIC-5")
def test_all_replicas_share_the_tiers_below(make: Making) -> None:
    manager = make.manager(make.isolated_params(disk_pages=6), host_pages=4)
    make.serve(manager, prompt(2), replica=1)
    for replica in range(3):
        assert manager.get_num_host_pages(replica) == 4
        assert manager.get_num_used_host_pages(replica) == 2
        assert manager.get_num_disk_pages(replica) == 6
        assert manager.get_num_used_disk_pages(replica) == 2
    assert make.admit(manager, prompt(2), replica=0).cached_prefix_length == 8


@pytest.mark.rule("TIER-9", "TIER-2")
def test_a_promoted_block_does_not_land_without_its_parent(make: Making) -> None:
    params = make.tiered_params(disk_pages=8, store=STORE)
    manager = make.manager(params, pages=3, host_pages=4, auto_land=False)
    make.serve(manager, prompt(2))
    make.land_all(manager)
    tiers = manager._state.connector.tiers
    root, leaf = list(tiers["host"].blocks.values())[::-1]
    for block in (root, leaf):
        tiers["host"].drop(block)
    tiers["disk"].drop(tiers["disk"].blocks[leaf.name])
    filler, _ = make.begin(manager, range(100, 112))
    manager.release(filler.request_id, 0)
    _, plan = make.begin(manager, prompt(2))
    assert plan.hit_counts == PrefixCacheHits(disk_blocks=1, store_blocks=1)
    from_disk, from_store = manager.in_flight()
    manager.fail(from_disk.id, "timeout")
    manager.land(from_store.id)
    assert tiers["host"].find(leaf.key) is None


@pytest.mark.rule("TIER-5")
def test_a_block_that_was_exchanged_with_its_checksum_is_not_taken_for_another(
    make: Making,
) -> None:
    params, media = make.tiered_params(disk_pages=4, **NAMED), Media()
    first = make.manager(params, host_pages=4, media=media)
    make.serve(first, prompt(1))
    make.serve(first, prompt(1, start=50))
    first.shutdown()
    one, other = media.disks[DISK].blocks.values()
    one.content, other.content = other.content, one.content
    one.checksum, other.checksum = other.checksum, one.checksum
    manager = make.manager(params, host_pages=4, media=media)
    for tokens in (prompt(1), prompt(1, start=50)):
        assert make.admit(manager, tokens).cached_prefix_length == 0


@pytest.mark.rule("TIER-6")
@pytest.mark.parametrize("reason", get_args(FailReason))
def test_a_failed_write_costs_its_source_nothing(make: Making, reason: FailReason) -> None:
    manager = make.manager(
        make.isolated_params(disk_pages=4, **NAMED), host_pages=4, auto_land=False
    )
    make.serve(manager, prompt(2))
    (offload,) = manager.in_flight()
    manager.fail(offload.id, reason)
    assert make.hits(manager, prompt(2)).device_blocks == 2
    make.serve(manager, prompt(2))
    manager.land(manager.in_flight()[0].id)
    (write,) = manager.in_flight()
    manager.fail(write.id, reason)
    assert make.hits_below(manager, prompt(2)).host_blocks == 2
