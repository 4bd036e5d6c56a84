"""The CUDA streams on a real GPU: bytes, with long kernels in front and copies racing reuse."""

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest
import torch

from pagedkv.engine.streams.cuda import CudaStreams
from pagedkv.engine.streams.stream import Copy, Memory
from pagedkv.reference.device import DeviceRef, InferenceSession

pytestmark = pytest.mark.gpu

PAGES, NBYTES = 64, 64 * 1024
LONG = 200_000_000
"""Cycles of a kernel that does nothing for about 0.1 s."""


@pytest.fixture
def session() -> InferenceSession:
    return InferenceSession([DeviceRef.GPU()])


@pytest.fixture
async def streams(session: InferenceSession) -> AsyncIterator[CudaStreams]:
    streams = CudaStreams(session)
    yield streams
    await streams.aclose()


@pytest.fixture
def pages() -> Memory:
    return Memory("pages", torch.zeros(PAGES, NBYTES, dtype=torch.uint8, device="cuda"))


@pytest.fixture(params=["adjacent", "with gaps"])
def slots(request: pytest.FixtureRequest) -> Iterator[Memory]:
    width = NBYTES if request.param == "adjacent" else 2 * NBYTES
    torch.cuda.synchronize()
    rows = torch.randint(0, 256, (PAGES, width), dtype=torch.uint8).pin_memory()
    yield Memory("slots", rows[:, :NBYTES])
    torch.cuda.synchronize()


def hold_up(session: InferenceSession) -> None:
    """Keep the compute stream busy."""
    session.launch(torch.cuda._sleep, LONG)


@pytest.mark.parametrize("count", [1, PAGES // 2])
async def test_rows_go_there_and_back(
    streams: CudaStreams, pages: Memory, slots: Memory, count: int
) -> None:
    expected, half = slots.rows.clone(), PAGES // 2
    torch.cuda.synchronize()
    there = [Copy(pages, row + half, slots, row, count) for row in range(0, half, count)]
    back = [Copy(slots, row + half, pages, row + half, count) for row in range(0, half, count)]
    landed = streams.copy(0, "onload", there)
    await streams.finished(streams.copy(0, "offload", back, after=[landed]))
    assert torch.equal(slots.rows[half:], expected[:half])


async def test_offload_waits_for_the_forward_that_writes(
    session: InferenceSession, streams: CudaStreams, pages: Memory, slots: Memory
) -> None:
    torch.cuda.synchronize()
    hold_up(session)
    session.launch(pages.rows.fill_, 7)
    copies = [Copy(slots, row, pages, row) for row in range(PAGES)]
    await streams.finished(streams.copy(0, "offload", copies, after=[streams.record(0)]))
    assert bool((slots.rows == 7).all())


async def test_forward_waits_for_the_onload_and_the_onload_for_the_forward_before(
    session: InferenceSession, streams: CudaStreams, pages: Memory, slots: Memory
) -> None:
    torch.cuda.synchronize()
    hold_up(session)
    before = session.launch(pages.rows.clone)
    copies = [Copy(pages, row, slots, row) for row in range(PAGES)]
    streams.wait(0, "compute", streams.copy(0, "onload", copies, after=[streams.record(0)]))
    after = session.launch(pages.rows.clone)
    await streams.finished(streams.record(0))
    assert not before.any()
    assert torch.equal(after.cpu(), slots.rows)


async def test_pages_are_reused_at_once_round_after_round(
    session: InferenceSession, streams: CudaStreams, pages: Memory, slots: Memory
) -> None:
    torch.cuda.synchronize()
    slot_free = streams.record(0, "offload")
    for value in range(50):
        session.launch(pages.rows.fill_, value)
        copies = [Copy(slots, row, pages, row) for row in range(PAGES)]
        offloaded = streams.copy(0, "offload", copies, after=[streams.record(0), slot_free])
        streams.wait(0, "compute", offloaded)
        session.launch(pages.rows.fill_, 255)
        await streams.finished(offloaded)
        assert bool((slots.rows == value).all())
        slot_free = offloaded


async def test_event_loop_runs_while_copies_wait(
    session: InferenceSession, streams: CudaStreams, pages: Memory, slots: Memory
) -> None:
    hold_up(session)
    event = streams.copy(0, "onload", [Copy(pages, 0, slots, 0)], after=[streams.record(0)])
    waiting = asyncio.ensure_future(streams.finished(event))
    turns = 0
    while not waiting.done():
        await asyncio.sleep(0)
        turns += 1
    assert turns > 100


async def test_graph_is_captured_while_tasks_wait_for_copies(
    session: InferenceSession, streams: CudaStreams, pages: Memory, slots: Memory
) -> None:
    torch.cuda.synchronize()
    counter = torch.zeros(1, device="cuda")
    copies = [Copy(pages, row, slots, row) for row in range(PAGES)]
    before = asyncio.ensure_future(streams.finished(streams.copy(0, "onload", copies)))
    await asyncio.sleep(0)
    graph = torch.cuda.CUDAGraph()
    with streams.capturing(), torch.cuda.graph(graph, stream=session.stream(0)):
        counter += 1
        kept = streams.copy(0, "offload", [Copy(slots, 1, pages, 0)])
        assert not kept.done
    await streams.finished(kept)
    await before
    session.launch(graph.replay)
    await streams.finished(streams.record(0))
    assert counter.item() == 1
