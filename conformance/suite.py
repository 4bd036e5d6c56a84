"""Runs checks on an implementation and says how each went."""

import importlib
import pkgutil
import time
import traceback
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import pagedkv.conformance.checks
from pagedkv.conformance.bench import Bench, Skip
from pagedkv.conformance.check import CHECKS, Check
from pagedkv.conformance.deviations import Deviation
from pagedkv.conformance.implementation import Implementation
from pagedkv.conformance.profiles import Profile
from pagedkv.conformance.recorded.specification import SpecificationFactory
from pagedkv.conformance.spec_text import rules
from pagedkv.conformance.time_limit import time_limit
from pagedkv.conformance.violation import Violation

Status = Literal["passed", "failed", "deviates", "skipped", "not asked"]
"""``deviates``: it fails, and its owner's list says so; ``not asked``: a SHOULD rule that the
implementation does not claim to follow."""

CHECK_TIMEOUT_S = 120.0
"""Longest a check may take, in seconds; a manager that hangs fails it."""


@dataclass(frozen=True)
class Outcome:
    """How one check went."""

    check: Check
    """Which one."""
    status: Status
    """How it ended."""
    reason: str = ""
    """Why it failed or was skipped, for people."""
    rule: str = ""
    """The rule that was broken: the check's own, or one that holds between any two calls."""
    reproduction: str = ""
    """Python that makes the same calls."""
    details: str = ""
    """Where in the implementation it happened, if an exception came from there."""
    seconds: float = 0.0
    """How long it took."""
    known: Deviation | None = None
    """What the owner's list says of it."""


def all_checks() -> list[Check]:
    """Every check, section by section."""
    names = sorted(m.name for m in pkgutil.iter_modules(pagedkv.conformance.checks.__path__))
    for name in names:
        importlib.import_module(f"pagedkv.conformance.checks.{name}")
    order = list(rules())
    return sorted(CHECKS.values(), key=lambda c: (order.index(c.rule.id), c.id))


@dataclass(frozen=True)
class Plan:
    """How to run the suite on one implementation."""

    implementation: Implementation
    """What is checked, with every capability that it has: see :func:`with_methods_shown`."""
    impl: str
    """What it is known by, for reproductions."""
    reference: Implementation | None = None
    """What its choices are compared with, if it claims to choose alike."""
    profile: Profile | None = None
    """What it must be able to do."""
    deviations: Mapping[str, Deviation] = field(default_factory=dict)
    """Checks that its owner knows to fail."""
    examples: int = 100
    """Generated runs per check."""
    specification: SpecificationFactory | None = None
    """What recorded runs are validated against; ``None``: they are not."""
    timeout_s: float = CHECK_TIMEOUT_S
    """Longest a check may take, in seconds."""


def run_suite(checks: Iterable[Check], plan: Plan) -> Iterator[Outcome]:
    """Run checks one after the other, each on fresh managers."""
    for check in checks:
        yield run_check(check, plan)


def run_check(check: Check, plan: Plan) -> Outcome:
    """Run one check on fresh managers."""
    implementation, started = plan.implementation, time.perf_counter()
    if check.rule.strength == "SHOULD" and check.rule.id not in implementation.follows:
        return Outcome(check, "not asked", f"does not claim to follow {check.rule.id}")
    lacking = check.needs - implementation.capabilities
    if lacking:
        told = ", ".join(sorted(lacking))
        demanded = plan.profile.demands & lacking if plan.profile else None
        if plan.profile and demanded:
            told = f"lacks {told}, which profile {plan.profile.name} demands"
            return Outcome(check, "failed", told, rule=check.rule.id)
        return Outcome(check, "skipped", f"has no {told}")
    outcome = replace(_run(check, plan), seconds=time.perf_counter() - started)
    deviation = plan.deviations.get(check.id)
    if deviation is None or outcome.status == "skipped":
        return outcome
    if outcome.status == "failed":
        return replace(outcome, status="deviates", known=deviation)
    return replace(
        outcome,
        status="failed",
        rule=check.rule.id,
        reason=f"is listed as a deviation ({deviation.what}) and passes: take it off the list",
    )


def _run(check: Check, plan: Plan) -> Outcome:
    with Bench(plan.implementation, plan.reference, plan.impl) as bench:
        bench.examples = plan.examples
        bench.specification = plan.specification
        try:
            with time_limit(plan.timeout_s):
                check.run(bench)
                bench.all_clear()
        except Skip as skip:
            return Outcome(check, "skipped", str(skip))
        except Exception as error:
            log = bench.drivers[0].log.text if bench.drivers else ""
            if isinstance(error, Violation):
                return Outcome(check, "failed", str(error), error.rule, log)
            reason = f"{type(error).__name__}: {error}"
            details = "".join(traceback.format_exception(error))
            return Outcome(check, "failed", reason, check.rule.id, log, details)
    return Outcome(check, "passed")


def with_methods_shown(implementation: Implementation) -> Implementation:
    """The implementation with the capabilities that the methods of its manager show.

    Raises:
        Exception: Whatever its factory raises for the smallest of setups.
    """
    with Bench(implementation, None, "") as bench:
        driver = bench.driver()
        capabilities = driver.capabilities
        if driver.is_async:
            capabilities |= {"async"}
    return replace(implementation, capabilities=capabilities)
