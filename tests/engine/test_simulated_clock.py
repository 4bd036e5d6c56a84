"""Time on a virtual clock passes between timers, and nowhere else."""

import asyncio
import time

import pytest

from pagedkv.engine.simulated import clock


def test_a_long_sleep_takes_no_time() -> None:
    before = time.monotonic()

    async def sleeps() -> float:
        await asyncio.sleep(100_000)
        return asyncio.get_running_loop().time()

    assert clock.run(sleeps()) == pytest.approx(100_000)
    assert time.monotonic() - before < 60


def test_timers_go_off_in_their_order() -> None:
    order: list[str] = []

    async def later(name: str, seconds: float) -> None:
        await asyncio.sleep(seconds)
        order.append(name)

    async def scenario() -> None:
        await asyncio.gather(later("third", 3), later("first", 1), later("second", 2))

    clock.run(scenario())
    assert order == ["first", "second", "third"]


def test_who_waits_for_what_nobody_does_is_told_so() -> None:
    async def waits() -> None:
        await asyncio.sleep(1.5)
        await asyncio.Event().wait()

    with pytest.raises(clock.StandstillError, match=r"after 1\.5"):
        clock.run(waits())


def test_a_call_can_be_made_before_any_turn() -> None:
    made_at: list[int] = []

    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, clock.VirtualClockLoop)
        loop.at_turn(loop.turns + 3, lambda: made_at.append(loop.turns))
        begin = loop.turns
        for _ in range(5):
            await asyncio.sleep(0)
        assert made_at == [begin + 4]

    clock.run(scenario())
