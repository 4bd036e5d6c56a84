"""``pagedkv compare``: the same workload on several implementations and cache sizes."""

import hashlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Group, RenderableType
from rich.table import Table

from pagedkv.cli.errors import CommandError, ImplementationFailedError
from pagedkv.cli.options import (
    MOST,
    BlockSizeOption,
    FormatOption,
    LimitOption,
    PageSizeOption,
    TraceArgument,
    between,
)
from pagedkv.cli.output import emit, number, printable, progress_bar, warn
from pagedkv.cli.replay import REQUIRED_METHODS
from pagedkv.implementations import (
    UnknownImplementationError,
    as_option,
    resolve_implementation,
)
from pagedkv.traces.belady_bound import belady_hits, prompts_of
from pagedkv.traces.comparison.machine import installed_versions, this_machine
from pagedkv.traces.comparison.measure import Task
from pagedkv.traces.comparison.own_process import ProcessDiedError, Progress, in_own_process
from pagedkv.traces.comparison.report import (
    Bound,
    Conditions,
    Report,
    Run,
    Unmeasured,
    WorkloadFacts,
)
from pagedkv.traces.comparison.report_folder import PAGE, ForeignFolderError, report_folder
from pagedkv.traces.comparison.sizes import Sizes, every_combination
from pagedkv.traces.comparison.sweep import sweep
from pagedkv.traces.errors import UnreadableTraceError
from pagedkv.traces.reader import Workload
from pagedkv.traces.summary import summarise

if TYPE_CHECKING:
    from pagedkv.traces.manager_setup import ManagerFactory

LLAMA_8B_KV_BYTES = 2 * 32 * 8 * 128 * 2
"""Keys and values of one token: 32 layers, 8 heads of 128 values, 2 bytes each (Llama 3.1 8B)."""


def compare(
    trace: TraceArgument,
    out: Annotated[
        Path,
        typer.Option(
            metavar="DIR",
            help="Folder for report.html, report.json and the plots; an earlier report in it is "
            "replaced.",
        ),
    ],
    pages: Annotated[
        str,
        typer.Option(metavar="N,N,...", help="Device pages to try."),
    ],
    impl: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="'engine', 'reference', an announced name, or 'package.module:factory'; "
            "once for each.",
        ),
    ] = None,
    host_pages: Annotated[
        str,
        typer.Option(
            metavar="N,N,...", help="Pages of the host tier to try with each; 0 for none."
        ),
    ] = "0",
    disk_pages: Annotated[
        str,
        typer.Option(
            metavar="N,N,...",
            help="Pages of the disk tier to try behind each host tier; 0 for none.",
        ),
    ] = "0",
    page_size: PageSizeOption = None,
    concurrency: Annotated[
        int,
        typer.Option(parser=between(1, MOST), metavar="N", help="Most requests in flight."),
    ] = 1,
    decode: Annotated[
        bool,
        typer.Option(
            "--decode/--no-decode", help="Generate whole answers, or one token per request."
        ),
    ] = False,
    kv_bytes_per_token: Annotated[
        int,
        typer.Option(
            parser=between(1, MOST),
            metavar="BYTES",
            help="Keys and values of one token, to tell moved pages in bytes; by default those of "
            "Llama 3.1 8B.",
        ),
    ] = LLAMA_8B_KV_BYTES,
    limit: LimitOption = None,
    format: FormatOption = None,
    block_size: BlockSizeOption = None,
) -> None:
    """Replay a workload on several implementations and cache sizes, and report the differences.

    Every run has a process of its own. Implementations take turns on each choice of sizes.
    """
    every_size = sizes_of(pages, host_pages, disk_pages)
    if find_spec("matplotlib") is None:
        raise CommandError(
            "compare draws with matplotlib, which is not installed: pip install 'pagedkv[compare]'"
        )
    contestants = contestants_of(impl or ["reference"])
    check_methods(contestants)
    workload = Workload(trace, format=format, block_size=block_size)
    facts = facts_of(workload, page_size, limit)
    warn(workload.oddities.texts())
    conditions = Conditions(
        page_size=page_size or workload.header.block_size,
        concurrency=concurrency,
        decode=decode,
        limit=limit,
        kv_bytes_per_token=kv_bytes_per_token,
    )
    task = Task(trace, format, block_size, facts.requests, conditions)
    try:
        with report_folder(out) as folder:
            runs = list(with_progress(task, contestants, every_size))
            report = Report(
                finished=datetime.now(UTC).isoformat(timespec="seconds"),
                implementations=[contestant.name for contestant in contestants],
                versions={c.name: c.version for c in contestants} | installed_versions(),
                machine=this_machine(),
                workload=facts,
                conditions=conditions,
                bounds=bounds_of(workload, task, every_size),
                runs=runs,
            )
            if all(run.outcome == "skipped" for run in runs):
                first = report.unmeasured[0]
                raise CommandError(f"{first.implementation} cannot be compared: {first.reason}")
            # Imported late because it brings in matplotlib.
            from pagedkv.traces.comparison.report_files import write_report

            write_report(report, folder)
    except ForeignFolderError as error:
        raise typer.BadParameter(f"{error}.", param_hint="--out") from error
    emit({}, summary_table(report, out), None)
    failed = [run for run in report.unmeasured if run.outcome == "failed"]
    if failed:
        first = failed[0]
        raise ImplementationFailedError(
            f"{len(failed)} of {len(runs)} runs have failed, see {out}; the first of them: "
            f"{first.implementation} on {first.sizes.device_pages} device pages: {first.reason}"
        )


@dataclass(frozen=True)
class Contestant:
    """An implementation that takes part."""

    option: str
    """What ``--impl`` says."""
    name: str
    """What the report calls it."""
    version: str
    """Its version."""


def contestants_of(options: list[str]) -> list[Contestant]:
    """The implementations that are named, as they call themselves if that tells them apart.

    Raises:
        BadParameter: One cannot be found, or is named twice.
    """
    if len(set(options)) < len(options):
        raise typer.BadParameter("names an implementation twice.", param_hint="--impl")
    try:
        found = [(option, resolve_implementation(option)) for option in options]
    except UnknownImplementationError as error:
        raise typer.BadParameter(str(error), param_hint="--impl") from error
    named = [
        Contestant(option, implementation.name, implementation.version)
        for option, implementation in found
    ]
    if len({contestant.name for contestant in named}) < len(named):
        return [replace(contestant, name=contestant.option) for contestant in named]
    return named


def factory_of(option: str) -> "ManagerFactory":
    """The factory of an implementation; called in the process of each run."""
    return resolve_implementation(option).make


def check_methods(contestants: list[Contestant]) -> None:
    """See, before hours of replay, that managers have the methods that a replay calls.

    Raises:
        CommandError: One of them lacks some.
    """
    for contestant in contestants:
        with suppress(ProcessDiedError):  # its runs will tell how it died
            problem = in_own_process(what_it_lacks, contestant.option, lambda _: None)
            if problem:
                raise CommandError(f"{as_option(contestant.option)}: {problem}")


def what_it_lacks(option: str, on_progress: Progress) -> str:
    """What an implementation lacks for a replay, in words; nothing if it builds no small manager.

    In a process of its own, since it brings in torch and whatever else a factory imports.
    """
    from pagedkv.conformance.introduction import SetUpError, demand_methods
    from pagedkv.traces.manager_setup import ManagerSetup
    from pagedkv.traces.sync_adapter import as_sync

    try:
        manager = factory_of(option)(ManagerSetup(page_size=16, total_num_pages=8))
    except Exception:  # its runs will be skipped, or fail, with the reason
        return ""
    try:
        demand_methods(manager, REQUIRED_METHODS)
    except SetUpError as error:
        return str(error)
    as_sync(manager).shutdown()
    return ""


def sizes_of(device_pages: str, host_pages: str, disk_pages: str) -> list[Sizes]:
    """The sizes that three options ask for.

    Raises:
        BadParameter: One of them is no list of numbers, or there is a disk tier but no host tier.
    """
    device = counts_in(device_pages, 1, "--pages")
    host = counts_in(host_pages, 0, "--host-pages")
    disk = counts_in(disk_pages, 0, "--disk-pages")
    if any(disk) and not any(host):
        raise typer.BadParameter(
            "a disk tier needs a host tier in front of it; give --host-pages, too.",
            param_hint="--disk-pages",
        )
    return every_combination(device, host, disk)


def counts_in(text: str, least: int, option: str) -> list[int]:
    """The numbers in a list with commas.

    Raises:
        BadParameter: One of them is none, or out of range.
    """
    try:
        return [between(least, MOST)(part) for part in text.split(",")]
    except typer.BadParameter as error:
        error.param_hint = option
        raise


def facts_of(workload: Workload, page_size: int | None, limit: int | None) -> WorkloadFacts:
    """What the report says of the workload.

    Raises:
        TraceError: The workload is malformed, or holds no request.
    """
    # Reading once ahead finds a malformed line before hours of replay, not after.
    summary = summarise(workload, page_size, limit)
    if summary.requests == 0:
        raise UnreadableTraceError(
            "the trace holds no request", remedy="check that it was written completely"
        ).at(workload.path, None)
    with workload.path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return WorkloadFacts(
        name=workload.path.name,
        sha256=digest,
        format=workload.format.name,
        block_size=workload.header.block_size,
        requests=summary.requests,
        tokens=summary.input_tokens.total,
        pages_referenced=summary.pages_referenced,
        distinct_pages=summary.distinct_pages,
        infinite_cache_hits=summary.infinite_cache_hits,
    )


def with_progress(
    task: Task, contestants: list[Contestant], every_size: list[Sizes]
) -> Iterator[Run]:
    """The runs, while a bar shows how far they are."""
    find_factories = {c.name: partial(factory_of, c.option) for c in contestants}
    total = task.requests * len(contestants) * len(every_size)
    finished = 0
    with progress_bar() as progress:
        bar = progress.add_task("comparing", total=total)

        def show(requests: int) -> None:
            progress.update(bar, completed=finished + requests)

        for run in sweep(task, find_factories, every_size, show):
            finished += task.requests
            show(0)
            yield run


def bounds_of(workload: Workload, task: Task, every_size: list[Sizes]) -> list[Bound]:
    """The Belady bound of every choice of sizes."""
    requests = islice(workload, task.requests)
    prompts = list(prompts_of(requests, task.conditions.page_size, workload.header.block_size))
    return [
        Bound(sizes=s, belady_hits=belady_hits(prompts, s.device_pages, s.lower_pages))
        for s in every_size
    ]


def summary_table(report: Report, out: Path) -> RenderableType:
    """The most important numbers, and where the others are."""
    tiers = list(dict.fromkeys(tier for run in report.runs for tier in run.sizes.tiers))
    table = Table(box=None, pad_edge=False, header_style="bold")
    for tier in tiers:
        table.add_column(f"{tier}\npages", justify="right", no_wrap=True)
    table.add_column("implementation", overflow="fold")
    for heading in ("hit\nrate", "Belady\nbound", "requests\nper second"):
        table.add_column(heading, justify="right", no_wrap=True)
    bounds = {bound.sizes: report.workload.rate(bound.belady_hits) for bound in report.bounds}
    for run in report.runs:
        table.add_row(
            *(number(run.sizes.pages_of(tier)) for tier in tiers),
            printable(run.implementation),
            *outcome_cells(run, bounds[run.sizes]),
        )
    return Group(table, "", f"report: {printable(str(out / PAGE))}")


def outcome_cells(run: Run, bound: float) -> tuple[str, str, str]:
    """How a run went, in three cells."""
    if isinstance(run, Unmeasured):
        return run.outcome, f"{bound:.1%}", ""
    hit_rate, speed = run.measurement.hit_rate, run.measurement.requests_per_second
    return (
        "not counted" if hit_rate is None else f"{hit_rate:.1%}",
        f"{bound:.1%}",
        "" if speed is None else f"{speed:,.0f}",
    )
