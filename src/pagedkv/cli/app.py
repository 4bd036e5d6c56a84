"""Puts the commands together, and turns what goes wrong into one line and an exit status."""

import os
import sys
from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, NoReturn

import typer

from pagedkv import __version__
from pagedkv.cli.demo import demo
from pagedkv.cli.errors import CommandError
from pagedkv.cli.output import STDOUT
from pagedkv.cli.replay import replay_command
from pagedkv.cli.trace import trace_app
from pagedkv.traces.errors import TraceError

BAD_INPUT = 2
"""Exit status for a wrong option, a malformed file, a folder that cannot be written."""

OUTPUT_CLOSED = 1
"""Exit status if nobody reads stdout any more; typer's own, which it chooses for long outputs."""

INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells expect it."""

app = typer.Typer(
    help="A tiered, paged KV cache manager for LLM serving, and the workloads to try it on.",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("replay")(replay_command)
app.add_typer(trace_app, name="trace")
app.command("demo")(demo)


@app.callback(invoke_without_command=True)
def _pagedkv(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if version:
        typer.echo(f"pagedkv {__version__}")
    elif context.invoked_subcommand is None:
        raise CommandError("which command? 'pagedkv --help' lists them")


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line on ``arguments``, by default the process's own, and exit.

    The exit status is 0 on success, 2 for bad input of any kind, 130 after Ctrl-C. Other
    exceptions are bugs, here or in the implementation under replay, and keep their traceback.
    """
    sys.exit(_run(list(sys.argv[1:] if arguments is None else arguments)))


def _run(arguments: list[str]) -> int:
    try:
        status = typer.main.get_command(app).main(
            with_json_target(arguments or ["--help"]), prog_name="pagedkv", standalone_mode=False
        )
        sys.stdout.flush()
        return int(status or 0)
    except (KeyboardInterrupt, typer.Abort):
        return _complain("interrupted", INTERRUPTED)
    except BrokenPipeError:
        # Whoever read our output has seen enough; keep Python from complaining at exit, too.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OUTPUT_CLOSED
    except (TraceError, CommandError) as error:
        return _complain(str(error), BAD_INPUT)
    except OSError as error:
        return _complain(f"{error.filename or 'a file'}: {error.strerror}", BAD_INPUT)
    except Exception as error:
        # typer's complaints about options have no public base class; they are known by this.
        format_message = getattr(error, "format_message", None)
        if format_message is None:
            raise
        return _complain(format_message(), BAD_INPUT)


def _complain(message: str, status: int) -> int:
    print(f"pagedkv: {' '.join(message.split())}", file=sys.stderr)
    return status


def with_json_target(arguments: Sequence[str]) -> list[str]:
    """Let ``--json`` stand alone for ``--json -``, which typer does not offer."""
    completed: list[str] = []
    for argument, following in pairwise([*arguments, "--"]):
        completed.append(argument)
        if argument == "--json" and following.startswith("-") and following != STDOUT:
            completed.append(STDOUT)
    return completed
