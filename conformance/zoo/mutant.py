"""Mutants of the reference, one for every rule, and the check that has to kill each."""

import importlib
import tomllib
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from pagedkv.conformance.check import Check
from pagedkv.conformance.recorded.specification import SpecificationFactory
from pagedkv.conformance.spec_text import should_rules
from pagedkv.conformance.suite import Outcome, Plan, run_check
from pagedkv.conformance.zoo.change import Edit, in_force
from pagedkv.conformance.zoo.specimen import broken_reference


class Mutant(BaseModel):
    """The reference with one place of its text changed."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rule: str
    """What it breaks."""
    where: str
    """Module of the reference and function in it: ``pool:PagePool.take``."""
    old: str
    """What the function says, once."""
    new: str
    """What it says instead."""
    check: str
    """The check that kills it: one that is mainly about the rule."""
    everywhere: bool = False
    """Whether the change is there all the time, not only while a manager runs: for what servers
    and checks call themselves, such as parameters and tokens."""
    claims_all: bool = False
    """Whether it claims to follow every SHOULD rule, for checks that take some for granted."""

    @property
    def change(self) -> Edit:
        """The change.

        Raises:
            ImportError, AttributeError: There is no such module, or no such function in it.
        """
        module_name, _, path = self.where.partition(":")
        # Any: a module, perhaps a class in it, and a function.
        found: Any = importlib.import_module(f"pagedkv.reference.{module_name}")
        for name in path.split("."):
            found = getattr(found, name)
        return Edit(found, {self.old: self.new})

    def outcome_of(self, check: Check, specification: SpecificationFactory) -> Outcome:
        """Run a check on it; recorded runs are validated against ``specification``."""
        changes = () if self.everywhere else (self.change,)
        claims = should_rules() if self.claims_all else frozenset[str]()
        implementation = broken_reference(f"mutant of {self.where}", changes, claims)
        plan = Plan(implementation, self.where, specification=specification, timeout_s=20)
        with in_force([self.change]) if self.everywhere else nullcontext():
            return run_check(check, plan)


def read_mutants(path: Path) -> list[Mutant]:
    """The mutants of a TOML file.

    Raises:
        ValueError: It is no TOML, or a field is missing, unknown or malformed.
    """
    content = tomllib.loads(path.read_text(encoding="utf-8"))
    return [Mutant.model_validate(table) for table in content["mutant"]]


def as_markdown(mutants: list[Mutant], checks: Mapping[str, Check]) -> str:
    """The table of docs/mutants.md."""
    lines = [
        "| rule | where | instead of | it says | killed by |",
        "|---|---|---|---|---|",
    ]
    for mutant in mutants:
        old, new = _cell(mutant.old), _cell(mutant.new)
        check = checks[mutant.check].id
        lines.append(f"| {mutant.rule} | `{mutant.where}` | {old} | {new} | `{check}` |")
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    """Code in one line of a table."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    flat = "; ".join(lines).replace(":; ", ": ").replace("|", "\\|")
    return f"`{flat}`" if flat else "nothing"
