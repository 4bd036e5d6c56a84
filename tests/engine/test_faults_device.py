"""A device that fails takes its replica with it, and nothing else (FAIL-2)."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from random import Random
from typing import Any

import pytest
from tests.engine.conftest import Making, prompt

from pagedkv.engine import PagedKVCacheManager
from pagedkv.engine.planner import settling
from pagedkv.engine.simulated.landings import land_by_chance
from pagedkv.engine.streams.simulated import SimulatedStreams
from pagedkv.reference import ReplicaPoisonedError, TextContext
from pagedkv.reference.events import ReplicaPoisoned


@asynccontextmanager
async def two_replicas(
    make: Making, **fields: Any
) -> AsyncIterator[tuple[PagedKVCacheManager, SimulatedStreams]]:
    """An engine with two replicas; the copies of both wait for the test."""
    shards = fields.get("shards", 1)
    streams = SimulatedStreams(2 * shards)
    manager = make.engine(streams, replicas=2, total_num_pages=4, host_pages=12, **fields)
    yield manager, streams
    await manager.aclose()


async def serve(
    manager: PagedKVCacheManager, streams: SimulatedStreams, ctx: TextContext, replica: int = 0
) -> None:
    async with manager.admit(ctx, replica):
        batches = [[ctx], []] if replica == 0 else [[], [ctx]]
        manager.runtime_inputs(batches)
        ctx.update(7)
        manager.step(batches)
    while manager.in_flight():
        await asyncio.sleep(0)
        streams.run_all()


async def few_turns() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_who_waits_for_a_load_is_told_that_the_device_has_failed(make: Making) -> None:
    async with two_replicas(make) as (manager, streams):
        await serve(manager, streams, make.request(prompt(3), "before"))
        await serve(manager, streams, make.request(prompt(3, 100), "evicts"))
        manager.claim("waits", 0)
        waits = asyncio.create_task(manager.alloc(make.request(prompt(3), "waits"), 0))
        await few_turns()
        assert manager.in_flight()
        streams.fail_device(0)
        with pytest.raises(ReplicaPoisonedError, match="simulated failure"):
            await waits
        manager.release("waits", 0)
        assert manager.num_free_blocks(0) == 4


async def test_a_step_whose_offload_meets_a_failed_device_is_no_error(make: Making) -> None:
    async with two_replicas(make) as (manager, streams):
        async with manager.admit(ctx := make.request(prompt(2), "a")):
            manager.runtime_inputs([[ctx], []])
            streams.fail_device(0)
            ctx.update(7)
            manager.step([[ctx], []])
            await few_turns()
            with pytest.raises(ReplicaPoisonedError):
                await manager.alloc(ctx, 0)
        assert manager.in_flight() == []


async def test_inputs_of_a_failed_device_are_refused(make: Making) -> None:
    async with two_replicas(make) as (manager, streams):
        async with manager.admit(ctx := make.request(prompt(2), "a")):
            streams.fail_device(0)
            with pytest.raises(ReplicaPoisonedError, match="simulated failure"):
                manager.runtime_inputs([[ctx], []])
        with pytest.raises(ReplicaPoisonedError):
            manager.claim("b", 0)


async def test_the_other_replica_goes_on_as_before(make: Making) -> None:
    async with two_replicas(make) as (manager, streams):
        await serve(manager, streams, make.request(prompt(3), "before"))
        streams.fail_device(0)
        landing = asyncio.create_task(land_by_chance(streams, Random(0)))
        await serve(manager, streams, again := make.request(prompt(3), "again"), 1)
        assert again.cached_prefix_length == 12
        landing.cancel()


@pytest.mark.parametrize("failed", [0, 1])
async def test_slots_of_a_failed_offload_are_free_when_the_other_shards_have_ended(
    make: Making, failed: int
) -> None:
    async with two_replicas(make, shards=2) as (manager, streams):
        async with manager.admit(ctx := make.request(prompt(2), "a")):
            manager.runtime_inputs([[ctx], []])
            ctx.update(7)
            manager.step([[ctx], []])
        await few_turns()
        streams.fail_device(failed)
        await few_turns()
        assert manager.get_num_used_host_pages(0) == 2
        streams.run_all()
        await few_turns()
        assert manager.get_num_used_host_pages(0) == 0


async def test_slots_are_free_when_the_last_copy_of_all_transfers_has_ended(make: Making) -> None:
    async with two_replicas(make, shards=2) as (manager, streams):
        for start in (0, 100):
            async with manager.admit(ctx := make.request(prompt(1, start), f"{start}")):
                manager.runtime_inputs([[ctx], []])
                ctx.update(7)
                manager.step([[ctx], []])
            await few_turns()
        streams.fail_device(0)
        streams.run()  # the first offload's copy on the other shard
        await few_turns()
        assert manager.get_num_used_host_pages(0) == 1
        streams.run()
        await few_turns()
        assert manager.get_num_used_host_pages(0) == 0


async def test_slots_of_an_offload_that_fails_half_enqueued_are_free_when_the_rest_has_ended(
    make: Making,
) -> None:
    async with two_replicas(make, shards=2) as (manager, streams):
        async with manager.admit(ctx := make.request(prompt(2), "a")):
            manager.runtime_inputs([[ctx], []])
            ctx.update(7)
            manager.step([[ctx], []])
        streams.fail_device(1)  # the copy on the other shard is enqueued before it is noticed
        await few_turns()
        assert manager.get_num_used_host_pages(0) == 2
        streams.run_all()
        await few_turns()
        assert manager.get_num_used_host_pages(0) == 0


async def test_of_a_batch_the_offloads_of_the_other_replica_begin_all_the_same(
    make: Making,
) -> None:
    async with two_replicas(make) as (manager, streams), AsyncExitStack() as requests:
        batches = [
            [make.request(prompt(1, 100), "a"), make.request(prompt(1, 200), "b")],
            [make.request(prompt(2, 300), "c")],
        ]
        for replica, batch in enumerate(batches):
            for ctx in batch:
                await requests.enter_async_context(manager.admit(ctx, replica))
        manager.runtime_inputs(batches)
        for ctx in (*batches[0], *batches[1]):
            ctx.update(7)
        streams.fail_device(0)
        manager.step(batches)
        await few_turns()
        streams.run_all()
        await few_turns()
        assert manager.in_flight() == []
        assert manager.get_num_used_host_pages(0) == 2


@asynccontextmanager
async def one_is_failing(
    make: Making,
) -> AsyncIterator[tuple[PagedKVCacheManager, SimulatedStreams]]:
    """Replica 0 has failed while its last offload, of two blocks, goes on."""
    async with two_replicas(make) as (manager, streams):
        async with manager.admit(ctx := make.request(prompt(2), "a")):
            manager.runtime_inputs([[ctx], []])
            ctx.update(7)
            manager.step([[ctx], []])
        await few_turns()
        yield manager, streams
        streams.run_all()
        await few_turns()
        assert manager.in_flight() == []


async def test_a_failed_replica_takes_no_more_work_though_a_copy_goes_on(make: Making) -> None:
    async with one_is_failing(make) as (manager, _):
        manager.poison(0, "the server says so")
        assert manager.in_flight()
        with pytest.raises(ReplicaPoisonedError, match="the server says so"):
            manager.claim("b", 0)


async def test_a_device_that_fails_again_while_a_copy_goes_on_has_failed_once(
    make: Making,
) -> None:
    async with one_is_failing(make) as (manager, streams):
        manager.poison(0, "first")
        manager.poison(0, "second")
        with pytest.raises(ReplicaPoisonedError, match="first"):
            manager.claim("b", 0)
        streams.run_all()
        await few_turns()
        assert [e.reason for e in make.events if isinstance(e, ReplicaPoisoned)] == ["first"]


async def test_pages_that_a_peer_fills_are_not_given_away_while_it_copies(make: Making) -> None:
    async with two_replicas(make) as (manager, streams):
        await serve(manager, streams, make.request(prompt(2), "a"))
        manager.claim("loads", 1)
        loads = asyncio.create_task(manager.alloc(make.request(prompt(2), "loads"), 1))
        await few_turns()
        manager.poison(0, "the server says so")
        await few_turns()
        assert [transfer.source for transfer in manager.in_flight()] == ["peer"]
        streams.run_all()
        await loads


async def test_pages_of_a_load_that_fails_with_its_peer_are_for_who_waits(make: Making) -> None:
    async with one_is_failing(make) as (manager, streams):
        manager.step([[], []], launched=False)  # no copy begins until the launch
        manager.claim("loads", 1)
        manager.begin_alloc(make.request(prompt(2), "loads"), 1)
        manager.cancel_alloc("loads", 1)
        manager.claim("waits", 1)
        ctx = make.request(prompt(3, 500), "waits")
        waits = asyncio.create_task(manager.alloc(ctx, 1, wait_s=60))
        manager.poison(0, "the server says so")
        await few_turns()
        assert not waits.done()
        streams.run_all()
        await few_turns()
        assert waits.done()
        await waits
        manager.forward_launched([[], []])


async def test_what_was_kept_back_is_not_copied_from_a_poisoned_replica(make: Making) -> None:
    async with two_replicas(make) as (manager, streams):
        async with manager.admit(ctx := make.request(prompt(2), "a")):
            manager.runtime_inputs([[ctx], []])
            ctx.update(7)
            manager.step([[ctx], []], launched=False)
            manager.poison(0, "the server says so")
        manager.forward_launched([[], []])
        await few_turns()
        assert not streams.ready()
        assert manager.get_num_used_host_pages(0) == 0


async def test_a_block_that_was_computed_again_is_not_missed_for_its_old_reason(
    make: Making,
) -> None:
    async with two_replicas(make, auto_land=False) as (manager, _):

        async def serve_first(start: int, *, stored: bool) -> None:
            async with manager.admit(ctx := make.request(prompt(1, start), f"{start}")):
                manager.runtime_inputs([[ctx], []])
                ctx.update(7)
                manager.step([[ctx], []])
            for transfer in manager.in_flight():
                if stored:
                    settling.land(manager._state, transfer.id)
                else:
                    manager.fail(transfer.id, "io_error")

        async def push_out(start: int, number: int, *, stored: bool) -> None:
            for n in range(number):
                await serve_first(start + 100 * n, stored=stored)

        await serve_first(0, stored=True)
        await push_out(1_000, 20, stored=True)  # from host memory, too
        await serve_first(0, stored=False)
        await push_out(9_000, 8, stored=False)
        manager.reset_metrics()
        await serve_first(0, stored=False)
        metrics = manager.get_metrics_aggregated()
        assert (metrics.missed_blocks_not_stored, metrics.missed_blocks_evicted) == (1, 0)
