"""How cost and memory grow with the number of pages, beside plain dictionaries of that size.

Each request takes 64 pages that evict 64 others, commits and releases them. The plain loop does the
least that any cache has to: forget a key and remember another, both at random places of a
dictionary of as many keys.

    python -m benchmarks.growth [--pages 10000 100000 1000000] [--json FILE]
"""

import gc
import os
from collections import deque
from statistics import median
from time import perf_counter

import psutil

from benchmarks.report import Report, arguments
from benchmarks.requests import bookkeeper, now, request

PER_REQUEST = 64
ROUNDS = 300


def keys(count: int) -> list[bytes]:
    """As many keys, none of them seen before."""
    random = os.urandom(32 * count)
    return [random[n : n + 32] for n in range(0, len(random), 32)]


def used_memory() -> int:
    """Bytes of this process."""
    gc.collect()
    return int(psutil.Process().memory_info().rss)


def engine(pages: int) -> tuple[float, float, float]:
    """Median and longest seconds of a request, and bookkeeping bytes per page, with a full pool."""
    before = used_memory()
    manager = bookkeeper(pages, page_size=1)
    seconds: list[float] = []
    longest = 0.0
    for number in range(2 * pages // PER_REQUEST + ROUNDS):
        ctx = request(f"r{number}", PER_REQUEST + 1, keys(PER_REQUEST + 1))
        start = perf_counter()
        manager.claim(ctx.request_id, 0)
        now(manager.alloc(ctx, 0))
        ctx.update(1)
        manager.step([[ctx]])
        manager.release(ctx.request_id, 0)
        taken = perf_counter() - start
        longest = max(longest, taken)
        seconds.append(taken)
    device_nbytes = sum(buffer.nbytes for buffer in manager.get_device_buffer(0).all_buffers)
    return median(seconds[-ROUNDS:]), longest, (used_memory() - before - device_nbytes) / pages


def plain(pages: int) -> float:
    """Median seconds of as many changes in a dictionary."""
    order = deque(keys(pages))
    table = {key: n for n, key in enumerate(order)}
    seconds = []
    for _ in range(ROUNDS):
        fresh = keys(PER_REQUEST)
        start = perf_counter()
        for key in fresh:
            table[key] = table.pop(order.popleft())
            order.append(key)
        seconds.append(perf_counter() - start)
    return median(seconds)


def main() -> None:
    """Measure, print, and write the results."""
    parser = arguments(__doc__)
    parser.add_argument("--pages", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    options = parser.parse_args()
    report = Report("growth with the number of pages, 64 of them per request")
    for pages in options.pages:
        median_s, longest_s, nbytes = engine(pages)
        report.measured(f"engine, {pages:,} pages", median_s * 1e6, "us per request")
        report.measured(f"plain dictionary, {pages:,} keys", plain(pages) * 1e6, "us per request")
        report.measured(f"longest request, {pages:,} pages", longest_s * 1e3, "ms")
        report.limited(f"longest request, {pages:,} pages", 50)
        report.measured(f"bookkeeping, {pages:,} pages", nbytes, "bytes per page")
        report.limited(f"bookkeeping, {pages:,} pages", 350)
    least, most = min(options.pages), max(options.pages)
    growth = {
        "growth of the engine": (f"engine, {most:,} pages", f"engine, {least:,} pages"),
        "growth of the dictionary": (
            f"plain dictionary, {most:,} keys",
            f"plain dictionary, {least:,} keys",
        ),
    }
    for name, (large, small) in growth.items():
        report.measured(name, report.values[large][0] / report.values[small][0], "times")
    report.compared("growth of the engine", "growth of the dictionary", at_most=2)
    report.finish(options.json)


if __name__ == "__main__":
    main()
