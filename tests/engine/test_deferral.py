"""``alloc(..., defer=True)``: the device waits for the copies of a batch, not the host."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from random import Random
from typing import Any

import pytest
from tests.engine.conftest import Making, prompt, serve
from tests.engine.stage import SIZE, TIERED, Stage, staged

from pagedkv.conformance.bench import Recording
from pagedkv.conformance.clients import Clients
from pagedkv.conformance.stream_order import check_order, read_order_log
from pagedkv.conformance.validation import Divergence, validate
from pagedkv.engine import PagedKVCacheManager
from pagedkv.engine.alloc_handle import AllocHandle
from pagedkv.engine.simulated import clock
from pagedkv.engine.simulated.disk import DiskFaults
from pagedkv.engine.simulated.landings import land_by_chance
from pagedkv.engine.streams.order_log import LoggedStreams, OrderLog
from pagedkv.engine.streams.simulated import SimulatedStreams
from pagedkv.reference import InsufficientBlocksError, ReplicaPoisonedError, TextContext
from pagedkv.reference.errors import UnknownRequestError
from pagedkv.reference.events import TransferLanded, TransferSubmitted
from pagedkv.specification import reference_specification
from pagedkv.traces.manager_setup import ManagerSetup


@dataclass
class Scene:
    """Chains of two blocks in host memory, and streams where nothing moves by itself."""

    manager: PagedKVCacheManager
    streams: SimulatedStreams
    setup: ManagerSetup
    log: list[str]

    def request(self, make: Making, chain: int, name: str) -> TextContext:
        return make.request(prompt(2, 100 * chain), name)

    def free(self) -> int:
        return self.manager.num_free_blocks()

    def waits_on_compute(self) -> int:
        entries = map(json.loads, self.log)
        return sum(e.get("entry") == "wait" and e["stream"] == "compute 0" for e in entries)


@pytest.fixture
async def scene(make: Making) -> AsyncIterator[Scene]:
    setup = make.setup(total_num_pages=8, host_pages=20)
    streams, log = SimulatedStreams(1, queued_forwards=True), list[str]()
    logged = LoggedStreams(streams, OrderLog(log.append))
    manager = make.engine(logged, total_num_pages=8, host_pages=20)
    async with landing(streams):
        for chain in range(3):
            await serve(manager, make.request(prompt(2, 100 * chain), f"writer {chain}"))
            await drained(manager)
        # What is on the device goes: every page is taken once.
        await serve(manager, make.request(range(1000, 1031), "filler"))
    streams.run_all()
    yield Scene(manager, streams, setup, log)
    async with landing(streams):
        await manager.aclose()
    found = validate(setup.run_setup(), make.events, reference_specification)
    assert not isinstance(found, Divergence), str(found)
    assert not check_order(read_order_log(log))


@asynccontextmanager
async def landing(streams: SimulatedStreams) -> AsyncIterator[None]:
    task = asyncio.create_task(land_by_chance(streams, Random(0), 1e-6))
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def drained(manager: PagedKVCacheManager) -> None:
    while manager.in_flight():
        await asyncio.sleep(0)


async def turns(count: int = 10) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_what_needs_no_load_is_ready_at_once(scene: Scene, make: Making) -> None:
    ctx = make.request(prompt(2, 7000), "a")
    scene.manager.claim("a", 0)
    handle = scene.manager.alloc(ctx, 0, defer=True)
    assert handle.ready
    scene.manager.runtime_inputs([[ctx]])
    assert await handle is handle
    scene.manager.release("a", 0)


async def test_it_is_ready_before_its_loads_have_landed(scene: Scene, make: Making) -> None:
    manager, ctx = scene.manager, scene.request(make, 0, "a")
    manager.claim("a", 0)
    handle = manager.alloc(ctx, 0, defer=True)
    assert not handle.ready
    await turns()
    await handle
    assert manager.in_flight()
    assert ctx.tokens.processed_length == 2 * SIZE
    manager.release("a", 0)
    assert scene.free() == 6, "pages that a copy writes are nobody's before it has landed"
    async with landing(scene.streams):
        await drained(manager)
    assert scene.free() == 8


async def test_the_forward_runs_behind_the_copies_of_its_batch(scene: Scene, make: Making) -> None:
    manager = scene.manager
    contexts = [scene.request(make, chain, f"request {chain}") for chain in range(2)]
    for ctx in contexts:
        manager.claim(ctx.request_id, 0)
        await manager.alloc(ctx, 0, defer=True)
    before = scene.waits_on_compute()
    manager.runtime_inputs([contexts[:1]])
    assert scene.waits_on_compute() == before + 1, "exactly the copies of the batch"
    manager.runtime_inputs([contexts[:1]])
    assert scene.waits_on_compute() == before + 1, "once"

    ran: list[bool] = []
    scene.streams.launch(0, lambda: ran.append(True))
    while "compute" in {work.name for work in scene.streams.ready()}:
        scene.streams.run([work.name for work in scene.streams.ready()].index("compute"))
    assert not ran, "the forward waits for the copies, the program does not"
    async with landing(scene.streams):
        while not ran:
            await asyncio.sleep(0)
    for ctx in contexts:
        manager.release(ctx.request_id, 0)


async def test_every_shard_waits_for_its_own_copy(make: Making) -> None:
    lines: list[str] = []
    streams = SimulatedStreams(2, queued_forwards=True)
    logged = LoggedStreams(streams, OrderLog(lines.append))
    fields: dict[str, Any] = {"total_num_pages": 8, "host_pages": 20, "shards": 2, "cache": "mla"}
    manager = make.engine(logged, **fields)
    async with landing(streams):
        await serve(manager, make.request(prompt(2), "writer"))
        await drained(manager)
        await serve(manager, make.request(range(1000, 1031), "filler"))
        await drained(manager)
        ctx = make.request(prompt(2), "a")
        manager.claim("a", 0)
        await manager.alloc(ctx, 0, defer=True)
        begin = len(lines)
        manager.runtime_inputs([[ctx]])
        waits = [e["stream"] for e in map(json.loads, lines[begin:]) if e["entry"] == "wait"]
        assert set(waits) >= {"compute 0", "compute 1"}
        manager.release("a", 0)
        await manager.aclose()


async def test_a_second_request_joins_a_submitted_load(scene: Scene, make: Making) -> None:
    manager = scene.manager
    for name in "ab":
        manager.claim(name, 0)
        await manager.alloc(scene.request(make, 0, name), 0, defer=True)
    assert len(manager.in_flight()) == 1
    async with landing(scene.streams):
        await drained(manager)
    for name in "ab":
        manager.release(name, 0)


async def test_without_pages_it_is_refused_at_once(scene: Scene, make: Making) -> None:
    manager = scene.manager
    async with manager.admit(make.request(range(5000, 5027), "holder")):
        manager.claim("a", 0)
        with pytest.raises(InsufficientBlocksError):
            manager.alloc(scene.request(make, 0, "a"), 0, defer=True)
        waits = manager.alloc(scene.request(make, 0, "a"), 0, wait_s=60, defer=True)
        await turns()
        assert not waits.ready
    await waits
    manager.release("a", 0)
    async with landing(scene.streams):
        await drained(manager)


async def test_what_will_never_fit_is_refused_at_once(scene: Scene, make: Making) -> None:
    scene.manager.claim("huge", 0)
    with pytest.raises(InsufficientBlocksError, match="never fit"):
        scene.manager.alloc(make.request(prompt(9), "huge"), 0, wait_s=60, defer=True)
    scene.manager.release("huge", 0)


def test_dirty_pages_are_cleaned_for_it_though_it_does_not_wait_for_others() -> None:
    async def run() -> None:
        async with staged(**{**TIERED, "write_policy": "write_back"}) as stage:
            await stage.serve(stage.request("writer"))
            ctx = stage.request("a", start=100)
            stage.manager.claim("a", 0)
            await stage.manager.alloc(ctx, 0, defer=True)
            stage.forward(ctx)
            stage.manager.release("a", 0)
            await stage.settled()
            await stage.manager.aclose()

    clock.run(run())


async def test_a_newcomer_does_not_overtake_the_line(scene: Scene, make: Making) -> None:
    manager = scene.manager
    async with manager.admit(make.request(range(5000, 5023), "holder")):
        for name in ("large", "small"):
            manager.claim(name, 0)
        large = asyncio.ensure_future(
            manager.alloc(make.request(range(6000, 6015), "large"), 0, wait_s=60)
        )
        await turns()
        small = manager.alloc(make.request(range(7000, 7003), "small"), 0, wait_s=60, defer=True)
        await turns()
        assert (large.done(), small.ready) == (False, False)
    await large
    await small
    for name in ("large", "small"):
        manager.release(name, 0)


@pytest.mark.parametrize("when", ["before it has begun", "while it waits", "by its awaiter"])
async def test_a_cancelled_one_leaves_nothing_behind(scene: Scene, make: Making, when: str) -> None:
    manager, ctx = scene.manager, scene.request(make, 0, "a")
    manager.claim("a", 0)
    if when == "before it has begun":
        handle = manager.alloc(ctx, 0, defer=True)
        handle.cancel()
    else:
        async with manager.admit(make.request(range(5000, 5027), "holder")):
            handle = manager.alloc(ctx, 0, wait_s=60, defer=True)
            awaiter = asyncio.ensure_future(wait_for(handle))
            await turns()
            (handle if when == "while it waits" else awaiter).cancel()
            await turns()
    await turns()
    assert handle.ready
    with pytest.raises(asyncio.CancelledError):
        await handle
    assert (manager.get_req_blocks("a", 0), ctx.tokens.processed_length) == ([], 0)
    await manager.alloc(ctx, 0, defer=True)
    manager.release("a", 0)
    async with landing(scene.streams):
        await drained(manager)
    assert scene.free() == 8


async def wait_for(handle: AllocHandle) -> None:
    await handle


async def test_a_released_request_ends_its_handle(scene: Scene, make: Making) -> None:
    scene.manager.claim("a", 0)
    handle = scene.manager.alloc(scene.request(make, 0, "a"), 0, defer=True)
    scene.manager.release("a", 0)
    with pytest.raises(UnknownRequestError):
        await handle
    async with landing(scene.streams):
        await drained(scene.manager)


async def test_a_device_that_fails_afterwards_poisons_its_replica(make: Making) -> None:
    streams = SimulatedStreams(1, queued_forwards=True)
    manager = make.engine(streams, total_num_pages=8, host_pages=8)
    async with landing(streams):
        await serve(manager, make.request(prompt(2), "writer"))
        await drained(manager)
        await serve(manager, make.request(range(1000, 1031), "filler"))
        await drained(manager)
    manager.claim("a", 0)
    ctx = make.request(prompt(2), "a")
    await manager.alloc(ctx, 0, defer=True)
    streams.fail_device(0)
    await turns()
    assert not manager.in_flight()
    with pytest.raises(ReplicaPoisonedError):
        manager.runtime_inputs([[ctx]])
    manager.release("a", 0)
    await manager.aclose()
    setup = make.setup(total_num_pages=8, host_pages=8)
    found = validate(setup.run_setup(), make.events, reference_specification)
    assert not isinstance(found, Divergence), str(found)


def test_what_is_read_from_disk_is_verified_before_it_is_ready() -> None:
    async def run() -> None:
        async with staged(DiskFaults(delay_s=0.002, flipped=1.0), **TIERED) as stage:
            ctx = await evicted_to_disk(stage)
            await stage.manager.alloc(ctx, 0, defer=True)
            assert ctx.tokens.processed_length == 0, "what was damaged is computed"
            assert stage.manager.get_metrics_aggregated().load_blocks_failed > 0
            stage.manager.release("again", 0)
            await stage.manager.aclose()

    clock.run(run())


def test_a_load_from_disk_is_ready_when_it_is_in_host_memory() -> None:
    async def run() -> None:
        async with staged(**TIERED) as stage:
            ctx = await evicted_to_disk(stage)
            handle = stage.manager.alloc(ctx, 0, defer=True)
            assert not handle.ready
            await handle
            assert ctx.tokens.processed_length == 3 * SIZE
            stage.forward(ctx)
            stage.manager.release("again", 0)
            await stage.settled()
            await stage.manager.aclose()
            kinds = [type(event) for event in stage.events]
            assert kinds.index(TransferSubmitted) < len(kinds) - 1 - kinds[::-1].index(
                TransferLanded
            )

    clock.run(run())


async def evicted_to_disk(stage: Stage) -> TextContext:
    """A claimed request whose prefix is on disk alone."""
    await stage.serve(stage.request("writer"))
    await stage.serve(stage.request("filler", start=100))
    ctx = stage.request("again")
    stage.manager.claim("again", 0)
    return ctx


ISOLATED = {"replicas": 2, "enable_dp_cross_replica_prefix_copy": False}


# Any: the fields of a setup.
@pytest.mark.parametrize(
    "fields", [{}, ISOLATED, {"shards": 2, "cache": "mla"}, {"write_policy": "write_back"}]
)
@pytest.mark.parametrize("seed", range(3))
async def test_many_clients_that_defer(make: Making, fields: dict[str, Any], seed: int) -> None:
    fields = {"total_num_pages": 8, "host_pages": 12, **fields}
    setup, lines = make.setup(**fields), list[str]()
    queued = setup.shards == 1
    inner = SimulatedStreams(setup.replicas * setup.shards, queued_forwards=queued)
    manager = make.engine(LoggedStreams(inner, OrderLog(lines.append)), **fields)
    launch: Callable[..., None] | None = inner.launch if queued else None

    async def deferred(ctx: TextContext, replica: int) -> None:
        await manager.alloc(ctx, replica, wait_s=5, defer=True)

    clients = Clients(
        manager,
        setup,
        seed=seed,
        num_prompts=6,
        cancel_share=0.3,
        patient_alloc=deferred,
        launch=launch,
    )
    async with landing(inner):
        await clients.run(clients=5, requests=20)
        await drained(manager)
        await manager.aclose()
    events: Recording = make.events
    assert any(isinstance(event, TransferSubmitted) for event in events)
    found = validate(setup.run_setup(), events, reference_specification)
    assert not isinstance(found, Divergence), str(found)
    assert not check_order(read_order_log(lines))
