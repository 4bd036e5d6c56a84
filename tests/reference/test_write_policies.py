"""When committed pages are offloaded, and how much is written: rules TIER-7 and TIER-8."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.reference.conftest import Making, Recorder, prompt

from pagedkv.reference import InsufficientBlocksError, KVCacheParams, PagedKVCacheManager
from pagedkv.reference.events import Cleaned

A, B, C = prompt(1), prompt(1, start=100), prompt(1, start=200)
"""Three prompts of one page each, without a common prefix."""


def write_back(make: Making, **options: Any) -> KVCacheParams:
    return make.isolated_params(extras={"write_policy": "write_back"}, **options)


def with_budget(make: Making, blocks: float, **extras: Any) -> KVCacheParams:
    """Ample host memory and disk, of which a day's writes may fill ``blocks``."""
    budget = blocks * make.params().bytes_per_offloaded_block / 10**9
    return make.isolated_params(
        disk_pages=100, extras={"disk_write_budget_gb_per_day": budget, **extras}
    )


def pages_of_host(manager: PagedKVCacheManager) -> int:
    return manager.get_num_used_host_pages(0)


# --- TIER-7: write-back -------------------------------------------------------------------------


@pytest.mark.rule("TIER-7")
def test_a_dirty_page_is_not_evicted_until_it_has_been_offloaded(make: Making) -> None:
    manager = make.manager(write_back(make), pages=2, host_pages=4, auto_land=False)
    make.serve(manager, A)
    assert pages_of_host(manager) == 0, "a commit offloads nothing"
    ctx = make.context(range(100, 108))
    manager.claim(ctx.request_id, 0)
    with pytest.raises(InsufficientBlocksError, match="needs 2 free pages, but only 1"):
        manager.begin_alloc(ctx, 0)
    (transfer,) = manager.clean(0, 1)
    with pytest.raises(InsufficientBlocksError):
        manager.begin_alloc(ctx, 0)
    manager.land(transfer)
    manager.begin_alloc(ctx, 0)
    assert make.hits_below(manager, A).host_blocks == 1


@pytest.mark.rule("TIER-7", "EVENT-1")
def test_an_allocation_that_needs_dirty_pages_cleans_as_many(
    make: Making, recorder: Recorder
) -> None:
    manager = make.manager(write_back(make), pages=3, host_pages=4, tracer=recorder)
    for tokens in (A, B):
        make.serve(manager, tokens)
    make.admit(manager, range(200, 208))
    (cleaned,) = recorder.of_kind(Cleaned)
    (offload,) = cleaned.issued
    assert cleaned.pages == offload.pages
    assert make.hits_below(manager, A).host_blocks == 1
    assert make.hits_below(manager, B).host_blocks == 0


@pytest.mark.rule("TIER-7", "ALLOC-2")
def test_an_allocation_that_cannot_fit_cleans_nothing(make: Making) -> None:
    manager = make.manager(write_back(make), pages=2, host_pages=4)
    make.serve(manager, A)
    with pytest.raises(InsufficientBlocksError):
        make.admit(manager, range(100, 112))
    assert pages_of_host(manager) == 0


@pytest.mark.rule("TIER-7")
def test_cleaning_takes_the_oldest_pages_that_nobody_holds(
    make: Making, recorder: Recorder
) -> None:
    manager = make.manager(write_back(make), host_pages=8, tracer=recorder)
    live = make.admit(manager, C)
    make.forward(manager, live)
    for tokens in (A, B):
        make.serve(manager, tokens)
    assert len(manager.clean(0, 1)) == 1
    assert make.hits_below(manager, A).host_blocks == 1
    assert make.hits_below(manager, B).host_blocks == 0
    manager.clean(0, 99)
    assert make.hits_below(manager, B).host_blocks == 1
    assert make.hits_below(manager, C).host_blocks == 0
    assert manager.clean(0, 99) == []
    assert [len(event.pages) for event in recorder.of_kind(Cleaned)] == [1, 1]


@pytest.mark.rule("TIER-7", "TIER-6")
def test_a_page_whose_cleaning_fails_may_be_evicted(make: Making) -> None:
    manager = make.manager(write_back(make), pages=2, host_pages=4, auto_land=False)
    make.serve(manager, A)
    (transfer,) = manager.clean(0, 1)
    manager.fail(transfer, "no_space")
    make.begin(manager, range(100, 108))
    assert pages_of_host(manager) == 0


@pytest.mark.rule("TIER-7", "TIER-6")
def test_a_step_writes_nothing_down_that_a_failed_write_has_left_in_host_memory(
    make: Making,
) -> None:
    manager = make.manager(write_back(make, disk_pages=4), host_pages=4, auto_land=False)
    make.serve(manager, A)
    (offload,) = manager.clean(0, 1)
    manager.land(offload)
    (write,) = manager.in_flight()
    manager.fail(write.id, "io_error")
    ctx, _ = make.begin(manager, prompt(2))
    manager.finish_alloc(ctx, 0)
    make.forward(manager, ctx)
    assert manager.in_flight() == []


@pytest.mark.rule("TIER-7", "TIER-9")
def test_a_page_that_finds_no_slot_may_be_evicted(make: Making) -> None:
    manager = make.manager(write_back(make), pages=3, host_pages=1, auto_land=False)
    for tokens in (A, B):
        make.serve(manager, tokens)
    (transfer,) = manager.clean(0, 1)
    assert manager.clean(0, 1) == [], "the only slot is in use"
    assert len(make.begin(manager, range(200, 208))[1].pages) == 2
    manager.land(transfer)
    assert make.hits_below(manager, A).host_blocks == 1


@pytest.mark.rule("TIER-7")
def test_a_page_whose_content_is_below_already_is_not_dirty(make: Making) -> None:
    manager = make.manager(write_back(make), pages=2, host_pages=4, auto_land=False)
    make.serve(manager, A)
    manager.clean(0, 1)
    make.land_all(manager)
    loading, _ = make.begin(manager, A, replica=1)
    make.land_all(manager)
    manager.finish_alloc(loading, 1)
    make.forward(manager, loading, replica=1)
    manager.release(loading.request_id, 1)
    make.begin(manager, range(100, 108), replica=1)


@pytest.mark.rule("TIER-7", "POOL-3")
def test_a_dirty_page_is_passed_over_for_a_younger_clean_one(make: Making) -> None:
    manager = make.manager(write_back(make), pages=3, host_pages=4)
    make.serve(manager, B, replica=1)
    manager.clean(1, 1)
    make.serve(manager, A)
    make.serve(manager, B)
    make.begin(manager, range(200, 208))
    assert make.hits(manager, A).device_blocks == 1
    assert make.hits(manager, B).device_blocks == 0


@pytest.mark.rule("TIER-7", "TIER-2")
def test_below_host_memory_blocks_are_written_through(make: Making) -> None:
    manager = make.manager(write_back(make, disk_pages=4), host_pages=4)
    make.serve(manager, A)
    assert manager.get_num_used_disk_pages(0) == 0
    manager.clean(0, 1)
    assert manager.get_num_used_disk_pages(0) == 1


# --- TIER-8: the write budget, and writing at the second use ------------------------------------


@pytest.mark.rule("TIER-8")
@given(blocks=st.integers(0, 5), served=st.integers(1, 7))
def test_no_more_is_written_than_the_budget_until_it_is_renewed(blocks: int, served: int) -> None:
    make = Making()
    # A fraction of a block buys nothing.
    manager = make.manager(with_budget(make, blocks + 0.9), host_pages=20)
    for n in range(served):
        make.serve(manager, prompt(1, start=100 * n))
    written = min(blocks, served)
    metrics = manager.get_metrics_aggregated()
    assert manager.get_num_used_disk_pages(0) == metrics.disk_blocks_written == written
    assert metrics.offload_blocks_dropped == served - written
    assert pages_of_host(manager) == served, "the budget is the disk's"

    manager.renew_write_budget()
    make.serve(manager, prompt(1, start=10_000))
    assert manager.get_num_used_disk_pages(0) == written + min(blocks, 1)


@pytest.mark.rule("TIER-8", "TIER-9")
def test_what_exceeded_the_budget_is_offered_again_with_the_next_commit(make: Making) -> None:
    manager = make.manager(with_budget(make, 1), host_pages=8)
    make.serve(manager, prompt(2))
    assert manager.get_num_used_disk_pages(0) == 1
    manager.renew_write_budget()
    make.serve(manager, prompt(2))
    assert manager.get_num_used_disk_pages(0) == 2


@pytest.mark.rule("TIER-8", "TIER-9")
def test_a_block_whose_parent_exceeded_the_budget_is_not_written(make: Making) -> None:
    manager = make.manager(with_budget(make, 1), host_pages=8, auto_land=False)
    make.serve(manager, B)
    ctx = make.admit(manager, A)
    for token in range(5, 9):
        make.forward(manager, ctx, token=token)
        manager.alloc(ctx, 0)
    of_other, of_root, of_leaf = manager.in_flight()
    for offload in (of_other, of_root):
        manager.land(offload.id)
    (write,) = manager.in_flight()[1:]
    assert write.keys == of_other.keys, "nothing was left for the root"
    manager.renew_write_budget()
    manager.land(of_leaf.id)
    assert manager.in_flight() == [write]


@pytest.mark.rule("TIER-8")
def test_under_reuse_a_block_is_offloaded_at_its_second_use(make: Making) -> None:
    manager = make.manager(make.isolated_params(extras={"write_policy": "reuse"}), host_pages=8)
    make.serve(manager, prompt(3))
    assert pages_of_host(manager) == 0
    make.serve(manager, [*range(8), 99, 99, 99, 99, 99])  # shares two of the three pages
    assert make.hits_below(manager, prompt(3)).host_blocks == 2
    assert pages_of_host(manager) == 2


@pytest.mark.rule("TIER-8")
def test_a_request_that_goes_on_does_not_use_its_blocks_again(make: Making) -> None:
    manager = make.manager(make.isolated_params(extras={"write_policy": "reuse"}), host_pages=8)
    ctx = make.admit(manager, A)
    for token in range(5, 13):
        make.forward(manager, ctx, token=token)
        manager.alloc(ctx, 0)
    assert pages_of_host(manager) == 0


@pytest.mark.rule("TIER-7")
def test_only_dirty_pages_can_be_cleaned(make: Making) -> None:
    manager = make.manager(write_back(make), pages=4, host_pages=4)
    make.serve(manager, A)
    with pytest.raises(ValueError, match=r"pages \[3\] of replica 0 are not dirty"):
        manager.clean_pages(0, [0, 3])
    assert pages_of_host(manager) == 0


@pytest.mark.rule("TIER-7", "ALLOC-7", "ALLOC-14")
def test_cleaning_for_an_allocation_spares_what_it_hits_on_disk(make: Making) -> None:
    params = make.tiered_params(disk_pages=2, extras={"write_policy": "write_back"})
    manager = make.manager(params, pages=5, host_pages=4)
    make.serve(manager, range(9))
    manager.clean(0, 2)
    filler = make.admit(manager, range(1000, 1020))
    manager.release(filler.request_id, 0)
    host = manager._state.connector.tiers["host"]
    for block in list(host.blocks.values()):
        host.drop(block)
    make.serve(manager, range(200, 217))
    assert make.hits(manager, range(9)).disk_blocks == 2
    assert make.admit(manager, range(9)).cached_prefix_length == 8


@pytest.mark.rule("TIER-7")
def test_a_page_whose_cleaning_finds_no_slot_is_counted_as_dropped(make: Making) -> None:
    manager = make.manager(write_back(make), pages=4, host_pages=1)
    make.serve(manager, range(9))
    manager.clean(0, 2)
    assert manager.get_metrics_aggregated().offload_blocks_dropped == 1
    with pytest.raises(ValueError, match="count is -1"):
        manager.clean(0, -1)
