"""The whole manager on GPUs: right bytes, though every forward comes late and pages go at once.

Each scenario runs on a CPU, too: on threads, and on the CUDA streams over a recorded driver, where
what is enqueued happens later. Forwards check what they read on their device, so that the program
never waits for one of them.
"""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, nullcontext
from dataclasses import dataclass
from random import Random
from typing import Literal

import numpy as np
import pytest
import torch
from pydantic import Field

from pagedkv.conformance.bench import Recording
from pagedkv.conformance.clients import Clients
from pagedkv.conformance.stream_order import check_order, read_order_log
from pagedkv.conformance.validation import Divergence, validate
from pagedkv.conformance.violation import Violation
from pagedkv.engine import PagedKVCacheManager
from pagedkv.engine.streams.cuda import CudaStreams
from pagedkv.engine.streams.order_log import LoggedStreams, OrderLog
from pagedkv.engine.streams.recording_driver import RecordingDriver
from pagedkv.engine.streams.stream import Streams
from pagedkv.engine.streams.threads import ThreadStreams
from pagedkv.reference import (
    DeviceRef,
    InferenceSession,
    KVCacheInputs,
    TextContext,
    TokenBuffer,
)
from pagedkv.specification import reference_specification
from pagedkv.traces.manager_setup import ManagerSetup

Where = Literal["threads", "recorded driver", "one GPU", "two GPUs"]

SIZE, PAGES, PROMPTS = 4, 6, 14
"""Tokens of a page, pages of a prompt, and prompts, of which the devices hold a few."""

LATE = 2_000_000
"""Cycles of a kernel that does nothing for about 1 ms."""


class Setup(ManagerSetup):
    """A manager on the devices of a test."""

    where: Where = Field(default="threads", exclude=True)
    """On which."""

    def _devices(self) -> list[DeviceRef]:
        numbers = range(self.replicas * self.shards)
        if "GPU" not in self.where:
            return [DeviceRef.CPU(n) for n in numbers]
        return [DeviceRef.GPU(n % 2 if self.where == "two GPUs" else 0) for n in numbers]


@dataclass
class Stage:
    """A manager that thrashes, and forwards that come late."""

    setup: Setup
    session: InferenceSession
    manager: PagedKVCacheManager
    streams: Streams
    driver: RecordingDriver | None
    wrong: list[torch.Tensor]
    """By replica, on its device: how many bytes were not what a forward had to find."""

    def request(self, prompt: int, name: str) -> TextContext:
        """A prompt of full pages, and the one token more that every request computes."""
        tokens = np.full(SIZE * PAGES + 1, prompt, dtype=np.int64)
        return TextContext(max_length=1000, tokens=TokenBuffer(tokens), request_id=name)

    def pages(self, replica: int) -> torch.Tensor:
        """The replica's pages, a row of bytes each."""
        return self.manager.get_device_buffer(replica).to_memory()[0].buffer

    def launch(self, replica: int, forward: Callable[[], object]) -> None:
        """Launch a forward that comes late."""
        if self.driver is not None:
            self.driver.launch(replica, forward)
            return
        if self.session.devices[replica].is_gpu():
            self.session.launch(torch.cuda._sleep, LATE, device_idx=replica)
        self.session.launch(forward, device_idx=replica)

    def inputs(self, ctx: TextContext, replica: int = 0) -> torch.Tensor:
        """The lookup table for a forward of one request."""
        inputs = self.manager.runtime_inputs(self.batches(ctx, replica))
        assert isinstance(inputs, KVCacheInputs)
        table: torch.Tensor = inputs.inputs[replica].lookup_table
        return table

    def forward(self, ctx: TextContext, replica: int = 0) -> None:
        """Find the bytes of the cached prefix, and write those of the rest."""
        table, pages, wrong = self.inputs(ctx, replica), self.pages(replica), self.wrong[replica]
        cached = ctx.tokens.processed_length // SIZE
        first = 1 + int(ctx.tokens.all[0]) * PAGES

        def run() -> None:
            content = torch.arange(first, first + PAGES, dtype=torch.uint8, device=pages.device)
            rows = table[0, :PAGES].long()
            wrong.add_((pages[rows[:cached]] != content[:cached, None]).sum())
            pages[rows[cached:]] = content[cached:, None]

        self.launch(replica, run)
        self.manager.forward_launched(self.batches(ctx, replica))

    async def serve(self, ctx: TextContext, replica: int = 0, *, defer: bool = False) -> None:
        """A request from its claim to its release, which leaves its pages to the next at once."""
        self.manager.claim(ctx.request_id, replica)
        try:
            if defer:
                await self.manager.alloc(ctx, replica, wait_s=60, defer=True)
            else:
                await self.manager.alloc(ctx, replica, wait_s=60)
            self.forward(ctx, replica)
            ctx.update(7)
            self.manager.step(self.batches(ctx, replica))
        finally:
            self.manager.release(ctx.request_id, replica)

    def batches(self, ctx: TextContext, replica: int) -> list[list[TextContext]]:
        """One batch per replica; only one has a request."""
        return [[ctx] if n == replica else [] for n in range(self.setup.replicas)]

    @contextmanager
    def capturing(self) -> Iterator[Callable[[Callable[[], object]], Callable[[], object]]]:
        """A scope in which one function may be captured; gives what captures it to be replayed."""
        with self.manager.capturing():
            if self.session.devices[0].is_cpu():
                yield lambda forward: forward
                return
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, stream=self.session.stream(0)):

                def capture(forward: Callable[[], object]) -> Callable[[], object]:
                    forward()
                    return graph.replay

                yield capture

    async def all_on_device_done(self) -> None:
        """Return when every forward that was launched is over."""
        for device_idx in range(len(self.session.devices)):
            await self.streams.finished(self.streams.record(device_idx))

    async def landed(self) -> None:
        """Return when no transfer is in flight."""
        while self.manager.in_flight():
            await asyncio.sleep(0.001)


@asynccontextmanager
async def staged(setup: Setup) -> AsyncIterator[Stage]:
    """A stage whose run is judged at its end: bytes, decisions and the order of streams."""
    lines, session = list[str](), setup.session()
    driver = RecordingDriver(held=True) if setup.where == "recorded driver" else None
    streams: Streams
    if setup.where == "threads":
        streams = ThreadStreams(len(session.devices))
    else:
        streams = CudaStreams(session, driver)
    logged = LoggedStreams(streams, OrderLog(lines.append))
    manager = PagedKVCacheManager(
        setup.params(),
        session,
        setup.total_num_pages,
        setup.host_pages or 0,
        enable_runtime_checks=True,
        max_batch_size=setup.max_batch_size,
        tracer=setup.tracer,
        streams=logged,
    )
    devices = [session.devices[n * setup.shards].to_device() for n in range(setup.replicas)]
    wrong = [torch.zeros((), dtype=torch.int64, device=device) for device in devices]
    stage = Stage(setup, session, manager, logged, driver, wrong)
    with nullcontext() if driver is None else in_bursts(driver):
        try:
            yield stage
            await stage.landed()
            await stage.all_on_device_done()
            assert [int(count) for count in wrong] == [0] * setup.replicas
        finally:
            await manager.aclose()
    assert isinstance(setup.tracer, Recording)
    found = validate(setup.run_setup(), setup.tracer, reference_specification)
    assert not isinstance(found, Divergence), str(found)
    assert not check_order(read_order_log(lines))


@contextmanager
def in_bursts(driver: RecordingDriver) -> Iterator[None]:
    """Let happen now and then what was enqueued until then, as a GPU would: without the loop."""
    over = threading.Event()

    def run() -> None:
        while not over.wait(0.0005):
            driver.run()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@pytest.fixture(
    params=[
        "threads",
        "recorded driver",
        pytest.param("one GPU", marks=pytest.mark.gpu),
        pytest.param(
            "two GPUs",
            marks=[
                pytest.mark.gpu,
                pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs"),
            ],
        ),
    ]
)
def where(request: pytest.FixtureRequest) -> Where:
    place: Where = request.param
    return place


def thrashing(where: Where, replicas: int = 1) -> Setup:
    """Devices that hold three prompts each, and a host that holds twelve."""
    return Setup(
        where=where,
        replicas=replicas,
        page_size=SIZE,
        total_num_pages=3 * (PAGES + 1),
        host_pages=12 * PAGES,
        max_batch_size=2,
        layers=64 if "GPU" in where else 2,
        head_dim=128,
        tracer=Recording(),
    )


@pytest.mark.parametrize("replicas", [1, 2])
@pytest.mark.parametrize("defer", [False, True], ids=["landed", "deferred"])
async def test_late_forwards_find_the_bytes_of_their_prefix(
    where: Where, defer: bool, replicas: int
) -> None:
    async with staged(thrashing(where, replicas)) as stage:

        async def client(number: int) -> None:
            rng = Random(number)
            for count in range(15):
                ctx = stage.request(rng.randrange(PROMPTS), f"{number} {count}")
                await stage.serve(ctx, rng.randrange(replicas), defer=defer)

        await asyncio.gather(*(client(number) for number in range(4)))
        metrics = stage.manager.get_metrics_aggregated()
        assert metrics.host_blocks_served > 0
        assert replicas == 1 or metrics.peer_blocks_served > 0


async def test_a_graph_reads_what_is_still_on_its_way(where: Where) -> None:
    async with staged(thrashing(where)) as stage:
        for prompt in range(10):
            await stage.serve(stage.request(prompt, f"writer {prompt}"))
        await stage.landed()
        ctx = stage.request(9, "captured")
        async with stage.manager.admit(ctx):
            table, pages = stage.inputs(ctx), stage.pages(0)
            seen = torch.zeros_like(pages[:PAGES])

            def read() -> object:
                return torch.index_select(pages, 0, table[0, :PAGES], out=seen)

            stage.launch(0, read)  # kernels are loaded at their first use
            with stage.capturing() as capture:
                replay = capture(read)
            stage.manager.forward_launched([[ctx]])
        for prompt in range(6):
            ctx = stage.request(prompt, f"reader {prompt}")
            stage.manager.claim(ctx.request_id, 0)
            await stage.manager.alloc(ctx, 0, wait_s=60, defer=True)
            assert ctx.tokens.processed_length == SIZE * PAGES
            assert stage.inputs(ctx).data_ptr() == table.data_ptr()
            stage.launch(0, replay)
            stage.manager.forward_launched([[ctx]])
            stage.launch(0, compared(seen, 1 + prompt * PAGES, stage.wrong[0]))
            stage.manager.release(ctx.request_id, 0)
        assert stage.manager.get_metrics_aggregated().host_blocks_served >= 6 * PAGES


def compared(seen: torch.Tensor, first: int, wrong: torch.Tensor) -> Callable[[], object]:
    """What counts the bytes that are not those of a prompt's pages."""

    def run() -> None:
        content = torch.arange(first, first + PAGES, dtype=torch.uint8, device=seen.device)
        wrong.add_((seen != content[:, None]).sum())

    return run


async def test_a_graph_is_captured_while_others_load(where: Where) -> None:
    async with staged(thrashing(where)) as stage:
        for prompt in range(10):
            await stage.serve(stage.request(prompt, f"writer {prompt}"))
        counter = torch.zeros((), dtype=torch.int64, device=stage.wrong[0].device)
        stage.launch(0, lambda: counter.add_(1))

        async def loader(number: int) -> None:
            for count in range(20):
                ctx = stage.request((3 * number + count) % 10, f"loader {number} {count}")
                stage.manager.claim(ctx.request_id, 0)
                await stage.manager.alloc(ctx, 0, wait_s=60, defer=True)
                stage.manager.release(ctx.request_id, 0)

        loaders = [asyncio.create_task(loader(number)) for number in range(3)]
        # All are kept: a graph must not be given back while another one is captured.
        replays, seen_in_flight = list[Callable[[], object]](), 0
        while not all(task.done() for task in loaders):
            await asyncio.sleep(0)
            with stage.capturing() as capture:
                calls = len(stage.driver.calls) if stage.driver is not None else 0
                replays.append(capture(lambda: counter.add_(1)))
                for _ in range(20):
                    await asyncio.sleep(0)
                seen_in_flight += len(stage.manager.in_flight())
                assert stage.driver is None or len(stage.driver.calls) == calls
            stage.launch(0, replays[-1])
            await stage.all_on_device_done()
        await asyncio.gather(*loaders)
        assert seen_in_flight
        assert int(counter) == 1 + len(replays)
        for prompt in range(10):
            await stage.serve(stage.request(prompt, f"reader {prompt}"), defer=True)


@pytest.mark.parametrize("cache", ["mha", "mla", "fp8", "tree"])
async def test_clients_of_all_caches_find_right_bytes(
    where: Where, cache: Literal["mha", "mla", "fp8", "tree"]
) -> None:
    changed = {"cache": cache, "layers": 1, "head_dim": 2, "total_num_pages": 12}
    setup = thrashing(where, replicas=2).model_copy(update=changed)
    violations: list[Violation] = []
    async with staged(setup) as stage:

        async def deferred(ctx: TextContext, replica: int) -> None:
            await stage.manager.alloc(ctx, replica, wait_s=60, defer=True)

        def launch(replica: int, forward: Callable[[], None]) -> None:
            def checked() -> None:
                try:
                    forward()
                except Violation as violation:
                    violations.append(violation)

            stage.launch(replica, checked)

        clients = Clients(
            stage.manager,
            setup,
            seed=0,
            num_prompts=8,
            cancel_share=0.2,
            patient_alloc=deferred,
            launch=launch,
        )
        await clients.run(clients=4, requests=10)
        assert clients.finished
    assert not violations
