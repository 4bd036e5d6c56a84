"""The engine passes every check of the suite that needs no block store, in both of its modes."""

from collections.abc import Iterator
from dataclasses import replace

import pytest

from pagedkv.conformance.check import Check
from pagedkv.conformance.spec_text import should_rules
from pagedkv.conformance.suite import Plan, all_checks, run_check
from pagedkv.engine_manager import build_engine
from pagedkv.implementations import engine
from pagedkv.pytest_plugin import plan_for
from pagedkv.reference.interfaces import AsyncKVCacheManager
from pagedkv.traces.manager_setup import ManagerSetup

PLAN = plan_for("engine")


def debug_engine(setup: ManagerSetup) -> AsyncKVCacheManager:
    return build_engine(setup.model_copy(update={"use_debug_tiered_mode": True}))


DEBUG_PLAN = replace(PLAN, implementation=replace(engine(), make=debug_engine))


def cases() -> Iterator[object]:
    """Every check that is for it; in debug mode, where only transfers differ, those about them."""
    unasked = should_rules() - PLAN.implementation.follows
    for check in all_checks():
        if check.needs <= PLAN.implementation.capabilities and check.rule.id not in unasked:
            yield pytest.param(PLAN, check, id=check.id)
            if check.needs & {"host", "disk", "transfers"}:
                yield pytest.param(DEBUG_PLAN, check, id=f"debug-{check.id}")


@pytest.mark.parametrize(("plan", "check"), [*cases()])
def test_engine_passes(plan: Plan, check: Check) -> None:
    outcome = run_check(check, plan)
    assert outcome.status in ("passed", "skipped"), f"{outcome.reason}\n{outcome.reproduction}"
    lacks_only_a_store = "store" in outcome.reason or "XFER-6" in outcome.reason
    simulated = "is not a simulated one" in outcome.reason
    assert outcome.status == "passed" or lacks_only_a_store or simulated, outcome.reason
