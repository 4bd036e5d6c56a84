"""Reads before writes, never too many at once, and nothing that is cut off in the middle."""

import asyncio
import threading
from collections import Counter
from typing import Any

import pytest

from pagedkv.engine.disk import io_queue
from pagedkv.engine.disk.io_queue import IoQueue, Kind, to_the_end


async def test_a_read_overtakes_the_writes_that_wait() -> None:
    queue, go_on = IoQueue(depth=1), threading.Event()
    order: list[str] = []

    def ask(kind: Kind, name: str) -> "asyncio.Task[list[None]]":
        return asyncio.create_task(queue.run(kind, [lambda: order.append(name)]))

    first = asyncio.create_task(queue.run("write", [lambda: go_on.wait(60)]))
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

    await asyncio.gather(*(queue.run("read", [call] * depth) for _ in range(6)))
    assert most == depth
    queue.close()


async def test_a_call_that_was_cancelled_while_it_waited_never_runs() -> None:
    queue, go_on = IoQueue(depth=1), threading.Event()
    ran: list[int] = []
    first = asyncio.create_task(queue.run("read", [lambda: go_on.wait(60)]))
    await asyncio.sleep(0)
    waiting = asyncio.create_task(queue.run("read", [lambda: ran.append(1)]))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    go_on.set()
    await first
    await queue.run("read", [lambda: None])
    assert ran == []
    queue.close()


async def test_a_read_overtakes_what_is_left_of_a_write() -> None:
    queue, begun, go_on = IoQueue(depth=1), threading.Event(), threading.Event()
    order: list[str] = []

    def first() -> None:
        begun.set()
        go_on.wait(60)
        order.append("write 0")

    calls = [first, lambda: order.append("write 1"), lambda: order.append("write 2")]
    write = asyncio.create_task(queue.run("write", calls))
    await asyncio.to_thread(begun.wait)
    read = asyncio.create_task(queue.run("read", [lambda: order.append("read")]))
    await asyncio.sleep(0)
    go_on.set()
    await asyncio.gather(write, read)
    assert order == ["write 0", "read", "write 1", "write 2"]
    queue.close()


async def test_of_a_cancelled_batch_nothing_more_is_begun() -> None:
    queue, begun, go_on = IoQueue(depth=1), threading.Event(), threading.Event()
    ran: list[int] = []

    def first() -> None:
        begun.set()
        go_on.wait(60)
        ran.append(0)

    batch = asyncio.create_task(queue.run("read", [first, lambda: ran.append(1)]))
    await asyncio.to_thread(begun.wait)
    batch.cancel()
    await asyncio.sleep(0)
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await batch
    await queue.run("read", [lambda: None])
    assert ran == [0]
    queue.close()


async def test_a_batch_is_over_when_its_last_call_is() -> None:
    queue, failed, go_on = IoQueue(depth=2), threading.Event(), threading.Event()

    def fail() -> None:
        failed.set()
        raise ZeroDivisionError

    batch = asyncio.create_task(queue.run("read", [fail, lambda: go_on.wait(60)]))
    await asyncio.to_thread(failed.wait)
    await queue.run("read", [lambda: None])  # by the thread that has seen the failure
    early = batch.done()
    go_on.set()
    with pytest.raises(ZeroDivisionError):
        await batch
    assert not early
    queue.close()


async def test_the_loop_is_woken_once_for_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(io_queue, "LINGER_S", 60)
    queue, loop = IoQueue(depth=4), asyncio.get_running_loop()
    await queue.run("read", [lambda: None] * 100)
    wake, woken = loop.call_soon_threadsafe, Counter[str]()

    def counted(*callback: Any, **options: Any) -> asyncio.Handle:
        woken["times"] += 1
        return wake(*callback, **options)

    monkeypatch.setattr(loop, "call_soon_threadsafe", counted)
    assert len(await queue.run("read", [lambda: None] * 100)) == 100
    assert woken["times"] == 1
    queue.close()


async def test_threads_that_have_gone_for_want_of_work_are_replaced(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(io_queue, "LINGER_S", 0)
    queue = IoQueue(depth=2)
    for _ in range(3):
        assert await queue.run("write", [lambda: 5]) == [5]
        await asyncio.gather(*queue._workers)
        assert not queue._num_workers
    queue.close()


async def test_errors_reach_whoever_asked_and_the_queue_goes_on() -> None:
    queue = IoQueue(depth=1)
    for _ in range(3):
        with pytest.raises(ZeroDivisionError):
            await queue.run("read", [lambda: 1 // 0])
    assert await queue.run("write", [lambda: 5, lambda: 6]) == [5, 6]
    queue.close()


async def test_all_threads_that_linger_are_woken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(io_queue, "LINGER_S", 60)
    queue, all_there = IoQueue(depth=3), threading.Barrier(3)
    for _ in range(2):
        await queue.run("read", [lambda: all_there.wait(10)] * 3)
    queue.close()


async def test_a_call_may_be_cancelled_when_it_is_over() -> None:
    queue, begun, go_on = IoQueue(depth=1), threading.Event(), threading.Event()

    def call() -> None:
        begun.set()
        go_on.wait(60)

    run = asyncio.create_task(queue.run("read", [call]))
    await asyncio.to_thread(begun.wait)
    go_on.set()
    queue.close()  # the loop stands still until the call is over and the thread has ended
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run


async def test_what_fails_when_nobody_waits_any_more_is_not_reported() -> None:
    job: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    waiting = asyncio.create_task(to_the_end(job))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.sleep(0)
    job.set_exception(ZeroDivisionError())
    with pytest.raises(asyncio.CancelledError):
        await waiting
