"""The picture of a soak: what was looked at, over time."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pagedkv.soak.report import SoakReport
from pagedkv.soak.samples import TIERS, Sample

COLOURS = ("#2166ac", "#b2182b", "#4d9221", "#e08214", "#762a83", "#01665e")
"""Of lines and areas, told apart by people who see few colours."""

CALM = "calm"
"""The trouble that is none, and gets no background."""


def draw(report: SoakReport, path: Path) -> None:
    """Write the picture of a report with samples, as PNG.

    Raises:
        OSError: It cannot be written.
    """
    samples = report.samples
    times = [sample.at_s for sample in samples]
    with matplotlib.rc_context({"font.size": 8, "axes.spines.top": False, "axes.grid": True}):
        figure = Figure(figsize=(9, 12), layout="constrained")
        axes: Sequence[Axes] = figure.subplots(7, 1, sharex=True)
        _areas(axes[0], times, "device pages", [sample.pages for sample in samples])
        _lines(axes[1], times, "slots in use, transfers", [*map(_below, samples)])
        _lines(axes[2], times, "requests per second", [*map(_rate, samples)])
        _lines(axes[3], times, "alloc and loop, ms", [*map(_latencies, samples)])
        axes[3].set_yscale("symlog", linthresh=0.1)
        _areas(axes[4], times, "share of blocks served", hit_shares(samples))
        _lines(axes[5], times, "failed transfers", _failures(samples))
        _lines(axes[6], times, "resident memory, MiB", [*map(_memory, samples)])
        for axis in axes:
            _mark_troubles(axis, samples)
            axis.margins(x=0)
            if axis.get_legend_handles_labels()[1]:
                axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
        axes[6].set_xlabel("seconds; shaded: troubles of the disk; dotted: restarts")
        right = "nothing wrong" if report.is_right else f"{len(report.all_problems)} problem(s)"
        figure.suptitle(
            f"{report.seconds:.0f} s, {sum(report.requests.values()):,} requests, "
            f"{report.events:,} events validated: {right}"
        )
        figure.savefig(path, dpi=120, metadata={"Software": None})


Row = Mapping[str, float]
"""What a plot shows at one time, by name."""


def hit_shares(samples: Sequence[Sample]) -> list[Row]:
    """By sample: of the blocks served since the one before, the share of each tier."""
    shares: list[Row] = []
    before: Mapping[str, int] = {}
    for sample in samples:
        fresh = {tier: sample.served[tier] - before.get(tier, 0) for tier in TIERS}
        total = sum(fresh.values())
        shares.append({tier: count / total if total else 0.0 for tier, count in fresh.items()})
        before = sample.served
    return shares


def _below(sample: Sample) -> Row:
    return {**sample.used, "in flight": sample.in_flight}


def _rate(sample: Sample) -> Row:
    return {"ended": sample.requests_per_s}


def _latencies(sample: Sample) -> Row:
    alloc = {f"alloc {name}": value / 1000 for name, value in sample.alloc_us.items()}
    return alloc | {"loop late": max(0.0, sample.late_ms)}


def _memory(sample: Sample) -> Row:
    return {"resident": sample.resident_bytes / 2**20}


def _failures(samples: Sequence[Sample]) -> list[Row]:
    reasons = sorted({reason for sample in samples for reason in sample.failures})
    return [{reason: sample.failures.get(reason, 0) for reason in reasons} for sample in samples]


def _lines(axis: Axes, times: Sequence[float], title: str, rows: Sequence[Row]) -> None:
    axis.set_title(title, loc="left", fontsize=8)
    for name, colour in zip(rows[0], COLOURS, strict=False):
        axis.plot(times, [row[name] for row in rows], label=name, color=colour, linewidth=1)
    axis.set_ylim(bottom=0)


def _areas(axis: Axes, times: Sequence[float], title: str, rows: Sequence[Row]) -> None:
    axis.set_title(title, loc="left", fontsize=8)
    heights = [[row[name] for row in rows] for name in rows[0]]
    axis.stackplot(times, *heights, labels=list(rows[0]), colors=COLOURS, alpha=0.8, linewidth=0)


def _mark_troubles(axis: Axes, samples: Sequence[Sample]) -> None:
    """Shade the times of trouble, and mark restarts."""
    before = None
    for sample in samples:
        if before is not None:
            if sample.trouble != CALM:
                axis.axvspan(before.at_s, sample.at_s, color="#000000", alpha=0.05, linewidth=0)
            if sample.life != before.life:
                axis.axvline(sample.at_s, color="#666666", linestyle=":", linewidth=0.8)
        before = sample
