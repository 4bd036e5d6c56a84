"""Options that several commands share."""

import os
import reprlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from pagedkv.cli.errors import CommandError
from pagedkv.cli.output import STDOUT
from pagedkv.traces.atomic_file import check_replaceable
from pagedkv.traces.formats import FORMATS
from pagedkv.traces.workload import MAX_TOKENS

MOST = 1_000_000_000
"""No option that counts something needs a larger number."""

Number = TypeVar("Number", int, float)


def between(least: Number, most: Number) -> Callable[[str], Number]:
    """A parser for numbers of the type of ``least``, both bounds included.

    typer has ranges of its own, but its complaints do not repeat what was given.
    """

    def parse(text: str) -> Number:
        try:
            value = type(least)(text)
        except ValueError:
            value = None
        if value is None or not least <= value <= most:
            kind = "whole number" if isinstance(least, int) else "number"
            raise typer.BadParameter(
                f"{reprlib.repr(text)} is no {kind} from {least} to {most}."
            ) from None
        return value

    return parse


def one_of(names: Iterable[str]) -> Callable[[str | None], str | None]:
    """A check that an option holds one of ``names``, if it was given."""
    allowed = tuple(names)

    def check(value: str | None) -> str | None:
        if value is not None and value not in allowed:
            raise typer.BadParameter(f"{value!r} is not one of {', '.join(allowed)}.")
        return value

    return check


def writable_later(json: str | None) -> str | None:
    """Check before a long run, not after it, that its result will have a place."""
    if json is not None and json != STDOUT:
        try:
            check_replaceable(Path(json))
        except OSError as error:
            raise typer.BadParameter(
                f"{json!r}: {error.strerror}; --json alone writes to stdout."
            ) from error
    return json


def keep_json_off(json: str | None, argument: str, path: Path, *, option: str = "--json") -> None:
    """Refuse an ``option`` that would replace the file of another argument, by whatever name.

    Raises:
        CommandError: They are the same file.
    """
    if json is None or json == STDOUT:
        return
    is_same = os.path.realpath(json) == os.path.realpath(path)
    if is_same or (os.path.exists(json) and os.path.exists(path) and os.path.samefile(json, path)):
        raise CommandError(f"{option} {json} is the {argument} itself; give it a file of its own")


TraceArgument = Annotated[
    Path, typer.Argument(metavar="TRACE", help="A trace in any known format, plain or gzip.")
]

FormatOption = Annotated[
    str | None,
    typer.Option(
        "--format",
        metavar="NAME",
        callback=one_of(FORMATS),
        help=f"One of {', '.join(FORMATS)}; told from the content by default.",
    ),
]

BlockSizeOption = Annotated[
    int | None,
    typer.Option(
        parser=between(1, MAX_TOKENS),
        metavar="TOKENS",
        help="Tokens per hash id, for formats that do not say; by default what is usual there.",
    ),
]

PageSizeOption = Annotated[
    int | None,
    typer.Option(
        parser=between(1, MAX_TOKENS),
        metavar="TOKENS",
        help="Tokens per page; by default the block size of the trace.",
    ),
]

LimitOption = Annotated[
    int | None,
    typer.Option(parser=between(1, MOST), metavar="N", help="Replay only the first N requests."),
]

JsonOption = Annotated[
    str | None,
    typer.Option(
        "--json",
        metavar="FILE|-",
        callback=writable_later,
        help="Write the result as JSON to FILE too; '-' or nothing prints it instead of the table.",
    ),
]
