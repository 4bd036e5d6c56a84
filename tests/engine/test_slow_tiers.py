"""What an allocation does about a disk that takes its time."""

import asyncio

import pytest
from tests.engine.stage import SIZE, TIERED, Stage, staged

from pagedkv.engine.simulated import clock
from pagedkv.engine.simulated.disk import DiskFaults
from pagedkv.reference import TextContext

SLOW = DiskFaults(delay_s=1.0)


async def waited(stage: Stage, ctx: TextContext, *, defer: bool) -> float:
    """Seconds that the allocation of a prefix takes which is on disk alone."""
    await stage.serve(stage.request("writer"))
    await stage.serve(stage.request("filler", pages=7, start=100))
    loop = asyncio.get_running_loop()
    stage.manager.claim(ctx.request_id, 0)
    began_s = loop.time()
    if defer:
        await stage.manager.alloc(ctx, 0, defer=True)
    else:
        await stage.manager.alloc(ctx, 0)
    return loop.time() - began_s


@pytest.mark.parametrize("defer", [False, True])
@pytest.mark.parametrize(
    ("policy", "at_least_s", "at_most_s", "hit"),
    [("wait", 0.1, 10, 3), ("timeout", 0.02, 0.03, 0), ("best_effort", 0, 0.01, 0)],
)
def test_it_waits_as_long_as_its_policy_says(
    policy: str, at_least_s: float, at_most_s: float, hit: int, defer: bool
) -> None:
    async def run() -> None:
        options = {"total_num_pages": 8, "slow_tier_policy": policy, "slow_tier_timeout_s": 0.02}
        async with staged(SLOW, **TIERED, **options) as stage:
            ctx = stage.request("reader")
            assert at_least_s <= await waited(stage, ctx, defer=defer) <= at_most_s
            assert ctx.tokens.processed_length == hit * SIZE
            stage.forward(ctx)
            stage.manager.release("reader", 0)
            await stage.settled()
            await stage.manager.aclose()

    clock.run(run())
