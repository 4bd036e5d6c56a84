"""``pagedkv trace anonymise``: traces that may be shared."""

import hashlib
import secrets
from json import loads
from pathlib import Path
from typing import Annotated

import typer

from pagedkv.cli.options import (
    MOST,
    BlockSizeOption,
    FormatOption,
    JsonOption,
    between,
    keep_json_off,
)
from pagedkv.cli.output import emit, fact_table, number, warn
from pagedkv.traces.anonymiser import anonymise_workload
from pagedkv.traces.reader import Workload, read_lines
from pagedkv.traces.writer import write_workload


def anonymise_command(
    trace: Annotated[
        Path, typer.Argument(metavar="TRACE", help="A workload or an event trace, plain or gzip.")
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", metavar="FILE", dir_okay=False, help="What to write; .gz packs it."
        ),
    ],
    seed: Annotated[
        int | None,
        typer.Option(
            parser=between(0, 2**63 - 1),
            metavar="N",
            help="The same seed gives the same bytes; whoever knows it can test guesses. "
            "By default a secret that is thrown away.",
        ),
    ] = None,
    coarsen_ms: Annotated[
        int,
        typer.Option(
            parser=between(0, MOST), metavar="MS", help="Round arrival times down to multiples."
        ),
    ] = 0,
    format: FormatOption = None,
    block_size: BlockSizeOption = None,
    json: JsonOption = None,
) -> None:
    """Replace what could tell of people and keep what a cache depends on: lengths and sharing.

    The documentation says what can still be seen.
    """
    keep_json_off(str(output), "TRACE", trace, option="--output")
    keep_json_off(json, "TRACE", trace)
    keep_json_off(json, "--output", output)
    if is_event_trace(trace):
        count = _anonymise_events(trace, output, seed)
        what = "events"
    else:
        workload = Workload(trace, format=format, block_size=block_size)
        header, requests = anonymise_workload(workload.header, workload, coarsen_ms=coarsen_ms)
        count = write_workload(output, header, requests)
        warn(workload.oddities.texts())
        what = "requests"
    table = fact_table(output.name)
    table.add_row(what, number(count))
    emit({"output": str(output), what: count}, table, json)


def is_event_trace(path: Path) -> bool:
    """Whether a file begins as an event trace does.

    Raises:
        TraceError: It cannot be read.
    """
    _, first_line = next(read_lines(path), (0, ""))
    try:
        header = loads(first_line)
    except (ValueError, RecursionError):
        return False
    return isinstance(header, dict) and header.get("format") == "pagedkv-events"


def _anonymise_events(trace: Path, output: Path, seed: int | None) -> int:
    # Imported late because they bring in torch, which a workload does not need.
    from pagedkv.traces.events.anonymiser import anonymise_events
    from pagedkv.traces.events.reader import EventTrace
    from pagedkv.traces.events.recorder import record_to

    run = EventTrace(trace)
    if seed is None:
        secret = secrets.token_bytes(32)
    else:
        secret = hashlib.sha256(f"pagedkv anonymise {seed}".encode()).digest()
    header, events = anonymise_events(run.header, run, secret)
    with record_to(output, header) as recorder:
        for event in events:
            recorder.emit(event)
    return recorder.count
