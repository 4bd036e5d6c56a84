"""``pagedkv streams check``: whether a log of streams orders whatever conflicts."""

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Group
from rich.text import Text

from pagedkv.cli.errors import CommandError
from pagedkv.cli.options import JsonOption, keep_json_off
from pagedkv.cli.output import emit, fact_table, number, printable, progress_bar, warn
from pagedkv.traces.reader import read_lines

if TYPE_CHECKING:
    from pagedkv.conformance.stream_order import Race

streams_app = typer.Typer(
    help="Look for races in what a system has enqueued on its streams.", rich_markup_mode=None
)


@streams_app.callback(invoke_without_command=True)
def _streams(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        raise CommandError("which command? 'pagedkv streams --help' lists them")


@streams_app.command("check")
def check_log(
    log: Annotated[
        Path,
        typer.Argument(
            metavar="LOG", help="A log of stream order, plain or gzip.", show_default=False
        ),
    ],
    json: JsonOption = None,
) -> None:
    """Name every two conflicting accesses that nothing orders, and the edge that is missing.

    The exit status is 0 if there are none, 1 if there are, 2 if the log cannot be read.
    """
    keep_json_off(json, "LOG", log)
    # Imported late because everything in conformance brings in torch.
    from pagedkv.conformance.stream_order import (
        Coverage,
        OrderLogError,
        check_order,
        read_order_log,
    )

    coverage = Coverage()
    with progress_bar() as progress:
        lines = progress.track(_lines(log), description=f"checking {log.name}")
        try:
            races = check_order(coverage.of(read_order_log(lines)))
        except OrderLogError as error:
            raise CommandError(f"{log}, line {error.line}: {error.problem}") from error
    table = fact_table("")
    for kind in ("launch", "copy", "host", "record", "wait"):
        table.add_row(kind, number(coverage.entries[kind]))
    table.add_row("races", number(len(races)))
    found = [Text(_as_text(count, race)) for count, race in enumerate(races, start=1)]
    result = {
        "log": str(log),
        "entries": dict(coverage.entries),
        "warnings": coverage.gaps,
        "races": [_as_json(race) for race in races],
    }
    emit(result, Group(Text(printable(log.name)), table, *found), json)
    warn(f"{log}: {gap}" for gap in coverage.gaps)
    if races:
        raise typer.Exit(1)


def _lines(log: Path) -> Iterator[str]:
    """The lines, at the places that they have in the file; blank ones are empty."""
    count = 0
    for line, text in read_lines(log):
        yield from [""] * (line - count - 1)
        yield text
        count = line


def _as_text(count: int, race: "Race") -> str:
    """A race for people: where, the two accesses, and the edge that would order them."""
    sides = [
        f"  line {side.line}, entry {side.index}: {side.access}"
        + (f" ({side.note})" if side.note else "")
        for side in (race.earlier, race.later)
    ]
    lines = ["", f"race {count}: {race.place}", *sides, f"  missing: {race.missing}"]
    return "\n".join(map(printable, lines))


def _as_json(race: "Race") -> dict[str, object]:
    earlier, later = (asdict(side) | {"line": side.line} for side in (race.earlier, race.later))
    return {
        "memory": race.memory,
        "rows": race.rows,
        "earlier": earlier,
        "later": later,
        "event": race.event,
        "missing": race.missing,
    }
