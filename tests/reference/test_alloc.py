"""Giving a request its pages: what it hits, what it takes, and what it leaves alone."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.reference.conftest import STORE, Making, Recorder

from pagedkv.reference import (
    AllocPendingError,
    InsufficientBlocksError,
    KVLoadFailed,
    Media,
    NoPlannedAllocError,
    PagedKVCacheManager,
    PrefixCacheHits,
    TextContext,
    required_pages,
)
from pagedkv.reference.events import AllocPlanned

CALLS_THAT_WAIT: dict[str, Callable[[PagedKVCacheManager, TextContext], object]] = {
    "alloc": lambda manager, ctx: manager.alloc(ctx, 0),
    "begin_alloc": lambda manager, ctx: manager.begin_alloc(ctx, 0),
    "finish_alloc": lambda manager, ctx: manager.finish_alloc(ctx, 0),
    "runtime_inputs": lambda manager, ctx: manager.runtime_inputs([[ctx]]),
    "step": lambda manager, ctx: manager.step([[ctx]]),
    "get_pct_used_blocks_after_allocation": lambda manager, ctx: (
        manager.get_pct_used_blocks_after_allocation(ctx, 0)
    ),
}


def claimed(
    make: Making, manager: PagedKVCacheManager, length: int, replica: int = 0
) -> TextContext:
    """A request for the tokens 0, 1, ... that has no pages yet."""
    ctx = make.context(range(length))
    manager.claim(ctx.request_id, replica)
    return ctx


def forget_device(make: Making, manager: PagedKVCacheManager, replica: int = 0) -> None:
    """Take every page of a replica once: its cache is empty afterwards."""
    tokens = range(1000, 1000 + manager.params.page_size * manager.total_num_blocks(replica))
    manager.release(make.admit(manager, tokens, replica).request_id, replica)


def with_blocks_below(
    make: Making, length: int, *, replicas: int = 1, disk_pages: int | None = None
) -> PagedKVCacheManager:
    """A manager whose host memory, but no device, holds the tokens 0, 1, ... ``length - 1``."""
    params = make.tiered_params(replicas=replicas, disk_pages=disk_pages)
    manager = make.manager(params, pages=6, host_pages=8, auto_land=False)
    make.serve(manager, range(length))
    make.land_all(manager)
    forget_device(make, manager)
    return manager


@pytest.mark.rule("ALLOC-1")
def test_a_request_gets_its_cached_prefix_and_pages_for_the_rest(make: Making) -> None:
    manager = make.manager()
    make.serve(manager, range(8))
    ctx = make.admit(manager, range(14))
    assert manager.get_req_blocks(ctx.request_id, 0) == [0, 1, 2, 3]
    assert (ctx.processed_length, ctx.active_length) == (8, 6)


@pytest.mark.rule("ALLOC-1", "LEN-1")
@given(st.integers(1, 40), st.integers(1, 9), st.integers(0, 3))
def test_a_request_gets_the_pages_that_its_length_asks_for(
    length: int, page_size: int, drafts: int
) -> None:
    make = Making()
    params = make.params(
        page_size=page_size, speculative_method="standalone", num_draft_tokens=drafts
    )
    manager = make.manager(params, pages=60)
    ctx = make.admit(manager, range(length))
    for token in range(5):
        assert len(manager.get_req_blocks(ctx.request_id, 0)) == required_pages(ctx, params)
        make.forward(manager, ctx, token=token)
        manager.alloc(ctx, 0)


@pytest.mark.rule("ALLOC-2", "ALLOC-7")
@pytest.mark.parametrize(
    ("length", "needed", "can_ever_fit"), [(16, 2, True), (24, 4, True), (25, 5, False)]
)
def test_refused_alloc_changes_nothing(
    make: Making, length: int, needed: int, can_ever_fit: bool
) -> None:
    manager = make.manager(make.tiered_params(), pages=6, host_pages=8)
    make.serve(manager, range(8))
    make.serve(manager, range(200, 204))
    make.admit(manager, range(100, 112))
    ctx = claimed(make, manager, length)
    before = repr(manager._state), repr(ctx.tokens), ctx.cached_prefix_length
    with pytest.raises(InsufficientBlocksError) as refusal:
        manager.alloc(ctx, 0)
    # Three pages are cached, but two of them are what the request hits: not free for it.
    error = refusal.value
    assert (error.needed, error.free, error.total) == (needed, 1, 6)
    assert error.can_ever_fit == can_ever_fit
    assert (repr(manager._state), repr(ctx.tokens), ctx.cached_prefix_length) == before


@pytest.mark.rule("ALLOC-2")
def test_a_request_that_cannot_grow_keeps_what_it_has(make: Making) -> None:
    manager = make.manager(pages=3)
    ctx, other = make.admit(manager, range(8)), make.admit(manager, range(100, 104))
    make.forward(manager, ctx)
    before = repr(manager._state)
    with pytest.raises(InsufficientBlocksError, match="needs 1 free pages, but only 0"):
        manager.alloc(ctx, 0)
    assert repr(manager._state) == before
    manager.release(other.request_id, 0)
    manager.alloc(ctx, 0)
    assert manager.get_req_blocks(ctx.request_id, 0) == [0, 1, 2]


@pytest.mark.rule("ALLOC-3")
def test_a_second_alloc_without_new_tokens_changes_nothing(make: Making) -> None:
    manager = make.manager(make.tiered_params(), host_pages=8)
    make.serve(manager, range(8))
    ctx = make.admit(manager, range(14))
    before = repr(manager._state), repr(ctx.tokens)
    manager.alloc(ctx, 0)
    assert (repr(manager._state), repr(ctx.tokens)) == before


@pytest.mark.rule("ALLOC-3")
def test_a_request_with_enough_pages_looks_nothing_up(make: Making) -> None:
    manager = make.manager()
    ctx = make.admit(manager, range(9))
    pages = manager.get_req_blocks(ctx.request_id, 0)
    make.serve(manager, range(9))
    manager.alloc(ctx, 0)
    assert manager.get_req_blocks(ctx.request_id, 0) == pages
    assert ctx.processed_length == 0


@pytest.mark.rule("ALLOC-4")
def test_a_block_counts_under_the_fastest_tier_that_holds_it(make: Making) -> None:
    params = make.tiered_params(replicas=2, disk_pages=8, store=STORE)
    manager = make.manager(params, host_pages=8, auto_land=False)
    make.serve(manager, range(4))
    make.land_all(manager)
    assert make.hits(manager, range(5), replica=0) == PrefixCacheHits(device_blocks=1)
    assert make.hits(manager, range(5), replica=1) == PrefixCacheHits(peer_blocks=1)
    forget_device(make, manager)
    for hits in (
        PrefixCacheHits(host_blocks=1),
        PrefixCacheHits(disk_blocks=1),
        PrefixCacheHits(store_blocks=1),
    ):
        assert make.hits(manager, range(5)) == hits
        # The tier turns out to have lost the block, so the next one is the fastest.
        ctx = claimed(make, manager, 5)
        manager.fail(manager.begin_alloc(ctx, 0).transfers[0], "missing")
        manager.release(ctx.request_id, 0)


@pytest.mark.rule("ALLOC-4")
@pytest.mark.parametrize(
    ("disk_pages", "hits"),
    [
        (None, PrefixCacheHits(host_blocks=1)),
        (8, PrefixCacheHits(host_blocks=2, disk_blocks=1)),
    ],
)
def test_a_gap_ends_the_hit_unless_another_tier_fills_it(
    make: Making, disk_pages: int | None, hits: PrefixCacheHits
) -> None:
    manager = with_blocks_below(make, 12, disk_pages=disk_pages)
    plan = manager.begin_alloc(claimed(make, manager, 13), 0)
    assert plan.hit_counts == PrefixCacheHits(host_blocks=3)
    manager.fail(plan.transfers[0], "missing", [plan.hits[1].key])
    manager.release(plan.request_id, 0)
    ctx = claimed(make, manager, 13)
    assert manager.begin_alloc(ctx, 0).hit_counts == hits
    make.land_all(manager)
    manager.finish_alloc(ctx, 0)
    assert ctx.processed_length == 4 * hits.total_blocks


@pytest.mark.rule("ALLOC-5")
def test_a_hit_stays_within_a_chunk(make: Making) -> None:
    manager = make.manager()
    make.serve(manager, range(12))
    ctx = claimed(make, manager, 13)
    ctx.chunk(8)
    manager.alloc(ctx, 0)
    assert (ctx.processed_length, ctx.active_length) == (4, 4)


@pytest.mark.rule("ALLOC-5")
def test_with_one_active_token_nothing_is_looked_up(make: Making, recorder: Recorder) -> None:
    manager = make.manager(tracer=recorder)
    ctx = make.admit(manager, range(9))
    ctx.update(9)
    manager.alloc(ctx, 0)
    before, after = (planned.context.keys for planned in recorder.of_kind(AllocPlanned))
    assert (len(before), len(after)) == (2, 0)


def unfinished(make: Making, manager: PagedKVCacheManager) -> TextContext:
    """A request for 13 tokens that has computed the first 4, and has not been stepped."""
    ctx = claimed(make, manager, 13)
    ctx.chunk(4)
    manager.alloc(ctx, 0)
    assert manager.get_req_blocks(ctx.request_id, 0) == [0]
    ctx.update(0)
    return ctx


@pytest.mark.rule("ALLOC-5")
def test_a_hit_that_ends_where_the_request_is_already_is_not_used(make: Making) -> None:
    manager = make.manager()
    ctx = unfinished(make, manager)
    make.serve(manager, range(4))
    manager.alloc(ctx, 0)
    assert manager.get_req_blocks(ctx.request_id, 0)[0] == 0
    assert ctx.processed_length == 4
    assert manager.get_metrics_aggregated().device_blocks_served == 0


@pytest.mark.rule("ALLOC-8", "ALLOC-14")
def test_pages_that_a_hit_replaces_stay_until_the_allocation_returns(make: Making) -> None:
    manager = make.manager()
    ctx = unfinished(make, manager)
    make.serve(manager, range(8))
    assert manager.get_pct_used_blocks_after_allocation(ctx, 0) == 4 / 8
    plan = manager.begin_alloc(ctx, 0)
    assert manager.get_req_blocks(ctx.request_id, 0) == [0]
    manager.finish_alloc(ctx, 0)
    assert manager.get_req_blocks(ctx.request_id, 0) == list(plan.pages) == [1, 2, 0, 3]
    assert ctx.processed_length == 8


@pytest.mark.rule("ALLOC-8", "ALLOC-2")
def test_a_hit_needs_no_more_pages_than_computing_would(make: Making) -> None:
    manager = make.manager(pages=3)
    ctx = make.context(range(12))
    ctx.chunk(2)
    manager.claim(ctx.request_id, 0)
    manager.alloc(ctx, 0)
    make.serve(manager, range(8))
    make.forward(manager, ctx)
    manager.alloc(ctx, 0)
    assert manager.get_req_blocks(ctx.request_id, 0) == [1, 2, 0]
    assert ctx.processed_length == 8


@pytest.mark.rule("ALLOC-8")
def test_pages_are_taken_for_loads_and_computations_only(make: Making) -> None:
    manager = with_blocks_below(make, 8)
    first, second = claimed(make, manager, 13), claimed(make, manager, 13)
    manager.begin_alloc(first, 0)  # Two blocks from the host, two pages to compute.
    assert manager.get_num_used_pages(0) == 4
    make.land_all(manager)
    manager.alloc(second, 0)  # Two blocks on the device, two pages to compute.
    assert manager.get_num_used_pages(0) == 6


@pytest.mark.rule("ALLOC-6")
def test_a_block_on_its_way_is_joined_and_no_source_for_others(make: Making) -> None:
    manager = with_blocks_below(make, 4, replicas=2)
    first, second = claimed(make, manager, 5), claimed(make, manager, 5)
    plans = [manager.begin_alloc(ctx, 0) for ctx in (first, second)]
    (load,) = manager.in_flight()
    assert [plan.transfers for plan in plans] == [(load.id,)] * 2
    assert plans[0].pages[0] == plans[1].pages[0]
    for replica in (0, 1):
        assert make.hits(manager, range(5), replica) == PrefixCacheHits(host_blocks=1)
    manager.land(load.id)
    assert make.hits(manager, range(5), 0) == PrefixCacheHits(device_blocks=1)
    assert make.hits(manager, range(5), 1) == PrefixCacheHits(peer_blocks=1)
    for ctx in (first, second):
        manager.finish_alloc(ctx, 0)
    assert manager.get_metrics_aggregated().host_blocks_served == 2
    assert manager.get_metrics_aggregated().h2d_blocks_copied == 1


@pytest.mark.rule("ALLOC-6", "ALLOC-11")
def test_all_who_wait_for_a_load_fail_together(make: Making) -> None:
    manager = with_blocks_below(make, 4)
    waiting = [claimed(make, manager, 5) for _ in range(2)]
    for ctx in waiting:
        manager.begin_alloc(ctx, 0)
    (load,) = manager.in_flight()
    manager.fail(load.id, "timeout")
    for ctx in waiting:
        with pytest.raises(KVLoadFailed, match=load.id):
            manager.finish_alloc(ctx, 0)
    assert manager.get_num_used_pages(0) == 0


@pytest.mark.rule("ALLOC-7")
def test_a_hit_is_not_evicted_by_its_own_allocation(make: Making) -> None:
    manager = make.manager(pages=3)
    for start in (0, 100, 200):  # The prompt that is hit is the oldest.
        make.serve(manager, range(start, start + 4))
    ctx = make.admit(manager, range(8))
    assert manager.get_req_blocks(ctx.request_id, 0) == [0, 1]
    assert ctx.processed_length == 4


@pytest.mark.rule("ALLOC-9")
def test_the_cached_prefix_is_noted_at_the_first_admission(make: Making) -> None:
    manager = make.manager()
    first = make.admit(manager, range(9))
    assert first.cached_prefix_length == 0
    make.forward(manager, first)
    assert make.admit(manager, range(9)).cached_prefix_length == 8
    # Now it would find itself, but that is not its first admission.
    manager.release(first.request_id, 0)
    first.reset()
    manager.claim(first.request_id, 0)
    manager.alloc(first, 0)
    assert (first.cached_prefix_length, first.processed_length) == (0, 8)


@pytest.mark.rule("ALLOC-9")
def test_without_prefix_caching_nothing_is_found_cached(make: Making) -> None:
    manager = make.manager(make.params(enable_prefix_caching=False))
    make.serve(manager, range(9))
    ctx = make.admit(manager, range(9))
    assert (ctx.cached_prefix_length, ctx.processed_length) == (0, 0)


@pytest.mark.rule("ALLOC-10")
def test_the_lowest_peer_is_preferred_to_slower_tiers(make: Making) -> None:
    params = make.tiered_params(replicas=3)
    manager = make.manager(params, host_pages=8, auto_land=False)
    for replica in (2, 1):
        ctx = claimed(make, manager, 9, replica)
        manager.begin_alloc(ctx, replica)
        make.land_all(manager)
        manager.finish_alloc(ctx, replica)
        make.forward(manager, ctx, replica)
        make.land_all(manager)
    plan = manager.begin_alloc(claimed(make, manager, 9), 0)
    assert plan.hit_counts == PrefixCacheHits(peer_blocks=2)
    (copy,) = manager.in_flight()
    assert (copy.source, copy.source_replica) == ("peer", 1)


@pytest.mark.rule("ALLOC-10")
def test_copies_from_peers_can_be_switched_off(make: Making) -> None:
    params = make.tiered_params(replicas=2, enable_dp_cross_replica_prefix_copy=False)
    manager = make.manager(params, host_pages=8)
    make.serve(manager, range(8))
    assert make.hits(manager, range(9), replica=1) == PrefixCacheHits(host_blocks=2)
    make.admit(manager, range(9), replica=1)
    assert manager.get_metrics_aggregated().cross_replica_blocks_copied == 0


@pytest.mark.rule("ALLOC-11")
def test_a_failed_load_undoes_the_plan_and_is_not_tried_again(make: Making) -> None:
    manager = with_blocks_below(make, 8)
    manager.reset_metrics()
    ctx = claimed(make, manager, 9)
    (load,) = manager.begin_alloc(ctx, 0).transfers
    manager.fail(load, "timeout")
    with pytest.raises(KVLoadFailed) as failure:
        manager.finish_alloc(ctx, 0)
    assert failure.value.transfers == (load,)
    assert manager.get_req_blocks(ctx.request_id, 0) == []
    assert manager.get_num_used_pages(0) == 0
    assert (ctx.processed_length, ctx.cached_prefix_length) == (0, None)
    assert manager.get_metrics_aggregated().prompt_tokens == 0
    manager.alloc(ctx, 0)
    assert (ctx.processed_length, ctx.cached_prefix_length) == (0, 0)
    # The host still has the blocks, and serves others.
    assert make.hits(manager, range(9)) == PrefixCacheHits(host_blocks=2)


@pytest.mark.rule("ALLOC-11")
def test_alloc_plans_again_by_itself_until_no_load_fails(make: Making) -> None:
    media = Media()
    manager = make.manager(make.tiered_params(store=STORE), media=media)
    make.serve(manager, range(12))
    forget_device(make, manager)
    damaged = list(media.stores[STORE].values())[1]
    assert damaged.content is not None
    damaged.content[0][0] ^= 1
    ctx = make.admit(manager, range(13))
    assert ctx.processed_length == 4
    assert manager.get_metrics_aggregated().load_blocks_failed == 1


@pytest.mark.rule("ALLOC-12", "REL-3")
@pytest.mark.parametrize("undo", ["cancel_alloc", "release"])
def test_of_a_cancelled_allocation_only_its_loads_remain(make: Making, undo: str) -> None:
    manager = with_blocks_below(make, 8)
    ctx = claimed(make, manager, 13)
    manager.begin_alloc(ctx, 0)
    assert manager.statistics().held == 4
    if undo == "cancel_alloc":
        manager.cancel_alloc(ctx.request_id, 0)
        assert manager.get_req_blocks(ctx.request_id, 0) == []
    else:
        manager.release(ctx.request_id, 0)
    assert ctx.processed_length == 0
    statistics = manager.statistics()
    assert (statistics.held, statistics.pinned, statistics.cached) == (0, 2, 0)
    make.land_all(manager)
    statistics = manager.statistics()
    assert (statistics.held, statistics.pinned, statistics.cached) == (0, 0, 2)


@pytest.mark.rule("ALLOC-12")
def test_a_cancelled_request_keeps_what_it_had(make: Making) -> None:
    manager = make.manager()
    ctx = make.admit(manager, range(8))
    ctx.update(8)
    used = manager.get_num_used_pages(0)
    manager.begin_alloc(ctx, 0)
    manager.cancel_alloc(ctx.request_id, 0)
    assert manager.get_req_blocks(ctx.request_id, 0) == [0, 1]
    assert manager.get_num_used_pages(0) == used


@pytest.mark.rule("ALLOC-13")
def test_an_allocation_is_finished_once_it_was_begun_and_its_loads_have_landed(
    make: Making,
) -> None:
    manager = with_blocks_below(make, 8)
    ctx = claimed(make, manager, 9)
    for call in (
        lambda: manager.finish_alloc(ctx, 0),
        lambda: manager.cancel_alloc(ctx.request_id, 0),
    ):
        with pytest.raises(NoPlannedAllocError, match=r"call begin_alloc\(\)"):
            call()
    plan = manager.begin_alloc(ctx, 0)
    assert ctx.processed_length == 0
    make.land_all(manager)
    assert manager.finish_alloc(ctx, 0) == plan
    assert ctx.processed_length == plan.processed == 8
    with pytest.raises(NoPlannedAllocError):
        manager.finish_alloc(ctx, 0)


@pytest.mark.rule("ALLOC-13")
@pytest.mark.parametrize("call", CALLS_THAT_WAIT)
def test_a_request_that_waits_for_loads_cannot_be_used(make: Making, call: str) -> None:
    manager = with_blocks_below(make, 8)
    ctx = claimed(make, manager, 9)
    manager.begin_alloc(ctx, 0)
    before = repr(manager._state)
    with pytest.raises(AllocPendingError, match="still waits for transfers"):
        CALLS_THAT_WAIT[call](manager, ctx)
    assert repr(manager._state) == before


prompts = st.builds(
    lambda length, variant: [n if n < variant else n + 100 for n in range(length)],
    st.integers(1, 20),
    st.integers(0, 20),
)


@pytest.mark.rule("ALLOC-14")
@given(st.lists(st.tuples(prompts, st.integers(0, 1), st.booleans()), max_size=8), prompts)
def test_probes_foretell_the_allocation_and_change_nothing(
    earlier: list[tuple[list[int], int, bool]], prompt: list[int]
) -> None:
    make = Making()
    manager = make.manager(make.tiered_params(replicas=2), pages=8, host_pages=6)
    for tokens, replica, released in earlier:
        try:
            ctx = make.admit(manager, tokens, replica)
        except InsufficientBlocksError:
            continue
        make.forward(manager, ctx, replica)
        if released:
            manager.release(ctx.request_id, replica)
    contexts = [make.context(prompt), make.context(prompt)]
    for replica, ctx in enumerate(contexts):
        manager.claim(ctx.request_id, replica)
    before = repr(manager._state)
    hits = manager.get_prefix_cache_hit_counts(make.context(prompt))
    fractions = [
        manager.get_pct_used_blocks_after_allocation(ctx, replica)
        for replica, ctx in enumerate(contexts)
    ]
    assert repr(manager._state) == before
    try:
        plan = manager.begin_alloc(contexts[0], 0)
    except InsufficientBlocksError:
        assert fractions[0] == 1
    else:
        assert plan.hit_counts == hits[0]
        assert fractions[0] == manager.get_num_used_pages(0) / manager.get_num_pages(0)


@pytest.mark.rule("ALLOC-14")
def test_probing_a_chain_does_not_renew_it(make: Making) -> None:
    manager = make.manager(pages=2)
    make.serve(manager, range(4))
    make.serve(manager, range(100, 104))
    ctx = claimed(make, manager, 5)
    assert manager.get_prefix_cache_hit_counts(ctx)[0].device_blocks == 1
    assert manager.get_pct_used_blocks_after_allocation(ctx, 0) == 1
    make.admit(manager, [200])
    assert make.hits(manager, range(5)).total_blocks == 0
    assert make.hits(manager, range(100, 105)).total_blocks == 1


@pytest.mark.rule("ALLOC-4", "ALLOC-11")
def test_after_a_timeout_the_next_tier_serves(make: Making) -> None:
    params = make.tiered_params(disk_pages=8)
    manager = make.manager(params, pages=3, host_pages=8, auto_land=False)
    make.serve(manager, range(4))
    make.land_all(manager)
    make.serve(manager, range(100, 112))
    make.land_all(manager)
    ctx = claimed(make, manager, 5)
    assert manager.begin_alloc(ctx, 0).hit_counts == PrefixCacheHits(host_blocks=1)
    manager.fail(manager.in_flight()[0].id, "timeout")
    with pytest.raises(KVLoadFailed):
        manager.finish_alloc(ctx, 0)
    assert manager.begin_alloc(ctx, 0).hit_counts == PrefixCacheHits(disk_blocks=1)


@pytest.mark.rule("POOL-8", "ALLOC-10")
def test_a_copy_from_a_peer_renews_its_whole_chain_there(make: Making) -> None:
    manager = make.manager(make.params(replicas=2), pages=3)
    make.serve(manager, range(12))
    make.serve(manager, range(5), 1)
    make.serve(manager, range(12), 1)  # Copies only the second block; the root stays the youngest.
    make.serve(manager, range(100, 108))
    assert make.hits(manager, range(12), 0).device_blocks == 1
