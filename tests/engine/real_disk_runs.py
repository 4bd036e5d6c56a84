"""A load on an engine with a real directory: what comes back from disk is checked byte by byte."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pagedkv.conformance.bench import Recording
from pagedkv.conformance.clients import Clients
from pagedkv.conformance.validation import Divergence, validate
from pagedkv.engine import PagedKVCacheManager
from pagedkv.engine.disk.files import REAL_FILES, Files
from pagedkv.reference.events import TransferFailed
from pagedkv.reference.metrics import KVCacheMetrics
from pagedkv.specification import reference_specification
from pagedkv.traces.manager_setup import ManagerSetup

PATIENCE_S = 120
"""How long a load may take before it counts as stuck."""

PROMPTS = 16
"""So many different prompts come again and again: more than device and host can keep."""

Meanwhile = Callable[[PagedKVCacheManager], Awaitable[None]]


@dataclass
class Served:
    """How a load has ended."""

    clients: Clients
    events: Recording
    metrics: KVCacheMetrics

    @property
    def failures(self) -> set[str]:
        """Why transfers have failed."""
        return {event.reason for event in self.events if isinstance(event, TransferFailed)}


def tiered_setup(folder: Path, **fields: Any) -> ManagerSetup:
    defaults: dict[str, Any] = {
        "page_size": 4,
        "layers": 1,
        "total_num_pages": 10,
        "max_batch_size": 4,
        "host_pages": 6,
        "disk_pages": 40,
        "disk_dir": folder,
        "model_fingerprint": "weights",
        "tracer": Recording(),
    }
    return ManagerSetup(**(defaults | fields))


def opened(setup: ManagerSetup, files: Files = REAL_FILES) -> PagedKVCacheManager:
    return PagedKVCacheManager(
        setup.params(),
        setup.session(),
        setup.total_num_pages,
        setup.host_pages or 0,
        enable_runtime_checks=True,
        max_batch_size=setup.max_batch_size,
        tracer=setup.tracer,
        files=files,
    )


async def serve(
    folder: Path,
    *,
    files: Files = REAL_FILES,
    meanwhile: Meanwhile | None = None,
    requests: int = 20,
    seed: int = 0,
    **fields: Any,
) -> Served:
    """Serve a load from opening to closing; no byte is wrong, nothing is left, nobody waits."""
    setup = tiered_setup(folder, **fields)
    manager = opened(setup, files)
    clients = Clients(manager, setup, seed, num_prompts=PROMPTS, max_pages=4)
    async with asyncio.timeout(PATIENCE_S):
        load = asyncio.ensure_future(clients.run(clients=4, requests=requests))
        if meanwhile is not None:
            await meanwhile(manager)
        await load
        while manager.in_flight():
            await asyncio.sleep(0.001)
        assert manager.num_free_blocks() == setup.total_num_pages
        metrics = manager.get_metrics_aggregated()
        await manager.aclose()
    assert clients.finished and not clients.poisoned
    assert isinstance(setup.tracer, Recording)
    found = validate(setup.run_setup(), setup.tracer, reference_specification)
    assert not isinstance(found, Divergence), str(found)
    return Served(clients, setup.tracer, metrics)
