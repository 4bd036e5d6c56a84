"""``pagedkv demo``: one workload over several capacities and tiers, with an explanation."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from pagedkv.cli.errors import CommandError
from pagedkv.cli.options import JsonOption, LimitOption, keep_json_off
from pagedkv.cli.output import emit, number, printable, progress_bar, terminal, warn
from pagedkv.cli.replay import checked
from pagedkv.implementations import reference_manager
from pagedkv.traces.capacity import demand_of
from pagedkv.traces.ceil_div import ceil_div
from pagedkv.traces.reader import Workload
from pagedkv.traces.replay_report import ReplayReport
from pagedkv.traces.shipped import DEMO_WORKLOAD
from pagedkv.traces.summary import Summary, summarise

if TYPE_CHECKING:
    from pagedkv.cli.engine_demo import EngineRun
    from pagedkv.engine.observability.overlap import CopyOverlap
    from pagedkv.traces.manager_setup import ManagerSetup

DEVICE_SHARES = (0.02, 0.05, 0.1, 0.2, 0.5)
"""Sizes of the device pool to try, relative to the distinct pages of the workload."""

TIERED_SHARE = 0.05
"""The one of them that also gets lower tiers."""

HOST_SHARE, DISK_SHARE = 0.2, 1.0
"""Sizes of the lower tiers, relative to the same."""

BAR_WIDTH = 24
"""Columns of a hit rate of 100 %."""

ROOM_FOR_BARS = 76
"""Columns of a terminal from which on bars are drawn, if it has the characters."""

BAR = {"device": ("█", "cyan"), "host": ("▒", "green"), "disk": ("░", "yellow")}
"""How the share of each tier is drawn."""


@dataclass(frozen=True)
class Run:
    """One line of the table."""

    setup: "ManagerSetup"
    """The sizes."""
    report: ReplayReport
    """What came out."""

    @property
    def hit_rate(self) -> float:
        """Share of the prompt pages that were hits, 0 to 1."""
        return self.report.hit_rate or 0.0


def demo(
    requests: LimitOption = None,
    workload: Annotated[
        Path,
        typer.Option(metavar="FILE", help="A trace in any known format.", show_default="shipped"),
    ] = DEMO_WORKLOAD,
    timeline: Annotated[
        Path,
        typer.Option(metavar="FILE", help="Where the engine's timeline goes."),
    ] = Path("pagedkv-demo-timeline.json"),
    json: JsonOption = None,
) -> None:
    """Replay a workload over several capacities and tiers, and explain what that shows.

    Then the engine serves it, with a live host and disk tier, and once more after a restart.
    """
    keep_json_off(json, "--workload", workload)
    trace = Workload(workload)
    summary = summarise(trace, limit=requests)
    if summary.pages_referenced == 0:
        raise CommandError(
            f"{workload} has no prompt of a full page, so there is nothing to cache: "
            "use a longer workload"
        )
    # Imported late because it brings in torch: a wrong option should be told at once.
    from pagedkv.cli.engine_demo import run_engine_twice
    from pagedkv.traces.replay import replay

    runs = []
    with TemporaryDirectory(prefix="pagedkv-demo-") as folder, progress_bar() as progress:
        setups = list(setups_for(trace, summary, requests, Path(folder)))
        task = progress.add_task("replaying", total=summary.requests * len(setups))
        for setup in setups:
            report = replay(
                islice(trace, requests),
                trace.header.block_size,
                checked("reference", reference_manager),
                setup,
                on_request_done=lambda: progress.advance(task),
            )
            runs.append(Run(setup, report))
        task = progress.add_task("serving with the engine", total=summary.requests * 11 // 10)
        first, second, overlaps = run_engine_twice(
            trace,
            summary.requests,
            engine_setup(setups[-1], Path(folder) / "engine"),
            timeline,
            lambda: progress.advance(task),
        )
    warn(trace.oddities.texts())
    result = {
        "trace": str(workload),
        "summary": {**asdict(summary), "infinite_cache_hit_rate": summary.infinite_cache_hit_rate},
        "runs": [
            {
                "pages": run.setup.total_num_pages,
                "host_pages": run.setup.host_pages or 0,
                "disk_pages": run.setup.disk_pages or 0,
                "hit_rate": run.hit_rate,
                **asdict(run.report),
            }
            for run in runs
        ],
        "engine": [
            {"seconds": run.seconds, "hits": run.hits, "metrics": asdict(run.metrics)}
            for run in (first, second)
        ],
        "timeline": str(timeline),
    }
    screen = terminal()
    wide = screen.width >= ROOM_FOR_BARS and screen.encoding.startswith("utf")
    page = demo_page(trace, summary, runs, wide=wide)
    emit(result, Group(page, "", engine_page(first, second, overlaps, timeline)), json)


def setups_for(
    trace: Workload, summary: Summary, limit: int | None, folder: Path
) -> Iterator["ManagerSetup"]:
    """The sizes to try: device pools alone, from small to unbounded, then tiers behind one."""
    from pagedkv.traces.manager_setup import ManagerSetup

    page_size = summary.page_size
    largest = ceil_div(summary.input_tokens.max, page_size)
    unbounded = demand_of(islice(trace, limit), page_size, decode=False).pages

    def pages(share: float) -> int:
        return max(1, round_up(share * summary.distinct_pages))

    for size in [*sorted({max(largest, pages(share)) for share in DEVICE_SHARES}), unbounded]:
        yield ManagerSetup(page_size=page_size, total_num_pages=size)
    device = max(largest, pages(TIERED_SHARE))
    for disk_pages in (None, pages(DISK_SHARE)):
        yield ManagerSetup(
            page_size=page_size,
            total_num_pages=device,
            host_pages=pages(HOST_SHARE),
            disk_pages=disk_pages,
            disk_dir=folder,
        )


def engine_setup(setup: "ManagerSetup", folder: Path) -> "ManagerSetup":
    """The sizes with all tiers, for the engine: pages of some KiB, and a disk that is kept."""
    changes = {
        "disk_dir": folder,
        "model_fingerprint": "demo",
        "layers": 4,
        "head_dim": 32,
        "max_batch_size": 1,
    }
    return setup.model_copy(update=changes)


def engine_page(
    first: "EngineRun", second: "EngineRun", overlaps: "list[CopyOverlap]", timeline: Path
) -> RenderableType:
    """What the engine did in both of its lives."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("the engine", "hits:\ndevice", "\nhost", "\ndisk", "\nseconds"):
        table.add_column(heading, justify="left" if heading == "the engine" else "right")
    for name, run in (("serves it all", first), ("restarts, and serves a tenth", second)):
        table.add_row(name, *(number(n) for n in run.hits.values()), f"{run.seconds:.1f}")
    copies = "; ".join(map(str, overlaps))
    text = (
        "The engine serves the workload with real host memory and a real disk, four requests at "
        "a time, and copies beside the event loop. After the restart the device is empty, and the "
        f"disk is warm. {copies}. Its timeline is in {timeline}: open it in ui.perfetto.dev."
    )
    return Group(table, "", text)


def round_up(value: float) -> int:
    """The next number with two significant digits, which is easier to read."""
    unit = int(10 ** max(0, len(str(int(value))) - 2))
    return ceil_div(int(value), unit) * unit


def demo_page(trace: Workload, summary: Summary, runs: list[Run], *, wide: bool) -> RenderableType:
    """The table of all runs, with bars if there is room, and what a reader sees in it."""
    title = (
        f"{printable(trace.path.name)}: {number(summary.requests)} requests\n"
        f"{number(summary.pages_referenced)} prompt pages of {summary.page_size} tokens, "
        f"{number(summary.distinct_pages)} different"
    )
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("device\npages", "host\npages", "disk\npages"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("hit\nrate", justify="right", no_wrap=True)
    table.add_column("device\nevictions", justify="right", no_wrap=True)
    if wide:
        table.add_column("hits in\n" + legend(), no_wrap=True, min_width=BAR_WIDTH)
    for run in runs:
        table.add_row(
            number(run.setup.total_num_pages),
            number(run.setup.host_pages) if run.setup.host_pages else "-",
            number(run.setup.disk_pages) if run.setup.disk_pages else "-",
            f"{run.hit_rate:.1%}",
            number(run.report.evictions),
            *([bar(run.report)] if wide else []),
        )
    paragraphs = [line for text in explanation(summary, runs) for line in ("", text)]
    return Group(title, "", table, *paragraphs)


def legend() -> str:
    """What the pieces of a bar stand for."""
    return " ".join(f"{character} {tier}" for tier, (character, _) in BAR.items())


def bar(report: ReplayReport) -> Text:
    """The hit rate as a bar, cut up by tier."""
    text, hits, drawn = Text(), 0, 0
    for tier, (character, colour) in BAR.items():
        hits += report.hits_by_tier[tier] or 0
        # Ends are rounded, not pieces, so that the whole bar has the right length.
        end = round(hits * BAR_WIDTH / report.pages_referenced)
        text.append(character * (end - drawn), style=colour)
        drawn = end
    return text


def explanation(summary: Summary, runs: list[Run]) -> list[str]:
    """What the numbers mean, in plain sentences."""
    *device_only, unbounded, host, disk = runs
    small, large = device_only[0], device_only[-1]
    alone = next(run for run in runs if run.setup.total_num_pages == host.setup.total_num_pages)
    return [
        "Why the hit rate grows with capacity: a page is hit only if it is still there when its "
        "prefix comes again, and the least recently used pages go first. "
        f"{number(small.setup.total_num_pages)} pages keep {small.hit_rate:.1%} alive, "
        f"{number(large.setup.total_num_pages)} pages {large.hit_rate:.1%}.",
        "What host and disk bring back: pages that the device gave up are copied back instead of "
        f"computed again. Behind {number(host.setup.total_num_pages)} device pages, which hit "
        f"{alone.hit_rate:.1%} alone, {number(host.setup.host_pages)} host pages lift "
        f"that to {host.hit_rate:.1%}, and {number(disk.setup.disk_pages)} disk pages "
        f"to {disk.hit_rate:.1%}.",
        f"The infinite-cache bound: {summary.infinite_cache_hit_rate:.1%} of all prompt pages "
        "repeat what was seen before, so no cache can hit more. A pool that never evicts "
        f"({number(unbounded.setup.total_num_pages)} pages) gets {unbounded.hit_rate:.1%}.",
    ]
