"""Requests that wait for pages hold nothing, and are served in the order of their coming."""

import asyncio
from contextlib import ExitStack

import pytest
from tests.engine.conftest import Making, prompt

from pagedkv.engine import PagedKVCacheManager
from pagedkv.engine.admission import AdmissionQueue
from pagedkv.reference import InsufficientBlocksError, ManagerClosedError, TextContext


async def waiting(manager: PagedKVCacheManager, ctx: TextContext, wait_s: float) -> None:
    async with manager.admit(ctx, wait_s=wait_s):
        await asyncio.sleep(0)


async def few_turns() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_a_request_waits_until_pages_are_released(make: Making) -> None:
    manager = make.engine(total_num_pages=4)
    first, second = make.request(prompt(3), "first"), make.request(prompt(3, 100), "second")
    async with manager.admit(first):
        other = asyncio.create_task(waiting(manager, second, wait_s=60))
        await few_turns()
        assert not other.done()
        assert manager.num_free_blocks() == 0
    await other
    assert manager.num_free_blocks() == 4
    await manager.aclose()


async def test_who_comes_first_is_served_first_though_the_second_would_fit(make: Making) -> None:
    manager = make.engine(total_num_pages=4)
    order: list[str] = []

    async def served(ctx: TextContext) -> None:
        async with manager.admit(ctx):
            order.append(str(ctx.request_id))
            await asyncio.sleep(0)

    async with manager.admit(make.request(prompt(2), "running")):
        large = asyncio.create_task(served(make.request(prompt(3, 100), "large")))
        await few_turns()
        small = asyncio.create_task(served(make.request(range(200, 202), "small")))
        await few_turns()
        assert order == []
        assert manager.num_free_blocks() == 1
    await asyncio.gather(large, small)
    assert order == ["large", "small"]
    await manager.aclose()


async def test_who_does_not_wait_does_not_stand_in_line(make: Making) -> None:
    manager = make.engine(total_num_pages=4)
    running = make.request(range(8), "running")
    async with manager.admit(running):
        large = asyncio.create_task(waiting(manager, make.request(prompt(3, 100), "large"), 60))
        await few_turns()
        running.update(7)
        await manager.alloc(running, 0)
        assert len(manager.get_req_blocks("running", 0)) == 3
    await large
    await manager.aclose()


async def test_what_can_never_fit_is_refused_at_once(make: Making) -> None:
    manager = make.engine(total_num_pages=4)
    with pytest.raises(InsufficientBlocksError, match="never fit"):
        await asyncio.wait_for(waiting(manager, make.request(prompt(9), "huge"), 60), timeout=5)
    assert not manager.contains("huge", 0)
    await manager.aclose()


async def test_a_deadline_ends_the_wait_with_the_numbers(make: Making) -> None:
    manager = make.engine(total_num_pages=4)
    async with manager.admit(make.request(prompt(3), "running")):
        with pytest.raises(InsufficientBlocksError) as refused:
            await waiting(manager, make.request(prompt(2, 100), "late"), wait_s=0.01)
        assert (refused.value.needed, refused.value.free) == (3, 0)
        assert not manager.contains("late", 0)
    await manager.aclose()


async def test_a_cancelled_wait_leaves_the_line(make: Making) -> None:
    manager = make.engine(total_num_pages=4)
    async with manager.admit(make.request(prompt(3), "running")):
        gone = asyncio.create_task(waiting(manager, make.request(prompt(3, 100), "gone"), 60))
        await few_turns()
        stays = asyncio.create_task(waiting(manager, make.request(prompt(3, 200), "stays"), 60))
        await few_turns()
        gone.cancel()
        await few_turns()
    await asyncio.wait_for(stays, timeout=5)
    assert gone.cancelled()
    assert manager.num_free_blocks() == 4
    await manager.aclose()


async def test_closing_ends_the_wait(make: Making) -> None:
    manager = make.engine(total_num_pages=4)
    manager.claim("running", 0)
    await manager.alloc(make.request(prompt(3), "running"), 0)
    waits = asyncio.create_task(waiting(manager, make.request(prompt(3, 100), "waits"), 60))
    await few_turns()
    await manager.aclose()
    with pytest.raises(ManagerClosedError):
        await asyncio.wait_for(waits, timeout=5)


def test_it_is_only_ever_the_turn_of_who_came_first() -> None:
    queue = AdmissionQueue()
    scopes = [ExitStack() for _ in range(6)]
    places = [scope.enter_context(queue.place()) for scope in scopes]
    for n, scope in enumerate(scopes):
        assert [place.is_first for place in places[n:]] == [True] + [False] * (5 - n)
        scope.close()
