"""Opening a disk directory with a million blocks in it, and closing it again.

The rows are put into the index directly: what is measured reads no block.

    python -m benchmarks.restart [--blocks 1000000] [--json FILE]
"""

import asyncio
import os
import tempfile
from pathlib import Path
from time import perf_counter

from benchmarks.report import Report, arguments
from pagedkv.engine.disk.directory import BlockDirectory
from pagedkv.engine.disk.index import BlockRow

BLOCK_NBYTES = 512
AT_ONCE = 10_000


def opened(path: Path, blocks: int) -> BlockDirectory:
    """The directory, opened as an engine does."""
    return BlockDirectory.open(
        path, layout="benchmark", model="benchmark", capacity=blocks, block_nbytes=BLOCK_NBYTES
    )


async def measure(path: Path, blocks: int) -> tuple[float, float, int]:
    """Seconds to open and to close, and the blocks that were found."""
    directory = opened(path, blocks)
    for first in range(0, blocks, AT_ONCE):
        slots = range(first, first + AT_ONCE)
        directory._rows.put(
            {slot: BlockRow(os.urandom(32), os.urandom(16), slot) for slot in slots}
        )
        await directory.flush()
    await directory.aclose(range(blocks))
    start = perf_counter()
    directory = await asyncio.to_thread(opened, path, blocks)
    open_s = perf_counter() - start
    order = [slot for slot, _ in directory.survivors]
    start = perf_counter()
    await directory.aclose(order)
    return open_s, perf_counter() - start, len(order)


def main() -> None:
    """Measure, print, and write the results."""
    parser = arguments(__doc__)
    parser.add_argument("--blocks", type=int, default=1_000_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="pagedkv-benchmark-") as folder:
        open_s, close_s, found = asyncio.run(measure(Path(folder), options.blocks))
    report = Report(f"restart with {found:,} blocks on disk; the loop goes on meanwhile")
    report.measured("open", open_s, "s")
    report.measured("close", close_s, "s")
    report.finish(options.json)


if __name__ == "__main__":
    main()
