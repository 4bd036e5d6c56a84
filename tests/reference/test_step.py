"""Which pages enter the cache, and what becomes of doubles."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.reference.conftest import Making, Recorder

from pagedkv.reference import (
    AllocPendingError,
    BatchesError,
    BlocksNotAllocatedError,
    DeduplicationPolicy,
    PagedKVCacheManager,
    TextContext,
    UnknownRequestError,
)
from pagedkv.reference.events import Stepped


@pytest.mark.rule("STEP-1", "INPUT-1", "INPUT-2")
@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ("a batch too few", BatchesError),
        ("a batch too many", BatchesError),
        ("a request twice", BatchesError),
        ("a request on two replicas", BatchesError),
        ("an unknown request", UnknownRequestError),
        ("a request of another replica", UnknownRequestError),
        ("a request that waits for loads", AllocPendingError),
        ("a request that has outgrown its pages", BlocksNotAllocatedError),
    ],
)
def test_refused_step_changes_nothing(make: Making, wrong: str, error: type[Exception]) -> None:
    manager = make.manager(make.params(replicas=2), auto_land=False)
    good = make.admit(manager, range(8))
    good.update(8)
    elsewhere = make.serve(manager, range(100, 104), replica=1)
    manager.claim(elsewhere.request_id, 1)
    waits = make.context(range(100, 105))
    manager.claim(waits.request_id, 0)
    manager.begin_alloc(waits, 0)
    outgrown = make.admit(manager, range(200, 204))
    for token in range(5):
        outgrown.update(token)
    before = repr(manager._state)
    batches = {
        "a batch too few": [[good]],
        "a batch too many": [[good], [], []],
        "a request twice": [[good, good], []],
        "a request on two replicas": [[good], [good]],
        "an unknown request": [[good, make.context([0])], []],
        "a request of another replica": [[good, elsewhere], []],
        "a request that waits for loads": [[good, waits], []],
        "a request that has outgrown its pages": [[good, outgrown], []],
    }[wrong]
    with pytest.raises(error):
        manager.step(batches)
    assert repr(manager._state) == before


@pytest.mark.rule("STEP-2", "LEN-3")
@given(st.integers(1, 20), st.integers(1, 5), st.lists(st.integers(1, 8), max_size=4))
def test_step_commits_the_pages_that_forwards_have_filled(
    length: int, page_size: int, chunks: list[int]
) -> None:
    make = Making()
    manager = make.manager(make.params(page_size=page_size), pages=60)
    ctx = make.context(range(length))
    manager.claim(ctx.request_id, 0)
    for chunk in [*chunks, *[0] * 6]:
        if 0 < chunk < ctx.active_length:
            ctx.chunk(chunk)
        manager.alloc(ctx, 0)
        written = ctx.current_position
        make.forward(manager, ctx, token=7)
        # The token just sampled may fill a page, but its KV is not written yet.
        found = make.hits(manager, [*ctx.tokens.all, 0]).total_blocks
        assert found == written // page_size


@pytest.mark.rule("STEP-3")
def test_nothing_is_committed_without_prefix_caching(make: Making, recorder: Recorder) -> None:
    manager = make.manager(make.params(enable_prefix_caching=False), tracer=recorder)
    make.serve(manager, range(8))
    assert manager.statistics().cached == 0
    (counted,) = recorder.of_kind(Stepped)
    assert (counted.context.keys, counted.issued) == ((), ())


@pytest.mark.rule("STEP-3", "RESET-2")
def test_a_request_that_lived_through_a_reset_commits_no_more(make: Making) -> None:
    manager = make.manager()
    old, new = make.admit(manager, range(8)), make.context(range(100, 108))
    manager.reset_prefix_cache()
    make.forward(manager, old)
    assert make.hits(manager, range(9)).total_blocks == 0
    manager.claim(new.request_id, 0)
    manager.alloc(new, 0)
    make.forward(manager, new)
    assert make.hits(manager, range(100, 109)).total_blocks == 2


def doubles(
    make: Making, deduplication: DeduplicationPolicy
) -> tuple[PagedKVCacheManager, TextContext, TextContext]:
    """Two requests that have computed the same tokens in pages of their own, and were stepped."""
    manager = make.manager(make.params(deduplication=deduplication), pages=6)
    first, second = (make.admit(manager, range(9)) for _ in range(2))
    assert manager.get_req_blocks(second.request_id, 0) == [3, 4, 5]
    for ctx in (first, second):
        ctx.update(9)
    manager.step([[first, second]])
    assert manager.get_req_blocks(first.request_id, 0) == [0, 1, 2]
    return manager, first, second


@pytest.mark.rule("STEP-4", "POOL-5")
def test_swap_gives_the_cached_page_for_a_double(make: Making) -> None:
    manager, first, second = doubles(make, "swap")
    assert manager.get_req_blocks(second.request_id, 0) == [0, 1, 5]
    assert (manager.statistics().held, manager.statistics().free) == (4, 2)
    manager.release(first.request_id, 0)
    assert manager.statistics().held == 3


@pytest.mark.rule("STEP-4", "POOL-5")
def test_keep_leaves_tables_alone_and_doubles_invisible(make: Making) -> None:
    manager, first, second = doubles(make, "keep")
    assert manager.get_req_blocks(second.request_id, 0) == [3, 4, 5]
    manager.release(first.request_id, 0)
    assert (manager.statistics().held, manager.statistics().cached) == (3, 2)
    make.admit(manager, range(100, 112))  # Takes the pages of the first.
    assert make.hits(manager, range(9)).total_blocks == 0
    manager.release(second.request_id, 0)
    assert (manager.statistics().cached, manager.statistics().free) == (0, 3)


@pytest.mark.rule("STEP-5")
def test_a_chain_is_offered_root_first_up_to_the_last_forward(
    make: Making, recorder: Recorder
) -> None:
    manager = make.manager(make.tiered_params(), host_pages=8, tracer=recorder)
    make.serve(manager, range(12))
    (stepped,) = recorder.of_kind(Stepped)
    (offload,) = stepped.issued
    assert len(offload.keys) == 3
    assert offload.keys == stepped.context.keys
    assert manager.get_num_used_host_pages(0) == 3


@pytest.mark.rule("STEP-5", "TIER-9")
def test_each_commit_offers_the_whole_chain_again(make: Making) -> None:
    manager = make.manager(make.tiered_params(), host_pages=8, auto_land=False)
    ctx = make.admit(manager, range(8))
    make.forward(manager, ctx)
    (refused,) = manager.in_flight()
    manager.fail(refused.id, "no_space")
    for token in range(4):
        manager.alloc(ctx, 0)
        make.forward(manager, ctx, token=token)
        if token < 3:  # The third page is not full, so nothing is offered.
            assert manager.in_flight() == []
    (offload,) = manager.in_flight()
    assert offload.keys[:2] == refused.keys
    assert len(offload.keys) == 3


@pytest.mark.rule("STEP-6")
def test_a_step_without_new_pages_changes_nothing(make: Making, recorder: Recorder) -> None:
    manager = make.manager(make.tiered_params(), host_pages=8)
    ctx = make.admit(manager, range(9))
    make.forward(manager, ctx)
    manager.alloc(ctx, 0)
    make.forward(manager, ctx)  # Writes the ninth token, in a page with room for more.
    before = repr(manager._state)
    manager.step([[ctx]])
    manager.step([[]])
    assert repr(manager._state) == before


@pytest.mark.rule("STEP-1", "ID-9")
def test_a_step_that_cannot_identify_one_request_commits_none(make: Making) -> None:
    manager = make.manager()
    good = make.admit(manager, range(10, 14))
    bad = make.admit(manager, range(3), given_digests=[])
    good.update(0)
    for _ in range(2):
        bad.update(0)
    with pytest.raises(ValueError, match="given_digests"):
        manager.step([[good, bad]])
    assert manager.statistics().cached == 0
    assert make.hits(manager, range(10, 15)).total_blocks == 0


@pytest.mark.rule("STEP-1")
def test_a_step_counts_tokens_against_the_pages_that_hold_them(make: Making) -> None:
    manager = make.manager()
    ctx = make.admit(manager, range(8))
    for _ in range(3):
        ctx.update(0)
    with pytest.raises(BlocksNotAllocatedError):
        manager.step([[ctx]])


@pytest.mark.rule("STEP-4", "DRAFT-1")
def test_drafts_that_look_ahead_keep_their_own_pages(make: Making) -> None:
    manager = make.manager(make.params(speculative_method="eagle", num_draft_tokens=1), pages=12)
    first, second = make.admit(manager, range(9)), make.admit(manager, range(9))
    table = manager.get_req_blocks(second.request_id, 0)
    for ctx in (first, second):
        make.forward(manager, ctx)
    assert manager.get_req_blocks(second.request_id, 0) == table
