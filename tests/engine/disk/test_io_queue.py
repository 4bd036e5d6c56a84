"""Reads before writes, never too many at once, and nothing that is cut off in the middle."""

import asyncio
import threading

import pytest

from pagedkv.engine.disk.io_queue import IoQueue, Kind


async def test_a_read_overtakes_the_writes_that_wait() -> None:
    queue, go_on = IoQueue(depth=1), threading.Event()
    order: list[str] = []

    def ask(kind: Kind, name: str) -> "asyncio.Task[None]":
        return asyncio.create_task(queue.run(kind, lambda: order.append(name)))

    first = asyncio.create_task(queue.run("write", lambda: go_on.wait(60)))
    await asyncio.sleep(0)
    asked = [ask("write", "write 0"), ask("write", "write 1")]
    await asyncio.sleep(0)
    asked.append(ask("read", "read"))
    await asyncio.sleep(0)
    go_on.set()
    await asyncio.gather(first, *asked)
    assert order == ["read", "write 0", "write 1"]
    queue.close()


@pytest.mark.parametrize("depth", [1, 3])
async def test_no_more_calls_run_at_a_time_than_the_depth(depth: int) -> None:
    queue, lock, running, most = IoQueue(depth), threading.Lock(), 0, 0
    all_there = threading.Barrier(depth)

    def call() -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        all_there.wait(60)  # which needs as many as the depth
        with lock:
            running -= 1

    await asyncio.gather(*(queue.run("read", call) for _ in range(6 * depth)))
    assert most == depth
    queue.close()


async def test_a_call_that_was_cancelled_while_it_waited_never_runs() -> None:
    queue, go_on = IoQueue(depth=1), threading.Event()
    ran: list[int] = []
    first = asyncio.create_task(queue.run("read", lambda: go_on.wait(60)))
    await asyncio.sleep(0)
    waiting = asyncio.create_task(queue.run("read", lambda: ran.append(1)))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    go_on.set()
    await first
    await queue.run("read", lambda: None)
    assert ran == []
    queue.close()


async def test_errors_reach_whoever_asked_and_the_queue_goes_on() -> None:
    queue = IoQueue(depth=1)
    for _ in range(3):
        with pytest.raises(ZeroDivisionError):
            await queue.run("read", lambda: 1 // 0)
    assert await queue.run("write", lambda: 5) == 5
    queue.close()
