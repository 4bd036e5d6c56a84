"""How long the event loop stands still while every tier is busy, beside an idle loop.

A task asks for a wake-up every millisecond and notes by how much it comes late: first with nothing
else on the loop, then while clients thrash device, host memory and disk.

    python -m benchmarks.loop_stalls [--seconds 10] [--json FILE]
"""

import asyncio
import tempfile
from pathlib import Path
from statistics import quantiles
from time import perf_counter

import numpy as np
import torch

from benchmarks.report import Report, arguments
from pagedkv.engine import PagedKVCacheManager
from pagedkv.reference import (
    DeviceRef,
    InferenceSession,
    KVCacheParams,
    KVConnectorConfig,
    KVConnectorType,
    TextContext,
    TokenBuffer,
)

PAGE_SIZE = 16
DEVICE_PAGES, HOST_PAGES, DISK_PAGES = 256, 512, 2048
PROMPT_PAGES = 16
PROMPTS = 120
CLIENTS = 8
TICK_S = 0.001


async def ticks(seconds: float) -> list[float]:
    """By how many seconds each wake-up came late."""
    late: list[float] = []
    end = perf_counter() + seconds
    while (now := perf_counter()) < end:
        await asyncio.sleep(TICK_S)
        late.append(perf_counter() - now - TICK_S)
    return late


async def client(manager: PagedKVCacheManager, number: int, stop: asyncio.Event) -> None:
    """Sends one request after the other; prompts repeat, but there are more than any tier holds."""
    rng = np.random.default_rng(number)
    for count in range(1_000_000):
        if stop.is_set():
            return
        prompt = np.full(PROMPT_PAGES * PAGE_SIZE + 1, rng.integers(PROMPTS), dtype=np.int64)
        ctx = TextContext(
            max_length=10_000, tokens=TokenBuffer(prompt), request_id=f"{number} {count}"
        )
        async with manager.admit(ctx):
            manager.runtime_inputs([[ctx]])
            ctx.update(1)
            manager.step([[ctx]])
        await asyncio.sleep(0)


async def measure(seconds: float, folder: Path) -> tuple[list[float], list[float], int]:
    """Lateness of an idle and of a busy loop, and the blocks that were moved meanwhile."""
    params = KVCacheParams(
        dtype=torch.int8,
        n_kv_heads=8,
        head_dim=128,
        num_layers=16,
        devices=[DeviceRef.CPU()],
        page_size=PAGE_SIZE,
        enable_prefix_caching=True,
        kv_connector=KVConnectorType.tiered,
        host_kvcache_swap_space_gb=0.0,
        kv_connector_config=KVConnectorConfig(
            disk_offload_dir=str(folder),
            disk_offload_max_gb=DISK_PAGES * 2 * 16 * PAGE_SIZE * 8 * 128 / 1e9,
        ),
    )
    idle = await ticks(seconds / 2)
    session = InferenceSession(devices=["cpu"])
    async with PagedKVCacheManager.open(
        params, session, DEVICE_PAGES, HOST_PAGES, max_batch_size=1
    ) as manager:
        stop = asyncio.Event()
        async with asyncio.TaskGroup() as clients:
            for number in range(CLIENTS):
                clients.create_task(client(manager, number, stop))
            await asyncio.sleep(1)
            busy = await ticks(seconds)
            stop.set()
        moved = manager.get_metrics_aggregated()
    blocks = moved.h2d_blocks_copied + moved.d2h_blocks_copied
    return idle, busy, blocks + moved.disk_blocks_read + moved.disk_blocks_written


def main() -> None:
    """Measure, print, and write the results."""
    parser = arguments(__doc__)
    parser.add_argument("--seconds", type=float, default=10, help="how long to measure")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        idle, busy, blocks = asyncio.run(measure(options.seconds, Path(folder)))
    report = Report(f"lateness of the event loop, {blocks:,} blocks of 512 KiB moved meanwhile")
    report.measured("idle, p99", quantiles(idle, n=100)[98] * 1e3, "ms")
    report.measured("busy, p50", quantiles(busy, n=100)[49] * 1e3, "ms")
    report.measured("busy, p99", quantiles(busy, n=100)[98] * 1e3, "ms")
    report.measured("busy, longest", max(busy) * 1e3, "ms")
    report.compared("busy, p99", "idle, p99", at_most=2)
    report.limited("busy, longest", 50)
    report.finish(options.json)


if __name__ == "__main__":
    main()
