"""SPEC.md as data: every rule with its number, its strength and its sentence."""

import re
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Literal


@dataclass(frozen=True)
class Rule:
    """One rule of the specification."""

    id: str
    """Its number: ``ALLOC-7``."""
    strength: Literal["MUST", "SHOULD"]
    """Whether it binds everybody, or those who declare that they follow it."""
    text: str
    """What it says."""

    @property
    def section(self) -> str:
        """Its family: ``ALLOC``."""
        return self.id.partition("-")[0]


@cache
def rules() -> dict[str, Rule]:
    """Every rule by its number, in the order of SPEC.md."""
    spec = files("pagedkv.reference").joinpath("SPEC.md").read_text(encoding="utf-8")
    found = re.findall(
        r"^- \*\*([A-Z]+-\d+)\*\* \((MUST|SHOULD)\) (.*?)(?=^- |^\S|\Z)", spec, re.M | re.S
    )
    return {name: Rule(name, strength, " ".join(text.split())) for name, strength, text in found}


def rule_of(name: str) -> Rule:
    """The rule with that number.

    Raises:
        ValueError: There is none.
    """
    try:
        return rules()[name]
    except KeyError:
        raise ValueError(f"SPEC.md has no rule {name}") from None


def should_rules() -> frozenset[str]:
    """Numbers of all SHOULD rules."""
    return frozenset(name for name, rule in rules().items() if rule.strength == "SHOULD")
