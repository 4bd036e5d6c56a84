"""What a benchmark prints and writes: measured values, ratios, and the budgets they are held to."""

import json
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from rich.table import Table

from pagedkv.traces.comparison.machine import installed_versions, this_machine


@dataclass(frozen=True)
class Budget:
    """What a ratio may be."""

    at_most: float | None = None
    """No more than this."""
    at_least: float | None = None
    """No less than this."""

    def met_by(self, ratio: float) -> bool:
        """Whether the ratio keeps to it."""
        return (self.at_most is None or ratio <= self.at_most) and (
            self.at_least is None or ratio >= self.at_least
        )

    def __str__(self) -> str:
        return f"at most {self.at_most:.3g}" if self.at_most else f"at least {self.at_least:.3g}"


@dataclass
class Report:
    """The results of one benchmark."""

    title: str
    """What was measured, and in which unit."""
    values: dict[str, float] = field(default_factory=dict)
    """By subject."""
    parts: dict[str, dict[str, float]] = field(default_factory=dict)
    """By subject: what its value consists of."""
    ratios: list[dict[str, object]] = field(default_factory=list)
    """Comparisons, with their budgets and whether they were kept."""
    units: dict[str, str] = field(default_factory=dict)
    """By subject: the unit of its value."""

    def measured(
        self, subject: str, value: float, unit: str, parts: dict[str, float] | None = None
    ) -> None:
        """Note a value."""
        self.values[subject], self.units[subject] = value, unit
        self.parts[subject] = parts or {}

    def compared(self, subject: str, to: str, budget: Budget) -> None:
        """Note the ratio of two values; left out if one was not measured."""
        if subject not in self.values or to not in self.values:
            self.ratios.append({"subject": subject, "to": to, "budget": str(budget), "ratio": None})
            return
        ratio = self.values[subject] / self.values[to]
        self.ratios.append(
            {
                "subject": subject,
                "to": to,
                "budget": str(budget),
                "ratio": ratio,
                "kept": budget.met_by(ratio),
            }
        )

    def finish(self, path: str | None) -> None:
        """Print everything, and write it as JSON if there is a path."""
        console = Console()
        table = Table(title=self.title)
        for heading in ("subject", "value", "of which"):
            table.add_column(heading)
        for subject, value in self.values.items():
            parts = ", ".join(f"{name} {part:.1f}" for name, part in self.parts[subject].items())
            table.add_row(subject, f"{value:.4g} {self.units[subject]}", parts)
        console.print(table)
        for ratio in self.ratios:
            found = ratio["ratio"]
            if found is None:
                console.print(f"{ratio['subject']} / {ratio['to']}: not measured here")
            else:
                verdict = "kept" if ratio["kept"] else "MISSED"
                console.print(
                    f"{ratio['subject']} / {ratio['to']}: {found:.3f}, "
                    f"budget {ratio['budget']}: {verdict}"
                )
        if path:
            result = asdict(self) | {
                "date": datetime.now(UTC).date().isoformat(),
                "machine": this_machine().model_dump(),
                "versions": installed_versions(),
            }
            Path(path).write_text(json.dumps(result, indent=2) + "\n")
