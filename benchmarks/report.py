"""What a benchmark prints and writes: measured values, ratios, and the budgets they are held to."""

import json
from argparse import ArgumentParser
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from rich.table import Table

from pagedkv.traces.comparison.machine import installed_versions, this_machine


@dataclass(frozen=True)
class Ratio:
    """A value over what it is measured against."""

    subject: str
    """What was measured."""
    to: str
    """The limit or peer: another value of the same run, or a number with its unit."""
    ratio: float | None
    """``None`` if one of the two was not measured here."""
    budget: str
    """What the ratio may be."""
    kept: bool | None
    """Whether it is."""


@dataclass
class Report:
    """The results of one benchmark."""

    title: str
    """What was measured."""
    values: dict[str, tuple[float, str]] = field(default_factory=dict)
    """By subject: a value and its unit."""
    parts: dict[str, dict[str, float]] = field(default_factory=dict)
    """By subject: what its value consists of, in the same unit."""
    ratios: list[Ratio] = field(default_factory=list)
    """Comparisons, with their budgets."""

    def measured(
        self, subject: str, value: float, unit: str, parts: dict[str, float] | None = None
    ) -> None:
        """Note a value."""
        self.values[subject] = value, unit
        if parts:
            self.parts[subject] = parts

    def compared(
        self,
        subject: str,
        to: str,
        *,
        at_most: float | None = None,
        at_least: float | None = None,
    ) -> None:
        """Note the ratio of two values of this run, and whether it keeps to its budget."""
        budget = f"at most {at_most:.3g}" if at_most is not None else f"at least {at_least:.3g}"
        if subject not in self.values or to not in self.values:
            self.ratios.append(Ratio(subject, to, None, budget, None))
            return
        ratio = self.values[subject][0] / self.values[to][0]
        kept = (at_most is None or ratio <= at_most) and (at_least is None or ratio >= at_least)
        self.ratios.append(Ratio(subject, to, ratio, budget, kept))

    def limited(self, subject: str, limit: float) -> None:
        """Hold a value to a limit in its own unit."""
        value, unit = self.values[subject]
        self.ratios.append(
            Ratio(subject, f"{limit:g} {unit}", value / limit, "at most 1", value <= limit)
        )

    def finish(self, path: str | None) -> None:
        """Print everything, and write it as JSON if there is a path."""
        console = Console(width=110)
        table = Table(title=self.title, title_justify="left")
        for heading in ("subject", "value", "of which"):
            table.add_column(heading, justify="right" if heading == "value" else "left")
        for subject, (value, unit) in self.values.items():
            parts = self.parts.get(subject, {})
            text = ", ".join(f"{name} {part:.1f}" for name, part in parts.items())
            table.add_row(subject, f"{value:,.4g} {unit}", text)
        console.print(table)
        for found in self.ratios:
            verdict = {None: "not measured here", True: "kept", False: "MISSED"}[found.kept]
            ratio = "" if found.ratio is None else f"{found.ratio:.3f}, "
            console.print(
                f"{found.subject} / {found.to}: {ratio}budget {found.budget}: {verdict}",
                highlight=False,
            )
        if path:
            result = asdict(self) | {
                "date": datetime.now(UTC).date().isoformat(),
                "machine": this_machine().model_dump(),
                "versions": installed_versions(),
            }
            Path(path).write_text(json.dumps(result, indent=2) + "\n")


def arguments(doc: str | None) -> ArgumentParser:
    """A parser with what every benchmark takes."""
    parser = ArgumentParser(description=(doc or "").partition("\n")[0])
    parser.add_argument("--json", metavar="FILE", help="write the results there as well")
    return parser
