"""A manager belongs to one event loop; an observer that fails harms nobody."""

import asyncio
import logging

import pytest
from tests.engine.conftest import Making, prompt, serve

from pagedkv.engine.moves import WrongLoopError
from pagedkv.engine.observability.observer import Observer


def test_another_loop_is_refused_at_once(make: Making) -> None:
    manager = make.engine(host_pages=4)
    with asyncio.Runner() as runner:
        runner.run(serve(manager, make.request(prompt(2), "first")))
        with asyncio.Runner() as other, pytest.raises(WrongLoopError, match="another event loop"):
            other.run(manager.aclose())
        with pytest.raises(WrongLoopError):
            manager.claim("second", 0)
        runner.run(manager.aclose())


async def test_a_running_request_does_not_stand_in_line(make: Making) -> None:
    manager = make.engine(total_num_pages=4)
    running = make.request(range(8), "running")
    async with manager.admit(running):
        waits = asyncio.create_task(serve(manager, make.request(prompt(3, 100), "waits")))
        await asyncio.sleep(0.01)
        running.update(7)
        await manager.alloc(running, 0, wait_s=0.5)
        assert len(manager.get_req_blocks("running", 0)) == 3
    await waits
    await manager.aclose()


@pytest.mark.parametrize(
    "hook", [name for name in vars(Observer) if not name.startswith("_") and name != "attached"]
)
async def test_an_observer_that_fails_is_told_nothing_more(
    make: Making, hook: str, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise ZeroDivisionError("a bug")

    broken = type("Broken", (Observer,), {hook: fails})()
    manager = make.engine(host_pages=4)
    manager.attach(broken)
    with caplog.at_level(logging.ERROR, logger="pagedkv.engine"):
        for n in range(3):
            await serve(manager, make.request(prompt(2, 100 * n), f"r{n}"))
    assert caplog.text.count("it is told nothing any more") <= 1
    await asyncio.wait_for(manager.aclose(), 5)


async def test_what_is_no_observer_is_refused(make: Making) -> None:
    manager = make.engine()
    with pytest.raises(TypeError, match="no Observer"):
        manager.attach("x")  # type: ignore[arg-type]
    await manager.aclose()
