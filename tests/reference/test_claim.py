"""Who may name which request, where."""

from collections.abc import Callable

import pytest
from tests.reference.conftest import Making

from pagedkv.reference import (
    AlreadyClaimedError,
    InsufficientBlocksError,
    KVCacheMetrics,
    PagedKVCacheManager,
    ReplicaIndexError,
    TextContext,
    UnknownRequestError,
)

M = PagedKVCacheManager

NAMING_A_REQUEST: dict[str, Callable[[M, TextContext, int], object]] = {
    "alloc": lambda manager, ctx, replica: manager.alloc(ctx, replica),
    "begin_alloc": lambda manager, ctx, replica: manager.begin_alloc(ctx, replica),
    "finish_alloc": lambda manager, ctx, replica: manager.finish_alloc(ctx, replica),
    "cancel_alloc": lambda manager, ctx, replica: manager.cancel_alloc(ctx.request_id, replica),
    "release": lambda manager, ctx, replica: manager.release(ctx.request_id, replica),
    "get_req_blocks": lambda manager, ctx, replica: manager.get_req_blocks(ctx.request_id, replica),
    "get_pct_used_blocks_after_allocation": lambda manager, ctx, replica: (
        manager.get_pct_used_blocks_after_allocation(ctx, replica)
    ),
}
NAMING_IT_IN_A_BATCH: dict[str, Callable[[M, TextContext, int], object]] = {
    "runtime_inputs": lambda manager, ctx, _: manager.runtime_inputs([[ctx], []]),
    "step": lambda manager, ctx, _: manager.step([[ctx], []]),
}
NAMING_A_NEW_REQUEST: dict[str, Callable[[M, TextContext, int], object]] = {
    "claim": lambda manager, _, replica: manager.claim("new", replica),
    "alloc_dummy": lambda manager, _, replica: manager.alloc_dummy("new", replica),
    "contains": lambda manager, _, replica: manager.contains("new", replica),
}
NAMING_ONLY_A_REPLICA: tuple[Callable[[M, int], object], ...] = (
    M.statistics,
    M.num_free_blocks,
    M.total_num_blocks,
    M.get_num_pages,
    M.get_num_used_pages,
    M.get_num_host_pages,
    M.get_num_used_host_pages,
    M.get_num_disk_pages,
    M.get_num_used_disk_pages,
    M.get_device_buffer,
    M.pending_transfers_exist,
    lambda manager, replica: manager.clean(replica, 1),
)


@pytest.mark.rule("CLAIM-1")
@pytest.mark.parametrize("replica", [0, 1])
def test_a_request_is_claimed_once_on_one_replica(make: Making, replica: int) -> None:
    manager = make.manager(make.params(replicas=2))
    manager.claim("r", 1)
    for claim in (manager.claim, manager.alloc_dummy):
        with pytest.raises(AlreadyClaimedError, match="replica 1 has claimed it") as refusal:
            claim("r", replica)
        assert refusal.value.lives_on == 1
    assert [manager.contains("r", n) for n in (0, 1)] == [False, True]


@pytest.mark.rule("CLAIM-2")
@pytest.mark.parametrize("lives_on", [None, 1])
@pytest.mark.parametrize("name", NAMING_A_REQUEST | NAMING_IT_IN_A_BATCH)
def test_a_request_that_is_not_claimed_there_is_unknown(
    make: Making, name: str, lives_on: int | None
) -> None:
    manager = make.manager(make.params(replicas=2))
    ctx = make.context(range(5))
    if lives_on is not None:
        manager.claim(ctx.request_id, lives_on)
        manager.alloc(ctx, lives_on)
    before = repr(manager._state)
    with pytest.raises(UnknownRequestError, match="not claimed on replica 0") as refusal:
        (NAMING_A_REQUEST | NAMING_IT_IN_A_BATCH)[name](manager, ctx, 0)
    assert (refusal.value.request_id, refusal.value.lives_on) == (ctx.request_id, lives_on)
    assert repr(manager._state) == before


@pytest.mark.rule("CLAIM-2")
def test_anyone_may_ask_where_a_request_is_and_what_it_would_hit(make: Making) -> None:
    manager = make.manager()
    make.serve(manager, range(8))
    stranger = make.context(range(9))
    assert not manager.contains(stranger.request_id, 0)
    assert manager.get_prefix_cache_hit_counts(stranger)[0].total_blocks == 2


@pytest.mark.rule("CLAIM-3")
@pytest.mark.parametrize("replica", [-1, 2])
@pytest.mark.parametrize("name", NAMING_A_REQUEST | NAMING_A_NEW_REQUEST)
def test_requests_are_on_replicas_that_exist(make: Making, name: str, replica: int) -> None:
    manager = make.manager(make.params(replicas=2))
    ctx = make.admit(manager, range(5), replica=1)
    with pytest.raises(ReplicaIndexError, match=f"replica_idx is {replica}.* use 0 to 1"):
        (NAMING_A_REQUEST | NAMING_A_NEW_REQUEST)[name](manager, ctx, replica)


@pytest.mark.rule("CLAIM-3")
@pytest.mark.parametrize("replica", [-1, 2])
@pytest.mark.parametrize("call", NAMING_ONLY_A_REPLICA)
def test_a_replica_that_does_not_exist_has_no_numbers(
    make: Making, call: Callable[[M, int], object], replica: int
) -> None:
    with pytest.raises(ReplicaIndexError):
        call(make.manager(make.params(replicas=2)), replica)


@pytest.mark.rule("CLAIM-4")
def test_a_dummy_request_is_mapped_to_the_null_page_and_leaves_no_trace(make: Making) -> None:
    manager = make.manager(pages=3)
    make.serve(manager, range(8))
    free = manager.num_free_blocks()
    manager.reset_metrics()
    dummy = make.context(range(8), request_id="dummy")
    manager.alloc_dummy("dummy", 0)
    assert manager.contains("dummy", 0)
    assert manager.get_pct_used_blocks_after_allocation(dummy, 0) == 0
    manager.alloc(dummy, 0)
    make.forward(manager, dummy, token=8)
    assert manager.get_req_blocks("dummy", 0) == [3]
    assert manager.num_free_blocks() == free
    assert dummy.processed_length == 8  # All of it was computed, nothing was hit.
    assert make.hits(manager, range(13)).device_blocks == 2
    assert manager.get_metrics_aggregated() == KVCacheMetrics()
    manager.release("dummy", 0)
    assert not manager.contains("dummy", 0)
    assert manager.num_free_blocks() == free


@pytest.mark.rule("CLAIM-4")
def test_a_dummy_request_commits_nothing(make: Making) -> None:
    manager = make.manager()
    dummy = make.context(range(8), request_id="dummy")
    manager.alloc_dummy("dummy", 0)
    make.forward(manager, dummy)
    assert make.hits(manager, range(9)).total_blocks == 0


@pytest.mark.rule("CLAIM-5")
@pytest.mark.parametrize("raises", [True, False])
def test_reserved_contexts_are_always_released(make: Making, raises: bool) -> None:
    manager = make.manager(make.params(replicas=2), pages=2)
    batches = [[make.context(range(4)), make.context(range(5, 9))], [make.context(range(8))]]

    def reserve() -> None:
        with manager.reserve(batches):
            assert [manager.num_free_blocks(replica) for replica in (0, 1)] == [0, 0]
            if raises:
                raise ZeroDivisionError

    if raises:
        with pytest.raises(ZeroDivisionError):
            reserve()
    else:
        reserve()
    for replica, batch in enumerate(batches):
        assert not any(manager.contains(ctx.request_id, replica) for ctx in batch)
        assert manager.num_free_blocks(replica) == 2


@pytest.mark.rule("CLAIM-5")
def test_if_one_context_does_not_fit_none_is_reserved(make: Making) -> None:
    manager = make.manager(pages=4)
    make.serve(manager, range(8))
    fits, does_not_fit = make.context(range(9)), make.context(range(100, 108))
    with (
        pytest.raises(InsufficientBlocksError),
        manager.reserve([[fits, does_not_fit]]),
    ):
        pytest.fail("the body ran without its contexts")
    assert manager.num_free_blocks() == 4
    for ctx in (fits, does_not_fit):
        assert not manager.contains(ctx.request_id, 0)
        assert (ctx.processed_length, ctx.cached_prefix_length) == (0, None)


@pytest.mark.rule("CLAIM-5", "CLAIM-1")
def test_a_context_that_is_claimed_already_survives_a_refused_reserve(make: Making) -> None:
    manager = make.manager()
    mine = make.admit(manager, range(4))
    other = make.context(range(5))
    with pytest.raises(AlreadyClaimedError), manager.reserve([[other, mine]]):
        pytest.fail("the body ran without its contexts")
    assert manager.get_req_blocks(mine.request_id, 0) == [0]
    assert not manager.contains(other.request_id, 0)


@pytest.mark.rule("CLAIM-5", "INPUT-1")
def test_reserve_takes_one_batch_per_replica(make: Making) -> None:
    manager = make.manager(make.params(replicas=2))
    ctx = make.context(range(4))
    with pytest.raises(ValueError, match=r"1 batch\(es\) for 2 replica"), manager.reserve([[ctx]]):
        pytest.fail("the body ran without its contexts")
    assert not manager.contains(ctx.request_id, 0)


@pytest.mark.rule("CLAIM-5")
def test_after_a_reserve_the_windows_begin_where_they_began(make: Making) -> None:
    manager = make.manager()
    make.serve(manager, range(12))
    ctx = make.context(range(12))
    with manager.reserve([[ctx]]):
        assert ctx.processed_length == 8
    assert (ctx.processed_length, ctx.cached_prefix_length) == (0, None)


@pytest.mark.rule("CLAIM-5")
def test_reserve_copes_with_a_context_that_its_body_has_released(make: Making) -> None:
    manager = make.manager()
    first, second = make.context(range(4)), make.context(range(5))
    with manager.reserve([[first, second]]):
        manager.release(second.request_id, 0)
    assert not manager.contains(first.request_id, 0)


@pytest.mark.rule("CLAIM-5", "METRIC-3")
def test_a_refused_reserve_counts_no_tokens(make: Making) -> None:
    manager = make.manager(pages=4)
    batch = [make.context(range(9)), make.context(range(100, 108))]
    with pytest.raises(InsufficientBlocksError), manager.reserve([batch]):
        pytest.fail("the body ran without its contexts")
    assert manager.get_metrics_aggregated().prompt_tokens == 0


@pytest.mark.rule("CLAIM-5", "CLOSE-1")
def test_a_shutdown_within_a_reserve_still_puts_windows_back(make: Making) -> None:
    manager = make.manager()
    make.serve(manager, range(12))
    ctx = make.context(range(12))
    with manager.reserve([[ctx]]):
        manager.shutdown()
    assert ctx.processed_length == 0


@pytest.mark.rule("CLAIM-1", "CLAIM-2")
def test_equal_ids_are_one_request_whatever_they_are(make: Making) -> None:
    manager = make.manager()
    manager.claim(("batch", 1), 0)
    with pytest.raises(AlreadyClaimedError):
        manager.claim(("batch", 1), 0)
    manager.claim("('batch', 1)", 0)
    manager.release(("batch", 1), 0)
    assert manager.contains("('batch', 1)", 0)


@pytest.mark.rule("CLAIM-4", "STEP-1")
def test_a_long_dummy_lacks_no_page(make: Making) -> None:
    manager = make.manager()
    manager.alloc_dummy("padding", 0)
    make.forward(manager, make.context(range(90), request_id="padding"))
    assert manager.num_free_blocks() == 8


@pytest.mark.rule("CLAIM-6")
def test_a_page_table_is_told_in_a_list_of_the_callers_own(make: Making) -> None:
    manager = make.manager()
    ctx = make.admit(manager, range(9))
    manager.get_req_blocks(ctx.request_id, 0).reverse()
    assert manager.get_req_blocks(ctx.request_id, 0) == [0, 1, 2]
