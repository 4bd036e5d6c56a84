"""``pagedkv serve-protocol``: an implementation behind the JSON-lines protocol."""

import os
import sys
from typing import Annotated

import typer

from pagedkv.implementations import UnknownImplementationError, resolve_implementation


def serve_protocol(
    impl: Annotated[
        str,
        typer.Option(metavar="NAME", help="'engine', 'reference', or 'package.module:factory'."),
    ] = "reference",
) -> None:
    """Answer requests on stdin with replies on stdout, until stdin ends; see docs/protocol.md."""
    try:
        implementation = resolve_implementation(impl)
    except UnknownImplementationError as error:
        raise typer.BadParameter(str(error), param_hint="--impl") from error
    # Imported late because it brings in torch: a wrong option should be told at once.
    from pagedkv.conformance.protocol.server import Server

    server = Server(implementation)
    # Replies have stdout for themselves: what the implementation prints goes to stderr.
    with os.fdopen(os.dup(sys.stdout.fileno()), "wb") as replies:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        for line in sys.stdin.buffer:
            replies.write(server.answer(line) + b"\n")
            replies.flush()
