"""What ``pagedkv simulate`` shows: a failure, what was tried, and what never was."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from pagedkv.cli.output import fact_table, number, printable

if TYPE_CHECKING:
    from pagedkv.conformance.simulation.campaign import Campaign
    from pagedkv.conformance.simulation.code_coverage import CodeCovered
    from pagedkv.conformance.simulation.run import Run
    from pagedkv.conformance.simulation.situations import Tried
    from pagedkv.conformance.simulation.world import World

MOST_CHARACTERS = 2_000
"""Of an event or a message that is shown."""


def standing(campaign: "Campaign") -> str:
    """Where a campaign stands, in a line."""
    from pagedkv.conformance.simulation.coverage import share_tried

    done, of = share_tried(campaign.tried)
    rate = campaign.runs / max(campaign.seconds, 1e-9)
    return (
        f"{number(campaign.runs)} runs, {rate:.1f} a second, {number(campaign.faults)} faults, "
        f"{done} of {of} situations"
    )


def told(campaign: "Campaign", code: "Sequence[CodeCovered] | None") -> RenderableType:
    """What a campaign has come to."""
    from pagedkv.conformance.simulation.coverage import never_tried, rules_tried

    table = fact_table(f"{campaign.implementation}, from seed {campaign.first_seed}")
    table.add_row("runs", number(campaign.runs), f"in {campaign.seconds:.1f} s")
    table.add_row("events", number(campaign.events), "checked against the specification")
    seen, fates = campaign.seen, ("finished", "cancelled", "refused", "poisoned")
    became = ", ".join(f"{number(seen[fate])} {fate}" for fate in fates)
    table.add_row("requests", number(sum(seen[fate] for fate in fates)), became)
    table.add_row("faults", number(campaign.faults))
    rules = rules_tried(campaign.tried)
    tried = sum(count > 0 for count in rules.values())
    table.add_row("rules", number(tried), f"tried, of {len(rules)} that a situation stands for")
    if campaign.failed is None and not campaign.stopped:
        table.add_row("digest", campaign.digest, "the same on any machine")
    parts: list[RenderableType] = [table]
    if campaign.failed is None and campaign.runs:
        parts += ["", faults_table(campaign.tried)]
        missing = never_tried(campaign.tried)
        if missing:
            parts += ["", f"never tried ({len(missing)}):", *(f"  {name}" for name in missing)]
    if code is not None:
        parts += ["", *code_report(code)]
    return Group(*parts)


def faults_table(tried: "Tried") -> Table:
    """By fault, how often it has struck what."""
    from pagedkv.conformance.simulation.situations import NOTHING, STRUCK, WAYS

    table = Table(
        title="faults, by what was under way when they struck",
        title_justify="left",
        box=None,
        pad_edge=False,
        header_style="bold",
    )
    table.add_column("")
    states = (*WAYS, NOTHING)
    for state in states:
        table.add_column(state.replace("→", "\n→ "), justify="right")
    for fault, possible in STRUCK.items():
        cells = [
            _count(tried.struck[fault, state]) if state in possible else Text("")
            for state in states
        ]
        table.add_row(fault, *cells)
    return table


def _count(count: int) -> Text:
    return Text(number(count)) if count else Text("never", style="yellow")


def code_report(code: "Sequence[CodeCovered]") -> Iterator[RenderableType]:
    """By module, the lines and branches that no run has come through."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("module", "lines", "branches", "not tried"):
        table.add_column(title, justify="right" if title in ("lines", "branches") else "left")
    for module in code:
        lines = module.statements - len(module.missed)
        branches = module.branches - len(module.missed_branches)
        missing = [
            *map(str, module.missed),
            *(f"{start}→{end if end > 0 else 'exit'}" for start, end in module.missed_branches),
        ]
        table.add_row(
            printable(module.file),
            f"{lines} of {module.statements}",
            f"{branches} of {module.branches}",
            " ".join(missing),
        )
    yield table


def told_failure(run: "Run") -> RenderableType:
    """What is wrong with a run, and what has led to it."""
    from pagedkv.conformance.simulation.event_text import event_text

    failure = run.failure
    assert failure is not None, "only a failed run is told"
    lines: list[RenderableType] = [
        Text(f"FAILED  {describe(run.world)}", style="bold red"),
        f"    {failure.kind}",
        "",
    ]
    if failure.expected is None and failure.seen is None:
        lines += _indented(failure.told)
    else:
        lines += _indented(f"expected {failure.expected or 'nothing'}")
        lines += _indented(f"seen     {failure.seen or 'nothing'}")
    record = run.lives[failure.life] if failure.life < len(run.lives) else None
    if record is not None and record.events:
        lines += ["", f"    the last events concerned, of life {failure.life}:"]
        for seq, event in failure.last_events(record.events):
            lines += _indented(f"{seq:6} {event_text(event)}")
    if failure.details:
        lines += ["", *_indented(failure.details)]
    return Group(*lines, "")


def describe(world: "World") -> str:
    """A world in a line: its seed and its size."""
    setup = world.setup
    tiers = [f"{setup.total_num_pages} pages"]
    tiers += [f"{setup.host_pages} on the host"] if setup.host_pages else []
    tiers += [f"{setup.disk_pages} on disk"] if setup.disk_pages else []
    lives = "1 life" if len(world.lives) == 1 else f"{len(world.lives)} lives"
    requests = "1 request" if world.num_requests == 1 else f"{world.num_requests} requests"
    return f"seed {world.seed}: {requests} in {lives}, {', '.join(tiers)}"


def _indented(text: str) -> list[RenderableType]:
    shown = text if len(text) <= MOST_CHARACTERS else f"{text[:MOST_CHARACTERS]} ..."
    return [Text(f"    {printable(line)}", style="dim") for line in shown.splitlines()]
