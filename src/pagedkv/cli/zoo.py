"""``pagedkv zoo``: broken managers, each with a bug that happened somewhere; all must be caught."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from pagedkv.cli.options import JsonOption, writable_later
from pagedkv.cli.output import STDOUT, printable, progress_bar, terminal, write_json
from pagedkv.traces.atomic_file import replace_file

if TYPE_CHECKING:
    from pagedkv.conformance.suite import Outcome
    from pagedkv.conformance.zoo.specimen import Specimen
    from pagedkv.conformance.zoo.visit import Visit


def zoo(
    only: Annotated[
        list[str] | None,
        typer.Option(metavar="N", help="Only bugs of this number, or of this name."),
    ] = None,
    all_checks: Annotated[
        bool, typer.Option("--all-checks", help="Go on after the first check that catches a bug.")
    ] = False,
    html: Annotated[
        str | None,
        typer.Option(metavar="FILE", callback=writable_later, help="Write a page for people."),
    ] = None,
    json: JsonOption = None,
) -> None:
    """Show the conformance suite managers that are broken in ways in which real ones were.

    The exit status is 0 if every one is caught and the untouched reference passes, else 1.
    """
    from pagedkv.conformance.zoo.report import as_data, as_page

    visits, false_alarms = look_at(selected(only or []), all_checks=all_checks)
    if json != STDOUT:
        terminal().print(told(visits, false_alarms), soft_wrap=True)
    write_json(as_data(visits), json)
    if html is not None:
        with replace_file(Path(html)) as file:
            file.write(as_page(visits).encode())
    if false_alarms or not all(visit.caught_by for visit in visits):
        raise typer.Exit(1)


def selected(only: Sequence[str]) -> list["Specimen"]:
    """The specimens of these numbers or names; all if none are given."""
    from pagedkv.conformance.zoo.catalogue import ZOO

    for name in only:
        if not any(name in (str(specimen.number), specimen.name) for specimen in ZOO):
            raise typer.BadParameter(
                f"the zoo has no {name!r}; docs/zoo.md lists it.", param_hint="--only"
            )
    return [s for s in ZOO if not only or str(s.number) in only or s.name in only]


def look_at(
    specimens: Sequence["Specimen"], *, all_checks: bool
) -> tuple[list["Visit"], list["Outcome"]]:
    """How every specimen fared, and the checks that failed on the untouched reference."""
    from pagedkv.conformance import suite
    from pagedkv.conformance.zoo.visit import visit, visit_untouched

    checks, visits = suite.all_checks(), []
    with progress_bar() as progress:
        task = progress.add_task("the zoo", total=len(specimens))
        for specimen in specimens:
            visits.append(visit(specimen, checks, all_checks=all_checks))
            progress.advance(task)
        task = progress.add_task("the untouched reference", total=len(checks))
        false_alarms = []
        for outcome in visit_untouched(checks):
            if outcome.status == "failed":
                false_alarms.append(outcome)
            progress.advance(task)
    return visits, false_alarms


def told(visits: Sequence["Visit"], false_alarms: Sequence["Outcome"]) -> RenderableType:
    """The result for people."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("bug", justify="right")
    for title in ("what happens", "where it did", "rule", "caught by"):
        table.add_column(title, overflow="fold")
    for visit in visits:
        specimen = visit.specimen
        caught = visit.caught_by[0] if visit.caught_by else None
        by = Text("not caught", style="bold red")
        if caught is not None:
            unexpected = "" if visit.as_expected else " (not expected)"
            by = Text(caught.check.id + unexpected, style="yellow" if unexpected else "")
        table.add_row(
            str(specimen.number),
            specimen.happens,
            ", ".join(specimen.source),
            caught.rule if caught else "",
            by,
        )
    caught_number = sum(bool(visit.caught_by) for visit in visits)
    lines: list[RenderableType] = [table, ""]
    for outcome in false_alarms:
        reason = printable(outcome.reason)
        lines.append(Text(f"false alarm: {outcome.check.id}: {reason}", style="bold red"))
    passed = "passes" if not false_alarms else f"fails {len(false_alarms)} checks"
    lines.append(f"{caught_number} of {len(visits)} caught; the untouched reference {passed}.")
    return Group(*lines)
