"""``pagedkv replay``: a workload on an implementation."""

import traceback
from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Group, RenderableType
from rich.table import Table

from pagedkv.cli.errors import CommandError, ImplementationFailedError
from pagedkv.cli.options import (
    MOST,
    BlockSizeOption,
    FormatOption,
    JsonOption,
    LimitOption,
    PageSizeOption,
    TraceArgument,
    between,
    keep_json_off,
)
from pagedkv.cli.output import emit, fact_table, number, progress_bar, share, warn
from pagedkv.implementations import (
    UnknownImplementationError,
    as_option,
    resolve_implementation,
)
from pagedkv.traces.capacity import demand_of
from pagedkv.traces.errors import UnreadableTraceError
from pagedkv.traces.manager_call import ManagerCallError, call_manager
from pagedkv.traces.reader import Workload
from pagedkv.traces.replay_report import ReplayReport

if TYPE_CHECKING:
    from pagedkv.reference.interfaces import AsyncKVCacheManager, SyncKVCacheManager
    from pagedkv.traces.events.recorder import EventRecorder
    from pagedkv.traces.manager_setup import ManagerFactory, ManagerSetup

UNBOUNDED = "unbounded"
"""What ``--pages`` says for a pool that never has to evict."""

REQUIRED_METHODS = (
    *("claim", "alloc", "step", "release", "shutdown"),
    *("get_metrics_aggregated", "get_prefix_cache_hit_counts", "num_free_blocks"),
    *("poll_transfers", "pending_transfers_exist"),
)
"""What a replay calls on a manager."""


def pages_or_unbounded(text: str) -> str:
    """Check the value of ``--pages``."""
    is_number = text.isdecimal() and len(text) <= len(str(MOST)) and 1 <= int(text) <= MOST
    if text != UNBOUNDED and not is_number:
        raise typer.BadParameter(f"{text!r} is no number from 1 to {MOST} and not '{UNBOUNDED}'.")
    return text


def replay_command(
    trace: TraceArgument,
    impl: Annotated[
        str,
        typer.Option(metavar="NAME", help="'engine', 'reference', or 'package.module:factory'."),
    ] = "reference",
    impl_cmd: Annotated[
        str | None,
        typer.Option(
            "--impl-cmd",
            metavar="COMMAND",
            help="In place of --impl: a manager in any language that speaks the JSON-lines "
            "protocol.",
        ),
    ] = None,
    page_size: PageSizeOption = None,
    pages: Annotated[
        str,
        typer.Option(
            metavar="N|unbounded",
            callback=pages_or_unbounded,
            help="Device pages per replica; 'unbounded' is enough to never evict.",
        ),
    ] = UNBOUNDED,
    host_pages: Annotated[
        int,
        typer.Option(
            parser=between(0, MOST), metavar="N", help="Pages of the host tier; 0 for none."
        ),
    ] = 0,
    disk_pages: Annotated[
        int,
        typer.Option(
            parser=between(0, MOST),
            metavar="N",
            help="Pages of the disk tier, behind a host tier; 0 for none.",
        ),
    ] = 0,
    replicas: Annotated[
        int,
        typer.Option(parser=between(1, 1024), metavar="N", help="Data-parallel replicas."),
    ] = 1,
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
    runtime_inputs: Annotated[
        bool, typer.Option("--runtime-inputs", help="Also ask for the inputs of every forward.")
    ] = False,
    limit: LimitOption = None,
    format: FormatOption = None,
    block_size: BlockSizeOption = None,
    record: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            dir_okay=False,
            help="Record what the manager reports, as an event trace; .gz packs it.",
        ),
    ] = None,
    json: JsonOption = None,
    show_traceback: Annotated[
        bool,
        typer.Option("--traceback", help="If the implementation fails, show where it does."),
    ] = False,
) -> None:
    """Replay a workload: which pages hit, in which tier, and how long the calls take.

    Requests are admitted in file order, as soon as there is room; arrival times play no part.
    """
    keep_json_off(json, "TRACE", trace)
    if record is not None:
        keep_json_off(str(record), "TRACE", trace, option="--record")
        keep_json_off(json, "--record", record)
    if disk_pages and not host_pages:
        raise typer.BadParameter(
            "a disk tier needs a host tier in front of it; give --host-pages, too.",
            param_hint="--disk-pages",
        )
    if impl_cmd is not None:
        if impl != "reference":
            raise typer.BadParameter("give --impl or this, not both.", param_hint="--impl-cmd")
        impl = f"cmd:{impl_cmd}"
    try:
        factory = resolve_implementation(impl).make
    except UnknownImplementationError as error:
        hint = "--impl" if impl_cmd is None else "--impl-cmd"
        raise typer.BadParameter(str(error), param_hint=hint) from error
    workload = Workload(trace, format=format, block_size=block_size)
    page_size = page_size or workload.header.block_size
    # Reading once ahead finds a malformed line before hours of replay, not after.
    demand = demand_of(islice(workload, limit), page_size, decode=decode)
    if demand.requests == 0:
        raise UnreadableTraceError(
            "the trace holds no request", remedy="check that it was written completely"
        ).at(trace, None)
    with (
        TemporaryDirectory(prefix="pagedkv-disk-") as disk_dir,
        ExitStack() as recording,
        progress_bar() as progress,
    ):
        # Imported late because they bring in torch: a wrong option should be told at once.
        from pagedkv.traces.manager_setup import ManagerSetup
        from pagedkv.traces.replay import ReplayOptions, replay

        setup = ManagerSetup(
            page_size=page_size,
            total_num_pages=demand.pages if pages == UNBOUNDED else int(pages),
            host_pages=host_pages or None,
            disk_pages=disk_pages or None,
            disk_dir=Path(disk_dir),
            replicas=replicas,
            max_batch_size=concurrency,
        )
        recorder = None
        if record is not None:
            recorder = recording.enter_context(recording_to(record, impl, trace, setup))
            setup = setup.model_copy(update={"tracer": recorder})
        task = progress.add_task(f"replaying on {impl}", total=demand.requests)
        try:
            report = replay(
                islice(workload, limit),
                workload.header.block_size,
                checked(impl, factory, *(["runtime_inputs"] if runtime_inputs else [])),
                setup,
                ReplayOptions(concurrency, decode, runtime_inputs),
                on_request_done=lambda: progress.advance(task),
            )
        except (CommandError, ManagerCallError) as error:
            if show_traceback and error.__cause__ is not None:
                traceback.print_exception(error.__cause__)
            if isinstance(error, CommandError):
                raise
            raise ImplementationFailedError(f"{as_option(impl)}: {error}") from error
    warnings = workload.oddities.texts()
    if recorder is not None and recorder.count == 0:
        warnings.append(f"{impl} has reported no event, so {record} holds none")
    warn(warnings)
    parameters = {
        "page_size": page_size,
        "pages": setup.total_num_pages,
        "host_pages": host_pages,
        "disk_pages": disk_pages,
        "replicas": replicas,
        "concurrency": concurrency,
        "decode": decode,
        "runtime_inputs": runtime_inputs,
        "limit": limit,
    }
    result = {
        "implementation": impl,
        "trace": str(trace),
        "format": workload.format.name,
        "block_size": workload.header.block_size,
        "parameters": parameters,
        "hit_rate": report.hit_rate,
        **asdict(report),
        "warnings": warnings,
    }
    emit(result, replay_table(f"{trace.name} on {impl}", setup, report), json)


def recording_to(
    path: Path, impl: str, trace: Path, setup: "ManagerSetup"
) -> AbstractContextManager["EventRecorder"]:
    """A recorder for the replay's events; the file appears when the replay has ended well."""
    # Imported late because they bring in torch.
    from pagedkv.traces.events.recorder import record_to
    from pagedkv.traces.events.setup import EventTraceHeader

    header = EventTraceHeader(implementation=impl, setup=setup.run_setup(), origin=trace.name)
    return record_to(path, header)


def checked(impl: str, factory: "ManagerFactory", *more_methods: str) -> "ManagerFactory":
    """The same factory, its failures told as what they are: a wrong ``--impl`` or size.

    Args:
        impl: What the user calls it.
        factory: Builds the manager.
        more_methods: What will be called besides what every replay calls.
    """

    # Imported late because it brings in torch.
    from pagedkv.conformance.introduction import SetUpError, demand_methods

    def build(setup: "ManagerSetup") -> "SyncKVCacheManager | AsyncKVCacheManager":
        try:
            manager = call_manager("the factory", lambda: factory(setup))
        except ManagerCallError as error:
            raise CommandError(
                f"{as_option(impl)} cannot build a manager of this size: {error}"
            ) from error.__cause__
        try:
            demand_methods(manager, (*REQUIRED_METHODS, *more_methods))
        except SetUpError as error:
            raise CommandError(f"{as_option(impl)}: {error}") from error
        return manager

    return build


def replay_table(title: str, setup: "ManagerSetup", report: ReplayReport) -> RenderableType:
    """The result of one replay for people."""
    facts = fact_table(title)
    per_second = report.requests / report.seconds if report.seconds else 0
    facts.add_row("requests", number(report.requests), f"{per_second:,.0f} per second")
    facts.add_row("  refused", number(report.refused), "larger than the whole pool")
    if report.preemptions:
        facts.add_row("  preemptions", number(report.preemptions))
    facts.add_row(
        "prompt pages", number(report.pages_referenced), f"{number(setup.page_size)} tokens each"
    )
    facts.add_row(
        "  hit", number(report.pages_hit), share(report.pages_hit, report.pages_referenced)
    )
    for tier, hits in report.hits_by_tier.items():
        if hits or tier == "device":
            facts.add_row(f"    {tier}", number(hits), share(hits, report.pages_referenced))
    facts.add_row("prompt tokens", number(report.tokens_total))
    facts.add_row("  hit", number(report.tokens_hit), share(report.tokens_hit, report.tokens_total))
    facts.add_row("evictions", number(report.evictions), "cached device pages given up")
    facts.add_row("device pages", number(setup.total_num_pages), "per replica")
    facts.add_row("seconds", f"{report.seconds:.2f}")

    calls = Table(box=None, pad_edge=False, header_style="bold")
    calls.add_column("call", overflow="fold")
    for heading in ("count", "p50 µs", "p99 µs"):
        calls.add_column(heading, justify="right", no_wrap=True)
    for name, times in report.calls.items():
        calls.add_row(name, number(times.count), f"{times.p50_us:,.1f}", f"{times.p99_us:,.1f}")
    return Group(facts, "", calls)
