"""Which charts a comparison has, as data: lines over the size of the device pool."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from pagedkv.traces.comparison.report import Measured, Report

Unit = Literal["share", "pages", "bytes", "seconds", "requests per second"]
"""What the vertical axis counts; shares are from 0 to 1."""

Value = Callable[[Measured], float | None]
"""One number of a run; ``None`` if the implementation does not count it."""

TIER_NAMES = {"device": "the device", "host": "host memory", "disk": "disk"}
"""How titles call the tiers."""


@dataclass(frozen=True)
class Line:
    """One line of a chart."""

    label: str
    """What stands beside it; empty if another line of the same implementation has the name."""
    series: int | None
    """Number of the implementation, which decides colour and marker; ``None`` for a yardstick."""
    points: tuple[tuple[int, float], ...]
    """Device pages and the value there, in ascending order."""
    dashed: bool = False
    """Whether it is secondary to another line of the same implementation."""


@dataclass(frozen=True)
class Chart:
    """One chart."""

    slug: str
    """Its name in file names, unique within a report."""
    title: str
    """What it shows."""
    unit: Unit
    """What the vertical axis counts."""
    lines: tuple[Line, ...]
    """What is drawn, the yardsticks first; at least one."""
    logarithmic: bool = False
    """Whether equal ratios are equal distances on the vertical axis; otherwise it begins at 0."""
    not_counted: tuple[str, ...] = ()
    """Implementations that ran but keep no such number, and so have no line."""


def charts_of(report: Report) -> list[Chart]:
    """The charts of runs that share their lower tiers; none for what nobody counts."""
    sizes = report.runs[0].sizes
    suffix = f"-host-{sizes.host_pages}" if sizes.host_pages else ""
    suffix += f"-disk-{sizes.disk_pages}" if sizes.disk_pages else ""

    def chart(
        name: str,
        title: str,
        unit: Unit,
        *values: Value,
        yardsticks: tuple[Line, ...] = (),
        logarithmic: bool = False,
    ) -> Iterator[Chart]:
        """The chart of one value, or of a median and a percentile."""
        lines = [
            line
            for number, implementation in enumerate(report.implementations)
            for line in lines_of(report, implementation, number, values)
        ]
        drawn = {line.series for line in lines}
        ran = {run.implementation for run in report.measured}
        missing = tuple(
            implementation
            for number, implementation in enumerate(report.implementations)
            if implementation in ran and number not in drawn
        )
        if lines:
            yield Chart(name + suffix, title, unit, (*yardsticks, *lines), logarithmic, missing)

    charts = [
        *chart("hit-rate", "Hit rate", "share", hit_rate, yardsticks=bounds_of(report)),
        *(
            found
            for tier in (sizes.tiers if len(sizes.tiers) > 1 else ())
            for found in chart(
                f"{tier}-hit-rate", f"Hit rate from {TIER_NAMES[tier]}", "share", tier_rate(tier)
            )
        ),
        *chart("evictions", "Pages evicted from the device", "pages", evictions),
    ]
    if sizes.lower_pages:
        charts += chart("bytes-moved", "Bytes moved between tiers", "bytes", bytes_moved)
    charts += chart("throughput", "Throughput", "requests per second", throughput)
    charts += chart("memory", "Memory growth", "bytes", memory)
    for call in dict.fromkeys(name for run in report.measured for name in calls_of(run)):
        p50, p99 = latency(call, "p50_us"), latency(call, "p99_us")
        charts += chart(
            f"latency-{call}", f"Latency of {call}", "seconds", p50, p99, logarithmic=True
        )
    return charts


def lines_of(
    report: Report, implementation: str, number: int, values: tuple[Value, ...]
) -> Iterator[Line]:
    """The lines of one implementation; if there are two, they are a median and a percentile.

    The percentile has the name of both, so that there is room for it.
    """
    runs = [run for run in report.measured if run.implementation == implementation]
    for value, what in zip(values, ("p50", "p99"), strict=False):
        counted = [(run.sizes.device_pages, value(run)) for run in runs]
        points = tuple((pages, count) for pages, count in counted if count is not None)
        if points:
            label = implementation if what == "p99" or len(values) == 1 else ""
            yield Line(label, number, points, dashed=what == "p99")


def bounds_of(report: Report) -> tuple[Line, ...]:
    """The two yardsticks of hit rates."""
    workload = report.workload
    infinite = workload.infinite_cache_hit_rate
    pages = [bound.sizes.device_pages for bound in report.bounds]
    belady = [workload.rate(bound.belady_hits) for bound in report.bounds]
    return (
        Line("Belady bound", None, tuple(zip(pages, belady, strict=True))),
        Line("infinite cache", None, tuple((size, infinite) for size in pages), dashed=True),
    )


def hit_rate(run: Measured) -> float | None:
    """Share of the prompt pages that were hits."""
    return run.measurement.hit_rate


def tier_rate(tier: str) -> Value:
    """Share of the prompt pages that came from one tier."""

    def rate(run: Measured) -> float | None:
        replay = run.measurement.replay
        hits = replay.hits_by_tier.get(tier)
        return None if hits is None else hits / max(1, replay.pages_referenced)

    return rate


def evictions(run: Measured) -> float | None:
    """Pages evicted from the device."""
    return run.measurement.replay.evictions


def bytes_moved(run: Measured) -> float | None:
    """Bytes moved between tiers, all ways together; ``None`` if one of them is not counted."""
    ways = run.measurement.bytes_copied.values()
    counted = [nbytes for nbytes in ways if nbytes is not None]
    return sum(counted) if len(counted) == len(ways) else None


def calls_of(run: Measured) -> list[str]:
    """Names of the calls that were timed."""
    return list(run.measurement.replay.calls)


def latency(call: str, percentile: Literal["p50_us", "p99_us"]) -> Value:
    """A percentile of the durations of one call, in seconds."""

    def seconds(run: Measured) -> float | None:
        times = run.measurement.replay.calls.get(call)
        # Nothing takes no time: a clock that says so has not measured it.
        return None if times is None else (getattr(times, percentile) / 1e6 or None)

    return seconds


def throughput(run: Measured) -> float | None:
    """Requests per second."""
    return run.measurement.requests_per_second


def memory(run: Measured) -> float | None:
    """Growth of the resident memory in bytes."""
    return run.measurement.memory_growth_bytes
