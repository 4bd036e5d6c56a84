"""What every backend of streams promises: order where there is an event, and the bytes that follow.

Programs of random copies are made, with an event wherever two of them use the same row. Then there
is one right result, that of one copy after the other, whatever the backend does side by side.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pagedkv.conformance.stream_order import check_order, read_order_log
from pagedkv.engine.streams.cuda import CudaStreams
from pagedkv.engine.streams.order_log import LoggedStreams, OrderLog
from pagedkv.engine.streams.recording_driver import RecordingDriver
from pagedkv.engine.streams.simulated import Reads, SimulatedStreams
from pagedkv.engine.streams.stream import (
    Copy,
    DeviceFailedError,
    Memory,
    StreamEvent,
    StreamName,
    Streams,
)
from pagedkv.engine.streams.thread_event import ThreadEvent
from pagedkv.engine.streams.threads import ThreadStreams
from pagedkv.reference.device import DeviceRef, InferenceSession

ROWS, NBYTES, DEVICES = 4, 6, 2
SESSION = InferenceSession([DeviceRef.CPU(idx) for idx in range(DEVICES)])


@dataclass
class Backend:
    streams: Streams
    progress: Callable[[], object] = lambda: None
    """Lets the time pass that real devices take by themselves."""


def on_threads(seed: int) -> Backend:
    return Backend(ThreadStreams(DEVICES))


def simulated(reads: Reads) -> Callable[[int], Backend]:
    def make(seed: int) -> Backend:
        streams = SimulatedStreams(DEVICES, reads=reads)
        return Backend(streams, lambda: streams.run_random(Random(seed)))

    return make


def on_cuda(seed: int) -> Backend:
    driver = RecordingDriver(held=True)
    return Backend(CudaStreams(SESSION, driver), driver.release)


BACKENDS = {
    "threads": on_threads,
    "simulated, early": simulated("early"),
    "simulated, late": simulated("late"),
    "simulated, both": simulated("both"),
    "cuda": on_cuda,
}

every_backend = pytest.mark.parametrize("make", BACKENDS.values(), ids=BACKENDS)


def memories() -> list[Memory]:
    """Three of them, in which each row holds its own number."""
    return [
        Memory(
            f"memory {m}",
            torch.arange(m * ROWS, (m + 1) * ROWS, dtype=torch.uint8)[:, None].repeat(1, NBYTES),
        )
        for m in range(3)
    ]


@dataclass(frozen=True)
class Step:
    device_idx: int
    name: StreamName
    source: tuple[int, int]
    target: tuple[int, int]
    by: str
    """What puts it behind what it conflicts with."""


rows = st.tuples(st.integers(0, 2), st.integers(0, ROWS - 1))
streams_of_names = st.sampled_from(["compute", "onload", "offload", "peer"])
steps = st.builds(
    Step,
    st.integers(0, DEVICES - 1),
    streams_of_names,
    rows,
    rows,
    st.sampled_from(["after", "wait", "wait for a record"]),
).filter(lambda step: step.source != step.target)


def enqueue(streams: Streams, memory: list[Memory], program: list[Step]) -> list[StreamEvent]:
    """Copy row by row, each copy behind those that use its rows, and return their events."""
    # Where each row was written last, and where it has been read since.
    writes: dict[tuple[int, int], tuple[Step, StreamEvent]] = {}
    reads: dict[tuple[int, int], list[tuple[Step, StreamEvent]]] = {}
    events = []
    for step in program:
        before = [writes[row] for row in (step.source, step.target) if row in writes]
        before += reads.get(step.target, [])
        after = []
        for earlier, event in before:
            if step.by == "wait for a record":
                event = streams.record(earlier.device_idx, earlier.name)
            if step.by == "after":
                after.append(event)
            else:
                streams.wait(step.device_idx, step.name, event)
        (source, source_row), (target, target_row) = step.source, step.target
        copy = Copy(memory[target], target_row, memory[source], source_row)
        events.append(streams.copy(step.device_idx, step.name, [copy], after))
        writes[step.target] = step, events[-1]
        reads[step.target] = []
        reads.setdefault(step.source, []).append((step, events[-1]))
    return events


def one_by_one(program: list[Step]) -> list[Memory]:
    memory = memories()
    for step in program:
        (source, source_row), (target, target_row) = step.source, step.target
        memory[target].rows[target_row] = memory[source].rows[source_row]
    return memory


@every_backend
@given(program=st.lists(steps, max_size=25), seed=st.integers(0, 99))
def test_ordered_copies_give_what_one_after_the_other_gives(
    make: Callable[[int], Backend], program: list[Step], seed: int
) -> None:
    async def run() -> None:
        backend, memory = make(seed), memories()
        events = enqueue(backend.streams, memory, program)
        backend.progress()
        for event in events:
            await backend.streams.finished(event)
            assert event.done
        for seen, expected in zip(memory, one_by_one(program), strict=True):
            assert seen.rows.tolist() == expected.rows.tolist()
        await backend.streams.aclose()

    asyncio.run(run())


@every_backend
@given(program=st.lists(steps, max_size=25))
def test_log_of_ordered_copies_has_no_race(
    make: Callable[[int], Backend], program: list[Step]
) -> None:
    async def run() -> None:
        lines: list[str] = []
        backend = make(0)
        enqueue(LoggedStreams(backend.streams, OrderLog(lines.append)), memories(), program)
        backend.progress()
        await backend.streams.aclose()
        assert check_order(read_order_log(lines)) == []

    asyncio.run(run())


@every_backend
async def test_event_of_an_idle_stream_is_done(make: Callable[[int], Backend]) -> None:
    backend = make(0)
    event = backend.streams.record(1, "offload")
    backend.progress()
    await backend.streams.finished(event)
    assert event.done
    await backend.streams.aclose()


@every_backend
async def test_closing_waits_for_copies(make: Callable[[int], Backend]) -> None:
    backend, memory = make(0), memories()
    backend.streams.copy(0, "offload", [Copy(memory[1], 0, memory[0], 2, count=2)])
    backend.progress()
    await backend.streams.aclose()
    assert torch.equal(memory[1].rows[0:2], memory[0].rows[2:4])
    await backend.streams.aclose()


@every_backend
async def test_all_tasks_that_wait_for_an_event_go_on(make: Callable[[int], Backend]) -> None:
    backend, memory = make(0), memories()
    event = backend.streams.copy(0, "onload", [Copy(memory[1], 0, memory[0], 0)])
    waiting = [asyncio.ensure_future(backend.streams.finished(event)) for _ in range(3)]
    await asyncio.sleep(0)
    backend.progress()
    await asyncio.gather(*waiting)
    await backend.streams.aclose()


@every_backend
async def test_cancelled_wait_leaves_others_waiting(make: Callable[[int], Backend]) -> None:
    backend, memory = make(0), memories()
    event = backend.streams.copy(0, "onload", [Copy(memory[1], 0, memory[0], 0)])
    cancelled = asyncio.ensure_future(backend.streams.finished(event))
    other = asyncio.ensure_future(backend.streams.finished(event))
    await asyncio.sleep(0)
    cancelled.cancel()
    await asyncio.sleep(0)
    backend.progress()
    await other
    assert event.done
    await backend.streams.aclose()


@every_backend
@pytest.mark.parametrize("device_idx", [-1, DEVICES])
def test_unknown_device_is_named(make: Callable[[int], Backend], device_idx: int) -> None:
    with pytest.raises(ValueError, match=f"device_idx is {device_idx}, .* use 0 to {DEVICES - 1}"):
        make(0).streams.record(device_idx)


@every_backend
def test_foreign_event_is_refused(make: Callable[[int], Backend]) -> None:
    class Foreign:
        done = False

    with pytest.raises(TypeError, match="one that these streams have returned"):
        make(0).streams.wait(0, "onload", Foreign())


def too_wide() -> Memory:
    """A row that fits no other: where bytes are copied at once, copying it fails the device."""
    return Memory("too wide", torch.zeros(1, NBYTES + 1, dtype=torch.uint8))


@pytest.mark.parametrize("make", [on_threads, simulated("both")], ids=["threads", "simulated"])
async def test_device_that_waits_for_a_failed_one_has_failed(
    make: Callable[[int], Backend],
) -> None:
    backend, memory = make(0), memories()
    streams = backend.streams
    if isinstance(streams, SimulatedStreams):
        failed = streams.copy(0, "onload", [Copy(memory[1], 0, memory[0], 0)])
    else:
        failed = streams.copy(0, "onload", [Copy(memory[1], 0, too_wide(), 0)])
    behind = streams.copy(1, "peer", [Copy(memory[2], 0, memory[1], 0)], after=[failed])
    if isinstance(streams, SimulatedStreams):
        streams.fail_device(0, "gone")
    with pytest.raises(DeviceFailedError, match=r"device 1 has failed: .*device 0"):
        await streams.finished(behind)
    assert not behind.done
    assert memory[2].rows[0].tolist() in ([8] * 6, [4, 4, 4, 8, 8, 8], [0xA5] * 6)
    with pytest.raises(DeviceFailedError):
        streams.record(1, "onload")
    await streams.aclose()


async def test_failure_on_the_compute_stream_of_threads_is_raised_at_once() -> None:
    streams, (target, *_) = ThreadStreams(DEVICES), memories()
    with pytest.raises(DeviceFailedError, match=r"device 0 has failed: .*shape"):
        streams.copy(0, "compute", [Copy(target, 0, too_wide(), 0)])
    with pytest.raises(DeviceFailedError):
        streams.record(0, "onload")
    await streams.aclose()


async def test_first_reason_of_a_failure_on_threads_is_the_one_that_is_told() -> None:
    streams, (target, *_), opened = ThreadStreams(DEVICES), memories(), ThreadEvent()
    other = streams.copy(1, "onload", [Copy(target, 0, too_wide(), 0)], after=[opened])
    failed = streams.copy(0, "onload", [Copy(target, 1, too_wide(), 0)], after=[opened])
    behind_both = streams.copy(0, "onload", [], after=[other])
    opened.land()
    reasons = []
    for event in (failed, behind_both):
        with pytest.raises(DeviceFailedError) as failure:
            await streams.finished(event)
        reasons.append(failure.value.reason)
    assert reasons[0] == reasons[1]
    await streams.aclose()
