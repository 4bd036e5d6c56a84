"""What an allocation does about a disk that takes its time."""

import asyncio

import pytest
from tests.engine.stage import SIZE, TIERED, Stage, staged

from pagedkv.engine.simulated import clock
from pagedkv.engine.simulated.disk import DiskFaults
from pagedkv.reference import InsufficientBlocksError, TextContext

SLOW = DiskFaults(delay_s=1.0)


async def waited(stage: Stage, ctx: TextContext, *, wait_s: float, defer: bool) -> float:
    """Seconds that the allocation of a prefix takes which is on disk alone."""
    await stage.serve(stage.request("writer"))
    await stage.serve(stage.request("filler", pages=7, start=100))
    loop = asyncio.get_running_loop()
    stage.manager.claim(ctx.request_id, 0)
    began_s = loop.time()
    if defer:
        await stage.manager.alloc(ctx, 0, wait_s=wait_s, defer=True)
    else:
        await stage.manager.alloc(ctx, 0, wait_s=wait_s)
    return loop.time() - began_s


@pytest.mark.parametrize("defer", [False, True])
@pytest.mark.parametrize("wait_s", [0, 60])
@pytest.mark.parametrize(
    ("policy", "at_least_s", "at_most_s", "hit"),
    [("wait", 0.1, 10, 3), ("timeout", 0.02, 0.03, 0), ("best_effort", 0, 0.01, 0)],
)
def test_it_waits_as_long_as_its_policy_says(
    policy: str, at_least_s: float, at_most_s: float, hit: int, wait_s: float, defer: bool
) -> None:
    async def run() -> None:
        options = {"total_num_pages": 8, "slow_tier_policy": policy, "slow_tier_timeout_s": 0.02}
        async with staged(SLOW, **TIERED, **options) as stage:
            ctx = stage.request("reader")
            assert at_least_s <= await waited(stage, ctx, wait_s=wait_s, defer=defer) <= at_most_s
            assert ctx.tokens.processed_length == hit * SIZE
            stage.forward(ctx)
            stage.manager.release("reader", 0)
            await stage.settled()
            await stage.manager.aclose()

    clock.run(run())


def test_what_comes_to_host_memory_while_a_page_is_cleaned_is_hit() -> None:
    async def run() -> None:
        options = {"host_pages": 6, "write_policy": "write_back", "slow_tier_policy": "best_effort"}
        async with staged(DiskFaults(), **{**TIERED, **options}) as stage:
            for n in range(4):  # each has the pages of the one before it cleaned
                await stage.serve(stage.request(f"writer {n}", start=100 * n))
            ctx = stage.request("reader")
            stage.manager.prefetch(ctx)
            async with stage.manager.admit(ctx):
                assert ctx.cached_prefix_length == 3 * SIZE
                stage.forward(ctx)
            await stage.settled()
            await stage.manager.aclose()

    clock.run(run())


def test_pages_are_cleaned_for_the_tokens_of_a_block_that_is_not_waited_for() -> None:
    async def run() -> None:
        options = {"total_num_pages": 8, "write_policy": "write_back"}
        options |= {"slow_tier_policy": "timeout", "slow_tier_timeout_s": 0.02}
        async with staged(DiskFaults(), **{**TIERED, **options}) as stage:
            await stage.serve(stage.request("writer"))
            for n in range(2):
                await stage.serve(stage.request(f"filler {n}", pages=7, start=100 * (n + 1)))
            assert stage.disk is not None
            stage.disk.faults = SLOW
            ctx = stage.request("reader")
            async with stage.manager.admit(ctx, wait_s=0):
                (load,) = (t for t in stage.manager.in_flight() if t.target == "device")
                assert load.source == "disk", "it goes on, and three pages are its own meanwhile"
                assert ctx.cached_prefix_length == 0
                stage.forward(ctx)
            await stage.settled()
            await stage.manager.aclose()

    clock.run(run())


def test_the_time_for_a_slow_tier_is_part_of_the_time_to_wait_for_pages() -> None:
    async def run() -> None:
        options = {"slow_tier_policy": "timeout", "slow_tier_timeout_s": 0.5}
        async with staged(**{**TIERED, **options}) as stage:
            for n in range(2):
                await stage.serve(stage.request(f"writer {n}", start=100 * n))
            assert stage.disk is not None
            stage.disk.faults = DiskFaults(delay_s=10.0)  # and the load has the pages meanwhile
            loop = asyncio.get_running_loop()
            began_s = loop.time()
            with pytest.raises(InsufficientBlocksError):
                await stage.serve(stage.request("reader"), wait_s=1)
            assert loop.time() - began_s == pytest.approx(1)
            await stage.settled()
            await stage.manager.aclose()

    clock.run(run())
