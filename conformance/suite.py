"""Runs checks on an implementation and says how each went."""

import importlib
import pkgutil
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import pagedkv.conformance.checks
from pagedkv.conformance.bench import Bench, Skip
from pagedkv.conformance.check import CHECKS, Check
from pagedkv.conformance.implementation import Implementation, offered_by
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
    from pagedkv.conformance.spec_text import rules

    order = list(rules())
    return sorted(CHECKS.values(), key=lambda c: (order.index(c.rule.id), c.id))


def run_check(
    check: Check, implementation: Implementation, reference: Implementation | None, impl: str
) -> Outcome:
    """Run one check on fresh managers."""
    if check.rule.strength == "SHOULD" and check.rule.id not in implementation.follows:
        return Outcome(check, "not asked", f"does not claim to follow {check.rule.id}")
    started = time.perf_counter()

    def outcome(status: Status, reason: str = "", **more: str) -> Outcome:
        return Outcome(check, status, reason, seconds=time.perf_counter() - started, **more)

    with Bench(implementation, reference, impl) as bench:
        try:
            lacking = sorted(check.needs - capabilities_of(implementation, bench))
            if lacking:
                return outcome("skipped", f"has no {', '.join(lacking)}")
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


def capabilities_of(implementation: Implementation, bench: Bench) -> frozenset[str]:
    """What it declares, and what the methods of a manager of it show."""
    manager = implementation.make(bench.setup())
    try:
        return frozenset(offered_by(manager, implementation.capabilities))
    finally:
        if callable(getattr(manager, "shutdown", None)):
            from pagedkv.traces.sync_adapter import as_sync

            as_sync(manager).shutdown()


def run_suite(
    checks: Iterable[Check],
    implementation: Implementation,
    reference: Implementation | None,
    impl: str,
    on_done: Callable[[Outcome], None] = lambda outcome: None,
) -> Iterator[Outcome]:
    """Run checks one after the other."""
    for check in checks:
        outcome = run_check(check, implementation, reference, impl)
        on_done(outcome)
        yield outcome
