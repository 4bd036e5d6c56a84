"""The second half of ``pagedkv demo``: the engine serves the workload, restarts, and is watched."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

import torch

from pagedkv.engine import PagedKVCacheManager
from pagedkv.engine.observability.overlap import CopyOverlap, copy_overlaps
from pagedkv.engine.observability.timeline import Timeline
from pagedkv.engine_manager import build_engine
from pagedkv.reference import KVCacheMetrics, TextContext, TokenBuffer
from pagedkv.traces.ceil_div import ceil_div
from pagedkv.traces.reader import Workload
from pagedkv.traces.tokens import tokens_of
from pagedkv.traces.workload import WorkloadRequest

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from pagedkv.traces.manager_setup import ManagerSetup

CLIENTS = 4
"""Requests that are served at the same time; one forward runs at a time."""

WIDTH_PER_TOKEN = 4
"""A forward multiplies a square matrix as wide as this, times the root of its tokens: it only has
to take a while, and longer for more."""


@dataclass(frozen=True)
class EngineRun:
    """What one life of the engine has served."""

    seconds: float
    """From its start to its end, writing included."""
    metrics: KVCacheMetrics
    """Its counters."""

    @property
    def hits(self) -> dict[str, int]:
        """Prompt pages served, by tier."""
        tiers = ("device", "host", "disk")
        return {tier: getattr(self.metrics, f"{tier}_blocks_served") for tier in tiers}


def run_engine_twice(
    trace: Workload,
    requests: int,
    setup: "ManagerSetup",
    timeline_path: Path,
    on_request_done: Callable[[], object],
) -> tuple[EngineRun, EngineRun, list[CopyOverlap]]:
    """Serve the workload, close, open again on the same disk, serve a tenth of it once more.

    The first life is drawn on a timeline; how much of its copies lay under compute comes back.
    """
    timeline = Timeline()
    all_of_it = islice(trace, requests)
    first = asyncio.run(_life(trace, all_of_it, setup, timeline, on_request_done))
    timeline.write(timeline_path)
    a_tenth = islice(trace, ceil_div(requests, 10))
    second = asyncio.run(_life(trace, a_tenth, setup, None, on_request_done))
    return first, second, copy_overlaps(timeline_path)


async def _life(
    trace: Workload,
    requests: Iterator[WorkloadRequest],
    setup: "ManagerSetup",
    timeline: Timeline | None,
    on_request_done: Callable[[], object],
) -> EngineRun:
    start = perf_counter()
    device = asyncio.Lock()
    async with _opened(setup) as manager:
        if timeline is not None:
            manager.attach(timeline)
        numbered = enumerate(requests)

        async def client() -> None:
            for number, request in numbered:
                ctx = TextContext(
                    max_length=request.input_length + 1,
                    tokens=TokenBuffer(tokens_of(request, trace.header.block_size)),
                    request_id=f"r{number}",
                )
                async with manager.admit(ctx), device:
                    manager.runtime_inputs([[ctx]])
                    await _forward(ctx.tokens.active_length, timeline)
                    ctx.update(0)
                    manager.step([[ctx]])
                on_request_done()

        async with asyncio.TaskGroup() as clients:
            for _ in range(CLIENTS):
                clients.create_task(client())
        metrics = manager.get_metrics_aggregated()
        if timeline is not None:
            await timeline.settle()
    return EngineRun(perf_counter() - start, metrics)


@asynccontextmanager
async def _opened(setup: "ManagerSetup") -> "AsyncIterator[PagedKVCacheManager]":
    manager = await asyncio.to_thread(build_engine, setup)
    try:
        yield manager
    finally:
        await manager.aclose()


async def _forward(num_tokens: int, timeline: Timeline | None) -> None:
    width = int(WIDTH_PER_TOKEN * num_tokens**0.5)
    matrix = torch.ones(width, width)
    if timeline is None:
        await asyncio.to_thread(torch.mm, matrix, matrix)
        return
    with timeline.forward(0, "prefill", tokens=num_tokens):
        await asyncio.to_thread(torch.mm, matrix, matrix)
