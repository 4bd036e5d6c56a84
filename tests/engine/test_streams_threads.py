"""Streams of threads: their order, held open by an event that the test lands."""

import asyncio
import threading

import pytest
import torch

from pagedkv.engine.streams.stream import Copy, DeviceFailedError, Memory
from pagedkv.engine.streams.thread_event import ThreadEvent
from pagedkv.engine.streams.threads import ThreadStreams


def memory(name: str, value: int) -> Memory:
    return Memory(name, torch.full((4, 8), value, dtype=torch.uint8))


async def round_trip(streams: ThreadStreams) -> None:
    """Time in which other streams could have done what nothing keeps back."""
    for _ in range(20):
        await streams.finished(
            streams.copy(0, "peer", [Copy(memory("x", 0), 0, memory("y", 0), 0)])
        )


async def test_copy_reads_its_source_after_the_event_and_not_before() -> None:
    streams, pages, slots, opened = ThreadStreams(1), memory("p", 1), memory("s", 2), ThreadEvent()
    landed = streams.copy(0, "onload", [Copy(pages, 0, slots, 0)], after=[opened])
    await round_trip(streams)
    assert not landed.done
    slots.rows.fill_(3)
    opened.land()
    await streams.finished(landed)
    assert pages.rows[0].tolist() == [3] * 8
    await streams.aclose()


async def test_copies_behind_a_wait_wait_as_well() -> None:
    streams, pages, slots, opened = ThreadStreams(1), memory("p", 1), memory("s", 2), ThreadEvent()
    streams.wait(0, "onload", opened)
    landed = streams.copy(0, "onload", [Copy(pages, 0, slots, 0)])
    recorded = streams.record(0, "onload")
    await round_trip(streams)
    assert [landed.done, recorded.done] == [False, False]
    slots.rows.fill_(3)
    opened.land()
    await streams.finished(recorded)
    assert [landed.done, recorded.done] == [True, True]
    assert pages.rows[0].tolist() == [3] * 8
    await streams.aclose()


async def test_other_streams_and_devices_go_on_meanwhile() -> None:
    streams, pages, slots, opened = ThreadStreams(2), memory("p", 1), memory("s", 2), ThreadEvent()
    blocked = streams.copy(0, "onload", [Copy(pages, 0, slots, 0)], after=[opened])
    await streams.finished(streams.copy(0, "offload", [Copy(pages, 1, slots, 1)]))
    await streams.finished(streams.copy(1, "onload", [Copy(pages, 2, slots, 2)]))
    assert not blocked.done
    opened.land()
    await streams.aclose()


async def test_wait_on_compute_blocks_the_caller_until_the_event() -> None:
    streams, pages, slots, opened = ThreadStreams(1), memory("p", 1), memory("s", 2), ThreadEvent()
    landed = streams.copy(0, "onload", [Copy(pages, 0, slots, 0)], after=[opened])
    threading.Thread(target=opened.land).start()
    streams.wait(0, "compute", landed)
    assert pages.rows[0].tolist() == [2] * 8
    await streams.aclose()


async def test_compute_is_program_order() -> None:
    threads = threading.active_count()
    streams, pages, slots = ThreadStreams(1), memory("p", 1), memory("s", 2)
    assert streams.copy(0, "compute", [Copy(pages, 0, slots, 0)]).done
    assert streams.record(0).done
    assert pages.rows[0].tolist() == [2] * 8
    assert threading.active_count() == threads, "no stream but compute was used"


async def test_event_loop_runs_on_while_a_task_waits() -> None:
    streams, opened = ThreadStreams(1), ThreadEvent()
    streams.wait(0, "onload", opened)
    waiting = asyncio.ensure_future(streams.finished(streams.record(0, "onload")))
    await round_trip(streams)
    assert not waiting.done()
    opened.land()
    await waiting
    await streams.aclose()


async def test_failed_copy_fails_its_device_and_says_why() -> None:
    streams, pages = ThreadStreams(2), memory("p", 1)
    wide = Memory("wide", torch.zeros(1, 9, dtype=torch.uint8))
    both_are_enqueued = ThreadEvent()
    failed = streams.copy(0, "onload", [Copy(pages, 0, wide, 0)], [both_are_enqueued])
    behind = streams.copy(0, "onload", [Copy(pages, 1, memory("s", 2), 1)])
    both_are_enqueued.land()
    for event in (failed, behind):
        with pytest.raises(DeviceFailedError, match=r"device 0 has failed: .*shape"):
            await streams.finished(event)
        assert not event.done
    assert pages.rows[1].tolist() == [1] * 8, "nothing happens after the failure"
    with pytest.raises(DeviceFailedError):
        streams.copy(0, "offload", [])
    assert streams.record(1, "offload") is not None, "the other device is well"
    await streams.aclose()


async def test_closed_streams_leave_no_thread_and_take_no_work() -> None:
    streams = ThreadStreams(1)
    await round_trip(streams)
    (thread,) = (thread for thread in threading.enumerate() if thread.name == "pagedkv-peer-0")
    await streams.aclose()
    thread.join()
    with pytest.raises(RuntimeError, match="closed; make new ones"):
        streams.copy(0, "onload", [])
