"""Forgetting all cached content: rules RESET-1 to RESET-4."""

import pytest
from tests.reference.conftest import DISK, STORE, Making, prompt

from pagedkv.reference import Media, PoolStatistics


@pytest.mark.rule("RESET-1", "POOL-2")
def test_nothing_is_found_after_a_reset(make: Making) -> None:
    manager = make.manager(make.tiered_params(disk_pages=8, replicas=2), host_pages=4)
    for replica, start in enumerate((0, 100)):
        make.serve(manager, prompt(2, start), replica)
    manager.reset_prefix_cache()
    for replica, start in enumerate((0, 100)):
        assert make.hits(manager, prompt(2, start), replica).total_blocks == 0
        assert manager.statistics(replica) == PoolStatistics(8, held=0, pinned=0, cached=0, free=8)
    assert manager.get_num_used_host_pages(0) == manager.get_num_used_disk_pages(0) == 0


@pytest.mark.rule("RESET-1", "NS-4")
def test_a_restart_does_not_bring_back_what_was_reset(make: Making) -> None:
    media = Media()
    params = make.tiered_params(disk_pages=8, extras={"model_fingerprint": "weights"})
    manager = make.manager(params, host_pages=4, media=media)
    make.serve(manager, prompt(2))
    manager.reset_prefix_cache()
    manager.shutdown()
    assert len(media.disks[DISK].blocks) == 0
    second = make.manager(params, host_pages=4, media=media)
    assert make.hits(second, prompt(2)).total_blocks == 0


@pytest.mark.rule("RESET-1", "TIER-8")
def test_uses_before_a_reset_do_not_count(make: Making) -> None:
    manager = make.manager(make.tiered_params(extras={"write_policy": "reuse"}), host_pages=4)
    make.serve(manager, prompt(2))
    manager.reset_prefix_cache()
    make.serve(manager, prompt(2))
    assert manager.get_num_used_host_pages(0) == 0


@pytest.mark.rule("RESET-2", "XFER-3")
@pytest.mark.parametrize("landed", [0, 1])
def test_a_write_from_before_does_not_bring_its_blocks_back(make: Making, landed: int) -> None:
    manager = make.manager(make.isolated_params(disk_pages=8), host_pages=4, auto_land=False)
    make.serve(manager, prompt(2))
    for _ in range(landed):
        manager.land(manager.in_flight()[0].id)
    manager.reset_prefix_cache()
    make.land_all(manager)
    assert make.hits_below(manager, prompt(2)).total_blocks == 0
    assert manager.get_num_used_host_pages(0) == manager.get_num_used_disk_pages(0) == 0


@pytest.mark.rule("RESET-2", "ALLOC-6")
def test_a_load_from_before_is_neither_joined_nor_hit(make: Making) -> None:
    manager = make.manager(make.isolated_params(disk_pages=8), host_pages=2, auto_land=False)
    for start in (0, 100):
        make.serve(manager, prompt(2, start))
        make.land_all(manager)
    ctx, plan = make.begin(manager, prompt(2), replica=1)
    assert plan.hit_counts.disk_blocks == 2
    manager.reset_prefix_cache()
    assert make.begin(manager, prompt(2), replica=1)[1].transfers == ()
    make.land_all(manager)
    manager.finish_alloc(ctx, 1)
    for replica in (1, 2):
        assert make.hits(manager, prompt(2), replica).total_blocks == 0
    assert manager.get_num_used_host_pages(0) == 0


@pytest.mark.rule("RESET-2", "ALLOC-6")
def test_a_load_from_before_is_not_taken_for_the_one_that_brings_the_block_again(
    make: Making,
) -> None:
    manager = make.manager(make.isolated_params(), host_pages=4, auto_land=False)
    make.serve(manager, prompt(1))
    make.land_all(manager)
    _, before = make.begin(manager, prompt(1), replica=1)
    manager.reset_prefix_cache()
    make.serve(manager, prompt(1))
    manager.land(manager.in_flight()[-1].id)
    _, again = make.begin(manager, prompt(1), replica=1)
    _, joined = make.begin(manager, prompt(1), replica=1)
    assert joined.transfers == again.transfers != before.transfers


@pytest.mark.rule("RESET-2", "STORE-2")
def test_a_put_from_before_is_not_seen_by_others_either(make: Making) -> None:
    media = Media()
    params = make.tiered_params(store=STORE, extras={"model_fingerprint": "weights"})
    manager = make.manager(params, media=media, auto_land=False)
    make.serve(manager, prompt(2))
    manager.reset_prefix_cache()
    make.land_all(manager)
    assert make.hits(make.manager(params, media=media), prompt(2)).total_blocks == 0


@pytest.mark.rule("RESET-2", "STEP-3")
def test_a_request_that_holds_pages_keeps_them_but_neither_hits_nor_commits(make: Making) -> None:
    manager = make.manager(make.tiered_params(), pages=16, host_pages=8)
    live = make.admit(manager, prompt(2))
    chunked = make.context(prompt(3))
    chunked.chunk(4)
    manager.claim(chunked.request_id, 0)
    manager.alloc(chunked, 0)
    claimed = make.context(prompt(2))
    manager.claim(claimed.request_id, 0)
    pages = manager.get_req_blocks(live.request_id, 0)
    manager.reset_prefix_cache()
    assert manager.get_req_blocks(live.request_id, 0) == pages
    manager.runtime_inputs([[live]])
    make.forward(manager, live)
    assert make.hits(manager, prompt(2)).total_blocks == 0
    assert manager.get_num_used_host_pages(0) == 0

    make.serve(manager, prompt(2))
    make.forward(manager, chunked)
    manager.alloc(chunked, 0)
    assert chunked.processed_length == 4
    manager.alloc(claimed, 0)
    assert claimed.cached_prefix_length == 8, "it held nothing, so nothing of it is old"


@pytest.mark.rule("RESET-3", "TIER-1")
def test_slots_of_a_fenced_transfer_count_until_it_settles(make: Making) -> None:
    manager = make.manager(make.isolated_params(disk_pages=2), host_pages=2, auto_land=False)
    make.serve(manager, prompt(2))
    manager.land(manager.in_flight()[0].id)
    (write,) = manager.in_flight()  # reads two host slots, writes two disk slots
    manager.reset_prefix_cache()
    assert manager.get_num_used_host_pages(0) == manager.get_num_used_disk_pages(0) == 2
    make.serve(manager, prompt(2, start=100))
    assert manager.in_flight() == [write], "there is no slot for another one"
    manager.fail(write.id, "timeout")
    assert manager.get_num_used_host_pages(0) == manager.get_num_used_disk_pages(0) == 0


@pytest.mark.rule("RESET-4", "STORE-3")
def test_on_a_store_a_reset_changes_the_namespace_and_deletes_nothing(make: Making) -> None:
    media = Media()
    params = make.tiered_params(store=STORE, extras={"model_fingerprint": "weights"})
    manager, other = (make.manager(params, media=media) for _ in range(2))
    make.serve(manager, prompt(2))
    manager.reset_prefix_cache()
    assert make.hits(manager, prompt(2)).total_blocks == 0
    assert make.hits(other, prompt(2)).store_blocks == 2
    make.serve(manager, prompt(2))
    assert len(media.stores[STORE]) == 4
