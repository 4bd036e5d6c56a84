"""What a flight recorder costs: the same requests with and without, in turns.

python -m benchmarks.tracer [--requests N] [--json FILE]
"""

from statistics import median
from time import perf_counter

from benchmarks.report import Report, arguments
from benchmarks.requests import bookkeeper, now, request
from pagedkv.traces.events.recorder import FlightRecorder

PAGE_SIZE = 16
NUM_TOKENS = 1024
DECODED = 16
PAGES = 10_000


def main() -> None:
    """Measure, print, and write the results."""
    parser = arguments(__doc__)
    parser.add_argument("--requests", type=int, default=600, help="requests to measure")
    options = parser.parse_args()
    managers = {
        "tracer off": bookkeeper(PAGES, page_size=PAGE_SIZE),
        "flight recorder": bookkeeper(PAGES, page_size=PAGE_SIZE, tracer=FlightRecorder(10_000)),
    }
    seconds: dict[str, list[float]] = {name: [] for name in managers}
    warm_up = 2 * PAGES * PAGE_SIZE // NUM_TOKENS
    for number in range(warm_up + options.requests):
        order = list(managers.items())
        for name, manager in order if number % 2 else reversed(order):
            # Every other one shares the prompt of an earlier one.
            first_token = number * NUM_TOKENS if number % 2 else 0
            ctx = request(f"r{number}", NUM_TOKENS, first_token=first_token)
            start = perf_counter()
            manager.claim(ctx.request_id, 0)
            for _ in range(DECODED):
                now(manager.alloc(ctx, 0))
                manager.runtime_inputs([[ctx]])
                ctx.update(1)
                manager.step([[ctx]])
            manager.release(ctx.request_id, 0)
            if number >= warm_up:
                seconds[name].append(perf_counter() - start)
    report = Report(f"a request of {NUM_TOKENS:,} tokens and {DECODED} forwards")
    for name, taken in seconds.items():
        report.measured(name, median(taken) * 1e6, "us")
    report.compared("flight recorder", "tracer off", at_most=1.05)
    report.finish(options.json)


if __name__ == "__main__":
    main()
