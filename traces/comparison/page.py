"""The report as one HTML page that needs nothing else: styles, tables and charts are inside."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from html import escape

from pagedkv.traces.comparison.charts import charts_of
from pagedkv.traces.comparison.colours import series
from pagedkv.traces.comparison.drawing import draw_svg
from pagedkv.traces.comparison.page_style import STYLE
from pagedkv.traces.comparison.report import Measured, Report, Unmeasured
from pagedkv.traces.comparison.sizes import Sizes

NOT_COUNTED = "not counted"
"""What stands in place of a number that an implementation does not keep."""

Row = list[str]
"""Cells of a table, in plain text."""


def page(report: Report) -> str:
    """The whole page.

    Everything that comes from outside, such as names and error messages, is escaped, and the page
    forbids itself to load anything.
    """
    workload, conditions = report.workload, report.conditions
    title = f"Cache comparison on {workload.name}"
    facts = (
        f"{workload.requests:,} requests with {workload.pages_referenced:,} full prompt pages of "
        f"{conditions.page_size:,} tokens, {workload.distinct_pages:,} of them different. "
        f"A cache that never forgets would hit {workload.infinite_cache_hits:,} "
        f"({workload.infinite_cache_hit_rate:.1%})."
    )
    body = [
        f"<h1>{escape(title)}</h1>",
        f"<p>{escape(facts)}</p>",
        key(report.implementations),
        *incomplete(report),
        *(part for share in report.by_lower_tiers() for part in section(share)),
        "<h2>How to read this</h2>",
        *(f"<p>{escape(note)}</p>" for note in notes(report)),
        "<h2>Where it was measured</h2>",
        origin(report),
    ]
    return "\n".join(
        [
            "<!DOCTYPE html>",
            '<html lang="en">',
            "<head>",
            '<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta name="color-scheme" content="light dark">',
            '<meta http-equiv="Content-Security-Policy" '
            "content=\"default-src 'none'; style-src 'unsafe-inline'\">",
            f"<title>{escape(title)}</title>",
            f"<style>{STYLE}</style>",
            "</head>",
            "<body>",
            "<main>",
            *body,
            "</main>",
            "</body>",
            "</html>\n",
        ]
    )


def key(implementations: list[str]) -> str:
    """The full names, each in its colour."""
    items = (
        f'<li style="color: var(--{series(number)})">{escape(name)}</li>'
        for number, name in enumerate(implementations)
    )
    return f'<ul class="key">{"".join(items)}</ul>'


def incomplete(report: Report) -> Iterator[str]:
    """A warning that some runs have no result, if that is so."""
    counts = Counter(run.outcome for run in report.unmeasured)
    if counts:
        parts = " and ".join(f"{number:,} {outcome}" for outcome, number in sorted(counts.items()))
        yield f'<p class="failed">Of {len(report.runs):,} runs, {parts}. The sections say why.</p>'


def section(report: Report) -> Iterator[str]:
    """Charts and tables of the runs that share their lower tiers."""
    sizes = report.runs[0].sizes
    prefix = "With " if sizes.lower_pages else "With the "
    yield f"<h2>{escape(prefix + sizes.lower_tiers)}</h2>"
    yield from reasons(report.unmeasured)
    if not report.measured:
        return
    charts = charts_of(report)
    wide, middle = fewest_gaps(len(charts), (4, 5, 3)), fewest_gaps(len(charts), (4, 3))
    yield f'<div class="charts" style="--wide: {wide}; --middle: {middle}">'
    for chart in charts:
        label = f"{chart.title} over device pages; the numbers are in the tables below"
        yield f"<figure><figcaption>{escape(chart.title)}</figcaption>"
        yield f'<div role="img" aria-label="{escape(label)}">{draw_svg(chart)}</div>'
        if chart.not_counted:
            yield f'<p class="note">{NOT_COUNTED}: {escape(", ".join(chart.not_counted))}</p>'
        yield "</figure>"
    yield '</div><div class="tables">'
    yield from titled("Hits and evictions", hits_table(report))
    yield from titled("Throughput and memory", costs_table(report))
    yield from titled("Latency in µs", latency_table(report))
    if sizes.lower_pages:
        yield from titled("Moved between tiers", copies_table(report))
    yield "</div>"


def titled(title: str, table: str) -> Iterator[str]:
    """A table under its title; tables stand beside each other where there is room."""
    yield f"<section><h3>{escape(title)}</h3>{table}</section>"


def fewest_gaps(count: int, choices: tuple[int, ...]) -> int:
    """The number of columns that leaves the fewest gaps in the last row, the earliest of equals."""
    return min(choices, key=lambda columns: -count % columns)


def reasons(runs: list[Unmeasured]) -> Iterator[str]:
    """What failed and what was skipped: each reason once, with the sizes that it concerns."""
    pages: defaultdict[tuple[str, str, str], list[str]] = defaultdict(list)
    for run in runs:
        concerned = pages[run.outcome, run.implementation, run.reason]
        concerned.append(f"{run.sizes.device_pages:,}")
    for (outcome, implementation, reason), concerned in pages.items():
        yield (
            f'<p class="{outcome}"><strong>{escape(implementation)} {outcome}</strong> '
            f"({' / '.join(concerned)} device pages): {escape(reason)}</p>"
        )


def hits_table(report: Report) -> str:
    """Hits by tier, beside the bound."""
    bounds = {bound.sizes: bound.belady_hits for bound in report.bounds}
    tiers = report.runs[0].sizes.tiers
    shown = tiers if len(tiers) > 1 else ()

    def cells(run: Measured) -> Row:
        replay = run.measurement.replay
        hits, bound = replay.pages_hit, max(1, bounds[run.sizes])
        by_tier = [replay.hits_by_tier.get(tier) for tier in shown]
        return [
            count(hits),
            percent(replay.hit_rate),
            *(percent(None if n is None else report.workload.rate(n)) for n in by_tier),
            percent(None if hits is None else hits / bound),
            count(replay.evictions),
            count(replay.refused),
            count(replay.preemptions),
        ]

    def bound(sizes: Sizes) -> str:
        hits = bounds[sizes]
        return f", Belady bound {hits:,} ({report.workload.rate(hits):.1%})"

    headings = ["pages hit", "hit rate", *(f"from {tier}" for tier in shown)]
    headings += ["of the bound", "evictions", "refused", "preemptions"]
    return run_table(report, headings, cells, remark=bound)


def latency_table(report: Report) -> str:
    """The percentiles of every call."""
    calls = list(dict.fromkeys(c for run in report.measured for c in run.measurement.replay.calls))

    def cells(run: Measured) -> Row:
        times = [run.measurement.replay.calls.get(call) for call in calls]
        pairs = [(f"{t.p50_us:,.1f}", f"{t.p99_us:,.1f}") if t else ("–", "–") for t in times]
        return [cell for pair in pairs for cell in pair]

    return run_table(report, [f"{call} {p}" for call in calls for p in ("p50", "p99")], cells)


def copies_table(report: Report) -> str:
    """What was moved between the tiers, in pages and in bytes."""
    ways = list(report.measured[0].measurement.pages_copied)

    def cells(run: Measured) -> Row:
        copied = run.measurement
        pairs = [(copied.pages_copied[way], copied.bytes_copied[way]) for way in ways]
        return [cell for pages, size in pairs for cell in (count(pages), nbytes(size))]

    names = [way.replace("_", " ") for way in ways]
    return run_table(report, [f"{n}, {unit}" for n in names for unit in ("pages", "bytes")], cells)


def costs_table(report: Report) -> str:
    """Time and memory of whole runs."""

    def cells(run: Measured) -> Row:
        measurement = run.measurement
        return [
            f"{measurement.replay.seconds:,.2f}",
            count(measurement.requests_per_second),
            nbytes(measurement.memory_growth_bytes),
        ]

    return run_table(report, ["seconds", "requests per second", "memory growth"], cells)


def run_table(
    report: Report,
    headings: list[str],
    cells: Callable[[Measured], Row],
    remark: Callable[[Sizes], str] = lambda sizes: "",
) -> str:
    """A table of runs, grouped by sizes so that implementations stand below each other.

    It scrolls by itself where a window is narrower; on phones each run is a list of its numbers.

    Args:
        report: Its runs are shown.
        headings: Names of the columns.
        cells: The row of one run, without its name.
        remark: What to add to the heading of a group.
    """
    columns = "".join(f"<th>{escape(heading)}</th>" for heading in headings)
    lines = [f"<thead><tr><th></th>{columns}</tr></thead>"]
    for sizes in dict.fromkeys(run.sizes for run in report.runs):
        title = f"{sizes.device_pages:,} device pages{remark(sizes)}"
        lines.append(f'<tbody><tr class="sizes"><th colspan="{len(headings) + 1}">')
        lines.append(f"<span>{escape(title)}</span></th></tr>")
        for run in report.runs:
            if run.sizes != sizes:
                continue
            if isinstance(run, Unmeasured):
                values = f'<td colspan="{len(headings)}">{run.outcome}</td>'
            else:
                values = "".join(
                    f'<td data-name="{escape(heading)}">{escape(cell)}</td>'
                    for heading, cell in zip(headings, cells(run), strict=True)
                )
            lines.append(f"<tr><th>{escape(run.implementation)}</th>{values}</tr>")
        lines.append("</tbody>")
    return '<div class="scroll"><table>\n' + "\n".join(lines) + "\n</table></div>"


def notes(report: Report) -> Iterator[str]:
    """What the numbers mean, and what was assumed."""
    conditions = report.conditions
    pace = (
        "one request after another"
        if conditions.concurrency == 1
        else f"with up to {conditions.concurrency:,} requests in flight"
    )
    answers = "answers generated to their full length" if conditions.decode else "one token sampled"
    yield (
        f"Replay: requests in the order of the trace, {pace}, {answers} each. There is no model; "
        "arrival times play no part."
    )
    yield (
        "Hit rate: prompt pages found in the cache, of all full prompt pages. What a preempted "
        "request finds when it comes back does not count."
    )
    yield (
        "Belady bound: the most pages that any replacement policy could hit on these sizes, even "
        "one that knows all later requests. With lower tiers it takes all tiers for one cache "
        "without duplicates. Preempted requests compute pages twice, so with preemptions a cache "
        "may exceed it."
    )
    yield (
        f"Bytes: pages moved, times {conditions.page_nbytes:,} bytes. This assumes a model with "
        f"{conditions.kv_bytes_per_token:,} bytes of keys and values per token; the replay itself "
        "moves smaller pages."
    )
    yield (
        "Latency: wall-clock time of single calls; the 50th and 99th percentile are exact. In a "
        "chart, a name stands beside the dashed line of its 99th percentile. "
        "Throughput: requests by the time of the whole replay, which includes reading the trace "
        "and making up tokens, the same for all."
    )
    yield (
        "Memory growth: peak resident memory of the run's own process, less what was resident "
        "before the manager was built. It includes what the replay itself keeps, the same for all, "
        "and the memory of the replay's small pages if the implementation allocates it."
    )
    yield (
        "Implementations took turns on each choice of sizes. Colours and markers stand for "
        "implementations; where lines coincide, one lies inside the other."
    )


def origin(report: Report) -> str:
    """Workload, machine and versions, as a list of terms."""
    machine = report.machine
    facts = {
        "trace": f"{report.workload.name} ({report.workload.format})",
        "SHA-256 of the trace": report.workload.sha256,
        "finished": report.finished,
        "system": machine.system,
        "processor": f"{machine.processor}, {machine.cores:,} cores",
        "memory": nbytes(machine.memory_bytes),
        **report.versions,
    }
    items = (f"<dt>{escape(name)}</dt><dd>{escape(fact)}</dd>" for name, fact in facts.items())
    return f"<dl>{''.join(items)}</dl>"


def count(value: float | None) -> str:
    """A whole number, or that there is none."""
    return NOT_COUNTED if value is None else f"{value:,.0f}"


def percent(value: float | None) -> str:
    """A share in percent, or that there is none."""
    return NOT_COUNTED if value is None else f"{value:.1%}"


def nbytes(value: int | None) -> str:
    """Bytes with a decimal prefix, or that there is no number."""
    if value is None:
        return NOT_COUNTED
    size, prefixes = float(value), iter(("", "k", "M", "G", "T", "P"))
    prefix = next(prefixes)
    while size >= 1000:
        size, prefix = size / 1000, next(prefixes)
    return f"{size:,.3g} {prefix}B"
