"""How close the disk tier comes to a plain O_DIRECT loop on the same file system, in the same run.

    python benchmarks/disk.py /mnt/nvme --block-kib 1024 --blocks 512

The plain loop knows neither checksums nor an index: one thread that calls pwrite, then pread; and
as many threads as the tier has, which share the blocks. The tier is compared with the better one.
Rounds are interleaved, and medians count.
"""

import argparse
import asyncio
import json
import mmap
import os
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pagedkv.engine.disk.directory import BlockDirectory

IN_FLIGHT = 64
"""Blocks that the tier is asked for at a time: a few transfers of a few dozen blocks."""

Times = dict[str, list[float]]
"""Seconds of each round, by what was measured."""


async def timed(times: Times, name: str, work: Awaitable[object]) -> None:
    """Wait for some work and note how long it took."""
    began = time.perf_counter()
    await work
    times.setdefault(name, []).append(time.perf_counter() - began)


def plain_round(times: Times, path: Path, blocks: Sequence[memoryview], threads: int) -> None:
    """Write all blocks and read them, with nothing but system calls."""
    fd = os.open(path, os.O_RDWR | os.O_DIRECT)
    nbytes = len(blocks[0])

    def share(call: Callable[[int, Sequence[memoryview], int], int], first: int) -> None:
        for number in range(first, len(blocks), threads):
            if call(fd, [blocks[number]], number * nbytes) != nbytes:
                raise RuntimeError("a short transfer")

    with ThreadPoolExecutor(threads) as pool:
        for name, call in (("write", os.pwritev), ("read", os.preadv)):
            calls = [call] * threads
            began = time.perf_counter()
            list(pool.map(share, calls, range(threads)))
            times.setdefault(f"plain {name} {threads}", []).append(time.perf_counter() - began)
    os.close(fd)


async def tier_round(
    times: Times, directory: BlockDirectory, blocks: Sequence[memoryview], round_number: int
) -> None:
    """The same through the tier: every write replaces a block that has a row."""
    keys = [f"{round_number} {slot}".encode() for slot in range(len(blocks))]

    async def through(call: Callable[[int, bytes, memoryview], Awaitable[None]]) -> None:
        places = iter(range(len(blocks)))

        async def one() -> None:
            for slot in places:
                await call(slot, keys[slot], blocks[slot])

        await asyncio.gather(*(one() for _ in range(IN_FLIGHT)))

    async def write_all() -> None:
        for slot in range(len(blocks)):  # what the planner does when it gives the slots away
            directory.forget(slot)
        await through(directory.write)
        await directory.flush()

    async def read_all() -> None:
        await through(directory.read)

    await timed(times, "tier write", write_all())
    await timed(times, "tier read", read_all())


async def measure(
    folder: Path, nbytes: int, count: int, rounds: int, depth: int, direct_io: bool
) -> Times:
    """All rounds, after one of each that does not count."""
    memory = mmap.mmap(-1, count * nbytes)
    memory[:] = os.urandom(nbytes) * count
    view = memoryview(memory)
    blocks = [view[n * nbytes : (n + 1) * nbytes] for n in range(count)]
    plain = folder / "plain"
    fd = os.open(plain, os.O_RDWR | os.O_CREAT)
    os.posix_fallocate(fd, 0, count * nbytes)
    os.close(fd)
    directory = BlockDirectory.open(
        folder / "tier",
        layout="benchmark",
        model="benchmark",
        capacity=count,
        block_nbytes=nbytes,
        direct_io=direct_io,
        depth=depth,
    )
    times: Times = {}
    for number in range(rounds + 1):
        for threads in sorted({1, depth}):
            plain_round(times, plain, blocks, threads)
        await tier_round(times, directory, blocks, number)
        if number == 0:
            times.clear()
    await directory.aclose()
    return times


def report(times: Times, nbytes: int) -> dict[str, float]:
    """Rates in MiB/s, medians over the rounds, and the tier's share of the best plain loop."""
    rates = {name: nbytes / 2**20 / statistics.median(seconds) for name, seconds in times.items()}
    for name in ("write", "read"):
        best = max(rate for kind, rate in rates.items() if kind.startswith(f"plain {name}"))
        rates[f"share {name}"] = rates[f"tier {name}"] / best
    return rates


def main() -> None:
    """Measure, and print the rates."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="somewhere on the file system in question")
    parser.add_argument("--block-kib", type=int, default=1024)
    parser.add_argument("--blocks", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--depth", type=int, default=8)
    parser.add_argument("--buffered", action="store_true", help="the tier uses the page cache")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    nbytes = given.block_kib * 1024
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        times = asyncio.run(
            measure(
                Path(folder), nbytes, given.blocks, given.rounds, given.depth, not given.buffered
            )
        )
    rates = report(times, nbytes * given.blocks)
    if given.json:
        print(json.dumps({"block_kib": given.block_kib, "depth": given.depth, **rates}))
        return
    for name, rate in rates.items():
        print(f"{name:16} {rate:10.1%}" if "share" in name else f"{name:16} {rate:10,.0f} MiB/s")


if __name__ == "__main__":
    main()
