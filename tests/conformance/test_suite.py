"""The suite itself: it covers every rule, says true things, and finds what is broken."""

import json
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pagedkv.conformance.check import Check
from pagedkv.conformance.deviations import DeviationFileError, read_deviations
from pagedkv.conformance.implementation import Implementation
from pagedkv.conformance.profiles import PROFILES
from pagedkv.conformance.report import Result, as_data, as_junit, as_page
from pagedkv.conformance.spec_text import rules
from pagedkv.conformance.suite import Outcome, Plan, all_checks, run_suite, with_methods_shown
from pagedkv.implementations import reference, resolve_implementation
from pagedkv.pytest_plugin import conformance_tests
from pagedkv.reference import Context, PagedKVCacheManager
from pagedkv.traces.manager_setup import ManagerSetup

REPOSITORY = Path(__file__).parents[2]

test_reference = conformance_tests("reference", profile="full")


def checks_of(*names: str) -> list[Check]:
    chosen = [c for c in all_checks() if c.id in names or c.rule.id in names]
    assert chosen
    return chosen


def outcomes_of(implementation: Implementation, *names: str, **plan: Any) -> list[Outcome]:
    complete = with_methods_shown(implementation)
    wanted = Plan(complete, implementation.name, with_methods_shown(reference()), **plan)
    return list(run_suite(checks_of(*names), wanted))


class ForgetsToCheckIds(PagedKVCacheManager):
    """A manager that serves requests which nobody has claimed."""

    def alloc(self, data: Context, replica_idx: int) -> None:
        if not self.contains(data.request_id, replica_idx):
            self.claim(data.request_id, replica_idx)
        super().alloc(data, replica_idx)


class Stuck(PagedKVCacheManager):
    """A manager whose alloc never returns."""

    def alloc(self, data: Context, replica_idx: int) -> None:
        while True:
            pass


class TakesHighIdsFirst(PagedKVCacheManager):
    """A manager that chooses as the reference does, with other names for its pages."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        for pool in self._state.pools:
            pool.idle = OrderedDict.fromkeys(reversed(pool.idle))


class EvictsTheNewest(PagedKVCacheManager):
    """A manager that gives up what was used last."""

    def release(self, request_id: Hashable, replica_idx: int) -> None:
        super().release(request_id, replica_idx)
        pool = self._state.pools[replica_idx]
        for page in reversed([page for page in pool.idle if page in pool.key_of]):
            pool.idle.move_to_end(page)


def broken(kind: type[PagedKVCacheManager], name: str = "broken") -> Implementation:
    def make(setup: ManagerSetup) -> PagedKVCacheManager:
        return kind(
            setup.params(),
            setup.session(),
            setup.total_num_pages,
            setup.host_pages or 0,
            max_batch_size=setup.max_batch_size,
            tracer=setup.tracer,
            media=setup.media,
            auto_land=setup.auto_land,
        )

    return Implementation(name=name, make=make)


def test_every_rule_has_a_check_that_is_mainly_about_it() -> None:
    assert sorted({check.rule.id for check in all_checks()}) == sorted(rules())


def test_every_check_says_what_it_claims_in_one_sentence() -> None:
    for check in all_checks():
        assert check.claim.endswith("."), check.id
        assert len(check.claim) < 200, check.id


def test_every_rule_of_the_specification_is_read() -> None:
    text = (REPOSITORY / "reference" / "SPEC.md").read_text(encoding="utf-8")
    assert len(rules()) == len(re.findall(r"^- \*\*[A-Z]+-\d+\*\*", text, re.MULTILINE))
    assert rules()["POOL-1"].text.endswith("belongs to nobody.")


def test_the_example_passes_and_the_guide_shows_it() -> None:
    source = (REPOSITORY / "examples" / "first_fit.py").read_text(encoding="utf-8")
    assert source.rstrip() in (REPOSITORY / "docs" / "conformance.md").read_text(encoding="utf-8")
    sys.path.insert(0, str(REPOSITORY / "examples"))
    try:
        implementation = resolve_implementation("first_fit:implementation")
    finally:
        sys.path.remove(str(REPOSITORY / "examples"))
    plan = Plan(with_methods_shown(implementation), "first_fit:implementation")
    outcomes = list(run_suite(all_checks(), plan))
    assert not [o for o in outcomes if o.status == "failed"]
    assert sum(o.status == "passed" for o in outcomes) >= 15


def test_the_guide_says_what_the_profiles_demand() -> None:
    guide = (REPOSITORY / "docs" / "conformance.md").read_text(encoding="utf-8")
    demanded: set[str] = set()
    for name, profile in PROFILES.items():
        (row,) = re.findall(rf"^\| `{name}` \| (.*) \|$", guide, re.MULTILINE)
        demanded |= set(re.findall(r"`(\w+)`", row))
        assert demanded == profile.demands


def test_a_broken_manager_fails_under_the_rule_that_it_breaks() -> None:
    (outcome,) = outcomes_of(broken(ForgetsToCheckIds), "claim.an_unclaimed_id_gets_no_page")
    assert (outcome.status, outcome.rule) == ("failed", "CLAIM-2")
    assert "UnknownRequestError" in outcome.reason


def test_a_manager_that_hangs_fails() -> None:
    name = "claim.an_id_is_claimed_once"
    complete = replace(broken(Stuck), capabilities=frozenset({"device", "prefix"}))
    (outcome,) = run_suite(checks_of(name), Plan(complete, "stuck", timeout_s=0.5))
    assert outcome.status == "failed"
    assert "no end after 0.5 s" in outcome.reason


def test_pages_may_have_other_names_than_those_of_the_reference() -> None:
    alike = reference().follows - {"POOL-11"}
    renaming = replace(broken(TakesHighIdsFirst), follows=alike)
    outcomes = outcomes_of(renaming, *(check.id for check in all_checks()))
    assert not [o for o in outcomes if o.status == "failed"]
    claiming = replace(renaming, follows=alike | {"POOL-11"})
    assert {o.rule for o in outcomes_of(claiming, "POOL-11")} == {"POOL-11"}


def test_another_order_of_eviction_is_free_unless_it_is_claimed_to_be_the_usual_one() -> None:
    free = broken(EvictsTheNewest)
    (outcome,) = outcomes_of(free, "generated.any_calls")
    assert outcome.status == "passed"
    claiming = replace(free, follows=frozenset({"POOL-3", "POOL-4", "POOL-5", "POOL-8"}))
    assert "failed" in {o.status for o in outcomes_of(claiming, "POOL-3")}


def test_what_a_profile_demands_is_not_skipped() -> None:
    little = replace(broken(PagedKVCacheManager), capabilities=frozenset({"device"}))
    (outcome,) = run_suite(
        checks_of("claim.an_id_is_claimed_on_one_replica"),
        Plan(little, "little", profile=PROFILES["distributed"]),
    )
    assert outcome.status == "failed"
    assert "profile distributed demands" in outcome.reason
    (outcome,) = run_suite(
        checks_of("claim.an_id_is_claimed_on_one_replica"),
        Plan(little, "little", profile=PROFILES["tiered"]),
    )
    assert outcome.status == "skipped"


def test_listed_deviations_fail_no_run_and_must_still_happen(tmp_path: Path) -> None:
    file = tmp_path / "deviations.toml"
    name = "claim.an_unclaimed_id_gets_no_page"
    cause = '[[deviation]]\nrule = "CLAIM-2"\nwhat = "claims by itself"\n'
    file.write_text(f'{cause}checks = ["{name}"]\n')
    known = read_deviations(file, frozenset({name}))
    (outcome,) = outcomes_of(broken(ForgetsToCheckIds), name, deviations=known)
    assert outcome.status == "deviates"
    (outcome,) = outcomes_of(broken(PagedKVCacheManager), name, deviations=known)
    assert outcome.status == "failed"
    assert "take it off the list" in outcome.reason


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "No such file"),
        ("[[deviation]", "is no TOML"),
        ('[[deviation]]\nrule = "CLAIM-2"', "what"),
        ('[[deviation]]\nrule = "CLAIM-2"\nwhat = ""\nwhy = 1', "why"),
        ('[[deviation]]\nrule = "CLAIM-99"\nwhat = ""', "which is no rule"),
        ('[[deviation]]\nrule = "CLAIM-2"\nwhat = ""\nchecks = ["no.such"]', "is no check"),
        ('[[deviation]]\nrule = "CLAIM-2"\nwhat = ""\nchecks = ["a.b"]\n' * 2, "twice"),
    ],
)
def test_a_bad_list_of_deviations_is_an_error(
    tmp_path: Path, text: str | None, message: str
) -> None:
    file = tmp_path / "deviations.toml"
    if text is not None:
        file.write_text(text)
    with pytest.raises(DeviationFileError, match=message):
        read_deviations(file, frozenset({"a.b"}))


def test_a_reproduction_can_be_pasted() -> None:
    """The calls that a failure shows run as they are, and end where the check has failed."""
    forgetful = broken(ForgetsToCheckIds, "reference")  # its calls run on the reference, too
    (outcome,) = outcomes_of(forgetful, "claim.an_unclaimed_id_gets_no_page")
    scope: dict[str, Any] = {}
    exec(outcome.reproduction, scope)
    assert scope["manager"].num_free_blocks() == 8
    assert "must raise UnknownRequestError" in outcome.reproduction


@pytest.fixture(scope="module")
def results() -> list[Result]:
    """A manager that passes, and one that does not, on a part of the suite."""
    made = []
    for implementation in (reference(), broken(ForgetsToCheckIds, "forgets <ids> & more")):
        complete = with_methods_shown(implementation)
        plan = Plan(complete, implementation.name)
        made.append(Result(plan, list(run_suite(checks_of("CLAIM-1", "CLAIM-2", "REL-2"), plan))))
    return made


def test_the_reports_say_the_same(results: list[Result]) -> None:
    data = json.loads(json.dumps(as_data(results)))
    suites = ET.fromstring(as_junit(results)).findall("testsuite")
    for result, told, suite in zip(results, data["implementations"], suites, strict=True):
        assert told["counts"] == {s: result.counts[s] for s in told["counts"]}
        assert told["ok"] == result.ok
        assert int(suite.attrib["tests"]) == len(result.outcomes)
        assert len(suite.findall("testcase/failure")) == result.counts["failed"]
    assert [told["ok"] for told in data["implementations"]] == [True, False]


def test_the_page_is_self_contained_and_escapes_what_it_shows(results: list[Result]) -> None:
    page = as_page(results)
    assert "forgets &lt;ids&gt; &amp; more" in page
    assert not re.search(r"""(?:src|href)\s*=\s*["']?https?:|@import|url\(""", page)


def run_command(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "pagedkv", "conformance", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={"PYTHONPATH": str(REPOSITORY / "examples"), "PATH": "/usr/bin:/bin"},
    )


def test_the_command_writes_what_it_is_asked_for(tmp_path: Path) -> None:
    files = {kind: tmp_path / f"report.{kind}" for kind in ("json", "html", "junit")}
    done = run_command(
        *("--impl", "first_fit:implementation", "--rule", "CLAIM"),
        *(f"--{kind}={path}" for kind, path in files.items()),
    )
    assert done.returncode == 0, done.stderr
    assert "first fit 1" in done.stdout
    assert json.loads(files["json"].read_text())["implementations"][0]["name"] == "first fit"
    assert all(path.stat().st_size > 500 for path in files.values())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "name an implementation"),
        (("--impl", "no.such:thing"), "cannot be imported"),
        (("--impl", "reference", "--rule", "ALLOC-99"), "no rule, section or check"),
        (("--impl", "reference", "--profile", "huge"), "is not one of core"),
        (("--impl", "reference", "--deviations", "/nowhere.toml"), "/nowhere.toml"),
    ],
)
def test_wrong_options_are_told_in_one_line(arguments: tuple[str, ...], message: str) -> None:
    done = run_command(*arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_the_list_names_every_check() -> None:
    done = run_command("--list")
    assert [line.split()[0] for line in done.stdout.splitlines()] == [c.id for c in all_checks()]
