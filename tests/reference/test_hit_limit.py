"""Allocations that do not wait for slow tiers: rule ALLOC-15."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.reference.conftest import Making, Recorder, prompt

from pagedkv.reference import (
    AllocPlan,
    InsufficientBlocksError,
    KVCacheMetrics,
    PagedKVCacheManager,
    PrefixCacheHits,
    TextContext,
)
from pagedkv.reference.events import AllocPlanned, AllocRefused


def half_on_disk(make: Making) -> PagedKVCacheManager:
    """Of :func:`prompt` (4), two blocks are in host memory and two on disk; none on replica 1."""
    manager = make.manager(make.isolated_params(disk_pages=8), host_pages=4)
    make.serve(manager, prompt(4))
    make.serve(manager, prompt(2, 100))
    assert make.hits_below(manager, prompt(4)) == PrefixCacheHits(host_blocks=2, disk_blocks=2)
    manager.reset_metrics()
    return manager


def begin(
    make: Making, manager: PagedKVCacheManager, tokens: range, hit_limit: int | None
) -> tuple[TextContext, AllocPlan]:
    ctx = make.context(tokens)
    manager.claim(ctx.request_id, 1)
    return ctx, manager.begin_alloc(ctx, 1, hit_limit)


def misses(metrics: KVCacheMetrics) -> tuple[int, int]:
    return metrics.missed_blocks_too_slow, metrics.missed_blocks_never_seen


@pytest.mark.rule("ALLOC-15", "METRIC-6", "METRIC-1")
@given(hit_limit=st.one_of(st.none(), st.integers(0, 9)), more=st.integers(0, 2))
def test_at_most_so_many_blocks_are_used_and_those_behind_are_too_slow(
    hit_limit: int | None, more: int
) -> None:
    make = Making()
    manager = half_on_disk(make)
    tokens = [*range(16), *range(500, 500 + 4 * more + 1)]
    ctx = make.context(tokens)
    manager.claim(ctx.request_id, 1)
    plan = manager.begin_alloc(ctx, 1, hit_limit)
    used = 4 if hit_limit is None else min(4, hit_limit)
    assert plan.hit_counts == PrefixCacheHits(
        host_blocks=min(2, used), disk_blocks=max(0, used - 2)
    )
    manager.finish_alloc(ctx, 1)
    metrics = manager.get_metrics_aggregated()
    assert (
        ctx.tokens.processed_length == ctx.cached_prefix_length == metrics.cache_tokens == 4 * used
    )
    assert misses(metrics) == (4 - used, more)
    assert len(manager.get_req_blocks(ctx.request_id, 1)) == 4 + more + 1


@pytest.mark.rule("ALLOC-15")
def test_what_is_not_waited_for_is_not_loaded(make: Making) -> None:
    manager = half_on_disk(make)
    begin(make, manager, prompt(4), 2)
    assert manager.get_metrics_aggregated().disk_blocks_read == 0
    assert manager.get_metrics_aggregated().h2d_blocks_copied == 2


@pytest.mark.rule("ALLOC-15", "METRIC-6")
def test_too_slow_blocks_count_once(make: Making) -> None:
    manager = half_on_disk(make)
    ctx, _ = begin(make, manager, prompt(4), 2)
    manager.finish_alloc(ctx, 1)
    make.forward(manager, ctx, 1)
    for token in range(4):
        manager.begin_alloc(ctx, 1, 0)
        manager.finish_alloc(ctx, 1)
        make.forward(manager, ctx, 1, token=token)
    assert misses(manager.get_metrics_aggregated()) == (2, 0)


@pytest.mark.rule("ALLOC-15", "METRIC-3")
def test_a_cancelled_allocation_has_missed_nothing(make: Making) -> None:
    manager = half_on_disk(make)
    ctx, _ = begin(make, manager, prompt(4), 1)
    manager.cancel_alloc(ctx.request_id, 1)
    assert misses(manager.get_metrics_aggregated()) == (0, 0)
    assert manager.begin_alloc(ctx, 1).hit_counts.total_blocks == 4


@pytest.mark.rule("ALLOC-15", "ALLOC-4")
def test_the_limit_counts_blocks_after_those_committed(make: Making) -> None:
    manager = half_on_disk(make)
    ctx = make.context(prompt(4))
    ctx.chunk(5)
    manager.claim(ctx.request_id, 1)
    manager.alloc(ctx, 1)
    make.forward(manager, ctx, 1)
    committed = ctx.tokens.processed_length // 4
    assert committed == 1
    plan = manager.begin_alloc(ctx, 1, 1)
    assert plan.hit_counts == PrefixCacheHits(host_blocks=1)
    manager.finish_alloc(ctx, 1)
    assert ctx.tokens.processed_length == 8


@pytest.mark.rule("ALLOC-15", "ALLOC-5")
def test_a_limited_hit_that_ends_before_what_is_processed_is_not_used(make: Making) -> None:
    manager = half_on_disk(make)
    ctx = make.context(prompt(4))
    ctx.tokens.skip_processing(5)
    manager.claim(ctx.request_id, 1)
    assert manager.begin_alloc(ctx, 1, 1).hits == ()
    manager.finish_alloc(ctx, 1)
    assert ctx.tokens.processed_length == 5


@pytest.mark.rule("ALLOC-15", "DRAFT-1")
@pytest.mark.parametrize(("hit_limit", "used"), [(0, 0), (1, 0), (3, 2), (4, 3), (None, 3)])
def test_where_drafts_look_ahead_the_last_block_of_a_limited_hit_is_not_used(
    make: Making, hit_limit: int | None, used: int
) -> None:
    params = make.isolated_params(speculative_method="eagle", num_draft_tokens=1)
    manager = make.manager(params, host_pages=4)
    make.serve(manager, prompt(4))
    manager.reset_metrics()
    ctx, plan = begin(make, manager, prompt(4), hit_limit)
    manager.finish_alloc(ctx, 1)
    assert len(plan.hits) == used
    too_slow = 0 if hit_limit is None else 4 - hit_limit
    assert misses(manager.get_metrics_aggregated()) == (too_slow, 0)


@pytest.mark.rule("ALLOC-15", "ALLOC-2", "EVENT-2")
def test_its_events_say_the_limit(make: Making, recorder: Recorder) -> None:
    manager = make.manager(make.isolated_params(), host_pages=4, pages=5, tracer=recorder)
    make.serve(manager, prompt(4))
    begin(make, manager, prompt(4), 3)
    other = make.context(prompt(4))
    manager.claim(other.request_id, 1)
    with pytest.raises(InsufficientBlocksError) as refusal:
        manager.begin_alloc(other, 1, 2)
    assert refusal.value.needed == 3
    assert [event.hit_limit for event in recorder.of_kind(AllocPlanned)] == [None, 3]
    assert [event.hit_limit for event in recorder.of_kind(AllocRefused)] == [2]


@pytest.mark.rule("ALLOC-15")
def test_a_negative_limit_is_refused(make: Making) -> None:
    manager = half_on_disk(make)
    ctx = make.context(prompt(4))
    manager.claim(ctx.request_id, 1)
    with pytest.raises(ValueError, match="hit_limit is -1; use 0 or more, or None for no limit"):
        manager.begin_alloc(ctx, 1, -1)
    assert manager.get_req_blocks(ctx.request_id, 1) == []
    assert manager.begin_alloc(ctx, 1).hit_counts.total_blocks == 4


@pytest.mark.rule("ALLOC-15", "METRIC-6")
def test_a_hit_within_the_limit_is_whole(make: Making) -> None:
    manager = half_on_disk(make)
    ctx, plan = begin(make, manager, prompt(4), 4)
    manager.finish_alloc(ctx, 1)
    assert plan.hit_counts == PrefixCacheHits(host_blocks=2, disk_blocks=2)
    assert misses(manager.get_metrics_aggregated()) == (0, 0)
