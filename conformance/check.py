"""Checks: what one is, and where they are collected."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pagedkv.conformance.implementation import Capability
from pagedkv.conformance.spec_text import Rule, rule_of

if TYPE_CHECKING:
    from pagedkv.conformance.bench import Bench

CheckFunction = Callable[["Bench"], None]

CHECK_MODULES = "pagedkv.conformance.checks"
"""Where checks are; each is called after the file or folder there that it is in."""


@dataclass(frozen=True)
class Check:
    """One numbered check: a function that drives fresh managers and raises ``Violation``."""

    id: str
    """Its name: ``alloc.a_refused_alloc_changes_nothing``."""
    rules: tuple[Rule, ...]
    """What it checks, the main rule first."""
    needs: frozenset[Capability]
    """Capabilities without which it makes no sense."""
    run: CheckFunction
    """The check itself."""

    @property
    def rule(self) -> Rule:
        """The rule that it is about."""
        return self.rules[0]

    @property
    def claim(self) -> str:
        """What holds if it passes, as a sentence."""
        return (self.run.__doc__ or "").strip().partition("\n\n")[0]


CHECKS: dict[str, Check] = {}
"""Every check by id, in the order of SPEC.md; filled by importing :mod:`.checks`."""


def check(*rules: str, needs: tuple[Capability, ...] = ()) -> Callable[[CheckFunction], Check]:
    """Register a function as a check of ``rules``.

    Args:
        rules: Ids of rules of SPEC.md, the one it is mainly about first.
        needs: Capabilities beyond ``device`` that it makes use of.
    """

    def register(run: CheckFunction) -> Check:
        section = run.__module__.removeprefix(f"{CHECK_MODULES}.").partition(".")[0]
        made = Check(
            f"{section}.{run.__name__}",
            tuple(rule_of(name) for name in rules),
            frozenset[Capability]({*needs, "device"}),
            run,
        )
        if made.id in CHECKS:
            raise ValueError(f"there are two checks {made.id}")
        CHECKS[made.id] = made
        return made

    return register
