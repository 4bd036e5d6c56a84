"""Puts the commands together, and turns what goes wrong into one line and an exit status."""

import os
import sys
from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated

import typer

from pagedkv import __version__
from pagedkv.cli.compare import compare
from pagedkv.cli.conformance import conformance
from pagedkv.cli.demo import demo
from pagedkv.cli.disk import disk_app
from pagedkv.cli.errors import CommandError
from pagedkv.cli.output import STDOUT, complain
from pagedkv.cli.replay import replay_command
from pagedkv.cli.serve import serve_protocol
from pagedkv.cli.simulate import simulate
from pagedkv.cli.soak import soak
from pagedkv.cli.streams import streams_app
from pagedkv.cli.trace import trace_app
from pagedkv.cli.zoo import zoo
from pagedkv.traces.errors import TraceError

BAD_INPUT = 2
"""Exit status for a wrong option, a malformed file, a folder that cannot be written."""

OUTPUT_CLOSED = 1
"""Exit status if nobody reads stdout any more; typer's own, which it chooses for long outputs."""

app = typer.Typer(
    help="A tiered, paged KV cache manager for LLM serving, and the workloads to try it on.",
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # rich's help cuts long option names on narrow terminals
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("replay")(replay_command)
app.command("compare")(compare)
app.add_typer(trace_app, name="trace")
app.command("conformance")(conformance)
app.command("zoo")(zoo)
app.command("simulate")(simulate)
app.command("soak")(soak)
app.command("demo")(demo)
app.add_typer(disk_app, name="disk")
app.add_typer(streams_app, name="streams")
app.command("serve-protocol")(serve_protocol)


def print_version(wanted: bool) -> None:
    """Print the version and end, if that is wanted."""
    if wanted:
        typer.echo(f"pagedkv {__version__}")
        raise typer.Exit


@app.callback()
def _pagedkv(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """Options of ``pagedkv`` itself; typer shows the app's help, not this line."""


def run(arguments: list[str]) -> int:
    """Run one command and return its exit status; complaints are one line on stderr.

    Raises:
        Exception: A bug of this package.
    """
    try:
        status = typer.main.get_command(app).main(
            with_json_target(arguments or ["--help"]), prog_name="pagedkv", standalone_mode=False
        )
        sys.stdout.flush()
        return int(status or 0)
    except BrokenPipeError:  # whoever read our output has seen enough
        discard_stdout()
        return OUTPUT_CLOSED
    except CommandError as error:
        complain(str(error))
        return error.status
    except TraceError as error:
        complain(str(error))
    except OSError as error:
        # What replaces or reads a file says its name; without one, it is the table or the JSON.
        if error.filename is None:
            discard_stdout()
        complain(f"{error.filename or 'stdout'}: {error.strerror}")
    except Exception as error:
        # typer's complaints about options have no public base class; they are known by this.
        format_message = getattr(error, "format_message", None)
        if format_message is None:
            raise
        complain(format_message())
    return BAD_INPUT


def discard_stdout() -> None:
    """Keep Python from trying once more, at exit, to write what could not be written."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def with_json_target(arguments: Sequence[str]) -> list[str]:
    """Let ``--json`` stand alone for ``--json -``, which typer does not offer."""
    completed: list[str] = []
    for argument, following in pairwise([*arguments, "--"]):
        completed.append(argument)
        if argument == "--json" and following.startswith("-") and following != STDOUT:
            completed.append(STDOUT)
    return completed
