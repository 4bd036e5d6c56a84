"""Which page is taken, which is given up, and which may not be touched."""

from collections import OrderedDict
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.reference.conftest import Making

from pagedkv.reference import InsufficientBlocksError, PoolCorruptedError, PoolStatistics
from pagedkv.reference.pool import PagePool


@pytest.mark.rule("POOL-1", "MEM-3")
def test_the_null_page_has_memory_and_is_never_taken(make: Making) -> None:
    manager = make.manager(pages=3)
    ctx = make.admit(manager, range(12))
    assert manager.get_req_blocks(ctx.request_id, 0) == [0, 1, 2]
    assert manager.total_num_blocks() == manager.get_num_pages(0) == 3
    assert manager.get_device_buffer(0).total_num_pages == 4
    with pytest.raises(InsufficientBlocksError):
        make.admit(manager, [0])


@pytest.mark.rule("POOL-2", "POOL-7")
def test_every_page_is_held_pinned_cached_or_free(make: Making) -> None:
    manager = make.manager(make.tiered_params(), pages=4, host_pages=4, auto_land=False)

    def states() -> tuple[int, int, int, int]:
        statistics = manager.statistics()
        assert manager.num_free_blocks() == statistics.cached + statistics.free
        assert manager.get_num_used_pages(0) == statistics.held + statistics.pinned
        return statistics.held, statistics.pinned, statistics.cached, statistics.free

    ctx = make.admit(manager, range(7))
    assert states() == (2, 0, 0, 2)
    make.forward(manager, ctx)  # The first page is full now, and on its way to the host.
    assert states() == (2, 0, 0, 2)
    manager.release(ctx.request_id, 0)
    assert states() == (0, 1, 0, 3)
    make.land_all(manager)
    assert states() == (0, 0, 1, 3)


@pytest.mark.rule("POOL-11")
def test_fresh_pages_are_taken_in_the_order_of_their_ids(make: Making) -> None:
    manager = make.manager(pages=4)
    first, second = make.admit(manager, range(8)), make.admit(manager, range(100, 105))
    assert manager.get_req_blocks(first.request_id, 0) == [0, 1]
    assert manager.get_req_blocks(second.request_id, 0) == [2, 3]


@pytest.mark.rule("POOL-3", "POOL-4", "POOL-5", "POOL-10")
@given(pages=st.integers(2, 6), prompts=st.lists(st.integers(0, 6), max_size=40))
def test_cached_pages_go_least_recently_used_first(pages: int, prompts: list[int]) -> None:
    """Each prompt fills one page and starts a second one, which every request uses anew."""
    make = Making()
    manager = make.manager(pages=pages)
    model: OrderedDict[int, None] = OrderedDict()
    evictions = 0
    for prompt in prompts:
        make.serve(manager, [prompt] * 5)
        model[prompt] = None
        model.move_to_end(prompt)
        if len(model) == pages:
            model.popitem(last=False)
            evictions += 1
        assert {p for p in range(7) if make.hits(manager, [p] * 5).total_blocks} == set(model)
        assert manager.get_metrics_aggregated().device_blocks_evicted == evictions


@pytest.mark.rule("POOL-4")
def test_a_shared_page_is_let_go_by_its_last_holder(make: Making) -> None:
    manager = make.manager(pages=4)
    make.serve(manager, range(4))
    first, second = make.admit(manager, range(5)), make.admit(manager, range(5))
    manager.release(first.request_id, 0)
    assert manager.statistics() == PoolStatistics(total=4, held=2, pinned=0, cached=0, free=2)
    manager.release(second.request_id, 0)
    assert manager.statistics() == PoolStatistics(total=4, held=0, pinned=0, cached=1, free=3)


@pytest.mark.rule("POOL-5")
def test_pages_with_nothing_reusable_are_taken_first(make: Making) -> None:
    manager = make.manager(pages=4)
    make.serve(manager, range(4))
    unfinished = make.admit(manager, range(100, 108))
    assert manager.get_req_blocks(unfinished.request_id, 0) == [1, 2]
    manager.release(unfinished.request_id, 0)
    ctx = make.admit(manager, range(200, 212))
    assert manager.get_req_blocks(ctx.request_id, 0) == [1, 2, 3]
    assert make.hits(manager, range(5)).device_blocks == 1


@pytest.mark.rule("POOL-5", "POOL-4")
@pytest.mark.parametrize("lands", [True, False])
def test_an_idle_page_is_taken_early_if_its_load_fails(make: Making, lands: bool) -> None:
    manager = make.manager(make.tiered_params(), pages=3, host_pages=4, auto_land=False)
    make.serve(manager, range(4))
    make.land_all(manager)
    filler = make.admit(manager, range(100, 112))
    manager.release(filler.request_id, 0)
    ctx = make.context(range(5))
    manager.claim(ctx.request_id, 0)
    plan = manager.begin_alloc(ctx, 0)
    manager.cancel_alloc(ctx.request_id, 0)
    loaded = plan.pages[0]
    if lands:
        manager.land(plan.transfers[0])
    else:
        manager.fail(plan.transfers[0], "timeout")
    taken = [
        manager.get_req_blocks(make.admit(manager, [token]).request_id, 0)[0]
        for token in (200, 201, 202)
    ]
    assert taken.index(loaded) == (2 if lands else 0)


@pytest.mark.rule("POOL-6")
def test_a_page_that_nobody_holds_cannot_be_released() -> None:
    pool = PagePool(2)
    (page,), _ = pool.take(1)
    pool.release(page)
    with pytest.raises(PoolCorruptedError, match="page 0 was released, but no request holds it"):
        pool.release(page)


@pytest.mark.rule("POOL-6")
def test_a_page_that_no_transfer_uses_cannot_be_unpinned() -> None:
    pool = PagePool(2)
    pool.pin([1, 1])
    pool.unpin([1, 1])
    with pytest.raises(PoolCorruptedError, match="page 1 was unpinned, but no transfer pins it"):
        pool.unpin([1])


@pytest.mark.rule("POOL-7", "REL-3")
def test_a_pinned_page_is_not_taken_and_keeps_its_place(make: Making) -> None:
    manager = make.manager(make.tiered_params(), pages=3, host_pages=4, auto_land=False)
    for start in (0, 100, 200):  # Pages 0, 1 and 2 are let go in this order, and all are read.
        make.serve(manager, range(start, start + 4))
    oldest, middle, youngest = manager.in_flight()
    with pytest.raises(InsufficientBlocksError) as refusal:
        make.admit(manager, [0])
    assert (refusal.value.needed, refusal.value.free) == (1, 0)
    manager.land(youngest.id)
    assert manager.get_req_blocks(make.admit(manager, [0]).request_id, 0) == [2]
    manager.land(middle.id)
    manager.land(oldest.id)
    assert manager.get_req_blocks(make.admit(manager, [0]).request_id, 0) == [0]


@pytest.mark.rule("POOL-8", "REL-2")
def test_a_chain_is_given_up_leaf_first(make: Making) -> None:
    manager = make.manager(pages=3)
    make.serve(manager, range(12))
    for kept in (3, 2, 1, 0):
        assert make.hits(manager, range(13)).device_blocks == kept
        if kept:
            make.admit(manager, [100 + kept])


@pytest.mark.rule("POOL-8", "ALLOC-10")
def test_a_chain_that_was_copied_from_a_peer_is_given_up_there_leaf_first(make: Making) -> None:
    manager = make.manager(make.params(replicas=2), pages=4)
    make.serve(manager, range(8))
    make.serve(manager, range(100, 108))
    make.serve(manager, range(9), replica=1)  # Renews the first chain on replica 0.
    others = [make.admit(manager, [200 + n]) for n in range(4)]
    taken = [manager.get_req_blocks(other.request_id, 0) for other in others]
    assert taken == [[3], [2], [1], [0]]


DAMAGES: dict[str, Callable[[PagePool], object]] = {
    "a holder too many": lambda pool: pool.hold(0),
    "a holder too few": lambda pool: pool.release(1),
    "a page that is nowhere": lambda pool: pool.idle.popitem(),
    "a pin of no transfer": lambda pool: pool.pin([2]),
    "content in two pages": lambda pool: pool.key_of.update({2: pool.key_of[0]}),
}


@pytest.mark.rule("POOL-9")
@pytest.mark.parametrize("damage", DAMAGES)
def test_runtime_checks_find_what_does_not_add_up(make: Making, damage: str) -> None:
    manager = make.manager(pages=4)
    make.serve(manager, range(4))
    ctx = make.admit(manager, range(8))
    assert manager.get_req_blocks(ctx.request_id, 0) == [0, 1]
    DAMAGES[damage](manager._state.pools[0])
    with pytest.raises(PoolCorruptedError, match="replica 0"):
        manager.contains(ctx.request_id, 0)


@pytest.mark.rule("POOL-9", "TIER-1")
def test_runtime_checks_recount_slots_and_their_pins(make: Making) -> None:
    manager = make.manager(make.tiered_params(), pages=4, host_pages=1)
    make.serve(manager, range(4))
    host = manager._state.connector.tiers["host"]
    (block,) = host.blocks.values()
    block.pins += 1
    with pytest.raises(PoolCorruptedError, match=r"host tier's block .* has 1 pins"):
        manager.num_free_blocks()
    block.pins -= 1
    host.capacity = 0
    with pytest.raises(PoolCorruptedError, match="host tier uses 1 slots, its capacity is 0"):
        manager.num_free_blocks()
