"""Which cached pages speculative decoding may use."""

import pytest
from tests.reference.conftest import Making

from pagedkv.reference import PagedKVCacheManager, SpeculativeMethod

METHODS: list[tuple[SpeculativeMethod | None, int]] = [
    (None, 0),
    ("standalone", 0),
    ("dflash", 0),
    ("eagle", 1),
    ("mtp", 1),
]


def manager_for(make: Making, method: SpeculativeMethod | None) -> PagedKVCacheManager:
    params = make.tiered_params(speculative_method=method, num_draft_tokens=1 if method else 0)
    return make.manager(params, pages=12, host_pages=8)


@pytest.mark.rule("DRAFT-1")
@pytest.mark.parametrize(("method", "unused"), METHODS)
def test_the_last_hit_page_is_computed_anew_if_its_drafts_saw_another_successor(
    make: Making, method: SpeculativeMethod | None, unused: int
) -> None:
    manager = manager_for(make, method)
    make.serve(manager, range(12))
    ctx = make.admit(manager, range(13))
    assert ctx.processed_length == ctx.cached_prefix_length == 4 * (3 - unused)
    assert manager.get_metrics_aggregated().device_blocks_served == 3 - unused


@pytest.mark.rule("DRAFT-1")
@pytest.mark.parametrize(("method", "unused"), METHODS)
def test_wherever_a_hit_ends_its_last_page_is_not_used(
    make: Making, method: SpeculativeMethod | None, unused: int
) -> None:
    manager = manager_for(make, method)
    make.serve(manager, range(12))
    assert make.hits(manager, [*range(8), *range(100, 110)]).total_blocks == 2 - unused
    assert make.hits(manager, range(5)).total_blocks == 1 - unused


@pytest.mark.rule("DRAFT-1")
@pytest.mark.parametrize(("method", "unused"), METHODS)
def test_the_last_hit_page_is_not_loaded_either(
    make: Making, method: SpeculativeMethod | None, unused: int
) -> None:
    manager = manager_for(make, method)
    make.serve(manager, range(8))
    filler = make.admit(manager, range(1000, 1045))  # Needs all 12 pages, drafts or not.
    manager.release(filler.request_id, 0)
    assert make.hits(manager, range(9)).host_blocks == 2 - unused
    make.admit(manager, range(9))
    assert manager.get_metrics_aggregated().h2d_blocks_copied == 2 - unused


@pytest.mark.rule("DRAFT-1", "STEP-4")
@pytest.mark.parametrize(("method", "unused"), METHODS)
def test_no_cached_page_takes_the_place_of_a_page_with_another_successor(
    make: Making, method: SpeculativeMethod | None, unused: int
) -> None:
    manager = manager_for(make, method)
    one, other = (make.admit(manager, [*range(4), last]) for last in (901, 902))
    for ctx in (one, other):
        make.forward(manager, ctx)
    first, second = (manager.get_req_blocks(ctx.request_id, 0)[0] for ctx in (one, other))
    assert (first == second) == (unused == 0)
