"""Runs checks on an implementation and says how each went."""

import importlib
import pkgutil
import time
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import pagedkv.conformance.checks
from pagedkv.conformance.bench import Bench, Skip
from pagedkv.conformance.check import CHECKS, Check
from pagedkv.conformance.deviations import Deviation
from pagedkv.conformance.implementation import Implementation
from pagedkv.conformance.introduction import introduce
from pagedkv.conformance.own_frame import own_frame
from pagedkv.conformance.profiles import Profile
from pagedkv.conformance.recorded.specification import SpecificationFactory
from pagedkv.conformance.spec_text import rules
from pagedkv.conformance.time_limit import CHECK_TIMEOUT_S, time_limit
from pagedkv.conformance.violation import Violation
from pagedkv.reference.interfaces import AsyncKVCacheManager, SyncKVCacheManager
from pagedkv.traces.manager_setup import ManagerSetup

Status = Literal["passed", "failed", "deviates", "skipped", "not asked"]
"""``deviates``: it fails, and its owner's list says so; ``not asked``: a SHOULD rule that the
implementation does not claim to follow."""


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
    """The traceback of the exception that ended it, if it was no :class:`Violation`."""
    where: str = ""
    """The implementation's own frame in that traceback, or in that of a wrong refusal."""
    seconds: float = 0.0
    """How long it took."""
    known: Deviation | None = None
    """What the owner's list says of it."""

    @property
    def told(self) -> str:
        """The reason, and where in the implementation it arose."""
        return f"{self.reason} ({self.where})" if self.where else self.reason


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
    notes: Sequence[str] = ()
    """What the implementation can do in part only, for people."""


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
    bench = Bench(_with_its_own_hashes(plan.implementation), plan.reference, plan.impl)
    bench.examples = plan.examples
    bench.specification = plan.specification
    try:
        with time_limit(plan.timeout_s), bench:
            check.run(bench)
            bench.all_clear()
    except Skip as skip:
        return Outcome(check, "skipped", str(skip))
    except Exception as error:
        log = bench.drivers[0].log.text if bench.drivers else ""
        make = plan.implementation.make
        if isinstance(error, Violation):
            where = own_frame(error.__cause__, make) if error.__cause__ else ""
            return Outcome(check, "failed", str(error), error.rule, log, where=where)
        reason = f"{type(error).__name__}: {error}"
        details = "".join(traceback.format_exception(error))
        where = own_frame(error, make)
        return Outcome(check, "failed", reason, check.rule.id, log, details, where)
    return Outcome(check, "passed")


def _with_its_own_hashes(implementation: Implementation) -> Implementation:
    """The implementation, which leaves a check that needs a hash algorithm that it lacks."""

    def make(setup: ManagerSetup) -> SyncKVCacheManager | AsyncKVCacheManager:
        if setup.hash_algorithm not in implementation.hash_algorithms:
            raise Skip(f"{implementation.name} has no hash algorithm {setup.hash_algorithm}")
        return implementation.make(setup)

    return replace(implementation, make=make)


def with_methods_shown(implementation: Implementation) -> Implementation:
    """The implementation with the capabilities that the methods of its manager show.

    Raises:
        SetUpError: It cannot build a small manager, or lacks a method that every one has.
    """
    return introduce(implementation).implementation
