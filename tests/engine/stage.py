"""A small engine on simulated streams and a simulated disk, for a virtual clock."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from pagedkv.conformance.bench import Recording
from pagedkv.conformance.slots import BufferSlots, check_cached, slots_of, token_values
from pagedkv.engine import PagedKVCacheManager
from pagedkv.engine.simulated.disk import DiskFaults, SimulatedDisk
from pagedkv.engine.simulated.landings import land_by_chance
from pagedkv.engine.streams.simulated import SimulatedStreams
from pagedkv.reference import TextContext, TokenBuffer
from pagedkv.reference.sizing import compute_num_disk_blocks
from pagedkv.traces.manager_setup import ManagerSetup

SIZE = 4
"""Tokens per page."""

TIERED: dict[str, Any] = {
    "host_pages": 3,
    "disk_pages": 12,
    "disk_dir": Path("simulated"),
    "model_fingerprint": "weights",
}
"""A host tier that holds one chain, and a disk behind it."""


@dataclass
class Stage:
    """A small engine, and what it has reported."""

    manager: PagedKVCacheManager
    setup: ManagerSetup
    events: Recording
    disk: SimulatedDisk | None
    slots: BufferSlots

    def request(self, name: str, pages: int = 3, start: int = 0) -> TextContext:
        """A request for that many full pages, and one more token."""
        tokens = np.arange(start, start + SIZE * pages + 1, dtype=np.int64)
        return TextContext(max_length=1000, tokens=TokenBuffer(tokens), request_id=name)

    def forward(self, ctx: TextContext, replica: int = 0) -> None:
        """A forward that finds the right bytes, and a step."""
        batches: list[list[TextContext]] = [[] for _ in range(self.setup.replicas)]
        batches[replica] = [ctx]
        self.manager.runtime_inputs(batches)
        pages = self.manager.get_req_blocks(ctx.request_id, replica)
        check_cached(self.slots, ctx, "", replica, pages, SIZE)
        values = token_values(ctx, "", ctx.tokens.current_position)
        self.slots.write(replica, slots_of(pages, SIZE, values, ctx.tokens.processed_length))
        self.manager.forward_launched(batches)
        ctx.update(7)
        self.manager.step(batches)

    async def serve(self, ctx: TextContext, replica: int = 0, *, wait_s: float = 0.0) -> None:
        """A request from its claim to its release."""
        async with self.manager.admit(ctx, replica, wait_s=wait_s):
            self.forward(ctx, replica)
        await self.settled()

    async def settled(self) -> None:
        """Return when nothing is in flight any more."""
        while self.manager.in_flight():
            await asyncio.sleep(0.001)


Act = Callable[[Stage], Awaitable[None]]


@asynccontextmanager
async def staged(faults: DiskFaults | None = None, **fields: Any) -> AsyncIterator[Stage]:
    defaults: dict[str, Any] = {
        "page_size": SIZE,
        "total_num_pages": 4,
        "max_batch_size": 4,
        "layers": 1,
    }
    events: Recording = fields.setdefault("tracer", Recording())
    setup = ManagerSetup(**(defaults | fields))
    params, disk = setup.params(), None
    if setup.disk_pages:
        disk = SimulatedDisk(
            compute_num_disk_blocks(params),
            params.bytes_per_offloaded_block,
            faults=faults or DiskFaults(delay_s=0.002),
        )
    streams = SimulatedStreams(setup.replicas * setup.shards)
    manager = PagedKVCacheManager(
        params,
        setup.session(),
        setup.total_num_pages,
        setup.host_pages or 0,
        enable_runtime_checks=True,
        max_batch_size=setup.max_batch_size,
        tracer=events,
        streams=streams,
        disk=disk,
    )
    slots = BufferSlots([manager.get_device_buffer(n) for n in range(setup.replicas)])
    landing = asyncio.create_task(land_by_chance(streams, Random(0)))
    yield Stage(manager, setup, events, disk, slots)
    landing.cancel()
    with suppress(asyncio.CancelledError):
        await landing
