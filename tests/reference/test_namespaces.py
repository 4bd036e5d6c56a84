"""What blocks on disk and in stores mean to others and to later managers: rules NS-1 to NS-4."""

from typing import Any

import pytest
from tests.reference.conftest import DISK, STORE, Making, Recorder, prompt

from pagedkv.reference import (
    KVCacheParams,
    LayoutMismatchError,
    Media,
    MultiKVCacheParams,
    PagedKVCacheManager,
    PrefixCacheHits,
)
from pagedkv.reference.events import DiskOpened

OTHER_LAYOUTS: list[dict[str, Any]] = [
    {"head_dim": 4},
    {"num_layers": 2},
    {"page_size": 2},
    {"shards": 2},
    {"is_mla": True},
    {"speculative_method": "eagle", "num_draft_tokens": 1},
    {"kv_hash_algo": "xxh3_128"},
    {"kv_hash_seed": bytes(32)},
]


def named(make: Making, model: str | None = "weights", **options: Any) -> KVCacheParams:
    """Host memory and a disk of 8 pages, or the store that is asked for."""
    tiers: dict[str, Any] = {} if "store" in options else {"disk_pages": 8}
    return make.tiered_params(extras={"model_fingerprint": model}, **(tiers | options))


def restart(make: Making, params: KVCacheParams, media: Media) -> PagedKVCacheManager:
    return make.manager(params, host_pages=4, media=media)


@pytest.mark.rule("NS-1", "NS-3")
@pytest.mark.parametrize("other", OTHER_LAYOUTS, ids=str)
def test_a_disk_of_another_layout_is_refused_and_both_are_named(
    make: Making, other: dict[str, Any]
) -> None:
    media, here, there = Media(), named(make), named(make, **other)
    make.serve(restart(make, there, media), prompt(2))
    with pytest.raises(LayoutMismatchError, match=f"disk_offload_dir '{DISK}'") as refusal:
        restart(make, here, media)
    assert refusal.value.found == there.layout_fingerprint()
    assert refusal.value.wanted == here.layout_fingerprint()
    assert here.layout_fingerprint()[:12] in str(refusal.value)
    assert there.layout_fingerprint()[:12] in str(refusal.value)


@pytest.mark.rule("NS-1", "STORE-1")
@pytest.mark.parametrize("other", OTHER_LAYOUTS, ids=str)
def test_in_a_store_other_layouts_are_not_found(make: Making, other: dict[str, Any]) -> None:
    media = Media()
    make.serve(restart(make, named(make, store=STORE, **other), media), prompt(2))
    manager = restart(make, named(make, store=STORE), media)
    assert make.hits(manager, prompt(2)).total_blocks == 0


@pytest.mark.rule("NS-1")
def test_the_caches_of_a_tree_are_part_of_the_layout(make: Making) -> None:
    media, leaf = Media(), named(make)
    target = MultiKVCacheParams.from_params(target=leaf)
    make.serve(make.manager(target, host_pages=4, media=media), prompt(1))
    with pytest.raises(LayoutMismatchError):
        make.manager(MultiKVCacheParams.from_params(draft=leaf), host_pages=4, media=media)


@pytest.mark.rule("NS-2")
def test_without_a_model_fingerprint_the_disk_starts_cold(make: Making) -> None:
    media, params = Media(), named(make, model=None)
    for _ in range(2):
        manager = restart(make, params, media)
        assert make.hits(manager, prompt(2)).total_blocks == 0
        make.serve(manager, prompt(2))
        manager.shutdown()


@pytest.mark.rule("NS-2", "STORE-1")
def test_without_a_model_fingerprint_a_store_namespace_is_the_managers_own(make: Making) -> None:
    media, params = Media(), named(make, model=None, store=STORE)
    first, second = (restart(make, params, media) for _ in range(2))
    make.serve(first, prompt(2))
    assert make.hits(second, prompt(2)).total_blocks == 0
    make.serve(second, prompt(2))
    assert len(media.stores[STORE]) == 4


@pytest.mark.rule("NS-3", "NS-2")
@pytest.mark.parametrize("other", ["other weights", None])
def test_blocks_of_another_model_are_not_used(make: Making, other: str | None) -> None:
    for options in ({}, {"store": STORE}):
        media = Media()
        make.serve(restart(make, named(make, model=other, **options), media), prompt(2))
        manager = restart(make, named(make, **options), media)
        assert make.hits(manager, prompt(2)).total_blocks == 0


@pytest.mark.rule("NS-4", "EVENT-1")
def test_a_restart_finds_what_had_landed_oldest_first(make: Making, recorder: Recorder) -> None:
    media, params = Media(), named(make)
    first = restart(make, params, media)
    for start in (0, 100):
        make.serve(first, prompt(2, start))
    make.serve(first, prompt(2))  # renews the first chain
    first.shutdown()

    second = make.manager(params, host_pages=4, media=media, tracer=recorder)
    assert make.hits(second, prompt(2)) == PrefixCacheHits(disk_blocks=2)
    assert make.hits(second, prompt(2, start=100)) == PrefixCacheHits(disk_blocks=2)
    (opened,) = recorder.of_kind(DiskOpened)
    blocks = media.disks[DISK].blocks
    assert opened.keys == tuple(blocks[key].key for key in blocks)
    parents = [blocks[key].parent for key in opened.keys]
    assert parents[0] == opened.keys[1] and parents[2] == opened.keys[3], "leaf before root"

    full = make.manager(params, host_pages=8, media=media)
    make.serve(full, prompt(6, start=200))  # takes the four free slots, and two of the others
    assert make.hits(full, prompt(2)).disk_blocks == 2
    assert make.hits(full, prompt(2, start=100)).total_blocks == 0


@pytest.mark.rule("NS-4", "TIER-1")
@pytest.mark.parametrize("settled", [0, 1])
def test_a_block_whose_bytes_had_not_all_landed_does_not_exist(make: Making, settled: int) -> None:
    media, params = Media(), named(make)
    killed = make.manager(params, host_pages=4, media=media, auto_land=False)
    make.serve(killed, prompt(2))
    for _ in range(settled):  # 0: not in host memory yet, 1: on the way from there to disk
        killed.land(killed.in_flight()[0].id)
    survivor = restart(make, params, media)
    assert make.hits(survivor, prompt(2)).total_blocks == 0
    assert survivor.get_num_used_disk_pages(0) == 0
    make.serve(survivor, prompt(2))
    assert survivor.get_num_used_disk_pages(0) == 2


@pytest.mark.rule("NS-4")
def test_a_smaller_disk_keeps_the_youngest_blocks(make: Making) -> None:
    media = Media()
    make.serve(restart(make, named(make), media), prompt(3))
    manager = restart(make, named(make, disk_pages=2), media)
    assert make.hits(manager, prompt(3)) == PrefixCacheHits(disk_blocks=2)
