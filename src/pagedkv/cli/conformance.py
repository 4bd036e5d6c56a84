"""``pagedkv conformance``: the suite on one or several implementations."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from pagedkv.cli.errors import CommandError
from pagedkv.cli.options import JsonOption, between, writable_later
from pagedkv.cli.output import STDOUT, complain, printable, progress_bar, terminal, write_json
from pagedkv.implementations import (
    UnknownImplementationError,
    as_option,
    reference,
    resolve_implementation,
)
from pagedkv.traces.atomic_file import replace_file

if TYPE_CHECKING:
    from pagedkv.conformance.check import Check
    from pagedkv.conformance.implementation import Implementation
    from pagedkv.conformance.profiles import Profile
    from pagedkv.conformance.report import Result
    from pagedkv.conformance.suite import Outcome, Plan

STYLES = {
    "passed": "green",
    "failed": "bold red",
    "deviates": "yellow",
    "skipped": "dim",
    "not asked": "dim",
}


def conformance(
    impl: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="'engine', 'reference', or package.module:factory; may be repeated.",
        ),
    ] = None,
    impl_cmd: Annotated[
        list[str] | None,
        typer.Option(
            "--impl-cmd",
            metavar="COMMAND",
            help="A manager in any language that speaks the JSON-lines protocol.",
        ),
    ] = None,
    list_only: Annotated[
        bool, typer.Option("--list", help="List the checks and their rules, and run nothing.")
    ] = False,
    rule: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ID",
            help="Only checks of this rule (ALLOC-2), section (ALLOC), or name (alloc.*).",
        ),
    ] = None,
    profile: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Fail, not skip, what this profile demands: core, serving, ..."
        ),
    ] = None,
    deviations: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", dir_okay=False, help="Known deviations of the implementation."
        ),
    ] = None,
    examples: Annotated[
        int,
        typer.Option(parser=between(1, 1_000_000), metavar="N", help="Generated runs per check."),
    ] = 100,
    timeout: Annotated[
        float | None,
        typer.Option(
            parser=between(0.1, 86_400.0),
            metavar="SECONDS",
            help="Longest a check may take, by default 120; what takes longer hangs, and fails.",
        ),
    ] = None,
    junit: Annotated[
        str | None,
        typer.Option(metavar="FILE", callback=writable_later, help="Write JUnit XML."),
    ] = None,
    html: Annotated[
        str | None,
        typer.Option(metavar="FILE", callback=writable_later, help="Write a page for people."),
    ] = None,
    json: JsonOption = None,
) -> None:
    """Check an implementation against the specification, rule by rule.

    The exit status is 0 if no check failed, 1 if one did, 2 for a wrong option. Who stops it, with
    Ctrl-C or SIGTERM, gets what was found so far, marked as partial.
    """
    from pagedkv.conformance.suite import all_checks

    checks = selected(all_checks(), rule or [])
    if list_only:
        typer.echo("\n".join(f"{c.id}  {c.rule.id} {c.rule.strength}: {c.claim}" for c in checks))
        return
    plans = plans_for(impl or [], impl_cmd or [], profile, deviations, examples, timeout)
    results = run_until_stopped(plans, checks, quiet=json == STDOUT)
    write(results, junit, html, json)
    for result in results:
        if result.not_reached:
            name, check = result.plan.implementation.name, result.not_reached[0].id
            complain(f"stopped in {check} on {name}; what was found until then is partial")
            raise KeyboardInterrupt
    if not all(result.ok for result in results):
        raise typer.Exit(1)


def selected(checks: Sequence["Check"], wanted: Sequence[str]) -> list["Check"]:
    """The checks of these rules, sections or names; all if none are given."""

    def fits(check: "Check", name: str) -> bool:
        rules = {rule.id for rule in check.rules}
        by_name = name.endswith("*") and check.id.startswith(name[:-1])
        return name in rules or name in (check.rule.section, check.id) or by_name

    chosen = [c for c in checks if not wanted or any(fits(c, name) for name in wanted)]
    for name in wanted:
        if not any(fits(c, name) for c in checks):
            raise typer.BadParameter(
                f"{name!r} is no rule, section or check; --list shows them.", param_hint="--rule"
            )
    return chosen


def plans_for(
    impls: Sequence[str],
    commands: Sequence[str],
    profile_name: str | None,
    deviations: Path | None,
    examples: int,
    timeout: float | None,
) -> list["Plan"]:
    """What to run: the implementations with all that is known of them."""
    from pagedkv.conformance.deviations import DeviationFileError, read_deviations
    from pagedkv.conformance.introduction import SetUpError, introduce
    from pagedkv.conformance.suite import Plan, all_checks
    from pagedkv.conformance.time_limit import CHECK_TIMEOUT_S
    from pagedkv.specification import reference_specification

    if not impls and not commands:
        raise typer.BadParameter("name an implementation.", param_hint="--impl or --impl-cmd")
    profile = profile_named(profile_name)
    timeout_s = timeout or CHECK_TIMEOUT_S
    known = frozenset(check.id for check in all_checks())
    twin = introduce(reference()).implementation
    plans = []
    for name in [*impls, *(f"cmd:{command}" for command in commands)]:
        implementation = resolved(name)
        file = deviations or implementation.deviations
        try:
            listed = read_deviations(file, known) if file else {}
        except DeviationFileError as error:
            raise CommandError(str(error)) from error
        try:
            introduced = introduce(implementation, timeout_s=timeout_s)
        except SetUpError as error:
            raise CommandError(f"{as_option(name)}: {error}") from error
        plans.append(
            Plan(
                introduced.implementation,
                name,
                reference=twin,
                specification=reference_specification,
                profile=profile,
                deviations=listed,
                examples=examples,
                timeout_s=timeout_s,
                notes=introduced.notes,
            )
        )
    return plans


def profile_named(name: str | None) -> "Profile | None":
    """The profile of that name."""
    from pagedkv.conformance.profiles import PROFILES

    if name is not None and name not in PROFILES:
        raise typer.BadParameter(
            f"{name!r} is not one of {', '.join(PROFILES)}.", param_hint="--profile"
        )
    return None if name is None else PROFILES[name]


def resolved(name: str) -> "Implementation":
    """The implementation of ``--impl``, or of ``--impl-cmd`` after ``cmd:``."""
    try:
        return resolve_implementation(name)
    except UnknownImplementationError as error:
        hint = "--impl-cmd" if name.startswith("cmd:") else "--impl"
        raise typer.BadParameter(str(error), param_hint=hint) from error


def run_until_stopped(
    plans: Sequence["Plan"], checks: Sequence["Check"], *, quiet: bool
) -> list["Result"]:
    """Run the checks on every implementation; who stops it gets what was found until then."""
    from pagedkv.conformance.report import Result

    results: list[Result] = []
    for plan in plans:
        if results and results[-1].not_reached:
            results.append(Result(plan, (), checks))
        else:
            results.append(run(plan, checks, quiet=quiet))
    return results


def run(plan: "Plan", checks: Sequence["Check"], *, quiet: bool) -> "Result":
    """Run the checks on one implementation, with progress, and tell how it went."""
    from pagedkv.conformance.report import Result
    from pagedkv.conformance.suite import run_suite

    if not quiet:
        terminal().print(header(plan), soft_wrap=True)
    outcomes: list[Outcome] = []
    with suppress(KeyboardInterrupt), progress_bar() as progress:
        task = progress.add_task(f"checking {plan.implementation.name}", total=len(checks))
        for outcome in run_suite(checks, plan):
            outcomes.append(outcome)
            progress.advance(task)
    result = Result(plan, outcomes, checks[len(outcomes) :])
    if not quiet:
        terminal().print(told(result), soft_wrap=True)
    return result


def header(plan: "Plan") -> RenderableType:
    """What is going to be checked: who it is, what it can do, and what it can do in part only."""
    implementation = plan.implementation
    lines = [
        f"{printable(implementation.name)} {printable(implementation.version)}",
        f"can:     {', '.join(sorted(implementation.capabilities))}",
        *(f"         {printable(note)}" for note in plan.notes),
        f"follows: {', '.join(sorted(implementation.follows)) or 'no SHOULD rule'}",
        "",
    ]
    return Group(*lines)


def told(result: "Result") -> RenderableType:
    """The result for people: what failed and how to see it again, a table, a summary."""
    parts = [
        told_outcome(alike[0]) if len(alike) == 1 else told_alike(alike)
        for status in ("failed", "deviates")
        for alike in result.alike(status)
    ]
    return Group(*parts, sections_table(result), "", Text(result.summary))


def told_alike(outcomes: Sequence["Outcome"]) -> RenderableType:
    """Failures that one exception has caused: what it was, the checks, and the calls of one."""
    first = outcomes[0]
    lines: list[RenderableType] = [
        Text(f"{first.status.upper()}  {len(outcomes)} checks", style=STYLES[first.status]),
        f"    {printable(first.told)}",
        *(f"    {outcome.check.id}  {outcome.check.rule.id}" for outcome in outcomes),
    ]
    if first.status == "failed":
        lines += shown_calls(first)
    return Group(*lines, "")


def told_outcome(outcome: "Outcome") -> RenderableType:
    """One failure: the claim, what happened, and the calls that show it."""
    rule = outcome.check.rule
    lines: list[RenderableType] = [
        Text(f"{outcome.status.upper()}  {outcome.check.id}", style=STYLES[outcome.status]),
        f"    {outcome.check.claim}",
        f"    {rule.id} ({rule.strength}): {rule.text}",
        f"    {printable(outcome.told)}",
    ]
    if outcome.known is not None:
        source = f" ({outcome.known.where})" if outcome.known.where else ""
        lines.append(f"    known: {printable(outcome.known.what)}{printable(source)}")
    if outcome.status == "failed":
        lines += shown_calls(outcome)
    return Group(*lines, "")


def shown_calls(outcome: "Outcome") -> list[RenderableType]:
    """The calls, which can be pasted, then the traceback of what the implementation has raised."""
    lines = [*outcome.reproduction.splitlines(), *outcome.details.splitlines()]
    return [Text(f"    | {printable(line)}", style="dim") for line in lines]


def sections_table(result: "Result") -> Table:
    """How many checks of each section ended how."""
    from pagedkv.conformance.report import STATUSES

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("section")
    for status in STATUSES:
        table.add_column(status, justify="right", style=STYLES[status])
    counts: dict[str, dict[str, int]] = {}
    for outcome in result.outcomes:
        section = counts.setdefault(outcome.check.rule.section, {})
        section[outcome.status] = section.get(outcome.status, 0) + 1
    for name, by_status in counts.items():
        table.add_row(name, *(str(by_status.get(status, "")) for status in STATUSES))
    return table


def write(
    results: Sequence["Result"], junit: str | None, html: str | None, json: str | None
) -> None:
    """Write the files that were asked for."""
    from pagedkv.conformance.report import as_data, as_junit, as_page

    makers: list[tuple[str | None, Callable[[], bytes]]] = [
        (junit, lambda: as_junit(results)),
        (html, lambda: as_page(results).encode()),
    ]
    for path, make in makers:
        if path is not None:
            with replace_file(Path(path)) as file:
                file.write(make())
    write_json(as_data(results), json)
