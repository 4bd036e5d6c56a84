"""Where results go: a table for people on stdout, JSON for programs on stdout or in a file."""

import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from pagedkv.traces.atomic_file import replace_file

STDOUT = "-"
"""What names the standard output where a file is expected."""


def emit(result: Mapping[str, object], table: RenderableType, json_to: str | None) -> None:
    """Show a result as a table, as JSON, or as both if the JSON goes to a file."""
    text = json.dumps(result, indent=2) + "\n"
    if json_to == STDOUT:
        sys.stdout.write(text)
        return
    if json_to is not None:
        with replace_file(Path(json_to)) as file:
            file.write(text.encode())
    Console().print(table)


def warn(warnings: Iterable[str]) -> None:
    """Tell people about oddities, on stderr."""
    for warning in warnings:
        print(f"pagedkv: warning: {warning}", file=sys.stderr)


def progress_bar() -> Progress:
    """A progress bar on stderr, which shows on a terminal only and leaves nothing behind."""
    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
        transient=True,
    )


def fact_table(title: str) -> Table:
    """An empty table of facts: a name, a number, a remark."""
    table = Table(title=title, title_justify="left", box=None, show_header=False, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(style="dim")
    return table


def number(value: int | None) -> str:
    """A count with thousands separators."""
    return "not counted" if value is None else f"{value:,}"


def share(part: int | None, whole: int) -> str:
    """A part in percent; empty if there is nothing to share."""
    return "" if part is None or whole == 0 else f"{part / whole:.2%}"
