"""Loads that fail, and devices that do: rules FAIL-1 and FAIL-2."""

import pytest
from tests.reference.conftest import Making, prompt

from pagedkv.reference import (
    BatchesError,
    KVLoadFailed,
    PagedKVCacheManager,
    ReplicaIndexError,
    ReplicaPoisonedError,
)


@pytest.mark.rule("FAIL-1", "TIER-6")
def test_a_damaged_block_makes_an_allocation_compute_not_fail(make: Making) -> None:
    """Also when the pages that are computed instead have to be cleaned first."""
    params = make.tiered_params(disk_pages=8, extras={"write_policy": "write_back"})
    manager = make.manager(params, pages=4, host_pages=1)
    make.serve(manager, prompt(1))
    make.serve(manager, prompt(3, start=100))  # The first chain is on disk now.
    disk = manager._state.connector.tiers["disk"]
    for block in disk.blocks.values():
        assert block.content is not None
        block.content[0][0] ^= 1
    ctx = make.admit(manager, prompt(3))
    assert len(manager.get_req_blocks(ctx.request_id, 0)) == 4


def poisoned(make: Making) -> PagedKVCacheManager:
    """Of two replicas the second has failed while a block was copied from it to the first."""
    manager = make.manager(make.params(replicas=2), auto_land=False)
    make.serve(manager, prompt(1), 1)
    make.begin(manager, prompt(1), 0, request_id="waits")
    manager.poison(1, "illegal memory access")
    return manager


@pytest.mark.rule("FAIL-2")
def test_a_replica_whose_device_failed_takes_no_work(make: Making) -> None:
    manager = make.manager(make.params(replicas=2))
    ctx = make.admit(manager, prompt(1), 1)
    manager.poison(1, "illegal memory access")
    for call in (
        lambda: manager.claim("new", 1),
        lambda: manager.alloc_dummy("new", 1),
        lambda: manager.alloc(ctx, 1),
        lambda: manager.runtime_inputs([[], [ctx]]),
        lambda: manager.step([[], [ctx]]),
    ):
        with pytest.raises(ReplicaPoisonedError, match="illegal memory access"):
            call()
    make.serve(manager, prompt(1, start=50), 0)


@pytest.mark.rule("FAIL-2")
def test_its_transfers_fail_and_it_serves_no_other_replica(make: Making) -> None:
    manager = poisoned(make)
    assert manager.in_flight() == []
    assert make.hits(manager, prompt(1), 0).total_blocks == 0
    assert make.hits(manager, prompt(1), 1).total_blocks == 0


@pytest.mark.rule("FAIL-2")
def test_its_requests_can_still_be_released_and_its_pages_counted(make: Making) -> None:
    manager = make.manager(make.params(replicas=2))
    ctx = make.admit(manager, prompt(1), 1)
    manager.poison(1, "illegal memory access")
    assert manager.get_num_used_pages(1) == 2
    manager.release(ctx.request_id, 1)
    assert manager.get_num_used_pages(1) == 0


@pytest.mark.rule("FAIL-2", "TIER-7")
def test_nothing_is_read_from_a_device_that_failed(make: Making) -> None:
    params = make.tiered_params(extras={"write_policy": "write_back"})
    manager = make.manager(params, host_pages=4)
    make.serve(manager, prompt(2))
    manager.poison(0, "illegal memory access")
    with pytest.raises(ReplicaPoisonedError):
        manager.clean(0, 1)
    manager.shutdown()
    assert manager._state.connector.metrics.d2h_blocks_copied == 0


@pytest.mark.rule("FAIL-2", "ALLOC-11")
def test_another_peer_serves_in_place_of_one_that_failed(make: Making) -> None:
    manager = make.manager(make.params(replicas=3), auto_land=False)
    for replica in (0, 1):
        make.serve(manager, prompt(1), replica)
        make.land_all(manager)
    ctx, plan = make.begin(manager, prompt(1), 2)
    assert plan.hit_counts.peer_blocks == 1
    manager.poison(0, "illegal memory access")
    with pytest.raises(KVLoadFailed):
        manager.finish_alloc(ctx, 2)
    assert manager.begin_alloc(ctx, 2).hit_counts.peer_blocks == 1


@pytest.mark.rule("FAIL-2", "CLAIM-2", "CLAIM-3")
def test_a_failed_device_is_told_before_what_else_is_wrong_with_a_request(make: Making) -> None:
    manager = make.manager()
    manager.claim("claimed", 0)
    manager.poison(0, "illegal memory access")
    stranger = make.context(range(3))
    for call in (
        lambda: manager.claim("claimed", 0),
        lambda: manager.alloc(stranger, 0),
        lambda: manager.finish_alloc(stranger, 0),
        lambda: manager.step([[stranger]]),
    ):
        with pytest.raises(ReplicaPoisonedError):
            call()
    with pytest.raises(ReplicaIndexError):
        manager.claim("new", 1)
    with pytest.raises(BatchesError):
        manager.step([[stranger], []])


@pytest.mark.rule("FAIL-2", "ALLOC-14")
def test_a_look_up_finds_nothing_for_a_replica_that_has_failed(make: Making) -> None:
    manager = make.manager(make.tiered_params(), host_pages=4)
    make.serve(manager, prompt(2))
    manager.poison(0, "illegal memory access")
    assert make.hits(manager, prompt(2)).total_blocks == 0
