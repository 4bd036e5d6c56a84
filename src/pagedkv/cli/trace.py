"""``pagedkv trace``: look at workloads, check, convert and make them."""

import sys
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from pagedkv.cli.errors import CommandError
from pagedkv.cli.options import (
    MOST,
    BlockSizeOption,
    FormatOption,
    JsonOption,
    TraceArgument,
    one_of,
)
from pagedkv.cli.output import STDOUT, emit, fact_table, number, warn
from pagedkv.traces.arrivals import ARRIVALS
from pagedkv.traces.errors import TraceError
from pagedkv.traces.generator import GeneratorParameters, generate
from pagedkv.traces.prefix_ids import chained
from pagedkv.traces.reader import Workload
from pagedkv.traces.scenario import MIX, SCENARIOS
from pagedkv.traces.summary import Lengths, Summary, summarise
from pagedkv.traces.validator import ValidationReport, validate
from pagedkv.traces.workload import WorkloadHeader, WorkloadRequest
from pagedkv.traces.writer import write_lines, write_workload

trace_app = typer.Typer(help="Look at workloads, check, convert and generate them.")

OutputArgument = Annotated[
    str,
    typer.Argument(metavar="OUTPUT", help="The file to write, compressed if it ends in .gz; or -."),
]


@trace_app.callback(invoke_without_command=True)
def _trace(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        raise CommandError("which command? 'pagedkv trace --help' lists them")


@trace_app.command()
def info(
    trace: TraceArgument,
    page_size: Annotated[
        int | None,
        typer.Option(
            min=1, max=MOST, metavar="TOKENS", help="By default the block size of the trace."
        ),
    ] = None,
    format: FormatOption = None,
    block_size: BlockSizeOption = None,
    json: JsonOption = None,
) -> None:
    """Say what a workload looks like, and how much of it any prefix cache could hit."""
    workload = Workload(trace, format=format, block_size=block_size)
    summary = summarise(workload, page_size)
    warnings = workload.oddities.texts()
    warn(warnings)
    result = {
        "trace": str(trace),
        "format": workload.format.name,
        "block_size": workload.header.block_size,
        "origin": workload.header.origin,
        **asdict(summary),
        "infinite_cache_hit_rate": summary.infinite_cache_hit_rate,
        "warnings": warnings,
    }
    emit(result, _info_table(workload, summary), json)


def _info_table(workload: Workload, summary: Summary) -> Table:
    table = fact_table(workload.path.name)
    table.add_row("format", workload.format.name, workload.header.origin or "")
    table.add_row("block size", number(workload.header.block_size), "tokens per hash id")
    table.add_row("requests", number(summary.requests))
    for kind, count in summary.types.items():
        table.add_row(f"  {kind}", number(count))
    if summary.sessions:
        table.add_row("sessions", number(summary.sessions))
    table.add_row("duration", f"{summary.duration_s:,.0f} s")
    for name, lengths in (("prompt", summary.input_tokens), ("output", summary.output_tokens)):
        table.add_row(f"{name} tokens", number(lengths.total), _spread(lengths))
    table.add_row(
        "prompt pages", number(summary.pages_referenced), f"{number(summary.page_size)} tokens each"
    )
    table.add_row("  distinct", number(summary.distinct_pages), "what a cache could ever hold")
    table.add_row(
        "  repeated",
        number(summary.infinite_cache_hits),
        f"{summary.infinite_cache_hit_rate:.2%}: no cache can hit more",
    )
    return table


def _spread(lengths: Lengths) -> str:
    return f"p50 {lengths.p50:,}, p99 {lengths.p99:,}, longest {lengths.max:,}"


@trace_app.command("validate")
def validate_command(
    trace: TraceArgument,
    max_errors: Annotated[
        int, typer.Option(min=1, max=MOST, metavar="N", help="Stop after this many errors.")
    ] = 20,
    format: FormatOption = None,
    block_size: BlockSizeOption = None,
    json: JsonOption = None,
) -> None:
    """Check every line of a trace, and that its hash ids name prefixes.

    The exit status is 0 if the file can be used as it is, 2 otherwise.
    """
    report = ValidationReport()
    try:
        workload = Workload(trace, format=format, block_size=block_size)
        report = validate(workload, max_errors)
    except TraceError as error:
        report.errors.append(error)
    result = {
        "trace": str(trace),
        "valid": report.ok,
        "requests": report.requests,
        "errors": [_error_record(error) for error in report.errors],
        "complete": report.complete,
        "warnings": report.warnings,
    }
    table = fact_table(trace.name)
    table.add_row("valid", "yes" if report.ok else "no")
    table.add_row("requests", number(report.requests), "well formed")
    table.add_row(
        "errors", number(len(report.errors)), "" if report.complete else "and perhaps more"
    )
    table.add_row("warnings", number(len(report.warnings)))
    emit(result, table, json)
    warn(report.warnings)
    for problem in report.errors:
        print(f"pagedkv: {problem}", file=sys.stderr)
    if not report.ok:
        raise typer.Exit(2)


def _error_record(error: TraceError) -> dict[str, object]:
    return {
        "kind": type(error).__name__,
        "line": error.line,
        "field": error.field,
        "value": error.value,
        "problem": error.problem,
        "remedy": error.remedy,
    }


@trace_app.command("import")
def import_command(
    trace: TraceArgument,
    output: OutputArgument,
    format: FormatOption = None,
    block_size: BlockSizeOption = None,
    json: JsonOption = None,
) -> None:
    """Convert a trace of any format into a workload file.

    Hash ids are numbered anew, densely and by prefix; the order of the file is kept.
    """
    workload = Workload(trace, format=format, block_size=block_size)
    _write(output, workload.header, chained(workload), json)
    warn(workload.oddities.texts())


@trace_app.command("generate")
def generate_command(
    output: OutputArgument,
    scenario: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            callback=one_of([MIX, *SCENARIOS]),
            help=f"One of {', '.join([MIX, *SCENARIOS])}.",
        ),
    ] = MIX,
    requests: Annotated[
        int, typer.Option(min=1, max=100_000_000, metavar="N", help="Number of requests.")
    ] = 1000,
    sessions: Annotated[
        int | None,
        typer.Option(
            min=1, max=MOST, metavar="N", help="Number of sessions; by default as is usual."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(metavar="N", help="The same seed gives the same bytes.")] = 0,
    block_size: Annotated[
        int, typer.Option(min=1, max=MOST, metavar="TOKENS", help="Tokens per id.")
    ] = 128,
    arrival: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            callback=one_of(ARRIVALS),
            help=f"How sessions start: {', '.join(ARRIVALS)}.",
        ),
    ] = "poisson",
    rate: Annotated[
        float, typer.Option(min=0.0001, max=1e9, metavar="R", help="Mean requests per second.")
    ] = 1.0,
    system_tokens: Annotated[
        int | None,
        typer.Option(min=1, max=MOST, metavar="TOKENS", help="Mean length of a system prompt."),
    ] = None,
    document_tokens: Annotated[
        int | None,
        typer.Option(min=1, max=MOST, metavar="TOKENS", help="Mean length of a document."),
    ] = None,
    input_tokens: Annotated[
        int | None, typer.Option(min=1, max=MOST, metavar="TOKENS", help="Mean length a turn adds.")
    ] = None,
    output_tokens: Annotated[
        int | None,
        typer.Option(min=1, max=MOST, metavar="TOKENS", help="Mean length of an answer."),
    ] = None,
    json: JsonOption = None,
) -> None:
    """Make up a workload. Lengths that are not given are the scenario's own."""
    try:
        parameters = GeneratorParameters(
            scenario=scenario,
            requests=requests,
            sessions=sessions,
            seed=seed,
            block_size=block_size,
            arrival=arrival,
            rate=rate,
            system_tokens=system_tokens,
            document_tokens=document_tokens,
            input_tokens=input_tokens,
            output_tokens=output_tokens,
        )
    except ValueError as error:
        raise CommandError(f"--{error}") from error
    header, generated = generate(parameters)
    _write(output, header, generated, json)


def _write(
    output: str, header: WorkloadHeader, requests: Iterable[WorkloadRequest], json: str | None
) -> None:
    """Write a workload file and say so, or write it to stdout and say nothing."""
    if output == STDOUT:
        if json == STDOUT:
            raise CommandError(
                "OUTPUT and --json cannot both go to stdout; give one of them a file"
            )
        write_lines(sys.stdout.buffer, header, requests)
        return
    count = write_workload(output, header, requests)
    path = Path(output)
    nbytes = path.stat().st_size
    table = fact_table(path.name)
    table.add_row("requests", number(count))
    table.add_row("block size", number(header.block_size), "tokens per hash id")
    table.add_row("bytes", number(nbytes))
    emit(
        {"output": output, "requests": count, "block_size": header.block_size, "bytes": nbytes},
        table,
        json,
    )
