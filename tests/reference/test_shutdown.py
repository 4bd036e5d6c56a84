"""The end of a manager: rule CLOSE-1."""

from collections.abc import Callable
from typing import Any

import pytest
from tests.reference.conftest import Making, Recorder, prompt

from pagedkv.reference import ManagerClosedError, Media, PagedKVCacheManager, PrefixCacheHits
from pagedkv.reference.events import Closed, TransferLanded

CALLS: dict[str, Callable[[PagedKVCacheManager, Any], object]] = {
    "claim": lambda manager, ctx: manager.claim(ctx.request_id, 0),
    "alloc_dummy": lambda manager, ctx: manager.alloc_dummy(ctx.request_id, 0),
    "contains": lambda manager, ctx: manager.contains(ctx.request_id, 0),
    "get_req_blocks": lambda manager, ctx: manager.get_req_blocks(ctx.request_id, 0),
    "release": lambda manager, ctx: manager.release(ctx.request_id, 0),
    "alloc": lambda manager, ctx: manager.alloc(ctx, 0),
    "begin_alloc": lambda manager, ctx: manager.begin_alloc(ctx, 0),
    "finish_alloc": lambda manager, ctx: manager.finish_alloc(ctx, 0),
    "cancel_alloc": lambda manager, ctx: manager.cancel_alloc(ctx.request_id, 0),
    "prefetch": lambda manager, ctx: manager.prefetch(ctx),
    "clean": lambda manager, ctx: manager.clean(0, 1),
    "reserve": lambda manager, ctx: manager.reserve([[ctx]]).__enter__(),
    "runtime_inputs": lambda manager, ctx: manager.runtime_inputs([[]]),
    "runtime_inputs_for_leaf": lambda manager, ctx: manager.runtime_inputs_for_leaf([[]]),
    "step": lambda manager, ctx: manager.step([[]]),
    "submit": lambda manager, ctx: manager.submit("onload-1"),
    "land": lambda manager, ctx: manager.land("onload-1"),
    "fail": lambda manager, ctx: manager.fail("onload-1", "timeout"),
    "store_answered": lambda manager, ctx: manager.store_answered([]),
    "restore": lambda manager, ctx: manager.restore(manager.snapshot()),
    "poll_transfers": lambda manager, ctx: manager.poll_transfers(),
    "pending_transfers_exist": lambda manager, ctx: manager.pending_transfers_exist(),
    "renew_write_budget": lambda manager, ctx: manager.renew_write_budget(),
    "poison": lambda manager, ctx: manager.poison(0, "its device failed"),
    "clean_pages": lambda manager, ctx: manager.clean_pages(0, []),
    "in_flight": lambda manager, ctx: manager.in_flight(),
    "get_prefix_cache_hit_counts": lambda manager, ctx: manager.get_prefix_cache_hit_counts(ctx),
    "get_pct_used_blocks_after_allocation": lambda manager, ctx: (
        manager.get_pct_used_blocks_after_allocation(ctx, 0)
    ),
    "num_free_blocks": lambda manager, ctx: manager.num_free_blocks(),
    "total_num_blocks": lambda manager, ctx: manager.total_num_blocks(),
    "get_num_pages": lambda manager, ctx: manager.get_num_pages(0),
    "get_num_used_pages": lambda manager, ctx: manager.get_num_used_pages(0),
    "get_num_host_pages": lambda manager, ctx: manager.get_num_host_pages(0),
    "get_num_used_host_pages": lambda manager, ctx: manager.get_num_used_host_pages(0),
    "get_num_disk_pages": lambda manager, ctx: manager.get_num_disk_pages(0),
    "get_num_used_disk_pages": lambda manager, ctx: manager.get_num_used_disk_pages(0),
    "get_device_buffer": lambda manager, ctx: manager.get_device_buffer(0),
    "statistics": lambda manager, ctx: manager.statistics(),
    "get_metrics_aggregated": lambda manager, ctx: manager.get_metrics_aggregated(),
    "reset_metrics": lambda manager, ctx: manager.reset_metrics(),
    "reset_prefix_cache": lambda manager, ctx: manager.reset_prefix_cache(),
}


@pytest.mark.rule("CLOSE-1")
@pytest.mark.parametrize("method", CALLS)
def test_after_shutdown_every_call_is_refused(make: Making, method: str) -> None:
    manager = make.manager()
    ctx = make.admit(manager, prompt(1))
    manager.shutdown()
    with pytest.raises(ManagerClosedError, match="create a new one"):
        CALLS[method](manager, ctx)


@pytest.mark.rule("CLOSE-1")
def test_a_second_shutdown_is_harmless(make: Making, recorder: Recorder) -> None:
    manager = make.manager(tracer=recorder)
    manager.shutdown()
    manager.shutdown()
    assert recorder.events == [Closed()]


@pytest.mark.rule("CLOSE-1", "NS-4")
def test_shutdown_lands_what_is_in_flight_and_what_follows(
    make: Making, recorder: Recorder
) -> None:
    media = Media()
    params = make.tiered_params(disk_pages=4, extras={"model_fingerprint": "weights"})
    manager = make.manager(params, host_pages=4, media=media, tracer=recorder, auto_land=False)
    make.serve(manager, prompt(2))
    manager.shutdown()
    assert len(recorder.of_kind(TransferLanded)) == 2
    assert recorder.events[-1] == Closed()
    second = make.manager(params, host_pages=4, media=media)
    assert make.hits(second, prompt(2)) == PrefixCacheHits(disk_blocks=2)


@pytest.mark.rule("CLOSE-1", "TIER-7")
def test_shutdown_offloads_what_is_dirty(make: Making) -> None:
    media = Media()
    extras = {"model_fingerprint": "weights", "write_policy": "write_back"}
    params = make.tiered_params(disk_pages=8, replicas=2, extras=extras)
    manager = make.manager(params, host_pages=8, media=media)
    for replica in range(2):
        make.serve(manager, prompt(2, start=100 * replica), replica)
    manager.shutdown()
    second = make.manager(params, host_pages=8, media=media)
    for replica in range(2):
        hits = make.hits(second, prompt(2, start=100 * replica), replica)
        assert hits == PrefixCacheHits(disk_blocks=2)


@pytest.mark.rule("CLOSE-1")
def test_no_method_is_left_out_above() -> None:
    methods = {
        name
        for name, member in vars(PagedKVCacheManager).items()
        if callable(member) and not name.startswith("_")
    }
    # A snapshot is for whoever looks at a manager from outside, alive or not.
    assert methods - CALLS.keys() == {"shutdown", "snapshot"}
