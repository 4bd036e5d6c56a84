"""What observers are told of a run: all of it, once, in order, and nothing when they have left."""

import asyncio
import subprocess
import sys
from collections import Counter
from collections.abc import Hashable
from pathlib import Path
from random import Random
from time import perf_counter
from typing import Any

import pytest
from tests.engine.conftest import Making, prompt, serve

from pagedkv.conformance.clients import Clients
from pagedkv.engine import PagedKVCacheManager
from pagedkv.engine.observability.observer import Observer
from pagedkv.engine.observability.overview import overview_of
from pagedkv.engine.observability.records import AllocRecord, CopyRecord, TransferRecord
from pagedkv.engine.observability.watch import Watch
from pagedkv.engine.planner.state import AllocPlan, Request
from pagedkv.engine.streams.simulated import SimulatedStreams
from pagedkv.reference import InsufficientBlocksError
from pagedkv.reference.metrics import KVCacheMetrics


class Ledger(Observer):
    """Checks what it is told, as it is told, and keeps it."""

    def __init__(self) -> None:
        self.calls = 0
        self.open_allocs: set[int] = set()
        self.open_transfers: dict[str, TransferRecord] = {}
        self.allocs: list[AllocRecord] = []
        self.settled: list[TransferRecord] = []
        self.copies: list[CopyRecord] = []
        self.disk_seconds: Counter[str] = Counter()
        self.watch: Watch | None = None

    def attached(self, watch: Watch) -> None:
        self.watch = watch

    def alloc_began(self, alloc: AllocRecord) -> None:
        self.calls += 1
        assert alloc.number not in self.open_allocs
        self.open_allocs.add(alloc.number)

    def alloc_planned(self, request_id: Hashable, request: Request, plan: AllocPlan) -> None:
        self.calls += 1
        assert request.plan is plan

    def alloc_ended(self, alloc: AllocRecord) -> None:
        self.open_allocs.remove(alloc.number)
        self.allocs.append(alloc)
        assert alloc.total_s is not None
        assert alloc.queue_s is None or 0 <= alloc.queue_s <= alloc.total_s
        assert (alloc.queue_s is None) == (alloc.plan is None)
        assert alloc.error is not None or alloc.plans == alloc.retries + 1

    def transfer_issued(self, record: TransferRecord) -> None:
        self.calls += 1
        assert record.transfer.id not in self.open_transfers
        self.open_transfers[record.transfer.id] = record

    def copied(self, copy: CopyRecord) -> None:
        whole = self.open_transfers[copy.transfer.id]
        assert whole.began_s <= copy.began_s <= copy.ended_s
        assert 0 < copy.blocks <= len(copy.transfer.keys)
        self.copies.append(copy)

    def transfer_settled(self, record: TransferRecord) -> None:
        assert self.open_transfers.pop(record.transfer.id) is record
        assert record.total_s is not None
        assert record.total_s >= 0
        self.settled.append(record)

    def released(self, request_id: Hashable) -> None:
        assert self.watch is not None
        state = self.watch.state
        tree = overview_of(state, [0] * len(state.pools), KVCacheMetrics())
        for pool, replica in zip(state.pools, tree.replicas, strict=True):
            walked = pool.statistics()
            assert (replica.held_pages, replica.pinned_pages) == (walked.held, walked.pinned)
            assert replica.free_pages == walked.cached + walked.free

    def landed_blocks(self) -> Counter[str]:
        return Counter(
            {
                way: sum(
                    len(r.transfer.keys) for r in self.settled if r.way == way and not r.reason
                )
                for way in {record.way for record in self.settled}
            }
        )


async def drained(manager: PagedKVCacheManager) -> None:
    while manager.in_flight():
        await asyncio.sleep(0.001)


@pytest.mark.parametrize("seed", range(8))
async def test_observers_are_told_of_everything_once(
    make: Making, seed: int, tmp_path: Path
) -> None:
    rng = Random(seed)
    fields: dict[str, Any] = {
        "total_num_pages": rng.choice((8, 12, 20)),
        "replicas": rng.choice((1, 2)),
        "write_policy": rng.choice(("through", "write_back")),
        "cache": rng.choice(("mha", "mla", "tree")),
        "shards": rng.choice((1, 2)),
        "host_pages": rng.choice((4, 10, 30)),
        "disk_pages": rng.choice((6, 40)),
        "disk_dir": tmp_path,
    }
    manager, ledger = make.engine(**fields), Ledger()
    manager.attach(ledger)
    clients = Clients(manager, make.setup(**fields), seed, cancel_share=rng.choice((0.0, 0.3)))
    await clients.run(clients=6, requests=12)
    await drained(manager)
    metrics = manager.get_metrics_aggregated()
    blocks = ledger.landed_blocks()
    assert not ledger.open_allocs
    assert not ledger.open_transfers
    assert ledger.watch is not None
    assert not ledger.watch.transfers
    assert ledger.allocs
    assert blocks["host_to_device"] + blocks["disk_to_device"] == metrics.h2d_blocks_copied
    assert blocks["peer_to_device"] == metrics.cross_replica_blocks_copied
    assert blocks["disk_to_device"] + blocks["disk_to_host"] == metrics.disk_blocks_read
    await manager.aclose()


async def test_detached_observer_is_told_nothing(make: Making) -> None:
    manager, ledger = make.engine(host_pages=8), Ledger()
    manager.attach(ledger)
    await serve(manager, make.request(prompt(2), "watched"))
    await drained(manager)
    told, copies = ledger.calls, len(ledger.copies)
    assert told and copies
    manager.detach(ledger)
    await serve(manager, make.request(prompt(2, start=100), "unwatched"))
    await drained(manager)
    assert (ledger.calls, len(ledger.copies)) == (told, copies)
    await manager.aclose()


async def test_detaching_a_stranger_is_harmless(make: Making) -> None:
    manager = make.engine()
    manager.detach(Observer())
    manager.attach(attached := Ledger())
    manager.detach(Observer())
    await serve(manager, make.request(prompt(1), "r"))
    assert attached.calls
    await manager.aclose()


async def test_transfers_of_a_poisoned_replica_settle(make: Making) -> None:
    manager, ledger = make.engine(host_pages=8, auto_land=False), Ledger()
    manager.attach(ledger)
    await serve(manager, make.request(prompt(2), "r"))
    assert len(ledger.open_transfers) == 1
    manager.poison(0, "fell off the bus")
    assert [record.reason for record in ledger.settled] == ["unavailable"]
    assert manager.overview().replicas[0].poisoned == "fell off the bus"
    await manager.aclose()


async def test_transfer_names_the_requests_that_wait_for_it(make: Making, tmp_path: Path) -> None:
    manager, ledger = make.engine(host_pages=20), Ledger()
    manager.attach(ledger)
    await serve(manager, make.request(prompt(2), "first"))
    await drained(manager)
    await serve(manager, make.request(prompt(15, start=100), "fills the device"))
    await drained(manager)
    again = make.request(prompt(2), "again"), make.request(prompt(2), "joins")
    await asyncio.gather(*(serve(manager, ctx) for ctx in again))
    load = next(record for record in ledger.settled if record.way == "host_to_device")
    assert load.requests == ["again", "joins"]
    await manager.aclose()


async def test_copy_begins_when_the_forward_before_it_is_over(make: Making) -> None:
    streams = SimulatedStreams(num_devices=1, queued_forwards=True)
    manager, ledger = make.engine(streams, host_pages=8), Ledger()
    manager.attach(ledger)
    ctx = make.request(prompt(2), "r")
    async with manager.admit(ctx):
        streams.launch(0, lambda: None)
        ctx.update(1)
        manager.step([[ctx]])
    for _ in range(5):
        await asyncio.sleep(0)
    forward_over_s = perf_counter()
    streams.run_all()
    await drained(manager)
    assert ledger.copies[0].began_s >= forward_over_s
    await manager.aclose()


async def test_time_in_line_ends_with_the_first_plan(make: Making) -> None:
    manager, ctx = make.engine(), make.request(prompt(2), "r")
    times = iter((10.0, 11.0, 15.0, 20.0))
    watch, ledger = Watch(manager._state, manager._streams, lambda: next(times)), Ledger()
    watch.observers.append(ledger)
    manager.claim("r", 0)
    plan = manager.begin_alloc(ctx, 0)
    with watch.allocating(ctx, 0):
        watch.alloc_planned(ctx, plan)
        watch.alloc_planned(ctx, plan)
        next(times)
    assert (ledger.allocs[0].queue_s, ledger.allocs[0].total_s) == (1.0, 10.0)
    assert ledger.allocs[0].retries == 1
    await manager.aclose()


async def test_overview_counts_who_waits(make: Making) -> None:
    manager = make.engine(total_num_pages=4)
    async with manager.admit(make.request(prompt(3), "holds all")):
        waiting = asyncio.ensure_future(serve(manager, make.request(prompt(3, start=100), "waits")))
        await asyncio.sleep(0)
        tree = manager.overview()
        assert tree.replicas[0].waiting_requests == 1
        assert tree.claimed_requests == 2
        assert tree.replicas[0].held_pages == 4
    await waiting
    assert "4/4 pages free" in repr(manager.overview())
    await manager.aclose()


async def test_refused_alloc_is_told_with_its_error(make: Making) -> None:
    manager, ledger = make.engine(total_num_pages=2), Ledger()
    manager.attach(ledger)
    manager.claim("large", 0)
    with pytest.raises(InsufficientBlocksError):
        await manager.alloc(make.request(prompt(3), "large"), 0)
    assert isinstance(ledger.allocs[0].error, InsufficientBlocksError)
    assert ledger.allocs[0].queue_s is None
    await manager.aclose()


def test_engine_imports_no_client_of_any_monitoring() -> None:
    code = "import sys, pagedkv.engine; print({m.partition('.')[0] for m in sys.modules})"
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert modules.returncode == 0, modules.stderr
    assert "opentelemetry" not in modules.stdout
    assert "prometheus_client" not in modules.stdout
