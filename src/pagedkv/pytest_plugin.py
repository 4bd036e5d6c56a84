"""The suite as pytest tests, one per check.

In a test module of your own::

    from pagedkv.pytest_plugin import conformance_tests

    test_conformance = conformance_tests("mypackage.manager:factory")

or without one::

    pytest -p pagedkv.pytest_plugin --impl mypackage.manager:factory \\
        --pyargs pagedkv.suite_as_tests

pytest selects with ``-k``, runs in parallel with pytest-xdist, and writes JUnit as usual.
"""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from pagedkv.conformance.deviations import read_deviations
from pagedkv.conformance.implementation import Implementation
from pagedkv.conformance.introduction import SetUpError, introduce
from pagedkv.conformance.profiles import PROFILES
from pagedkv.conformance.suite import Plan, all_checks, run_check
from pagedkv.conformance.time_limit import CHECK_TIMEOUT_S
from pagedkv.implementations import (
    UnknownImplementationError,
    reference,
    resolve_implementation,
)
from pagedkv.specification import reference_specification


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options of the suite."""
    group = parser.getgroup("pagedkv", "conformance of KV cache managers")
    group.addoption("--impl", metavar="NAME", help="package.module:factory of the manager to check")
    group.addoption("--impl-profile", choices=[*PROFILES], help="what it must be able to do")
    group.addoption("--impl-deviations", type=Path, metavar="FILE", help="its known deviations")
    group.addoption("--impl-examples", type=int, default=100, help="generated runs per check")
    group.addoption(
        "--impl-timeout",
        type=float,
        default=CHECK_TIMEOUT_S,
        metavar="SECONDS",
        help="longest a check may take",
    )


def pytest_configure(config: pytest.Config) -> None:
    """See at once, not in every test, that the manager can be checked."""
    if config.getoption("--impl"):
        plan_of_options(config)


def pytest_report_header(config: pytest.Config) -> list[str]:
    """What is checked."""
    if not config.getoption("--impl"):
        return []
    plan = plan_of_options(config)
    implementation = plan.implementation
    return [
        f"implementation: {implementation.name} {implementation.version}",
        f"can: {', '.join(sorted(implementation.capabilities))}",
        *plan.notes,
        f"follows: {', '.join(sorted(implementation.follows)) or 'no SHOULD rule'}",
    ]


def plan_of_options(config: pytest.Config) -> Plan:
    """The plan that the command line asks for."""
    name = config.getoption("--impl")
    if not name:
        raise pytest.UsageError("give the manager to check: --impl package.module:factory")
    try:
        return plan_for(
            name,
            profile=config.getoption("--impl-profile"),
            deviations=config.getoption("--impl-deviations"),
            examples=config.getoption("--impl-examples"),
            timeout_s=config.getoption("--impl-timeout"),
        )
    except (UnknownImplementationError, SetUpError) as error:
        raise pytest.UsageError(f"--impl {name}: {error}") from error


@cache
def plan_for(
    impl: str | Implementation,
    *,
    profile: str | None = None,
    deviations: Path | None = None,
    examples: int = 100,
    timeout_s: float = CHECK_TIMEOUT_S,
) -> Plan:
    """How to run the suite on an implementation, given by name or as it is."""
    implementation = resolve_implementation(impl) if isinstance(impl, str) else impl
    file = deviations or implementation.deviations
    known = frozenset(check.id for check in all_checks())
    introduced = introduce(implementation, timeout_s=timeout_s)
    return Plan(
        introduced.implementation,
        impl if isinstance(impl, str) else implementation.name,
        reference=introduce(reference()).implementation,
        specification=reference_specification,
        profile=PROFILES[profile] if profile else None,
        deviations=read_deviations(file, known) if file else {},
        examples=examples,
        timeout_s=timeout_s,
        notes=introduced.notes,
    )


def run_as_test(check_id: str, plan: Plan) -> None:
    """Run one check; a failure shows the rule, what happened and how to see it again."""
    check = next(check for check in all_checks() if check.id == check_id)
    outcome = run_check(check, plan)
    if outcome.status == "failed":
        rule = check.rule
        pytest.fail(
            f"{outcome.told}\n\n{check.claim}\n{rule.id} ({rule.strength}): {rule.text}\n\n"
            f"{outcome.reproduction}\n\n{outcome.details}".rstrip(),
            pytrace=False,
        )
    if outcome.status == "deviates":
        assert outcome.known is not None
        pytest.xfail(f"{outcome.known.what}: {outcome.reason}")
    if outcome.status != "passed":
        pytest.skip(outcome.reason)


def conformance_tests(
    impl: str | Implementation,
    *,
    profile: str | None = None,
    deviations: Path | None = None,
    examples: int = 100,
    timeout_s: float = CHECK_TIMEOUT_S,
) -> Callable[[str], None]:
    """One test per check, for a test module to take into its namespace.

    Args:
        impl: The implementation, or its name as ``--impl`` takes it.
        profile: What it must be able to do; checks that need less are failures if it cannot.
        deviations: Its known deviations; by default the file that it names itself.
        examples: Generated runs per check.
        timeout_s: Longest a check may take, in seconds.
    """

    @pytest.mark.parametrize("check_id", [check.id for check in all_checks()])
    def test_conformance(check_id: str) -> None:
        plan = plan_for(
            impl,
            profile=profile,
            deviations=deviations,
            examples=examples,
            timeout_s=timeout_s,
        )
        run_as_test(check_id, plan)

    return test_conformance
