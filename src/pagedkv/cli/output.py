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
    write_json(result, json_to)
    if json_to != STDOUT:
        screen = terminal()
        with screen.capture() as capture:
            screen.print(table)
        # rich fills every line up to the width of its table
        sys.stdout.writelines(line.rstrip() + "\n" for line in capture.get().split("\n")[:-1])


def write_json(result: Mapping[str, object], json_to: str | None) -> None:
    """Write a result as JSON to a file or to stdout, if anywhere.

    Raises:
        ValueError: A number is not finite, which JSON cannot say.
        OSError: The file cannot be written.
    """
    text = json.dumps(result, indent=2, allow_nan=False) + "\n"
    if json_to == STDOUT:
        sys.stdout.write(text)
    elif json_to is not None:
        with replace_file(Path(json_to)) as file:
            file.write(text.encode())


def warn(warnings: Iterable[str]) -> None:
    """Tell people about oddities, on stderr."""
    for warning in warnings:
        complain(f"warning: {warning}")


def complain(message: str) -> None:
    """Tell people what is wrong, in one line on stderr."""
    print(f"pagedkv: {printable(' '.join(message.split()))}", file=sys.stderr)


def printable(text: str) -> str:
    """The text with control characters spelled out, which could rewrite what a terminal shows."""
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode()
        for character in text
    )


def terminal(*, stderr: bool = False) -> Console:
    """Where to print; square brackets and colons are text, since traces may hold any."""
    return Console(stderr=stderr, markup=False, emoji=False, highlight=False)


def progress_bar() -> Progress:
    """A progress bar on stderr, which shows on a terminal only and leaves nothing behind."""
    console = terminal(stderr=True)
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
        transient=True,
    )


def fact_table(title: str) -> Table:
    """An empty table of facts: a name, a number, a remark."""
    table = Table(
        title=printable(title), title_justify="left", box=None, show_header=False, pad_edge=False
    )
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
