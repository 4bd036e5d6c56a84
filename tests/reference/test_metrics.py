"""What the counters count, and when: rules METRIC-1 to METRIC-6."""

from dataclasses import asdict, fields

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.reference.conftest import STORE, Making, prompt

from pagedkv.reference import (
    FailReason,
    InsufficientBlocksError,
    KVCacheMetrics,
    KVCacheParams,
    KVLoadFailed,
    Media,
    PagedKVCacheManager,
)

NUMBER_OF_COUNTERS = len(fields(KVCacheMetrics))


def counters(values: list[int]) -> KVCacheMetrics:
    return KVCacheMetrics(*values)


any_counters = st.builds(
    counters, st.lists(st.integers(0, 9), min_size=NUMBER_OF_COUNTERS, max_size=NUMBER_OF_COUNTERS)
)


def tokens_of(metrics: KVCacheMetrics) -> tuple[int, int]:
    """Computed and cached tokens."""
    return metrics.input_tokens, metrics.cache_tokens


# --- METRIC-1: tokens and hits ------------------------------------------------------------------


@pytest.mark.rule("METRIC-1")
def test_cached_tokens_count_when_served_and_others_when_computed(make: Making) -> None:
    manager = make.manager()
    make.serve(manager, prompt(2))
    assert tokens_of(manager.get_metrics_aggregated()) == (9, 0)
    ctx, _ = make.begin(manager, prompt(2))
    assert tokens_of(manager.get_metrics_aggregated()) == (9, 0)
    manager.finish_alloc(ctx, 0)
    metrics = manager.get_metrics_aggregated()
    assert tokens_of(metrics) == (9, 8)
    assert metrics.device_blocks_served == 2
    make.forward(manager, ctx)
    metrics = manager.get_metrics_aggregated()
    assert tokens_of(metrics) == (10, 8)
    assert metrics.prompt_tokens == 18
    assert metrics.cache_hit_rate == 8 / 18


@pytest.mark.rule("METRIC-1")
@given(
    cached_pages=st.integers(0, 3),
    length=st.integers(1, 14),
    chunks=st.lists(st.integers(1, 5), max_size=3),
    decoded=st.integers(0, 5),
)
def test_every_token_position_of_an_admission_counts_once(
    cached_pages: int, length: int, chunks: list[int], decoded: int
) -> None:
    make = Making()
    manager = make.manager()
    if cached_pages:
        make.serve(manager, prompt(cached_pages))
    manager.reset_metrics()
    ctx = make.context(range(length))
    manager.claim(ctx.request_id, 0)
    for chunk in chunks:
        if chunk < ctx.active_length:
            ctx.chunk(chunk)
            for _ in range(2):  # the second call finds the pages there, and counts nothing
                manager.alloc(ctx, 0)
            make.forward(manager, ctx)
    for n in range(decoded + 1):
        for _ in range(2):
            manager.alloc(ctx, 0)
        if n < decoded:
            make.forward(manager, ctx)
            manager.step([[ctx]])
    metrics = manager.get_metrics_aggregated()
    assert metrics.prompt_tokens == ctx.processed_length
    assert metrics.cache_tokens <= 4 * metrics.device_blocks_served


@pytest.mark.rule("METRIC-1", "ALLOC-4")
def test_hits_count_under_the_tier_that_serves_them(make: Making) -> None:
    manager = make.manager(make.isolated_params(), host_pages=4)
    make.serve(manager, prompt(3))
    make.admit(manager, prompt(1), replica=1)
    manager.reset_metrics()
    make.admit(manager, prompt(3), replica=1)
    metrics = manager.get_metrics_aggregated()
    assert (metrics.device_blocks_served, metrics.host_blocks_served) == (1, 2)
    assert tokens_of(metrics) == (0, 12)


# --- METRIC-2: copies ---------------------------------------------------------------------------


@pytest.mark.rule("METRIC-2")
def test_copies_are_counted_when_they_land(make: Making) -> None:
    manager = make.manager(make.isolated_params(disk_pages=8), host_pages=8, auto_land=False)

    def counted() -> tuple[int, int, int]:
        metrics = manager.get_metrics_aggregated()
        return metrics.d2h_blocks_copied, metrics.disk_blocks_written, metrics.h2d_blocks_copied

    make.serve(manager, prompt(2))
    assert counted() == (0, 0, 0)
    manager.land(manager.in_flight()[0].id)
    assert counted() == (2, 0, 0)
    assert manager.get_metrics_aggregated().inflight_disk_ops == 1
    manager.land(manager.in_flight()[0].id)
    assert counted() == (2, 2, 0)
    make.begin(manager, prompt(2), replica=1)
    assert counted() == (2, 2, 0)
    make.land_all(manager)
    assert counted() == (2, 2, 2)


@pytest.mark.rule("METRIC-2")
@pytest.mark.parametrize("tier", ["disk", "store"])
def test_a_block_from_below_host_memory_counts_there_and_as_copied_to_the_device(
    make: Making, tier: str
) -> None:
    params = (
        make.isolated_params(disk_pages=8) if tier == "disk" else make.isolated_params(store=STORE)
    )
    manager = make.manager(params, host_pages=1 if tier == "disk" else 0)
    make.serve(manager, prompt(1))
    make.serve(manager, prompt(1, start=100))
    make.admit(manager, prompt(1), replica=1)
    metrics = manager.get_metrics_aggregated()
    assert metrics.h2d_blocks_copied == 1
    assert (metrics.disk_blocks_read, metrics.store_blocks_read) == (
        (1, 0) if tier == "disk" else (0, 1)
    )


@pytest.mark.rule("METRIC-2", "ALLOC-10")
def test_a_copy_between_replicas_counts_blocks_and_bytes(make: Making) -> None:
    manager = make.manager(make.params(replicas=2, shards=2))
    make.serve(manager, prompt(2))
    make.admit(manager, prompt(2), replica=1)
    metrics = manager.get_metrics_aggregated()
    assert metrics.peer_blocks_served == metrics.cross_replica_blocks_copied == 2
    assert metrics.cross_replica_bytes_copied == 2 * manager.params.bytes_per_block


# --- METRIC-3 and METRIC-4: what does not count -------------------------------------------------


@pytest.mark.rule("METRIC-3", "ALLOC-2", "ALLOC-14")
def test_refused_calls_and_probes_move_no_counter(make: Making) -> None:
    manager = make.manager(make.tiered_params(), pages=4, host_pages=4)
    make.serve(manager, prompt(2))
    before = manager.get_metrics_aggregated()
    ctx = make.context([*prompt(2), *range(100, 120)])
    manager.claim(ctx.request_id, 0)
    with pytest.raises(InsufficientBlocksError):
        manager.alloc(ctx, 0)
    make.hits(manager, prompt(2))
    manager.get_pct_used_blocks_after_allocation(ctx, 0)
    assert manager.get_metrics_aggregated() == before


@pytest.mark.rule("METRIC-3", "METRIC-1")
def test_failed_and_cancelled_allocations_move_no_counter_of_tokens_or_hits(make: Making) -> None:
    manager = make.manager(make.isolated_params(), host_pages=4, auto_land=False)
    make.serve(manager, prompt(2))
    make.land_all(manager)
    before = manager.get_metrics_aggregated()
    failed, plan = make.begin(manager, prompt(2), replica=1)
    manager.fail(plan.transfers[0], "timeout")
    with pytest.raises(KVLoadFailed):
        manager.finish_alloc(failed, 1)
    cancelled, _ = make.begin(manager, prompt(2), replica=1)
    manager.cancel_alloc(cancelled.request_id, 1)
    assert manager.get_metrics_aggregated() == before.plus(load_blocks_failed=2)


@pytest.mark.rule("METRIC-4")
@pytest.mark.parametrize("chunk", [None, 5])
def test_what_a_preempted_request_repeats_is_kept_apart(make: Making, chunk: int | None) -> None:
    manager = make.manager()
    ctx = make.admit(manager, prompt(2))
    make.forward(manager, ctx)
    manager.release(ctx.request_id, 0)
    before = manager.get_metrics_aggregated()
    ctx.reset()
    if chunk:
        manager.reset_prefix_cache()
        ctx.chunk(chunk)
    manager.claim(ctx.request_id, 0)
    for _ in range(2 if chunk else 1):
        manager.alloc(ctx, 0)
        make.forward(manager, ctx)
    after = manager.get_metrics_aggregated()
    assert tokens_of(after) == tokens_of(before)
    assert after.device_blocks_served == before.device_blocks_served
    assert after.missed_blocks_never_seen == before.missed_blocks_never_seen
    repeated = (after.preempted_input_tokens, after.preempted_cache_tokens)
    assert repeated == ((10, 0) if chunk else (2, 8))
    assert after.preempted_blocks_served == (0 if chunk else 2)
    manager.alloc(ctx, 0)
    make.forward(manager, ctx)
    assert manager.get_metrics_aggregated().input_tokens == before.input_tokens + 1


# --- METRIC-6: why blocks are missing -----------------------------------------------------------


def missed(manager: PagedKVCacheManager) -> dict[str, int]:
    """Missed blocks by reason, without the reasons that did not occur."""
    counts = asdict(manager.get_metrics_aggregated())
    prefix = "missed_blocks_"
    return {k.removeprefix(prefix): n for k, n in counts.items() if k.startswith(prefix) and n}


@pytest.mark.rule("METRIC-6")
def test_a_block_that_nobody_has_computed_was_never_seen(make: Making) -> None:
    manager = make.manager()
    make.admit(manager, prompt(2))
    assert missed(manager) == {"never_seen": 2}


@pytest.mark.rule("METRIC-6")
def test_a_block_that_made_room_was_evicted(make: Making) -> None:
    manager = make.manager(pages=3)
    make.serve(manager, prompt(2))
    make.serve(manager, prompt(2, start=100))
    manager.reset_metrics()
    make.admit(manager, prompt(2))
    assert missed(manager) == {"evicted": 2}


@pytest.mark.rule("METRIC-6")
def test_a_block_that_found_no_slot_below_was_not_stored(make: Making) -> None:
    manager = make.manager(make.tiered_params(), pages=3, host_pages=1)
    make.serve(manager, prompt(2))
    make.serve(manager, prompt(2, start=100))
    manager.reset_metrics()
    make.admit(manager, prompt(2))
    assert missed(manager) == {"evicted": 1, "not_stored": 1}


@pytest.mark.rule("METRIC-6")
@pytest.mark.parametrize(
    ("reason", "miss"),
    [("timeout", "too_slow"), ("unavailable", "failed"), ("io_error", "failed")],
)
def test_a_block_whose_load_failed_says_how(make: Making, reason: FailReason, miss: str) -> None:
    manager = make.manager(make.isolated_params(), host_pages=4, auto_land=False)
    make.serve(manager, prompt(1))
    make.land_all(manager)
    ctx, plan = make.begin(manager, prompt(1), replica=1)
    manager.reset_metrics()
    manager.fail(plan.transfers[0], reason)
    with pytest.raises(KVLoadFailed):
        manager.finish_alloc(ctx, 1)
    manager.alloc(ctx, 1)
    assert missed(manager) == {miss: 1}


@pytest.mark.rule("METRIC-6")
def test_a_block_from_before_a_reset_is_in_another_namespace(make: Making) -> None:
    manager = make.manager(make.tiered_params(), host_pages=4)
    make.serve(manager, prompt(2))
    manager.reset_prefix_cache()
    manager.reset_metrics()
    make.admit(manager, prompt(2))
    assert missed(manager) == {"other_namespace": 2}


@pytest.mark.rule("METRIC-6", "NS-3")
def test_a_block_of_another_model_is_in_another_namespace(make: Making) -> None:
    media = Media()

    def params(model: str) -> KVCacheParams:
        return make.tiered_params(disk_pages=4, extras={"model_fingerprint": model})

    make.serve(make.manager(params("one"), host_pages=4, media=media), prompt(2))
    manager = make.manager(params("two"), host_pages=4, media=media)
    make.admit(manager, prompt(2))
    assert missed(manager) == {"other_namespace": 2}


# --- METRIC-5: sums and zero --------------------------------------------------------------------


@pytest.mark.rule("METRIC-5")
@given(any_counters, any_counters)
def test_counters_add_up_field_by_field(a: KVCacheMetrics, b: KVCacheMetrics) -> None:
    for field in fields(KVCacheMetrics):
        total = getattr(a + b, field.name)
        assert total == getattr(a, field.name) + getattr(b, field.name)
    assert a + KVCacheMetrics() == a
    assert (a + b).prompt_tokens == a.prompt_tokens + b.prompt_tokens
    assert 0 <= (a + b).cache_hit_rate <= 1


@pytest.mark.rule("METRIC-5", "METRIC-7")
def test_what_replicas_share_is_counted_once_and_their_own_is_added_up(make: Making) -> None:
    manager = make.manager(make.isolated_params(), pages=3, host_pages=2)
    for replica in range(3):
        make.serve(manager, prompt(2, start=100 * replica), replica)
        make.admit(manager, range(1000, 1012), replica)
    metrics = manager.get_metrics_aggregated()
    assert metrics.device_blocks_evicted == 3 * 2
    assert metrics.d2h_blocks_copied == 3 * 2
    assert metrics.host_blocks_evicted == 3 * 2 - 2
    assert [manager.get_num_used_host_pages(replica) for replica in range(3)] == [2, 2, 2]


@pytest.mark.rule("METRIC-5")
def test_reset_metrics_sets_all_to_zero_and_changes_nothing_else(make: Making) -> None:
    manager = make.manager(make.isolated_params(disk_pages=3), pages=3, host_pages=2)
    for start in (0, 100):
        make.serve(manager, prompt(2, start))
    ctx = make.admit(manager, prompt(2), replica=1)

    def cache() -> list[object]:
        seen = [make.hits(manager, prompt(2), replica) for replica in range(3)]
        return [*seen, *(manager.statistics(replica) for replica in range(3))]

    before = cache()
    manager.reset_metrics()
    assert manager.get_metrics_aggregated() == KVCacheMetrics()
    assert cache() == before
    manager.alloc(ctx, 1)
    assert manager.get_metrics_aggregated() == KVCacheMetrics(), "its tokens were counted before"


@pytest.mark.rule("METRIC-6")
def test_a_miss_counts_once_and_not_for_what_the_request_computes_itself(make: Making) -> None:
    manager = make.manager(pages=16)
    ctx = make.context(range(40))
    ctx.chunk(12)
    manager.claim(ctx.request_id, 0)
    manager.alloc(ctx, 0)
    ctx.update(0)
    manager.alloc(ctx, 0)
    assert missed(manager) == {"never_seen": 8}  # two, then six after the chunk


@pytest.mark.rule("METRIC-6")
def test_blocks_behind_a_gap_that_are_still_there_are_not_missed(make: Making) -> None:
    manager = make.manager(make.isolated_params(), host_pages=8, auto_land=False)
    make.serve(manager, prompt(3))
    make.land_all(manager)
    ctx, _ = make.begin(manager, prompt(3), replica=1)
    manager.reset_metrics()
    (load,) = manager.in_flight()
    manager.fail(load.id, "timeout", [load.keys[0]])
    with pytest.raises(KVLoadFailed):
        manager.finish_alloc(ctx, 1)
    manager.alloc(ctx, 1)
    assert missed(manager) == {"too_slow": 1}


@pytest.mark.rule("METRIC-6")
def test_a_reason_is_forgotten_when_the_block_is_cached_again(make: Making) -> None:
    manager = make.manager(make.tiered_params(), pages=3, host_pages=8, auto_land=False)

    def serve_and_lose(reason: FailReason | None) -> None:
        make.serve(manager, prompt(1))
        for transfer in manager.in_flight():
            manager.land(transfer.id) if reason is None else manager.fail(transfer.id, reason)
        filler = make.admit(manager, range(500, 512))
        manager.release(filler.request_id, 0)

    serve_and_lose(None)
    host = manager._state.connector.tiers["host"]
    for block in list(host.blocks.values()):
        host.drop(block)
    serve_and_lose("no_space")
    manager.reset_metrics()
    make.admit(manager, prompt(1))
    assert missed(manager) == {"not_stored": 1}


@pytest.mark.rule("METRIC-7", "TIER-9")
def test_blocks_that_a_tier_does_not_get_are_dropped_for_whatever_reason(make: Making) -> None:
    manager = make.manager(make.tiered_params(), host_pages=2, auto_land=False)
    make.serve(manager, prompt(3))  # Of its three blocks two find a slot.
    (failing,) = manager.in_flight()
    manager.fail(failing.id, "io_error")
    assert manager.get_metrics_aggregated().offload_blocks_dropped == 1 + 2
    make.serve(manager, prompt(2, start=50))
    manager.reset_prefix_cache()
    make.land_all(manager)
    assert manager.get_metrics_aggregated().offload_blocks_dropped == 1 + 2 + 2


@pytest.mark.rule("METRIC-7", "METRIC-2")
def test_only_the_blocks_at_fault_have_failed(make: Making) -> None:
    manager = make.manager(make.isolated_params(), host_pages=4, auto_land=False)
    make.serve(manager, prompt(3))
    make.land_all(manager)
    make.begin(manager, prompt(3), replica=1)
    (load,) = manager.in_flight()
    manager.fail(load.id, "timeout", load.keys[1:2])
    assert manager.get_metrics_aggregated().load_blocks_failed == 1
