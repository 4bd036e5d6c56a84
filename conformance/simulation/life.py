"""One manager from its opening to its end, and its clients all at once."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from random import Random
from typing import Any, cast

from pagedkv.conformance.bench import Recording
from pagedkv.conformance.clients import Clients
from pagedkv.conformance.simulation.failure import WrongRunError
from pagedkv.conformance.simulation.looks import Look, look
from pagedkv.conformance.simulation.machine import Machine, SimulatedManager
from pagedkv.conformance.simulation.reported_calls import ReportedCalls
from pagedkv.conformance.simulation.world import Life, World
from pagedkv.conformance.violation import expect
from pagedkv.reference.events import Claimed, Released, TransferFailed, TransferLanded
from pagedkv.reference.metrics import KVCacheMetrics

PATIENCE_S = 10
"""Seconds of made-up time after which a life counts as stuck; one takes about a second at most."""


LOOK_S = 0.01
"""Most seconds between two questions."""


@dataclass
class LifeRecord:
    """What is known of a life while it lasts, and afterwards."""

    events: Recording = field(default_factory=Recording)
    """What the manager has reported."""
    stream_log: list[str] = field(default_factory=list)
    """What was enqueued on streams, in which order."""
    seen: Counter[str] = field(default_factory=Counter)
    """What became of requests, and what the manager has counted at its end."""
    flushed: int = 0
    """After how many events the latest flush that has ended was begun."""
    looks: list[Look] = field(default_factory=list)
    """What the manager has answered, in the order of the questions."""
    unforeseen: list[str] = field(default_factory=list)
    """What tasks have raised that nobody waits for."""


async def live(world: World, life: Life, machine: Machine, record: LifeRecord) -> None:
    """Open a manager, serve its clients, and end it as the world says.

    Raises:
        Exception: Something is wrong: wrong bytes, something left behind, somebody who waits for
            ever, copies that nothing orders, or an error that no request may see.
    """
    simulated = machine.open(life, record.events)
    record.stream_log = simulated.stream_log
    manager = ReportedCalls(simulated.manager, record.events)
    clients = _clients(world, life, simulated, manager)
    asides = [
        asyncio.create_task(aside)
        for aside in _asides(world, life, machine, simulated, manager, clients, record)
    ]
    landing = asyncio.create_task(simulated.copies_land())
    living = asyncio.create_task(_lived(world, life, simulated, clients, record))
    tasks = [landing, living, *asides]
    try:
        async with asyncio.timeout(PATIENCE_S):
            await asyncio.wait([landing, living], return_when=asyncio.FIRST_COMPLETED)
            if landing.done():
                landing.result()  # It has met copies that nothing orders.
            await living
    except BaseException as error:
        # What follows is cleared away in whatever order, and belongs to no run.
        record.events = Recording(record.events)
        record.stream_log = list(simulated.stream_log)
        await _clear_away(simulated, tasks)
        if isinstance(error, TimeoutError):
            raise WrongRunError("hang", _who_waits(record)) from None
        raise
    finally:
        for task in tasks:
            task.cancel()
        record.seen.update(
            finished=clients.finished,
            cancelled=clients.cancelled,
            refused=clients.refused,
            poisoned=clients.poisoned,
        )


async def _clear_away(simulated: SimulatedManager, tasks: Sequence[asyncio.Task[None]]) -> None:
    """End a life in which something is wrong already, whatever else is."""
    for task in tasks:
        task.cancel()
    with suppress(Exception):
        async with asyncio.timeout(PATIENCE_S):
            await simulated.crash()


# Any: what a manager can beside its protocol is looked for.
def _clients(world: World, life: Life, simulated: SimulatedManager, manager: Any) -> Clients:
    setup = world.manager_setup(tracer=Recording())
    can_step_first = hasattr(manager, "forward_launched")
    return Clients(
        manager,
        setup,
        seed=life.seed,
        max_pages=life.max_pages,
        num_prompts=life.num_prompts,
        cancel_share=life.cancel_share,
        cancel_after_s=(0, 0.0003, 0.001, 0.003, 0.01),
        withdraw_share=life.withdraw_share,
        reset_share=life.reset_share,
        prefetch=getattr(manager, "prefetch", None),
        prefetch_share=life.prefetch_share,
        chunk_share=life.chunk_share,
        preempt_share=life.preempt_share,
        patient_alloc=simulated.alloc_patiently,
        patient_share=life.patient_share,
        again_share=life.again_share,
        nap_share=life.nap_share,
        interrupt_share=life.interrupt_share,
        launch=simulated.launch,
        batches=life.batches,
        steps_first_share=life.steps_first_share if can_step_first else 0.0,
        pads=life.pads,
    )


async def _lived(
    world: World, life: Life, simulated: SimulatedManager, clients: Clients, record: LifeRecord
) -> None:
    """Serve the clients, and end somehow."""
    manager, seen = simulated.manager, record.seen
    end = simulated.crash if life.end.startswith("crashed") else manager.shutdown
    served = asyncio.create_task(clients.send(life.clients))
    try:
        if life.end.endswith("under load"):
            await asyncio.wait([served], timeout=life.end_after_s)
            seen[f"{life.end}"] += not served.done()
            await end()
            await served
            return
        await served
    finally:
        served.cancel()
    while cast(Any, manager).in_flight():
        await asyncio.sleep(0.001)
    await asyncio.sleep(0.001)  # who has waited for the last of them goes home
    nothing_is_left(world, simulated)
    metrics = manager.get_metrics_aggregated()
    record.looks.append(Look(len(record.events), "get_metrics_aggregated", (), metrics))
    seen.update(counted(metrics))
    seen[life.end] += 1
    await end()


def _asides(
    world: World,
    life: Life,
    machine: Machine,
    simulated: SimulatedManager,
    manager: Any,  # as above
    clients: Clients,
    record: LifeRecord,
) -> list[Coroutine[Any, Any, None]]:
    """What happens meanwhile, whatever the clients do."""
    asides = [_looks(life, world, manager, clients, record)]
    if life.device_failure is not None:
        device = life.device_failure.device % (world.setup.replicas * world.setup.shards)
        asides.append(_later(life.device_failure.after_s, lambda: simulated.fail_device(device)))
    renew = getattr(manager, "renew_write_budget", None)
    if life.renew_after_s is not None and callable(renew):
        asides.append(_again_and_again(life.renew_after_s, renew))
    flush = getattr(manager, "flush", None)
    if life.flush_after_s is not None and callable(flush):
        asides.append(_flushed(life.flush_after_s, flush, record))
    if life.reset_counters_after_s is not None:
        reset = partial(_reset_counters, manager)
        asides.append(_again_and_again(life.reset_counters_after_s, reset))
    if world.disk.misplaced_after_s is not None and world.setup.disk_pages:
        rng = Random(f"{life.seed} misplaced blocks")

        def misplace() -> None:
            machine.misplace(rng)
            record.seen["blocks misplaced"] += 1

        asides.append(_again_and_again(world.disk.misplaced_after_s, misplace))
    return asides


async def _later(after_s: float, do: Callable[[], object]) -> None:
    await asyncio.sleep(after_s)
    do()


async def _again_and_again(after_s: float, do: Callable[[], object]) -> None:
    while True:
        await _later(after_s, do)


async def _looks(
    life: Life, world: World, manager: Any, clients: Clients, record: LifeRecord
) -> None:
    """Ask the manager now and then."""
    rng = Random(f"{life.seed} looks")
    while True:
        await asyncio.sleep(rng.random() * LOOK_S)
        found = look(manager, len(record.events), rng, world.setup.replicas, clients)
        if found is not None:
            record.looks.append(found)


def _reset_counters(manager: Any) -> None:
    manager.reset_metrics()
    left = {name: n for name, n in asdict(manager.get_metrics_aggregated()).items() if n}
    left.pop("inflight_disk_ops", None)
    expect("METRIC-5", left, {}, "counters after they were reset")


async def _flushed(
    after_s: float, flush: Callable[[], Awaitable[None]], record: LifeRecord
) -> None:
    while True:
        await asyncio.sleep(after_s)
        begun = len(record.events)
        await flush()
        record.flushed = begun
        record.seen["flushed"] += 1


def _who_waits(record: LifeRecord) -> str:
    """What a life that does not end still waits for."""
    claimed: dict[str, None] = {}
    moving: dict[str, None] = {}
    for event in record.events:
        moving.update((transfer.transfer, None) for transfer in getattr(event, "issued", ()))
        match event:
            case Claimed(name):
                claimed[str(name)] = None
            case Released(name):
                claimed.pop(str(name), None)
            case TransferLanded(name) | TransferFailed(name):
                moving.pop(name, None)
    requests = ", ".join(f"request {name!r}" for name in claimed) or "no request"
    transfers = ", ".join(moving) or "no transfer"
    return f"no end after {PATIENCE_S} s: {requests} is claimed, {transfers} is in flight"


def nothing_is_left(world: World, simulated: SimulatedManager) -> None:
    """With no request and no transfer left, every page is free.

    Raises:
        WrongRunError: A page is not.
    """
    total = world.setup.total_num_pages
    for replica in range(world.setup.replicas):
        free = simulated.manager.num_free_blocks(replica)
        if free != total:
            told = f"replica {replica}: {total - free} of {total} pages never came back"
            raise WrongRunError("pages that never come back", told)
    if (left := simulated.leftovers()) is not None:
        raise WrongRunError("something left behind", left)


def counted(metrics: KVCacheMetrics) -> dict[str, int]:
    """The counters that say what a life has tried, by a name for people."""
    names = (f.name for f in fields(metrics))
    return {
        name.replace("_blocks_", " blocks ").replace("_", " "): getattr(metrics, name)
        for name in names
        if name.startswith("missed_blocks_") or name.endswith(("_served", "_evicted", "_dropped"))
    }
