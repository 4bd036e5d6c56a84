"""How long the event loop stands still while every tier is busy, beside an idle loop.

A task asks for a wake-up every millisecond and notes by how much it comes late: first with nothing
else on the loop, then while clients thrash device, host memory and disk. Forwards take some time,
as on a GPU, in which the loop has nothing to do for their client.

The kernel tells what the loop's thread did in those milliseconds: it ran, or it stood in line for a
core. The rest of the time it had nothing to do, or waited for the interpreter's lock.

    python -m benchmarks.loop_stalls [--seconds 10] [--forward-ms 10] [--json FILE]
"""

import asyncio
import gc
import os
import tempfile
from pathlib import Path
from statistics import fmean
from time import perf_counter
from typing import NamedTuple

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


class Tick(NamedTuple):
    """A wake-up."""

    late_s: float
    """By how much it came late."""
    running_s: float
    """How long the loop ran meanwhile."""
    in_line_s: float
    """How long it could have run, if there had been a core."""


async def ticks(seconds: float) -> list[Tick]:
    """Ask for wake-ups, one after the other, and look at each."""
    found: list[Tick] = []
    schedule = os.open("/proc/thread-self/schedstat", os.O_RDONLY)

    def spent() -> list[float]:
        return [int(ns) / 1e9 for ns in os.pread(schedule, 100, 0).split()[:2]]

    end = perf_counter() + seconds
    while perf_counter() < end:
        before, asked = spent(), perf_counter()
        await asyncio.sleep(TICK_S)
        late_s = perf_counter() - asked - TICK_S
        running_s, in_line_s = (now - then for now, then in zip(spent(), before, strict=True))
        found.append(Tick(late_s, running_s, in_line_s))
    os.close(schedule)
    return sorted(found)


async def client(
    manager: PagedKVCacheManager, number: int, forward_s: float, stop: asyncio.Event
) -> None:
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
            await asyncio.sleep(forward_s)
            ctx.update(1)
            manager.step([[ctx]])


async def measure(
    seconds: float, forward_s: float, folder: Path
) -> tuple[list[Tick], list[Tick], int]:
    """Wake-ups of an idle and of a busy loop, and how many blocks a second were moved then."""
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
    # As a server does when it has started: a full collection walks all that torch has brought.
    gc.collect()
    gc.freeze()
    idle = await ticks(seconds / 2)
    session = InferenceSession(devices=["cpu"])
    async with PagedKVCacheManager.open(
        params, session, DEVICE_PAGES, HOST_PAGES, max_batch_size=1
    ) as manager:
        stop = asyncio.Event()
        async with asyncio.TaskGroup() as clients:
            for number in range(CLIENTS):
                clients.create_task(client(manager, number, forward_s, stop))
            await asyncio.sleep(1)
            before = blocks_moved(manager)
            busy = await ticks(seconds)
            blocks = blocks_moved(manager) - before
            stop.set()
    return idle, busy, round(blocks / seconds)


def blocks_moved(manager: PagedKVCacheManager) -> int:
    """Blocks on all ways between the tiers, until now."""
    moved = manager.get_metrics_aggregated()
    copied = moved.h2d_blocks_copied + moved.d2h_blocks_copied
    return copied + moved.disk_blocks_read + moved.disk_blocks_written


def latest(found: list[Tick], share: float) -> tuple[float, dict[str, float]]:
    """The lateness that a ``share`` of sorted ticks exceeds, in ms, and what the loop did then."""
    over = found[-max(1, round(len(found) * share)) :]
    running, in_line = fmean(t.running_s for t in over), fmean(t.in_line_s for t in over)
    rest = fmean(t.late_s + TICK_S for t in over) - running - in_line
    parts = {"running": running, "in line for a core": in_line, "asleep or locked out": rest}
    return over[0].late_s * 1e3, {name: part * 1e3 for name, part in parts.items()}


def main() -> None:
    """Measure, print, and write the results."""
    parser = arguments(__doc__)
    parser.add_argument("--seconds", type=float, default=10, help="how long to measure")
    parser.add_argument("--forward-ms", type=float, default=10, help="how long a forward takes")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = measure(options.seconds, options.forward_ms / 1e3, Path(folder))
        idle, busy, blocks = asyncio.run(work)
    report = Report(f"lateness of the event loop, {blocks:,} blocks of 512 KiB moved per second")
    for subject, found, share in (
        ("idle, p99", idle, 0.01),
        ("busy, p50", busy, 0.5),
        ("busy, p99", busy, 0.01),
        ("busy, longest", busy, 0.0),
    ):
        value, parts = latest(found, share)
        report.measured(subject, value, "ms", parts)
    report.compared("busy, p99", "idle, p99", at_most=2)
    report.limited("busy, longest", 50)
    report.finish(options.json)


if __name__ == "__main__":
    main()
