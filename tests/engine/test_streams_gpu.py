"""The CUDA streams on a real GPU: bytes, with long kernels in front and copies racing reuse."""

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest
import torch

from pagedkv.engine.host_pool import HostPool
from pagedkv.engine.movers.host_rows import HostRows
from pagedkv.engine.movers.units import Unit, copies
from pagedkv.engine.streams.batch_copies import BatchCopies
from pagedkv.engine.streams.cuda import CudaStreams
from pagedkv.engine.streams.cuda_driver import TorchCudaDriver
from pagedkv.engine.streams.stream import Copy, Memory
from pagedkv.reference.device import DeviceRef, InferenceSession

pytestmark = pytest.mark.gpu

PAGES, NBYTES = 64, 64 * 1024
LONG = 200_000_000
"""Cycles of a kernel that does nothing for about 0.1 s."""


@pytest.fixture
def session() -> InferenceSession:
    return InferenceSession([DeviceRef.GPU()])


class OneByOne(TorchCudaDriver):
    """A driver without the batch call, as those before CUDA 12.8 are."""

    def __init__(self, session: InferenceSession) -> None:
        super().__init__(session)
        self._batch_copies = None


@pytest.fixture(params=["batched", "one by one"])
async def streams(
    session: InferenceSession, request: pytest.FixtureRequest
) -> AsyncIterator[CudaStreams]:
    if request.param == "batched" and BatchCopies.load() is None:
        pytest.skip("the driver is older than cuMemcpyBatchAsync, of CUDA 12.8")
    streams = CudaStreams(session, OneByOne(session) if request.param == "one by one" else None)
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


@pytest.fixture
def pool() -> Iterator[HostPool]:
    """A host pool that is pinned in eight chunks."""
    pool = HostPool(PAGES, NBYTES, pin=True, chunk_nbytes=PAGES * NBYTES // 8)
    pool.rows.copy_(torch.randint(0, 256, (PAGES, NBYTES), dtype=torch.uint8))
    yield pool
    torch.cuda.synchronize()
    pool.close()


def test_host_pool_is_pinned_to_its_end(pool: HostPool) -> None:
    pool.wait_registered()
    assert pool.registered_slots == PAGES
    assert all(pool.rows[slot].is_pinned() for slot in range(PAGES))


async def test_transfer_may_cross_the_chunks_in_which_the_host_pool_is_pinned(
    streams: CudaStreams, pages: Memory, pool: HostPool
) -> None:
    unit = Unit([(0, pages)], 0, NBYTES)
    (slots,) = HostRows("host", pool, [unit]).memories
    pool.wait_registered()
    there = copies(pages, range(PAGES), slots, range(PAGES))
    await streams.finished(streams.copy(0, "onload", there))
    assert torch.equal(pages.rows.cpu(), slots.rows)


async def test_program_goes_on_while_copies_of_the_host_pool_wait(
    session: InferenceSession, streams: CudaStreams, pages: Memory, pool: HostPool
) -> None:
    pool.wait_registered()
    slots = Memory("slots", pool.rows)
    both = [Copy(pages, 0, slots, 0), Copy(pages, 5, slots, 5)]
    await streams.finished(streams.copy(0, "onload", both))  # streams are made at their first use
    hold_up(session)
    event = streams.copy(0, "onload", both, after=[streams.record(0)])
    assert not event.done
    await streams.finished(event)


def test_graph_is_captured_while_the_host_pool_is_being_pinned(session: InferenceSession) -> None:
    counter = torch.zeros(1, device="cuda")
    torch.cuda.synchronize()
    pool, graph = HostPool(2**12, NBYTES, pin=True, chunk_nbytes=NBYTES), torch.cuda.CUDAGraph()
    with pool.pinning_paused():
        before = pool.registered_slots
        with torch.cuda.graph(graph, stream=session.stream(0)):
            counter += 1
        assert pool.registered_slots == before
    session.launch(graph.replay)
    torch.cuda.synchronize()
    assert counter.item() == 1
    pool.close()


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
async def test_copy_between_gpus_follows_the_forwards_of_both() -> None:
    session = InferenceSession([DeviceRef.GPU(0), DeviceRef.GPU(1)])
    streams = CudaStreams(session)
    source, target = (
        Memory(f"pages {n}", torch.zeros(PAGES, NBYTES, dtype=torch.uint8, device=f"cuda:{n}"))
        for n in range(2)
    )
    for device_idx in range(2):
        torch.cuda.synchronize(device_idx)
        session.launch(torch.cuda._sleep, LONG, device_idx=device_idx)
    session.launch(source.rows.fill_, 7, device_idx=0)
    before = session.launch(target.rows.clone, device_idx=1)
    moved = [Copy(target, row, source, PAGES - 1 - row) for row in range(PAGES)]
    arrived = streams.copy(1, "peer", moved, after=[streams.record(0), streams.record(1)])
    streams.wait(1, "compute", arrived)
    streams.wait(0, "compute", arrived)
    session.launch(source.rows.fill_, 9, device_idx=0)
    after = session.launch(target.rows.clone, device_idx=1)
    for device_idx in range(2):
        await streams.finished(streams.record(device_idx))
    assert not before.any()
    assert bool((after == 7).all())
    await streams.aclose()
