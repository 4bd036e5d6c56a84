"""``pagedkv disk``: look at the directory of a disk tier, check its bytes, empty it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from pagedkv.cli.errors import CommandError
from pagedkv.cli.options import JsonOption
from pagedkv.cli.output import emit, fact_table, number, progress_bar, share

disk_app = typer.Typer(
    help="Look at the directory of a disk tier, check its bytes, empty it.",
    rich_markup_mode=None,
)

DirectoryArgument = Annotated[
    Path, typer.Argument(metavar="DIR", help="What disk_offload_dir names.")
]


@disk_app.callback(invoke_without_command=True)
def _disk(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        raise CommandError("which command? 'pagedkv disk --help' lists them")


@disk_app.command("inspect")
def inspect_directory(directory: DirectoryArgument, json: JsonOption = None) -> None:
    """Show whose blocks a directory holds, and how many; a server may have it open."""
    # Imported late, here and below, because the engine brings in torch.
    from pagedkv.engine.disk.inspection import inspect
    from pagedkv.reference.sizing import human_bytes

    with complaints():
        contents = inspect(directory)
    space = contents.namespace
    result = {
        "layout": space and space.layout,
        "model_fingerprint": space and space.model,
        "format": space and space.format,
        "capacity": space and space.capacity,
        "block_nbytes": space and space.block_nbytes,
        "blocks": len(contents.rows),
        "slab_nbytes": contents.slab_nbytes,
        "open_in_process": contents.pid,
    }
    table = fact_table(str(directory))
    if space is not None:
        table.add_row("layout", space.layout[:12], f"format {space.format}")
        model = "none: its blocks end with it" if space.model is None else space.model
        table.add_row("model", "", model)
        table.add_row("block", number(space.block_nbytes), "bytes")
        table.add_row("slots", number(space.capacity), human_bytes(contents.slab_nbytes))
        table.add_row(
            "blocks", number(len(contents.rows)), share(len(contents.rows), space.capacity)
        )
    else:
        table.add_row("blocks", "0", "nothing was ever written here")
    if contents.pid is not None:
        table.add_row(
            "open in", str(contents.pid), "process; the latest blocks may be missing here"
        )
    emit(result, table, json)


@disk_app.command("verify")
def verify_directory(directory: DirectoryArgument, json: JsonOption = None) -> None:
    """Read every block and compare it with its checksum; the exit status is 1 if one is damaged."""
    from pagedkv.engine.disk.inspection import inspect, verify

    intact, damaged = 0, []
    with complaints(), progress_bar() as progress:
        task = progress.add_task("blocks", total=len(inspect(directory).rows))
        for key, is_intact in verify(directory):
            if is_intact:
                intact += 1
            else:
                damaged.append(key.hex())
            progress.advance(task)
    table = fact_table(str(directory))
    table.add_row("intact", number(intact), "")
    table.add_row("damaged", number(len(damaged)), "misses for whoever asks for them")
    for name in damaged:
        table.add_row("", "", name)
    emit({"intact": intact, "damaged": damaged}, table, json)
    if damaged:
        raise typer.Exit(1)


@disk_app.command("clear")
def clear_directory(directory: DirectoryArgument) -> None:
    """Remove all blocks, whoever's they are; nothing may have the directory open."""
    from pagedkv.engine.disk.inspection import clear
    from pagedkv.reference.sizing import human_bytes

    with complaints():
        typer.echo(f"{human_bytes(clear(directory))} freed")


@contextmanager
def complaints() -> Iterator[None]:
    """Turn what is wrong with a directory into one line for its owner."""
    from pagedkv.reference.errors import PagedKVError

    try:
        yield
    except PagedKVError as error:
        raise CommandError(str(error)) from error
