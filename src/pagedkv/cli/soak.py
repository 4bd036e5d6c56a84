"""``pagedkv soak``: the real engine under load for as long as one likes, looked at throughout."""

import asyncio
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from secrets import randbelow
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from pagedkv.cli.errors import CommandError
from pagedkv.cli.failed_run import spinner
from pagedkv.cli.options import MOST, JsonOption, between
from pagedkv.cli.output import STDOUT, complain, fact_table, number, printable, terminal, write_json

if TYPE_CHECKING:
    from pagedkv.soak.report import SoakReport
    from pagedkv.soak.samples import Sample
    from pagedkv.soak.settings import SoakSettings
    from pagedkv.soak.soak import Soak

FAILED = 1
"""Exit status if something was wrong."""


def soak(
    minutes: Annotated[
        float,
        typer.Option(parser=between(0.05, 100_000.0), metavar="M", help="How long to serve."),
    ],
    folder: Annotated[
        Path | None,
        typer.Option(
            "--dir",
            metavar="DIR",
            file_okay=False,
            help="Where the disk tier is; by default in a temporary folder.",
        ),
    ] = None,
    out: Annotated[
        Path,
        typer.Option(metavar="DIR", file_okay=False, help="Where the report is written."),
    ] = Path("pagedkv-soak"),
    seed: Annotated[
        int | None,
        typer.Option(
            parser=between(0, MOST),
            metavar="N",
            help="Of the traffic and the troubles; by default any, and told.",
        ),
    ] = None,
    json: JsonOption = None,
) -> None:
    """Serve mixed traffic with the engine, on real threads and a real disk that has its troubles.

    Conversations, shared system prompts and long documents are served, cancelled and given up while
    the disk is slow, short, full, failing and corrupt by turns, the cache is reset, and the engine
    is closed and opened again. Every page is read back, and every event is validated by the
    reference. DIR gets soak.json and soak.png.

    The exit status is 0 if all was right, 1 after a wrong byte, a leak, a hang or a divergence, 2
    for a wrong option. Who stops it, with Ctrl-C or SIGTERM, gets the report of what was.
    """
    if find_spec("matplotlib") is None:
        raise CommandError(
            "soak draws with matplotlib, which is not installed: pip install 'pagedkv[compare]'"
        )
    from pagedkv.soak.chart import draw
    from pagedkv.soak.settings import SoakSettings

    out.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix="pagedkv-soak-") as temporary:
        chosen = folder or Path(temporary)
        chosen.mkdir(parents=True, exist_ok=True)
        settings = SoakSettings(60 * minutes, chosen, randbelow(MOST) if seed is None else seed)
        report, stopped_by = watched(settings)
    result = report.as_data()
    write_json(result, str(out / "soak.json"))
    write_json(result, json)
    if report.samples:
        draw(report, out / "soak.png")
    if json != STDOUT:
        terminal().print(told(report, out), soft_wrap=True)
    for problem in report.all_problems:
        complain(problem)
    if stopped_by is not None:
        signal.raise_signal(stopped_by)
    if not report.is_right:
        raise typer.Exit(FAILED)


def watched(settings: "SoakSettings") -> "tuple[SoakReport, signal.Signals | None]":
    """Soak, with progress on a terminal; and the signal that has stopped it, if one has."""
    from pagedkv.soak.soak import Soak

    received: list[signal.Signals] = []

    async def run() -> "SoakReport":
        with spinner() as progress:
            task = progress.add_task(f"opening, seed {settings.seed}")
            soaking = Soak(settings, lambda s: progress.update(task, description=standing(s)))
            with stopped_by_signals(soaking, received):
                return await soaking.run()

    report = asyncio.run(run())
    return report, received[0] if received else None


@contextmanager
def stopped_by_signals(soaking: "Soak", received: list[signal.Signals]) -> Iterator[None]:
    """Let Ctrl-C and SIGTERM end a soak between two steps of its loop, and note them."""
    loop = asyncio.get_running_loop()
    before = {stopper: signal.getsignal(stopper) for stopper in (signal.SIGINT, signal.SIGTERM)}

    def stop(stopper: signal.Signals) -> None:
        received.append(stopper)
        soaking.stop()

    for stopper in before:
        loop.add_signal_handler(stopper, stop, stopper)
    try:
        yield
    finally:
        for stopper, handler in before.items():
            loop.remove_signal_handler(stopper)
            signal.signal(stopper, handler)


def standing(sample: "Sample") -> str:
    """Where a soak stands, in a line."""
    return (
        f"{sample.at_s:.0f} s, disk {sample.trouble}, {sample.requests_per_s:.0f} requests a "
        f"second, alloc p99 {sample.alloc_us['p99'] / 1000:.1f} ms, "
        f"{sample.resident_bytes / 2**20:.0f} MiB, {number(sample.validated)} events validated"
    )


def told(report: "SoakReport", out: Path) -> RenderableType:
    """What a soak has come to."""
    table = fact_table(f"soak, seed {report.settings.seed}")
    became = ", ".join(f"{number(n)} {what}" for what, n in sorted(report.requests.items()))
    table.add_row("served", f"{report.seconds:.0f} s", f"in {report.lives} lives of the engine")
    table.add_row("requests", number(sum(report.requests.values())), became)
    table.add_row("pages", number(report.pages_checked), "read back and right")
    table.add_row("events", number(report.events), "validated")
    reasons = ", ".join(f"{number(n)} {what}" for what, n in sorted(report.failures.items()))
    table.add_row("failures", number(sum(report.failures.values())), f"of transfers: {reasons}")
    table.add_row("resets", number(report.resets))
    table.add_row("survivors", number(report.survivors), "blocks found on disk after restarts")
    memory = report.memory
    grown = "too few samples to say" if memory is None else f"{memory.grown_bytes / 2**20:+.1f} MiB"
    allowed = "" if memory is None else f"allowed: {memory.allowed_bytes / 2**20:.1f} MiB"
    table.add_row("memory", grown, f"in the last quarter; {allowed}" if allowed else "")
    parts: list[RenderableType] = [table, "", latencies(report)]
    verdict = "all was right" if report.is_right else f"{len(report.all_problems)} problem(s)"
    parts += ["", Text(f"{verdict}; see {out / 'soak.json'} and {out / 'soak.png'}")]
    return Group(*parts)


def latencies(report: "SoakReport") -> Table:
    """By trouble of the disk: how long allocations took, and how many requests ended."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("disk")
    for title in ("samples", "requests/s", "alloc p50 ms", "p99 ms", "max ms"):
        table.add_column(title, justify="right")
    for trouble in dict.fromkeys(sample.trouble for sample in report.samples):
        samples = [sample for sample in report.samples if sample.trouble == trouble]
        medians = {
            name: sorted(sample.alloc_us[name] for sample in samples)[len(samples) // 2] / 1000
            for name in ("p50", "p99")
        }
        worst = max(sample.alloc_us["max"] for sample in samples) / 1000
        rate = sum(sample.requests_per_s for sample in samples) / len(samples)
        table.add_row(
            printable(trouble),
            number(len(samples)),
            f"{rate:.0f}",
            f"{medians['p50']:.2f}",
            f"{medians['p99']:.1f}",
            f"{worst:.0f}",
        )
    return table
