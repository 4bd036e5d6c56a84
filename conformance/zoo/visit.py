"""Shows a specimen to the suite, until a check catches it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pagedkv.conformance.check import Check
from pagedkv.conformance.spec_text import should_rules
from pagedkv.conformance.suite import Outcome, Plan, run_check, run_suite
from pagedkv.conformance.zoo.specimen import Specimen

UNTOUCHED = Specimen(
    number=0,
    name="untouched",
    happens="nothing: it is the reference, and no check may catch it",
    source=(),
    changes=(),
    expected=(),
    claims=should_rules(),
)
"""What every specimen would be without its bug."""

EXAMPLES = 30
"""Generated runs per check: enough to find a bug that no other check has found."""


@dataclass(frozen=True)
class Visit:
    """What the suite has found out about one specimen."""

    specimen: Specimen
    """Which one."""
    caught_by: tuple[Outcome, ...]
    """Checks that failed, in the order in which they were run."""
    seconds: float
    """How long all checks took that were run."""

    @property
    def as_expected(self) -> bool:
        """Whether a check caught it that was expected to."""
        return any(outcome.check.id in self.specimen.expected for outcome in self.caught_by)


def visit(specimen: Specimen, checks: Sequence[Check], *, all_checks: bool = False) -> Visit:
    """Run checks on a specimen, those first that should catch it.

    Args:
        specimen: What is checked.
        checks: The suite.
        all_checks: Whether to go on when one has caught it.
    """
    caught_by, seconds = [], 0.0
    plan = plan_for(specimen)
    for check in sorted(checks, key=lambda check: _place(check, specimen)):
        outcome = run_check(check, plan)
        seconds += outcome.seconds
        if outcome.status == "failed":
            caught_by.append(outcome)
            if not all_checks:
                break
    return Visit(specimen, tuple(caught_by), seconds)


def visit_untouched(checks: Sequence[Check]) -> Iterator[Outcome]:
    """Run the whole suite on the reference, made in the way in which specimens are."""
    yield from run_suite(checks, plan_for(UNTOUCHED))


def plan_for(specimen: Specimen) -> Plan:
    """How to run checks on a specimen."""
    impl = f"{__package__}.catalogue:{specimen.name}"
    twin = UNTOUCHED.implementation
    return Plan(specimen.implementation, impl, twin, examples=EXAMPLES)


def _place(check: Check, specimen: Specimen) -> tuple[int, bool]:
    """Expected checks in their order, then the others, the slow generated ones last."""
    expected = specimen.expected
    place = expected.index(check.id) if check.id in expected else len(expected)
    return place, check.id.startswith("generated.")
