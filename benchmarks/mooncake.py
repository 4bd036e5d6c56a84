"""The public Mooncake conversation trace, one request at a time, with its identities.

The trace says by numbers which blocks of 512 tokens requests share; these are the pages'
identities, so nothing is hashed. Measured is what the manager does, without making up the requests.

    python -m benchmarks.mooncake mooncake_conversation_trace.jsonl [--pages 10000] [--json FILE]
"""

from time import perf_counter

import numpy as np

from benchmarks.report import Report, arguments
from benchmarks.requests import bookkeeper, now
from pagedkv.reference import TextContext, TokenBuffer
from pagedkv.traces.reader import Workload

PAGE_SIZE = 512


def main() -> None:
    """Measure, print, and write the results."""
    parser = arguments(__doc__)
    parser.add_argument("trace", help="the trace")
    parser.add_argument("--pages", type=int, default=10_000, help="device pages")
    options = parser.parse_args()
    manager = bookkeeper(options.pages, page_size=PAGE_SIZE)
    seconds, pages = 0.0, 0
    for number, served in enumerate(Workload(options.trace)):
        ctx = TextContext(
            max_length=served.input_length + 2,
            tokens=TokenBuffer(np.zeros(served.input_length, dtype=np.int64)),
            request_id=f"r{number}",
            given_digests=[block.to_bytes(16, "big") for block in served.hash_ids],
        )
        pages += served.input_length // PAGE_SIZE
        start = perf_counter()
        manager.claim(ctx.request_id, 0)
        now(manager.alloc(ctx, 0))
        ctx.update(1)
        manager.step([[ctx]])
        manager.release(ctx.request_id, 0)
        seconds += perf_counter() - start
    hits = manager.get_metrics_aggregated().device_blocks_served
    report = Report(f"Mooncake conversation trace, {options.pages:,} pages of {PAGE_SIZE} tokens")
    report.measured("full prompt pages", pages, "")
    report.measured("pages hit", hits, "", {"share": hits / pages * 100})
    report.measured("the whole trace", seconds, "s")
    report.limited("the whole trace", 1)
    report.finish(options.json)


if __name__ == "__main__":
    main()
