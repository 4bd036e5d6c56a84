"""``pagedkv trace``: what can be done with workloads and with recorded runs."""

import typer

from pagedkv.cli.anonymise import anonymise_command
from pagedkv.cli.errors import CommandError
from pagedkv.cli.recorded_run import check_command, cut_command, minimise_command, snapshot_command
from pagedkv.cli.to_test import to_test_command
from pagedkv.cli.workload import generate_command, import_command, info, validate_command

trace_app = typer.Typer(
    rich_markup_mode=None,
    help="Look at workloads, check, convert and generate them; check recorded runs and cut them.",
)


@trace_app.callback(invoke_without_command=True)
def _trace(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        raise CommandError("which command? 'pagedkv trace --help' lists them")


trace_app.command()(info)
trace_app.command("validate")(validate_command)
trace_app.command("import")(import_command)
trace_app.command("generate")(generate_command)
trace_app.command("anonymise")(anonymise_command)
trace_app.command("check")(check_command)
trace_app.command("snapshot")(snapshot_command)
trace_app.command("cut")(cut_command)
trace_app.command("minimise")(minimise_command)
trace_app.command("to-test")(to_test_command)
