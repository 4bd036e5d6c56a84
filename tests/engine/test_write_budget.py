"""A day's write budget is renewed by the clock."""

import asyncio

from tests.engine.stage import TIERED, staged

from pagedkv.engine.simulated import clock
from pagedkv.reference.events import Cleaned, Closed, WriteBudgetRenewed

HOUR_S = 60 * 60


def test_a_new_day_begins_by_itself() -> None:
    async def written_after(hours: float) -> tuple[int, int]:
        async with staged(disk_writes_per_day=2, **TIERED) as stage:
            for chain in range(2):
                await stage.serve(stage.request(f"first {chain}", pages=2, start=100 * chain))
            assert stage.manager.get_num_used_disk_pages(0) == 2, "what exceeds it is dropped"
            await asyncio.sleep(hours * HOUR_S)
            for chain in range(2, 4):
                await stage.serve(stage.request(f"later {chain}", pages=2, start=100 * chain))
            written = stage.manager.get_metrics_aggregated().disk_blocks_written
            await stage.manager.aclose()
            days = [event for event in stage.events if isinstance(event, WriteBudgetRenewed)]
            return written, len(days)

    assert clock.run(written_after(23)) == (2, 0)
    assert clock.run(written_after(24.1)) == (4, 1)
    assert clock.run(written_after(100)) == (4, 1), "no day is made up for"


def test_a_day_that_was_begun_by_hand_lasts_as_long() -> None:
    async def run() -> None:
        async with staged(disk_writes_per_day=2, **TIERED) as stage:
            await stage.serve(stage.request("a", pages=2))
            await asyncio.sleep(23 * HOUR_S)
            stage.manager.renew_write_budget()
            await asyncio.sleep(2 * HOUR_S)
            await stage.serve(stage.request("b", pages=2, start=100))
            await stage.serve(stage.request("c", pages=2, start=200))
            assert stage.manager.get_metrics_aggregated().disk_blocks_written == 4
            await stage.manager.aclose()

    clock.run(run())


def test_a_day_that_ends_before_the_manager_does_is_not_begun_anew() -> None:
    async def run() -> None:
        async with staged(disk_writes_per_day=2, write_policy="write_back", **TIERED) as stage:
            await stage.serve(stage.request("a", pages=2))
            await asyncio.sleep(25 * HOUR_S)
            await stage.manager.aclose()
            assert isinstance(stage.events[-1], Closed)
            assert any(isinstance(event, Cleaned) for event in stage.events)

    clock.run(run())
