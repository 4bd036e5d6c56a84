"""What a request gives back, and when others may have it."""

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.reference.conftest import Making, Recorder

from pagedkv.reference import UnknownRequestError
from pagedkv.reference.events import AllocCancelled, Released


@pytest.mark.rule("REL-1")
def test_a_released_id_is_forgotten(make: Making) -> None:
    manager = make.manager(make.params(replicas=2))
    make.admit(manager, range(8), request_id="r")
    manager.release("r", 0)
    assert not manager.contains("r", 0)
    with pytest.raises(UnknownRequestError):
        manager.release("r", 0)
    manager.claim("r", 1)
    assert manager.get_req_blocks("r", 1) == []


@pytest.mark.rule("REL-1")
def test_release_commits_nothing(make: Making) -> None:
    manager = make.manager()
    ctx = make.admit(manager, range(8))
    ctx.update(8)  # The forward has run, but no step has committed what it wrote.
    manager.release(ctx.request_id, 0)
    assert make.hits(manager, range(9)).total_blocks == 0
    assert manager.statistics().free == 8


@pytest.mark.rule("REL-1", "POOL-2", "POOL-6")
@given(st.lists(st.integers(0, 24), min_size=1, max_size=6), st.randoms(use_true_random=False))
def test_every_page_is_given_back_once_in_whatever_order(
    variants: list[int], random: Random
) -> None:
    """Prompts of 24 tokens that differ from some token on, and share the pages before it."""
    make = Making()
    manager = make.manager(pages=60)
    contexts = []
    for variant in variants:
        ctx = make.admit(manager, [n if n < variant else n + 100 for n in range(24)])
        make.forward(manager, ctx)
        contexts.append(ctx)
    random.shuffle(contexts)
    while contexts:
        manager.release(contexts.pop().request_id, 0)
        held = {page for ctx in contexts for page in manager.get_req_blocks(ctx.request_id, 0)}
        assert manager.get_num_used_pages(0) == len(held)


@pytest.mark.rule("REL-2", "POOL-5")
def test_pages_are_given_back_tail_first(make: Making) -> None:
    manager = make.manager(pages=6)
    make.serve(manager, range(8))
    ctx = make.admit(manager, range(100, 112))
    assert manager.get_req_blocks(ctx.request_id, 0) == [2, 3, 4]
    manager.release(ctx.request_id, 0)
    # Each went to the old end, the first page last: it is the next to be taken.
    ctx = make.admit(manager, range(200, 212))
    assert manager.get_req_blocks(ctx.request_id, 0) == [2, 3, 4]


@pytest.mark.rule("REL-3", "POOL-7")
@pytest.mark.parametrize("lands", [True, False])
def test_a_released_page_stays_pinned_until_its_transfer_settles(make: Making, lands: bool) -> None:
    manager = make.manager(make.tiered_params(), pages=4, host_pages=4, auto_land=False)
    make.serve(manager, range(8))
    assert (manager.num_free_blocks(), manager.statistics().pinned) == (2, 2)
    (offload,) = manager.in_flight()
    if lands:
        manager.land(offload.id)
    else:
        manager.fail(offload.id, "io_error")
    assert (manager.num_free_blocks(), manager.statistics().cached) == (4, 2)


@pytest.mark.rule("REL-4")
def test_releasing_cancels_an_allocation_that_waits(make: Making, recorder: Recorder) -> None:
    params = make.params(replicas=2)
    manager = make.manager(params, tracer=recorder, auto_land=False)
    make.serve(manager, range(8), replica=1)
    ctx = make.context(range(9))
    manager.claim(ctx.request_id, 0)
    manager.begin_alloc(ctx, 0)
    manager.release(ctx.request_id, 0)
    assert recorder.events[-2:] == [AllocCancelled(ctx.request_id), Released(ctx.request_id)]
    assert ctx.processed_length == 0
    assert manager.get_num_used_pages(0) == 2  # The copies are under way.
    make.land_all(manager)
    assert manager.get_num_used_pages(0) == 0
    assert make.hits(manager, range(9), replica=0).device_blocks == 2
