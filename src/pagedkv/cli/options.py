"""Options that several commands share."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated

import typer

from pagedkv.cli.output import STDOUT
from pagedkv.traces.atomic_file import check_replaceable
from pagedkv.traces.formats import FORMATS

MOST = 1_000_000_000
"""No option that counts something needs a larger number."""


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
        min=1,
        max=MOST,
        metavar="TOKENS",
        help="Tokens per hash id, for formats that do not say; by default what is usual there.",
    ),
]

JsonOption = Annotated[
    str | None,
    typer.Option(
        "--json",
        metavar="[FILE]",
        callback=writable_later,
        help="Write the result as JSON to FILE too, or without FILE to stdout alone.",
    ),
]
