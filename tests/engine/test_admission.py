"""Requests that wait for pages hold nothing, and are served in the order of their coming."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import ExitStack
from dataclasses import dataclass

import pytest
from tests.engine.conftest import Making, prompt, serve
from tests.engine.stage import SIZE, TIERED, Stage, staged

from pagedkv.engine import PagedKVCacheManager
from pagedkv.engine.admission import AdmissionQueue
from pagedkv.engine.simulated import clock
from pagedkv.engine.streams.simulated import SimulatedStreams
from pagedkv.reference import (
    InsufficientBlocksError,
    ManagerClosedError,
    ReplicaPoisonedError,
    TextContext,
)
from pagedkv.reference.events import AllocPlanned, Cleaned


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


async def test_what_fits_an_empty_replica_is_not_told_that_it_never_fits(make: Making) -> None:
    manager = make.engine(total_num_pages=4)
    async with manager.admit(make.request(prompt(0), "running")):
        manager.claim("whole", 0)
        with pytest.raises(InsufficientBlocksError) as refused:
            await manager.alloc(make.request(prompt(3, 100), "whole"), 0)
        assert refused.value.can_ever_fit
    await manager.aclose()


async def test_every_replica_has_a_line_of_its_own(make: Making) -> None:
    manager = make.engine(total_num_pages=4, replicas=2)
    async with manager.admit(make.request(prompt(3), "running"), 0):
        waits = asyncio.create_task(waiting(manager, make.request(prompt(3, 100), "waits"), 60))
        await few_turns()
        async with asyncio.timeout(5):
            async with manager.admit(make.request(prompt(3, 200), "elsewhere"), 1, wait_s=60):
                assert not waits.done()
    await waits
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


async def test_poisoning_ends_the_wait(make: Making) -> None:
    manager = make.engine(total_num_pages=4)
    async with manager.admit(make.request(prompt(3), "running")):
        waits = asyncio.create_task(waiting(manager, make.request(prompt(3, 100), "waits"), 60))
        await few_turns()
        manager.poison(0, "the server says so")
        await few_turns()
        assert waits.done()
        with pytest.raises(ReplicaPoisonedError, match="the server says so"):
            await waits
    await manager.aclose()


def test_a_device_that_fails_at_the_deadline_is_the_reason_of_the_refusal() -> None:
    async def scenario() -> None:
        async with staged() as stage:
            manager, loop = stage.manager, asyncio.get_running_loop()
            async with manager.admit(stage.request("running")):
                late = asyncio.create_task(
                    waiting(manager, stage.request("late", start=100), wait_s=1)
                )
                # In the same turn as the deadline, and behind it.
                loop.call_at(loop.time() + 1 + 1e-10, manager.poison, 0, "the server says so")
                with pytest.raises(ReplicaPoisonedError, match="the server says so"):
                    await late
            await manager.aclose()

    clock.run(scenario())


async def test_pages_of_an_undone_plan_are_for_who_waits(make: Making) -> None:
    manager = make.engine(total_num_pages=4)
    manager.claim("planned", 0)
    manager.begin_alloc(make.request(prompt(3), "planned"), 0)
    waits = asyncio.create_task(waiting(manager, make.request(prompt(3, 100), "waits"), 60))
    await few_turns()
    assert not waits.done()
    manager.cancel_alloc("planned", 0)
    await few_turns()
    assert waits.done()
    await waits
    await manager.aclose()


@dataclass
class Line:
    """``loads`` holds 4 of 8 pages and waits for a load; ``large`` stands in line for 5."""

    manager: PagedKVCacheManager
    streams: SimulatedStreams
    loads: asyncio.Task[None]
    large: asyncio.Task[None]


@pytest.fixture
async def line(make: Making) -> AsyncIterator[Line]:
    streams = SimulatedStreams(1)
    manager = make.engine(streams, total_num_pages=8, host_pages=20)
    for ctx in (make.request(prompt(3), "writer"), make.request(prompt(7, 1000), "filler")):
        await serve(manager, ctx)
        await few_turns()
        streams.run_all()
        await few_turns()
    manager.claim("loads", 0)
    loads = asyncio.create_task(manager.alloc(make.request(prompt(3), "loads"), 0))
    large = asyncio.create_task(waiting(manager, make.request(prompt(4, 2000), "large"), 60))
    await few_turns()
    assert len(manager.in_flight()) == 1
    assert not large.done()
    yield Line(manager, streams, loads, large)
    streams.run_all()
    await few_turns()
    await manager.aclose()


async def test_pages_of_a_cancelled_allocation_are_for_who_waits(line: Line) -> None:
    line.loads.cancel()
    await few_turns()
    assert line.large.done()
    await line.large
    assert line.manager.in_flight(), "it did not wait for the load"


def test_pages_of_a_failed_load_are_for_who_waits() -> None:
    async def scenario() -> None:
        async with staged(total_num_pages=8, **TIERED) as stage:
            for ctx in (stage.request("writer"), stage.request("filler", pages=7, start=100)):
                await stage.serve(ctx)
            assert stage.disk is not None
            stage.disk.faults.read_errors = 1.0
            large = stage.request("large", pages=4, start=1000)
            loads = stage.serve(stage.request("loads"), wait_s=1)
            await asyncio.gather(loads, stage.serve(large, wait_s=1))
            assert stage.manager.get_metrics_aggregated().load_blocks_failed == 3
            await stage.manager.aclose()

    clock.run(scenario())


async def test_closing_ends_the_wait_for_a_load(line: Line) -> None:
    closing = asyncio.create_task(line.manager.aclose())
    await few_turns()
    line.streams.run_all()
    with pytest.raises(ManagerClosedError):
        await line.loads
    with pytest.raises(ManagerClosedError):
        await line.large
    await closing


def test_it_is_only_ever_the_turn_of_who_came_first() -> None:
    queue = AdmissionQueue()
    scopes = [ExitStack() for _ in range(6)]
    places = [scope.enter_context(queue.place()) for scope in scopes]
    for n, scope in enumerate(scopes):
        assert [place.is_first for place in places[n:]] == [True] + [False] * (5 - n)
        scope.close()


def test_a_page_that_is_hit_is_not_cleaned_to_make_room() -> None:
    async def scenario() -> None:
        async with staged(**TIERED, write_policy="write_back") as stage:
            await stage.serve(stage.request("first", pages=1))
            await stage.serve(stage.request("second", pages=2, start=100))
            async with stage.manager.admit(ctx := stage.request("reader", pages=2)):
                hit, *_ = stage.manager.get_req_blocks("reader", 0)
                (cleaned,) = cleanings(stage)
                assert ctx.cached_prefix_length == SIZE
                assert hit not in cleaned.pages
                stage.forward(ctx)
            await stage.settled()
            await stage.manager.aclose()

    clock.run(scenario())


def test_what_a_running_request_is_about_to_hit_is_spared_when_a_page_is_cleaned() -> None:
    async def scenario() -> None:
        async with staged(total_num_pages=6, **TIERED, write_policy="write_back") as stage:
            manager, ctx = stage.manager, stage.request("running", pages=4)
            ctx.chunk(SIZE)
            async with manager.admit(ctx):
                stage.forward(ctx)
                await stage.serve(stage.request("ahead", pages=3))
                await stage.serve(stage.request("other", pages=1, start=500))
                async with manager.admit(stage.request("holder", pages=0, start=900)):
                    await manager.alloc(ctx, 0)
                plans = [event for event in stage.events if isinstance(event, AllocPlanned)]
                (cleaned,) = cleanings(stage)
                assert plans[-1].hits.device_blocks == 2
                assert cleaned.sparing == plans[-1].context.keys[1:3]
                stage.forward(ctx)
            await stage.settled()
            await manager.aclose()

    clock.run(scenario())


def cleanings(stage: Stage) -> list[Cleaned]:
    return [event for event in stage.events if isinstance(event, Cleaned)]
