"""Every rule has a mutant of the reference, which a check of that very rule kills."""

from pathlib import Path

import pytest

from pagedkv.conformance.spec_text import rules, should_rules
from pagedkv.conformance.suite import Plan, all_checks, run_check
from pagedkv.conformance.zoo.mutant import Mutant, as_markdown, read_mutants
from pagedkv.conformance.zoo.specimen import broken_reference
from pagedkv.specification import reference_specification

HERE = Path(__file__).parent

MUTANTS = read_mutants(HERE / "mutants.toml")

CHECKS = {check.id: check for check in all_checks()}


def named(mutant: Mutant) -> str:
    return f"{mutant.rule}-{mutant.where}"


@pytest.mark.parametrize("mutant", MUTANTS, ids=named)
def test_check_of_the_rule_kills_the_mutant(mutant: Mutant) -> None:
    check = CHECKS[mutant.check]
    assert check.rule.id == mutant.rule
    assert mutant.outcome_of(check, reference_specification).status == "failed"


@pytest.mark.parametrize(
    ("check_id", "claims_all"), sorted({(mutant.check, mutant.claims_all) for mutant in MUTANTS})
)
def test_check_passes_where_nothing_is_changed(check_id: str, claims_all: bool) -> None:
    untouched = broken_reference("untouched", (), should_rules() if claims_all else frozenset())
    plan = Plan(untouched, "untouched", specification=reference_specification)
    assert run_check(CHECKS[check_id], plan).status == "passed"


def test_every_rule_has_a_mutant() -> None:
    assert {mutant.rule for mutant in MUTANTS} == set(rules())


def test_a_mutant_of_what_is_not_there_is_refused() -> None:
    moved = MUTANTS[0].model_copy(update={"where": "pool:PagePool.no_such_method"})
    with pytest.raises(AttributeError, match="no_such_method"):
        _ = moved.change


def test_documentation_lists_the_mutants() -> None:
    # Write it with: python scripts/mutants.py --table-only
    text = (HERE.parents[1] / "docs/mutants.md").read_text(encoding="utf-8")
    assert as_markdown(MUTANTS, CHECKS) in text
