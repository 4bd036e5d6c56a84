"""What ``runtime_inputs`` costs on the host, copies enqueued: 64 requests of 2,048 pages.

python -m benchmarks.inputs [--batch 64] [--columns 2048] [--json FILE]
"""

from statistics import median
from time import perf_counter

import numpy as np

from benchmarks.report import Report, arguments
from benchmarks.requests import bookkeeper, now, request

PAGE_SIZE = 16
ROUNDS = 300


def main() -> None:
    """Measure, print, and write the results."""
    parser = arguments(__doc__)
    parser.add_argument("--batch", type=int, default=64, help="requests")
    parser.add_argument("--columns", type=int, default=2048, help="pages of each")
    options = parser.parse_args()
    batch, columns = options.batch, options.columns
    manager = bookkeeper(batch * columns, page_size=PAGE_SIZE, max_batch_size=batch)
    contexts = [
        request(f"r{n}", columns * PAGE_SIZE, first_token=n * columns * PAGE_SIZE)
        for n in range(batch)
    ]
    for ctx in contexts:
        manager.claim(ctx.request_id, 0)
        now(manager.alloc(ctx, 0))
    table = np.zeros((batch, columns), dtype=np.int32)
    other = np.zeros_like(table)
    ours: list[float] = []
    copies: list[float] = []
    for _ in range(ROUNDS):
        start = perf_counter()
        manager.runtime_inputs([contexts])
        ours.append(perf_counter() - start)
        start = perf_counter()
        np.copyto(other, table)
        copies.append(perf_counter() - start)

    report = Report(f"runtime_inputs on the host, batch {batch}, {columns:,} columns")
    report.measured("runtime_inputs", median(ours) * 1e6, "us")
    report.measured("copying the table once", median(copies) * 1e6, "us")
    report.limited("runtime_inputs", 200)
    report.finish(options.json)


if __name__ == "__main__":
    main()
