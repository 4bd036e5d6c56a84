"""How close the disk tier comes to a plain O_DIRECT loop on the same file system, in the same run.

    python -m benchmarks.disk --folder /mnt/nvme --block-kib 1024 --blocks 512 [--json FILE]

The plain loop knows neither checksums nor an index: one thread that calls pwrite, then pread; and
as many threads as the tier has, which share the blocks. The tier is compared with the better one.
Rounds are interleaved, and medians count.
"""

import asyncio
import mmap
import os
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.report import Report, arguments
from pagedkv.engine.disk.block import Block, Failures
from pagedkv.engine.disk.directory import BlockDirectory

TRANSFER, IN_FLIGHT = 16, 4
"""Blocks that the tier is asked for in one call, and how many such calls run at a time."""

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
    placed = [
        Block(slot, f"{round_number} {slot}".encode(), content)
        for slot, content in enumerate(blocks)
    ]

    async def through(call: Callable[[Sequence[Block]], Awaitable[Failures]]) -> None:
        transfers = iter(range(0, len(blocks), TRANSFER))

        async def one() -> None:
            for first in transfers:
                if await call(placed[first : first + TRANSFER]):
                    raise RuntimeError("a block has failed")

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


def main() -> None:
    """Measure, print, and write the results."""
    parser = arguments(__doc__)
    parser.add_argument(
        "--folder", type=Path, default=Path.cwd(), help="somewhere on the file system in question"
    )
    parser.add_argument("--block-kib", type=int, default=1024)
    parser.add_argument("--blocks", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--depth", type=int, default=8)
    parser.add_argument("--buffered", action="store_true", help="the tier uses the page cache")
    options = parser.parse_args()
    nbytes = options.block_kib * 1024
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="pagedkv-benchmark-") as folder:
        times = asyncio.run(
            measure(
                Path(folder),
                nbytes,
                options.blocks,
                options.rounds,
                options.depth,
                not options.buffered,
            )
        )
    report = Report(f"disk tier, {options.blocks} blocks of {options.block_kib} KiB")
    for name, seconds in sorted(times.items()):
        rate = nbytes * options.blocks / 2**20 / statistics.median(seconds)
        report.measured(name, rate, "MiB/s")
    for way in ("write", "read"):
        plain = {name: v for name, (v, _) in report.values.items() if name.startswith("plain")}
        best = max((name for name in plain if f" {way} " in name), key=plain.__getitem__)
        report.compared(f"tier {way}", best, at_least=0.9)
    report.finish(options.json)


if __name__ == "__main__":
    main()
