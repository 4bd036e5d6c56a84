"""Draws charts with matplotlib: as PNG for documents, and as SVG that follows a page's colours."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import StringIO
from pathlib import Path
from warnings import catch_warnings, filterwarnings

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import (
    EngFormatter,
    FixedFormatter,
    FixedLocator,
    Formatter,
    FuncFormatter,
    LogLocator,
)

from pagedkv.traces.comparison.charts import Chart, Line, Unit
from pagedkv.traces.comparison.colours import LIGHT, series

INK, MUTED, GRID, PAPER = (LIGHT[name] for name in ("ink", "muted", "grid", "paper"))
"""Pictures are drawn in light colours; in a page each is replaced by its name."""

MARKERS = ("o", "s", "D", "^", "v", "P")
"""One shape per implementation, so that colours are not needed."""

WIDTH, HEIGHT = 5.0, 3.3
"""Inches; at 72 points each, this fills a phone's width with text of readable size."""

PLOT = (0.13, 0.155, 0.535, 0.755)
"""Left, bottom, width and height of the plot, as shares; names of lines stand at its right."""

LONGEST_LABEL = 16
"""Characters that fit there."""

LABEL_GAP = 0.083
"""Least distance between two of them, as a share of the height of the plot."""

TICK_GAP = 0.11
"""Least distance between two labels of the horizontal axis, as a share of its length."""

UNIT_LABELS: dict[Unit, str] = {
    "share": "share of prompt pages",
    "pages": "pages",
    "bytes": "bytes",
    "seconds": "per call: p50 solid, p99 dashed",
    "requests per second": "requests per second",
}
"""What stands above the vertical axis."""


def draw_png(chart: Chart, path: Path) -> None:
    """Write a chart with its title, in light colours."""
    with common_style():
        figure = draw(chart)
        figure.suptitle(chart.title, x=0.02, y=1.03, ha="left", color=INK, fontweight="bold")
        if chart.not_counted:
            note = f"not counted: {', '.join(chart.not_counted)}"
            figure.text(0.02, -0.03, note, color=MUTED, fontsize="small", wrap=True)
        figure.savefig(path, dpi=200, facecolor=PAPER, bbox_inches="tight", pad_inches=0.15)


def draw_svg(chart: Chart) -> str:
    """A chart as an ``svg`` element for a page that defines the colours as CSS variables."""
    buffer = StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with common_style():
        draw(chart).savefig(buffer, format="svg", transparent=True, metadata=nothing)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    for name, colour in LIGHT.items():
        svg = svg.replace(colour, f"var(--{name})")
    # Many charts share one page, where every id may stand once.
    return re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{chart.slug}-", svg)


@contextmanager
def common_style() -> Iterator[None]:
    """Settings under which text stays text, and the same chart gives the same bytes."""
    with (
        matplotlib.rc_context(
            {
                "font.size": 11,
                "svg.fonttype": "none",
                "svg.hashsalt": "pagedkv",
                "text.parse_math": False,
            }
        ),
        catch_warnings(),
    ):
        filterwarnings("ignore", "Glyph")  # names in a script that only browsers have letters for
        yield


def draw(chart: Chart) -> Figure:
    """Draw a chart without title, in light colours."""
    figure = Figure(figsize=(WIDTH, HEIGHT))
    axes = figure.add_axes(PLOT)
    implementations = [line.series for line in chart.lines if line.series is not None]
    for line in chart.lines:
        draw_line(axes, line, last=max(implementations, default=0))
    set_vertical_axis(axes, chart)
    set_horizontal_axis(axes, chart)
    label_lines(axes, chart)
    return figure


def draw_line(axes: Axes, line: Line, *, last: int) -> None:
    """Draw one line; where lines coincide, those of later implementations lie inside earlier."""
    x, y = zip(*line.points, strict=True)
    if line.series is None:
        axes.plot(x, y, color=MUTED, linewidth=1.3, linestyle=":" if line.dashed else "--")
        return
    colour, layers = colour_of(line), last - line.series
    axes.plot(
        x,
        y,
        color=colour,
        linewidth=(1.2 if line.dashed else 1.8) + 1.7 * layers,
        linestyle=(0, (2.2, 1.2)) if line.dashed else "-",
        marker=MARKERS[line.series % len(MARKERS)],
        markersize=(4 if line.dashed else 5) + 2.2 * layers,
        clip_on=False,
    )


def colour_of(line: Line) -> str:
    """The colour of a line and its label."""
    return LIGHT["muted" if line.series is None else series(line.series)]


def set_vertical_axis(axes: Axes, chart: Chart) -> None:
    """Scale, ticks and grid of the values; the unit stands at the top, where it can be read."""
    values = [value for line in chart.lines for _, value in line.points]
    if chart.logarithmic:
        axes.set_yscale("log")
        axes.set_ylim(min(values) / 1.6, max(values) * 1.6)
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    else:
        axes.set_ylim(0, max(values) * 1.08 or 1)
    axes.yaxis.set_major_formatter(formatter(chart.unit))
    axes.tick_params(axis="y", length=0, which="both", colors=MUTED, labelcolor=MUTED)
    axes.minorticks_off()
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.set_title(UNIT_LABELS[chart.unit], loc="left", fontsize="medium", color=MUTED)
    for side in ("left", "right", "top"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(GRID)


def formatter(unit: Unit) -> Formatter:
    """How the values of an axis are written."""
    if unit == "share":
        return FuncFormatter(lambda share, _: f"{share * 100:g}%")
    symbol = {"bytes": "B", "seconds": "s"}.get(unit, "")
    return EngFormatter(unit=symbol, sep=" " if symbol else "")


def set_horizontal_axis(axes: Axes, chart: Chart) -> None:
    """Ticks at the measured sizes, as far as there is room for their labels."""
    sizes = sorted({pages for line in chart.lines for pages, _ in line.points})
    if sizes[-1] > 5 * sizes[0]:
        axes.set_xscale("log")
    if len(sizes) == 1:
        axes.set_xlim(sizes[0] * 0.5, sizes[0] * 1.5)
    axes.minorticks_off()
    names = EngFormatter(sep="", places=None)
    bottom = axes.get_ylim()[0]
    labelled = far_enough(sizes, [place_in(axes, pages, bottom)[0] for pages in sizes])
    axes.xaxis.set_major_locator(FixedLocator(sizes))
    axes.xaxis.set_major_formatter(
        FixedFormatter([names.format_data(s) if s in labelled else "" for s in sizes])
    )
    axes.tick_params(axis="x", colors=MUTED, labelcolor=MUTED)
    axes.set_xlabel("device pages", color=MUTED)


def far_enough(sizes: Sequence[int], positions: Sequence[float]) -> set[int]:
    """The sizes whose labels can stand beside each other, from the largest down."""
    chosen: dict[int, float] = {}
    for size, place in sorted(zip(sizes, positions, strict=True), reverse=True):
        if all(abs(place - other) >= TICK_GAP for other in chosen.values()):
            chosen[size] = place
    return set(chosen)


def place_in(axes: Axes, pages: float, value: float) -> tuple[float, float]:
    """Where a point is in the plot: from 0 to 1, left to right and bottom to top."""
    display = axes.transData.transform((pages, value))
    x, y = axes.transAxes.inverted().transform(display)
    return float(x), float(y)


def label_lines(axes: Axes, chart: Chart) -> None:
    """Write the name of each line beside its end, moved apart where they would overlap."""
    ends = sorted(
        ((place_in(axes, *line.points[-1])[1], line) for line in chart.lines if line.label),
        key=lambda end: end[0],
    )
    for (end, line), height in zip(ends, spread([end for end, _ in ends]), strict=True):
        colour = colour_of(line)
        axes.annotate(
            shortened(line.label),
            xy=(1.02, end),
            xycoords="axes fraction",
            xytext=(1.09, height),
            textcoords="axes fraction",
            color=colour,
            va="center",
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "color": colour,
                "linewidth": 0.8,
                "relpos": (0, 0.5),
                "shrinkA": 1,
                "shrinkB": 0,
            },
        )


def spread(heights: Sequence[float]) -> list[float]:
    """Ascending heights from 0 to 1, moved apart to :data:`LABEL_GAP` with little movement."""
    placed: list[float] = []
    for height in heights:
        placed.append(max(height, placed[-1] + LABEL_GAP) if placed else height)
    ceiling = max(1.0, LABEL_GAP * (len(placed) - 1))
    for index in reversed(range(len(placed))):
        placed[index] = min(placed[index], ceiling)
        ceiling = placed[index] - LABEL_GAP
    return placed


def shortened(label: str) -> str:
    """A label that fits beside the plot: of a long name, its beginning and its end."""
    if len(label) <= LONGEST_LABEL:
        return label
    head = LONGEST_LABEL // 2
    return f"{label[: head - 1]}…{label[head - LONGEST_LABEL :]}"
