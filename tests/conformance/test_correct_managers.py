"""The suite is fair: managers that follow every MUST rule pass, whatever they do elsewhere."""

import json
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from pagedkv.cli import main
from pagedkv.conformance.check import Check
from pagedkv.conformance.spec_text import rules
from pagedkv.conformance.suite import all_checks, run_check
from pagedkv.pytest_plugin import plan_for
from pagedkv.traces.shipped import DEMO_WORKLOAD

MANAGERS = {
    name: f"pagedkv.conformance.correct.{name}"
    for name in ("newest_first", "lazy_offload", "background_transfers")
}
SHOULD = {rule.id for rule in rules().values() if rule.strength == "SHOULD"}
LACKING = re.compile(r"has no \w+|does not follow [A-Z]+-\d+|is not a simulated one")


@cache
def follows(manager: str) -> frozenset[str]:
    return plan_for(MANAGERS[manager]).implementation.follows


def cases() -> Iterator[object]:
    """Every check with every manager that it is for."""
    for manager, name in MANAGERS.items():
        capabilities = plan_for(name).implementation.capabilities
        for check in all_checks():
            unasked = SHOULD - follows(manager)
            if check.needs <= capabilities and check.rule.id not in unasked:
                yield pytest.param(manager, check, id=f"{manager}-{check.id}")


@pytest.mark.parametrize(("manager", "check"), [*cases()])
def test_check_passes_without_exemption(manager: str, check: Check) -> None:
    outcome = run_check(check, plan_for(MANAGERS[manager]))
    assert outcome.status in ("passed", "skipped"), f"{outcome.reason}\n{outcome.reproduction}"
    assert outcome.status == "passed" or LACKING.search(outcome.reason), outcome.reason


@pytest.mark.parametrize("manager", MANAGERS)
def test_manager_needs_no_list_of_deviations(manager: str) -> None:
    assert not plan_for(MANAGERS[manager]).deviations


@pytest.mark.parametrize("manager", MANAGERS)
def test_manager_goes_its_own_way_where_the_rules_allow_it(manager: str) -> None:
    assert len(follows(manager)) <= len(SHOULD) / 4


def test_no_choice_is_made_by_all_alike() -> None:
    assert not frozenset.intersection(*map(follows, MANAGERS))
    assert len(SHOULD.difference(*map(follows, MANAGERS))) >= len(SHOULD) / 2


@pytest.mark.parametrize("manager", MANAGERS)
def test_demo_workload_replays(
    manager: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    tiers = {
        "newest_first": [],
        "lazy_offload": ["--host-pages", "200", "--replicas", "2"],
        "background_transfers": ["--host-pages", "200", "--disk-pages", "800"],
    }[manager]
    options = ["--pages", "300", "--page-size", "128", "--limit", "150", "--concurrency", "4"]
    report = tmp_path / "report.json"
    with pytest.raises(SystemExit) as ended:
        main(
            [
                *("replay", str(DEMO_WORKLOAD), "--impl", MANAGERS[manager], *options, *tiers),
                *("--decode", "--runtime-inputs", "--json", str(report)),
            ]
        )
    assert ended.value.code == 0, capfd.readouterr().err
    result = json.loads(report.read_text(encoding="utf-8"))
    assert (result["requests"], result["refused"]) == (150, 0)
    assert result["pages_hit"] > 0
    assert result["evictions"] > 0
