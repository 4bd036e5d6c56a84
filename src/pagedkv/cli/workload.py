"""``pagedkv trace info|validate|import|generate``: workloads are looked at, converted and made."""

import reprlib
import sys
from collections.abc import Iterable
from dataclasses import asdict
from json import dumps
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
    PageSizeOption,
    TraceArgument,
    between,
    keep_json_off,
    one_of,
)
from pagedkv.cli.output import (
    STDOUT,
    complain,
    emit,
    fact_table,
    number,
    printable,
    warn,
    write_json,
)
from pagedkv.traces.arrivals import ARRIVALS
from pagedkv.traces.errors import TraceError
from pagedkv.traces.generator import GeneratorParameters, generate
from pagedkv.traces.prefix_ids import chained
from pagedkv.traces.reader import Workload
from pagedkv.traces.scenario import MIX, SCENARIOS
from pagedkv.traces.summary import Lengths, Summary, summarise
from pagedkv.traces.validator import ValidationReport, validate
from pagedkv.traces.workload import MAX_TOKENS, WorkloadHeader, WorkloadRequest
from pagedkv.traces.writer import write_lines, write_workload

OutputArgument = Annotated[
    str,
    typer.Argument(metavar="OUTPUT", help="The file to write, compressed if it ends in .gz; or -."),
]


def info(
    trace: TraceArgument,
    page_size: PageSizeOption = None,
    format: FormatOption = None,
    block_size: BlockSizeOption = None,
    json: JsonOption = None,
) -> None:
    """Say what a workload looks like, and how much of it any prefix cache could hit."""
    keep_json_off(json, "TRACE", trace)
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
    table.add_row("format", workload.format.name, printable(workload.header.origin or ""))
    table.add_row("block size", number(workload.header.block_size), "tokens per hash id")
    table.add_row("requests", number(summary.requests))
    for kind, count in summary.types.items():
        table.add_row(f"  {printable(kind)}", number(count))
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


def validate_command(
    trace: TraceArgument,
    max_errors: Annotated[
        int,
        typer.Option(parser=between(1, MOST), metavar="N", help="Stop after this many errors."),
    ] = 20,
    format: FormatOption = None,
    block_size: BlockSizeOption = None,
    json: JsonOption = None,
) -> None:
    """Check every line of a trace, and that its hash ids name prefixes.

    The exit status is 0 if the file can be used as it is, 2 otherwise.
    """
    keep_json_off(json, "TRACE", trace)
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
        complain(str(problem))
    if not report.ok:
        raise typer.Exit(2)


def _error_record(error: TraceError) -> dict[str, object]:
    return {
        "kind": type(error).__name__,
        "line": error.line,
        "field": error.field,
        "value": json_value(error.value),
        "problem": error.problem,
        "remedy": error.remedy,
    }


def json_value(value: object) -> object:
    """The value itself, or as text if JSON cannot say it: NaN, a number without end."""
    try:
        dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        return reprlib.repr(value)
    return value


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
    keep_json_off(json, "TRACE", trace)
    workload = Workload(trace, format=format, block_size=block_size)
    _write(output, workload.header, chained(workload), json)
    warn(workload.oddities.texts())


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
        int,
        typer.Option(parser=between(1, 100_000_000), metavar="N", help="Number of requests."),
    ] = 1000,
    sessions: Annotated[
        int | None,
        typer.Option(
            parser=between(1, MOST),
            metavar="N",
            help="Number of sessions; by default as is usual.",
        ),
    ] = None,
    seed: Annotated[
        int,
        typer.Option(
            parser=between(-(2**63), 2**63 - 1),
            metavar="N",
            help="The same seed gives the same bytes.",
        ),
    ] = 0,
    block_size: Annotated[
        int,
        typer.Option(parser=between(1, MAX_TOKENS), metavar="TOKENS", help="Tokens per id."),
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
        float,
        typer.Option(parser=between(0.0001, 1e9), metavar="R", help="Mean requests per second."),
    ] = 1.0,
    system_tokens: Annotated[
        int | None,
        typer.Option(
            parser=between(1, MAX_TOKENS), metavar="TOKENS", help="Mean length of a system prompt."
        ),
    ] = None,
    document_tokens: Annotated[
        int | None,
        typer.Option(
            parser=between(1, MAX_TOKENS), metavar="TOKENS", help="Mean length of a document."
        ),
    ] = None,
    input_tokens: Annotated[
        int | None,
        typer.Option(
            parser=between(1, MAX_TOKENS), metavar="TOKENS", help="Mean length a turn adds."
        ),
    ] = None,
    output_tokens: Annotated[
        int | None,
        typer.Option(
            parser=between(1, MAX_TOKENS), metavar="TOKENS", help="Mean length of an answer."
        ),
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
    """Write a workload to a file and say so, or to stdout, where only ``--json FILE`` does."""
    if output == STDOUT:
        if json == STDOUT:
            raise CommandError(
                "OUTPUT and --json cannot both go to stdout; give one of them a file"
            )
        count = write_lines(sys.stdout.buffer, header, requests)
        write_json(_written(output, header, count, None), json)
        return
    path = Path(output)
    keep_json_off(json, "OUTPUT", path)
    count = write_workload(path, header, requests)
    nbytes = path.stat().st_size
    table = fact_table(path.name)
    table.add_row("requests", number(count))
    table.add_row("block size", number(header.block_size), "tokens per hash id")
    table.add_row("bytes", number(nbytes))
    emit(_written(output, header, count, nbytes), table, json)


def _written(
    output: str, header: WorkloadHeader, requests: int, nbytes: int | None
) -> dict[str, object]:
    return {
        "output": output,
        "requests": requests,
        "block_size": header.block_size,
        "bytes": nbytes,
    }
