"""``pagedkv trace check|snapshot|cut|minimise``: recorded runs and the reference."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from pagedkv.cli.errors import CommandError
from pagedkv.cli.options import MOST, JsonOption, between, keep_json_off
from pagedkv.cli.output import complain, emit, fact_table, number, printable, progress_bar
from pagedkv.cli.run_state import add_state, requests_of, state_record
from pagedkv.traces.errors import TraceError

# What the commands need of conformance/ and reference/ is imported when they run: it brings in
# torch, which takes seconds.
if TYPE_CHECKING:
    from pagedkv.conformance.recorded.minimise import MinimalRun
    from pagedkv.conformance.validation import Divergence
    from pagedkv.reference.events import Event
    from pagedkv.traces.events.reader import EventTrace

RunArgument = Annotated[
    Path, typer.Argument(metavar="RUN", help="An event trace, plain or gzip.", show_default=False)
]

RunOutput = Annotated[
    Path,
    typer.Option(
        "--output",
        "-o",
        metavar="FILE",
        dir_okay=False,
        help="The event trace to write; .gz packs it.",
    ),
]

BudgetOption = Annotated[
    int | None,
    typer.Option(
        "--budget",
        parser=between(1, MOST),
        metavar="EVENTS",
        help="Events to play at most before the shortest run so far has to do.",
    ),
]


def check_command(
    trace: RunArgument,
    after: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN",
            dir_okay=False,
            help="The run that used the disk before: what has survived must have landed there.",
        ),
    ] = None,
    minimise: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            dir_okay=False,
            help="If the run diverges, write a short run that diverges in the same way.",
        ),
    ] = None,
    budget: BudgetOption = None,
    up_to_renaming: Annotated[
        bool,
        typer.Option(
            "--up-to-renaming",
            help="Let the manager number its pages as it likes, if it chooses them as the "
            "reference does.",
        ),
    ] = False,
    json: JsonOption = None,
) -> None:
    """Feed a recorded run to the reference: was every call and every result allowed?

    The exit status is 0 if it was, 1 if the run diverges, 2 if the file cannot be read.
    """
    keep_json_off(json, "RUN", trace)
    if minimise is not None:
        keep_json_off(str(minimise), "RUN", trace, option="--minimise")
        keep_json_off(json, "--minimise", minimise)
    from pagedkv.conformance.recorded.page_names import RenamedRun
    from pagedkv.conformance.validation import Divergence, validate
    from pagedkv.specification import reference_specification
    from pagedkv.traces.events.reader import EventTrace

    run = EventTrace(trace)
    header, events = run.header, cast("Iterable[Event]", run)
    if up_to_renaming:
        events = RenamedRun(header.setup, run, reference_specification, header.start)
    with complaints(), progress_bar() as progress:
        wrong_start = None if after is None else _wrong_start(run, after)
        followed = progress.track(events, description=f"checking {trace.name}")
        outcome = wrong_start or validate(
            header.setup, followed, reference_specification, header.start
        )
    if isinstance(outcome, Divergence):
        _show_divergence(run, events, outcome, json)
        if not up_to_renaming and {"pages"} <= {*outcome.differing} <= {"pages", "issued"}:
            complain("with --up-to-renaming, pages may have other numbers than on the reference")
        if minimise is not None and wrong_start is None:
            shortest = _minimise(run, events, minimise, budget)
            complain(f"{minimise} shows the same in {len(shortest.events)} events")
        raise typer.Exit(1)
    table = fact_table(trace.name)
    table.add_row("implementation", printable(header.implementation))
    table.add_row("allowed", "yes")
    table.add_row("events", number(outcome))
    emit(_verdict(run, outcome), table, json)


def _wrong_start(run: "EventTrace", after: Path) -> "Divergence | None":
    """What is wrong with the disk that ``run`` opens, if it is the one of the run ``after``.

    Raises:
        CommandError: The run opens no disk.
    """
    from pagedkv.conformance.recorded.restart import wrong_survivors
    from pagedkv.conformance.validation import Divergence
    from pagedkv.reference.events import DiskOpened
    from pagedkv.specification import reference_specification
    from pagedkv.traces.events.reader import EventTrace

    opened = next(iter(run), None)
    if not isinstance(opened, DiskOpened):
        raise CommandError(f"{run.path} opens no disk; leave --after out")
    before = EventTrace(after)
    reason = wrong_survivors(before.header, before, run.header, opened, reference_specification)
    if reason is None:
        return None
    return Divergence(run.header.first_seq, opened, None, f"DiskOpened: {reason}")


def _show_divergence(
    run: "EventTrace", events: "Iterable[Event]", divergence: "Divergence", json: str | None
) -> None:
    """Say what is wrong with a run, and how it stood before that."""
    from pagedkv.conformance.recorded.cutting import start_at
    from pagedkv.specification import reference_specification

    header = run.header
    with complaints():
        before = start_at(header, events, divergence.seq, reference_specification)
    both = (divergence.seen, divergence.expected)
    involved = {name for event in both for name in requests_of(event, before.state)}
    count = divergence.seq - header.first_seq
    table = fact_table(run.path.name)
    table.add_row("implementation", printable(header.implementation))
    table.add_row("allowed", "no")
    table.add_row("events", number(count), "before the first that is not")
    table.add_row("before", f"event {before.seq}")
    add_state(table, before.state, header.setup.total_num_pages, involved)
    state = {"seq": before.seq, **state_record(before.state, involved)}
    emit(_verdict(run, count, divergence.reason, state), table, json)
    # The header is line 1, and the first event line 2.
    complain(f"{run.path}, line {count + 2}: {divergence.reason}")


def _verdict(
    run: "EventTrace", count: int, reason: str | None = None, state: object = None
) -> dict[str, object]:
    return {
        "trace": str(run.path),
        "implementation": run.header.implementation,
        "allowed": reason is None,
        "events": count,
        "reason": reason,
        "state": state,
    }


def snapshot_command(
    trace: RunArgument,
    at: Annotated[
        int | None,
        typer.Option(
            parser=between(0, MOST),
            metavar="SEQ",
            help="Before the event of this number; by default at the end.",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            dir_okay=False,
            help="Write it as an event trace without events, to which more may be added.",
        ),
    ] = None,
    json: JsonOption = None,
) -> None:
    """Show the state of a run before one of its events, derived by following it from its start.

    Before an event that its call does not report first, it is the state before the call.
    """
    keep_json_off(json, "RUN", trace)
    if output is not None:
        keep_json_off(str(output), "RUN", trace, option="--output")
        keep_json_off(json, "--output", output)
    from pagedkv.conformance.recorded.cutting import start_at
    from pagedkv.specification import reference_specification
    from pagedkv.traces.events.reader import EventTrace
    from pagedkv.traces.events.recorder import record_to

    run = EventTrace(trace)
    with complaints(), progress_bar() as progress:
        progress.add_task(f"following {trace.name}", total=None)
        start = start_at(run.header, run, at, reference_specification)
    if output is not None:
        with record_to(output, run.header.model_copy(update={"start": start})):
            pass
    table = fact_table(trace.name)
    table.add_row("before", f"event {start.seq}")
    add_state(table, start.state, run.header.setup.total_num_pages)
    emit(start.model_dump(mode="json"), table, json)


def cut_command(
    trace: RunArgument,
    output: RunOutput,
    first: Annotated[
        int,
        typer.Option("--from", parser=between(0, MOST), metavar="SEQ", help="The first event."),
    ] = 0,
    last: Annotated[
        int | None,
        typer.Option("--to", parser=between(0, MOST), metavar="SEQ", help="The last event."),
    ] = None,
    json: JsonOption = None,
) -> None:
    """Write a part of a run as a run of its own, which begins with the state before it.

    Calls that report several events are not cut in two. Events keep their numbers.
    """
    keep_json_off(str(output), "RUN", trace, option="--output")
    keep_json_off(json, "RUN", trace)
    keep_json_off(json, "--output", output)
    if last is not None and last < first:
        raise CommandError(f"--to {last} comes before --from {first}; swap them")
    from pagedkv.conformance.recorded.cutting import cut
    from pagedkv.specification import reference_specification
    from pagedkv.traces.events.reader import EventTrace
    from pagedkv.traces.events.recorder import record_to

    run = EventTrace(trace)
    with complaints(), progress_bar() as progress:
        progress.add_task(f"following {trace.name}", total=None)
        header, events = cut(run.header, run, first, last, reference_specification)
        with record_to(output, header) as recorder:
            for event in events:
                recorder.emit(event)
    table = fact_table(output.name)
    table.add_row("first event", number(header.first_seq))
    table.add_row("events", number(recorder.count))
    result = {"output": str(output), "first": header.first_seq, "events": recorder.count}
    emit(result, table, json)


def minimise_command(
    trace: RunArgument, output: RunOutput, budget: BudgetOption = None, json: JsonOption = None
) -> None:
    """Write a short run that diverges in the same way as a long one does.

    Requests and events that are not needed are left out; results, page ids and names of transfers
    are what the reference answers to the rest. The last event is the one that is wrong.
    """
    keep_json_off(str(output), "RUN", trace, option="--output")
    keep_json_off(json, "RUN", trace)
    keep_json_off(json, "--output", output)
    from pagedkv.traces.events.reader import EventTrace

    run = EventTrace(trace)
    shortest = _minimise(run, run, output, budget)
    result = {
        "output": str(output),
        "events": len(shortest.events),
        "reason": shortest.divergence.reason,
        "played": shortest.played,
        "shortest": shortest.is_shortest,
    }
    table = fact_table(output.name)
    table.add_row("events", number(len(shortest.events)))
    table.add_row(
        "played",
        number(shortest.played),
        "" if shortest.is_shortest else "all that --budget allows; more might find a shorter run",
    )
    emit(result, table, json)
    complain(shortest.divergence.reason)


def _minimise(
    run: "EventTrace", events: "Iterable[Event]", output: Path, budget: int | None
) -> "MinimalRun":
    from pagedkv.conformance.recorded.minimise import BUDGET, minimise
    from pagedkv.specification import reference_specification
    from pagedkv.traces.events.recorder import record_to

    budget = budget or BUDGET
    header = run.header.model_copy(update={"origin": f"minimised from {run.path.name}"})
    with complaints(), progress_bar() as progress:
        task = progress.add_task(f"minimising {run.path.name}", total=budget)
        shortest = minimise(
            header,
            events,
            reference_specification,
            budget=budget,
            on_progress=lambda played: progress.update(task, completed=played),
        )
    with record_to(output, header) as recorder:
        for event in shortest.events:
            recorder.emit(event)
    return shortest


@contextmanager
def complaints() -> Iterator[None]:
    """Tell people what the reference cannot follow, and why, in one line."""
    try:
        yield
    except TraceError:
        raise
    except ValueError as error:
        raise CommandError(str(error)) from error
