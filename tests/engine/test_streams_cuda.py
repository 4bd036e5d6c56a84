"""The CUDA streams on a driver without a GPU: which calls they make, in which order, and when."""

import asyncio
import gc
import weakref

import pytest
import torch

from pagedkv.engine.streams.cuda import CudaStreams, own
from pagedkv.engine.streams.recording_driver import RecordingDriver
from pagedkv.engine.streams.stream import Copy, DeviceFailedError, Memory, StreamName
from pagedkv.reference.device import DeviceRef, InferenceSession

SESSION = InferenceSession([DeviceRef.CPU(0), DeviceRef.CPU(1)])


def memory(name: str, value: int) -> Memory:
    return Memory(name, torch.full((4, 8), value, dtype=torch.uint8))


@pytest.fixture
def driver() -> RecordingDriver:
    return RecordingDriver(held=True)


@pytest.fixture
def streams(driver: RecordingDriver) -> CudaStreams:
    return CudaStreams(SESSION, driver)


def calls(driver: RecordingDriver) -> list[str]:
    """The calls that enqueue, in words."""
    return [
        f"{call.call} {call.stream}" + (f" event {call.event}" if call.event else "")
        for call in driver.calls
        if call.call not in ("query", "synchronize")
    ]


async def time_for_threads() -> None:
    """Time in which threads could have done what nothing keeps back."""
    for _ in range(20):
        await asyncio.to_thread(int)


def test_copy_waits_on_its_own_stream_copies_and_records(
    driver: RecordingDriver, streams: CudaStreams
) -> None:
    forward = streams.record(0)
    landed = streams.copy(0, "offload", [Copy(memory("s", 2), 0, memory("p", 1), 0)], [forward])
    assert not landed.done
    assert calls(driver) == [
        "record compute 0 event 1",
        "wait stream 0.1 event 1",
        "copy stream 0.1",
        "record stream 0.1 event 2",
    ]


def test_each_name_and_device_has_a_stream_of_its_own(
    driver: RecordingDriver, streams: CudaStreams
) -> None:
    for device_idx in (0, 1):
        for name in ("compute", "onload", "offload", "peer"):
            streams.record(device_idx, name)
            streams.record(device_idx, name)
    assert len(driver.streams) == 8


def test_offload_gets_what_the_forward_before_it_writes(
    driver: RecordingDriver, streams: CudaStreams
) -> None:
    pages, slots = memory("p", 1), memory("s", 2)
    driver.launch(0, lambda: pages.rows.fill_(5))
    streams.copy(0, "offload", [Copy(slots, 0, pages, 0)], [streams.record(0)])
    driver.run()
    assert slots.rows[0].tolist() == [5] * 8


def test_forward_behind_a_wait_finds_what_was_loaded(
    driver: RecordingDriver, streams: CudaStreams
) -> None:
    pages, slots, seen = memory("p", 1), memory("s", 2), list[int]()
    streams.wait(0, "compute", streams.copy(0, "onload", [Copy(pages, 0, slots, 0)]))
    driver.launch(0, lambda: seen.extend(pages.rows[0].tolist()))
    driver.run()
    assert seen == [2] * 8


def test_driver_keeps_a_stream_waiting_whichever_was_made_first(driver: RecordingDriver) -> None:
    waiting, forward_done, done = driver.new_stream(0), driver.new_event(0), driver.new_event(0)
    for _ in range(3):
        driver.launch(0, list)
    driver.record(forward_done, driver.compute_stream(0))
    driver.wait(waiting, forward_done)
    driver.record(done, waiting)
    for _ in range(3):
        assert driver._progress()
        assert not driver.query(done)
    driver.run()
    assert driver.query(done)


def test_wait_remembers_what_its_event_meant_after_the_event_is_used_again(
    driver: RecordingDriver, streams: CudaStreams
) -> None:
    pages, slots = memory("p", 1), memory("s", 2)
    driver.launch(0, lambda: pages.rows.fill_(5))
    streams.copy(0, "offload", [Copy(slots, 0, pages, 0)], [streams.record(0)])
    gc.collect()  # nobody has the events any more
    for _ in range(3):
        streams.record(1, "peer")
    driver.run()
    assert slots.rows[0].tolist() == [5] * 8


def test_driver_events_are_used_again_once_nobody_has_them(
    driver: RecordingDriver, streams: CudaStreams
) -> None:
    kept = streams.record(0, "onload")
    for _ in range(10):
        streams.record(0, "onload")
        gc.collect()
    assert {call.event for call in driver.calls} == {1, 2}
    assert not kept.done


def test_driver_events_are_used_again_on_their_own_device(
    driver: RecordingDriver, streams: CudaStreams
) -> None:
    for device_idx in (1, 0, 1, 0):
        streams.record(device_idx, "onload")
        gc.collect()
    assert [call.event for call in driver.calls] == [1, 2, 1, 2]


def test_driver_records_events_on_their_own_device_and_lets_any_wait(
    driver: RecordingDriver,
) -> None:
    event, stream = driver.new_event(0), driver.new_stream(1)
    driver.wait(stream, event)
    with pytest.raises(AssertionError, match="cannot be recorded on"):
        driver.record(event, stream)


async def test_thread_that_has_waited_for_an_event_lets_go_of_it(
    driver: RecordingDriver, streams: CudaStreams
) -> None:
    event = streams.record(0, "onload")
    gone = weakref.ref(event)
    waiting = asyncio.ensure_future(streams.finished(event))
    del event
    await asyncio.sleep(0)
    driver.release()
    await waiting
    del waiting
    async with asyncio.timeout(5):
        while gone() is not None:
            await asyncio.sleep(0)
    await streams.aclose()


async def test_finished_is_told_by_one_thread_per_device(
    driver: RecordingDriver, streams: CudaStreams
) -> None:
    events = [streams.copy(0, "onload", [Copy(memory("p", 1), 0, memory("s", 2), 0)])]
    events += [streams.record(0, "offload"), streams.record(0, "peer"), streams.record(1, "peer")]
    waiting = [asyncio.ensure_future(streams.finished(event)) for event in events]
    await asyncio.sleep(0)
    assert len(streams._watchers) == 2
    assert not any(task.done() for task in waiting)
    driver.release()
    await asyncio.gather(*waiting)
    assert all(event.done for event in events)
    await streams.aclose()


async def test_driver_error_fails_the_device(driver: RecordingDriver, streams: CudaStreams) -> None:
    event = streams.record(0, "onload")
    other = streams.record(1, "onload")
    waiting = asyncio.ensure_future(streams.finished(event))
    await asyncio.sleep(0)
    driver.fail(0, "CUDA error: an illegal memory access was encountered")
    with pytest.raises(DeviceFailedError, match="device 0 has failed: CUDA error: an illegal"):
        await waiting
    assert not event.done
    with pytest.raises(DeviceFailedError):
        streams.copy(0, "offload", [])
    driver.run()
    await streams.finished(other)
    driver.release()
    await streams.aclose()


def test_error_of_a_call_fails_the_device_at_once(
    driver: RecordingDriver, streams: CudaStreams
) -> None:
    driver.fail(1, "CUDA error: out of memory")
    with pytest.raises(DeviceFailedError, match="device 1 has failed: CUDA error: out of memory"):
        streams.copy(1, "onload", [])


def test_wait_for_a_failed_device_fails_the_device_that_waits(
    driver: RecordingDriver, streams: CudaStreams
) -> None:
    event = streams.record(0, "offload")
    driver.fail(0, "gone")
    assert not event.done
    with pytest.raises(DeviceFailedError, match="device 1 has failed: device 0 has failed: gone"):
        streams.copy(1, "peer", [], after=[event])


def test_first_reason_of_a_failure_is_the_one_that_is_told(
    driver: RecordingDriver, streams: CudaStreams
) -> None:
    event = streams.record(0, "offload")
    for reason in ("first", "second"):
        driver.fail(0, reason)
        with pytest.raises(DeviceFailedError, match="device 0 has failed: first"):
            streams.block(own(event))


async def test_what_landed_before_its_device_failed_has_finished(
    driver: RecordingDriver, streams: CudaStreams
) -> None:
    event = streams.record(0, "offload")
    driver.run()
    assert event.done
    driver.fail(0, "gone")
    with pytest.raises(DeviceFailedError):
        streams.record(0)
    await streams.finished(event)


@pytest.mark.parametrize("name", ["onload", "offload", "peer"])
async def test_closing_waits_for_each_stream_of_copies(
    driver: RecordingDriver, streams: CudaStreams, name: StreamName
) -> None:
    streams.copy(0, name, [Copy(memory("p", 1), 0, memory("s", 2), 0)])
    closing = asyncio.ensure_future(streams.aclose())
    await time_for_threads()
    assert not closing.done()
    driver.release()
    await closing


class TestWhileAGraphIsCaptured:
    def test_nothing_touches_the_driver_and_all_follows_in_order(
        self, driver: RecordingDriver, streams: CudaStreams
    ) -> None:
        before = streams.record(0)
        driver.calls.clear()
        with streams.capturing():
            landed = streams.copy(0, "offload", [Copy(memory("s", 2), 0, memory("p", 1), 0)])
            streams.wait(0, "onload", landed)
            recorded = streams.record(0, "onload")
            assert [before.done, landed.done, recorded.done] == [False] * 3
            assert driver.calls == []
        assert calls(driver) == [
            "copy stream 0.1",
            "record stream 0.1 event 2",
            "wait stream 0.2 event 2",
            "record stream 0.2 event 3",
        ]
        driver.run()
        assert [landed.done, recorded.done] == [True, True]

    async def test_tasks_that_wait_are_told_afterwards(self, streams: CudaStreams) -> None:
        driver = RecordingDriver()
        streams = CudaStreams(SESSION, driver)
        with streams.capturing():
            event = streams.record(0, "onload")
            waiting = asyncio.ensure_future(streams.finished(event))
            await time_for_threads()
            assert driver.calls == [] and not waiting.done()
        await waiting
        await streams.aclose()

    async def test_capture_begins_when_threads_have_left_the_driver(
        self, driver: RecordingDriver, streams: CudaStreams
    ) -> None:
        first, second = streams.record(0, "onload"), streams.record(0, "offload")
        waiting = [asyncio.ensure_future(streams.finished(event)) for event in (first, second)]
        while not any(call.call == "synchronize" for call in driver.calls):
            await asyncio.sleep(0)

        def capture() -> int:
            with streams.capturing():
                return len(driver.calls)

        capturing = asyncio.ensure_future(asyncio.to_thread(capture))
        for _ in range(20):
            await asyncio.sleep(0)
        assert not capturing.done()
        driver.run()
        assert await capturing <= len(driver.calls)
        await asyncio.gather(*waiting)
        driver.release()
        await streams.aclose()

    def test_captures_may_be_nested(self, driver: RecordingDriver, streams: CudaStreams) -> None:
        with streams.capturing():
            with streams.capturing():
                streams.record(0)
            assert driver.calls == []
        assert len(driver.calls) == 1

    def test_what_was_kept_back_is_enqueued_once(
        self, driver: RecordingDriver, streams: CudaStreams
    ) -> None:
        for _ in range(2):
            with streams.capturing():
                streams.record(0)
            with streams.capturing():
                pass
        assert [call.call for call in driver.calls] == ["record"] * 2

    def test_questions_are_not_kept_back(
        self, driver: RecordingDriver, streams: CudaStreams
    ) -> None:
        event = streams.record(0)
        driver.calls.clear()
        with streams.capturing():
            assert not event.done
        assert driver.calls == []

    def test_what_a_thread_has_waited_for_is_known_to_be_done(
        self, driver: RecordingDriver, streams: CudaStreams
    ) -> None:
        event = streams.record(0)
        driver.run()
        streams.block(own(event))
        with streams.capturing():
            assert event.done

    def test_nothing_is_enqueued_behind_what_has_failed(
        self, driver: RecordingDriver, streams: CudaStreams
    ) -> None:
        event = streams.record(0)
        driver.fail(0, "gone")
        assert not event.done
        driver.calls.clear()
        with streams.capturing():
            streams.wait(1, "peer", event)
            streams.copy(1, "peer", [])
        assert driver.calls == []

    def test_failure_of_what_was_kept_back_fails_the_device(
        self, driver: RecordingDriver, streams: CudaStreams
    ) -> None:
        with streams.capturing():
            event = streams.record(0)
            driver.fail(0, "gone")
        assert not event.done
        with pytest.raises(DeviceFailedError, match="gone"):
            streams.record(0)


async def test_closed_streams_take_no_work(driver: RecordingDriver, streams: CudaStreams) -> None:
    await streams.aclose()
    with pytest.raises(RuntimeError, match="closed; make new ones"):
        streams.record(0)


def test_cpu_is_referred_to_threads() -> None:
    with pytest.raises(ValueError, match=r"devices\[0\] is cpu:0; use ThreadStreams"):
        CudaStreams(SESSION)
