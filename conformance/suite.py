"""Runs checks on an implementation and says how each went."""

import importlib
import pkgutil
import time
import traceback
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

import pagedkv.conformance.checks
from pagedkv.conformance.bench import Bench, Skip
from pagedkv.conformance.check import CHECKS, Check
from pagedkv.conformance.implementation import Implementation
from pagedkv.conformance.spec_text import rules
from pagedkv.conformance.violation import Violation

Status = Literal["passed", "failed", "skipped", "not asked"]
"""``not asked``: a SHOULD rule that the implementation does not claim to follow."""


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


def all_checks() -> list[Check]:
    """Every check, section by section."""
    names = sorted(m.name for m in pkgutil.iter_modules(pagedkv.conformance.checks.__path__))
    for name in names:
        importlib.import_module(f"pagedkv.conformance.checks.{name}")
    order = list(rules())
    return sorted(CHECKS.values(), key=lambda c: (order.index(c.rule.id), c.id))


def run_check(
    check: Check,
    implementation: Implementation,
    reference: Implementation | None,
    impl: str,
    *,
    examples: int = 100,
) -> Outcome:
    """Run one check on fresh managers."""
    if check.rule.strength == "SHOULD" and check.rule.id not in implementation.follows:
        return Outcome(check, "not asked", f"does not claim to follow {check.rule.id}")
    lacking = sorted(check.needs - implementation.capabilities)
    if lacking:
        return Outcome(check, "skipped", f"has no {', '.join(lacking)}")
    started = time.perf_counter()

    def outcome(status: Status, reason: str = "", **more: str) -> Outcome:
        return Outcome(check, status, reason, seconds=time.perf_counter() - started, **more)

    with Bench(implementation, reference, impl) as bench:
        bench.examples = examples
        try:
            check.run(bench)
            bench.all_clear()
        except Skip as skip:
            return outcome("skipped", str(skip))
        except Exception as error:
            log = bench.drivers[0].log.text if bench.drivers else ""
            if isinstance(error, Violation):
                return outcome("failed", str(error), rule=error.rule, reproduction=log)
            return outcome(
                "failed",
                f"{type(error).__name__}: {error}",
                rule=check.rule.id,
                reproduction=log,
                details="".join(traceback.format_exception(error)),
            )
    return outcome("passed")


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


def run_suite(
    checks: Iterable[Check],
    implementation: Implementation,
    reference: Implementation | None,
    impl: str,
    *,
    examples: int = 100,
) -> Iterator[Outcome]:
    """Run checks one after the other.

    Args:
        checks: What to run.
        implementation: What to run it on.
        reference: What its choices are compared with, if it claims to choose alike.
        impl: What the implementation is known by, for reproductions.
        examples: Generated runs per check.
    """
    complete = with_methods_shown(implementation)
    for check in checks:
        yield run_check(check, complete, reference, impl, examples=examples)
