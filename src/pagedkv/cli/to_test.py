"""``pagedkv trace to-test``: a divergence becomes a test for the system that it was recorded on."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from pagedkv.cli.errors import CommandError
from pagedkv.cli.options import keep_json_off, one_of
from pagedkv.cli.output import complain
from pagedkv.cli.recorded_run import RunArgument
from pagedkv.implementations import UnknownImplementationError, resolve_implementation

if TYPE_CHECKING:
    from pagedkv.conformance.implementation import Implementation
    from pagedkv.conformance.upstream.story import Story
    from pagedkv.conformance.upstream.write_test import System

PEERS = {"vllm": "pagedkv.conformance.peers.vllm", "max": "pagedkv.conformance.peers.max"}
"""Our adapters to the systems that tests are written for."""


def to_test_command(
    trace: RunArgument,
    system: Annotated[
        str,
        typer.Option(
            "--for",
            metavar="SYSTEM",
            callback=one_of(("vllm", "max", "python")),
            help="Whose classes the test uses: vllm, max, or python for a manager with our "
            "interface, which --impl names.",
            show_default=False,
        ),
    ],
    impl: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="What the divergence was recorded on, to leave out the calls that it does not "
            "need; by default our adapter to SYSTEM.",
        ),
    ] = None,
    as_it_is: Annotated[
        bool,
        typer.Option("--as-it-is", help="Keep all calls, and try nothing on the system."),
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            dir_okay=False,
            help="The test to write; by default it is printed.",
        ),
    ] = None,
    shortened: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", dir_okay=False, help="Also write the shortened run, an event trace."
        ),
    ] = None,
) -> None:
    """Turn the divergence of a recorded run into a pytest file for the system itself.

    A test for vllm or max needs nothing of this package. The system has to be installed here,
    unless --as-it-is is given.
    """
    for option, path in (("--output", output), ("--shortened", shortened)):
        if path is not None:
            keep_json_off(str(path), "RUN", trace, option=option)
    if system == "python" and impl is None:
        raise CommandError("--for python needs --impl: whose manager is it for?")
    from pagedkv.conformance.upstream.shorten import shortened as shorten
    from pagedkv.conformance.upstream.story import NoTestError, story_of
    from pagedkv.conformance.upstream.write_test import write_test
    from pagedkv.specification import reference_specification
    from pagedkv.traces.events.reader import EventTrace

    run = EventTrace(trace)
    try:
        story = story_of(run.header, run, reference_specification)
        if not as_it_is:
            implementation = _implementation(impl or PEERS[system])
            story = shorten(story, implementation, reference_specification)
        text = write_test(story, cast("System", system), implementation=impl or "")
    except NoTestError as error:
        raise CommandError(f"{trace}: {error}") from error
    if shortened is not None:
        _write_run(shortened, story)
    if output is None:
        typer.echo(text, nl=False)
    else:
        output.write_text(text, encoding="utf-8")
        complain(f"{output} tells of {len(story.events) + 1} events")


def _implementation(name: str) -> "Implementation":
    try:
        return resolve_implementation(name)
    except UnknownImplementationError as error:
        raise CommandError(
            f"{error}; or keep all calls, with --as-it-is, if the system is somewhere else"
        ) from error


def _write_run(path: Path, story: "Story") -> None:
    from pagedkv.traces.events.recorder import record_to

    with record_to(path, story.header) as recorder:
        for event in (*story.events, story.last):
            recorder.emit(event)
