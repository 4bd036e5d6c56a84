"""The suite itself: it covers every rule, says true things, and finds what is broken."""

import inspect
import json
import re
import signal
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pagedkv.conformance.check import Check
from pagedkv.conformance.deviations import DeviationFileError, read_deviations
from pagedkv.conformance.implementation import Implementation
from pagedkv.conformance.introduction import SetUpError, introduce
from pagedkv.conformance.profiles import PROFILES
from pagedkv.conformance.report import Result, as_data, as_junit, as_page
from pagedkv.conformance.spec_text import rules
from pagedkv.conformance.suite import Outcome, Plan, all_checks, run_suite, with_methods_shown
from pagedkv.implementations import reference, resolve_implementation
from pagedkv.pytest_plugin import conformance_tests
from pagedkv.reference import Context, PagedKVCacheManager
from pagedkv.specification import build_reference
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


class Grumbles(PagedKVCacheManager):
    """A manager that fails whenever it is to allocate."""

    def alloc(self, data: Context, replica_idx: int) -> None:
        raise IndexError("page 7 of 6")


def test_a_failure_names_the_line_of_the_implementation() -> None:
    (outcome,) = outcomes_of(broken(Grumbles), "claim.an_id_is_claimed_once")
    line = inspect.getsourcelines(Grumbles)[1] + 4
    assert outcome.where.endswith(f"test_suite.py:{line}, in alloc")
    # ... also if what it has raised is only the wrong refusal.
    (outcome,) = outcomes_of(broken(Grumbles), "claim.an_unclaimed_id_gets_no_page")
    assert outcome.where.endswith(f"test_suite.py:{line}, in alloc")


def test_one_exception_in_many_checks_is_told_once() -> None:
    failing = broken(Grumbles, "grumbles")
    result = Result(Plan(failing, "grumbles"), outcomes_of(failing, "CLAIM-1", "REL-1"))
    alike = max(result.alike("failed"), key=len)
    assert len(alike) > 3
    assert {o.reason for o in alike} == {"IndexError: page 7 of 6"}
    assert as_page([result]).count("page 7 of 6 (") == 1
    assert len(ET.fromstring(as_junit([result])).findall("*/testcase/failure")) > 3


class WithoutResets(PagedKVCacheManager):
    """A manager some of whose methods are missing."""

    reset_metrics = reset_prefix_cache = get_num_used_host_pages = None  # type: ignore[assignment]


def test_what_is_there_in_part_is_said() -> None:
    partly = replace(broken(WithoutResets), capabilities=frozenset({"host", "reset"}))
    assert sorted(introduce(partly).notes) == [
        "host: lacks get_num_used_host_pages, so its pages are not counted",
        "metrics: lacks reset_metrics, so not checked",
        "reset: lacks reset_prefix_cache, although it is declared",
    ]
    assert introduce(reference()).notes == ()


class Mute(PagedKVCacheManager):
    """A manager whose first call fails."""

    def num_free_blocks(self, replica_idx: int = 0) -> int:
        raise OSError("no device")


def test_a_set_up_that_fails_says_how_far_it_came() -> None:
    def refuses(setup: ManagerSetup) -> PagedKVCacheManager:
        raise SystemExit("no device")

    with pytest.raises(
        SetUpError, match=r"its first call fails: OSError: no device \(.*test_suite"
    ):
        introduce(broken(Mute))
    with pytest.raises(SetUpError, match=r"its factory fails: SystemExit: no device \(.*refuses\)"):
        introduce(Implementation(name="refusing", make=refuses))
    with pytest.raises(SetUpError, match="its factory built a dict, which lacks claim, alloc"):
        introduce(Implementation(name="dict", make=lambda setup: {}))  # type: ignore[arg-type,return-value]
    with pytest.raises(SetUpError, match="its factory fails: OutOfTimeError: no end after"):
        introduce(Implementation(name="stuck", make=lambda setup: signal.pause()), timeout_s=0.2)  # type: ignore[arg-type,return-value]


def test_checks_keep_to_the_hash_algorithms_that_are_declared() -> None:
    asked = set()

    def make(setup: ManagerSetup) -> PagedKVCacheManager:
        asked.add(setup.hash_algorithm)
        return build_reference(setup)

    some = Implementation(name="some", make=make, hash_algorithms=("xxh3_128", "sha256"))
    (outcome,) = outcomes_of(some, "recorded.full_pool")
    assert (outcome.status, outcome.reason) == ("skipped", "some has no hash algorithm sha256_64")
    (outcome,) = outcomes_of(some, "claim.an_id_is_claimed_once")
    assert outcome.status == "passed"
    assert asked == {"xxh3_128"}
    (outcome,) = outcomes_of(some, "identity.each_algorithm_is_its_hash")
    assert outcome.status == "passed"
    assert asked == {"xxh3_128", "sha256"}
    with pytest.raises(ValueError, match=r"hash_algorithms is .*'md5'.*; name one or more"):
        replace(some, hash_algorithms=("md5",))  # type: ignore[arg-type]


CRASHES = "namespaces.a_block_that_had_not_landed_does_not_exist"


def forgetful(lost: Callable[[int], slice]) -> Implementation:
    """Managers that lose blocks in a crash: ``lost`` picks them from so many, oldest first."""

    def make(setup: ManagerSetup) -> PagedKVCacheManager:
        manager = build_reference(setup)

        def crash() -> None:
            blocks = setup.media.disks[str(setup.disk_dir)].blocks
            landed = [key for key, block in blocks.items() if block.content is not None]
            for key in landed[lost(len(landed))]:
                del blocks[key]

        manager.crash = crash  # type: ignore[attr-defined]
        return manager

    return replace(reference(), name="forgetful", make=make, follows=frozenset())


def test_a_crash_may_cost_what_has_landed_last_and_nothing_else() -> None:
    (outcome,) = outcomes_of(forgetful(lambda landed: slice(2, landed)), CRASHES)
    assert outcome.status == "passed"
    for oldest in (lambda landed: slice(2), lambda landed: slice(2, landed - 3)):
        (outcome,) = outcomes_of(forgetful(oldest), CRASHES)
        assert (outcome.status, outcome.rule) == ("failed", "NS-4")


def test_a_folder_that_is_not_given_back_is_no_crash() -> None:
    keepers: set[str] = set()

    def make(setup: ManagerSetup) -> PagedKVCacheManager:
        if str(setup.disk_dir) in keepers:
            raise RuntimeError("somebody has it open")
        manager = build_reference(setup)
        end = manager.shutdown

        def shutdown() -> None:
            keepers.discard(str(setup.disk_dir))
            end()

        keepers.add(str(setup.disk_dir))
        manager.shutdown = shutdown  # type: ignore[method-assign]
        return manager

    (outcome,) = outcomes_of(replace(forgetful(slice), make=make), CRASHES)
    told = "there is no crash() to give the folder back: somebody has it open"
    assert (outcome.status, outcome.reason) == ("skipped", told)


def test_a_manager_that_hangs_while_it_is_cleared_away_is_given_up() -> None:
    class Lingers(Grumbles):
        def shutdown(self) -> None:
            signal.pause()

    lingering = replace(broken(Lingers), capabilities=frozenset({"device", "shutdown"}))
    plan = Plan(lingering, "lingers", timeout_s=0.3)
    (outcome,) = run_suite(checks_of("claim.an_id_is_claimed_once"), plan)
    assert (outcome.status, outcome.reason) == ("failed", "IndexError: page 7 of 6")


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


def run_command(*arguments: str, folder: Path = REPOSITORY) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "pagedkv", "conformance", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={"PYTHONPATH": f"{REPOSITORY / 'examples'}:{folder}", "PATH": "/usr/bin:/bin"},
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


HANGING = """
import signal, sys
from first_fit import FirstFit

class Hanging(FirstFit):
    def step(self, batches):
        print("hanging", file=sys.stderr, flush=True)
        while True:
            signal.pause()
"""


@pytest.mark.parametrize(("sent", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_who_stops_it_gets_what_was_found_so_far(
    tmp_path: Path, sent: signal.Signals, status: int
) -> None:
    (tmp_path / "hanging.py").write_text(HANGING)
    files = {kind: tmp_path / f"report.{kind}" for kind in ("json", "html", "junit")}
    options = [f"--{kind}={path}" for kind, path in files.items()]
    impls = ["--impl", "hanging:Hanging", "--impl", "reference"]
    with subprocess.Popen(
        [sys.executable, "-m", "pagedkv", "conformance", *impls, "--rule", "STEP", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={"PYTHONPATH": f"{REPOSITORY / 'examples'}:{tmp_path}", "PATH": "/usr/bin:/bin"},
        # Whoever runs the tests in the background of a shell has it ignored, and hands that down.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    ) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == "hanging\n"
        process.send_signal(sent)
        out, err = process.communicate()
    assert process.returncode == status
    told, other = json.loads(files["json"].read_text())["implementations"]
    stopped_in, reached = told["not_reached"][0], len(told["checks"])
    assert told["partial"] and not told["ok"]
    assert f"stopped in {stopped_in} on hanging:Hanging; what was found until then" in err
    summary = f"partial, stopped after {reached} of {reached + len(told['not_reached'])} checks"
    assert summary in out
    assert (other["partial"], other["checks"]) == (True, [])
    suite, _ = ET.fromstring(files["junit"].read_bytes())
    assert summary in suite.findall("properties/property")[0].attrib["value"]
    assert len(suite.findall("testcase")) == reached + len(told["not_reached"])
    assert f"Partial: stopped after {reached} of" in files["html"].read_text()


def test_what_hangs_longer_than_it_may_fails(tmp_path: Path) -> None:
    (tmp_path / "hanging.py").write_text(HANGING)
    done = run_command(
        *("--impl", "hanging:Hanging", "--timeout", "0.3", "--rule", "STEP"), folder=tmp_path
    )
    assert done.returncode == 1
    assert "OutOfTimeError: no end after 0.3 s (" in done.stdout
    assert done.stdout.count("can:     device, prefix") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "name an implementation"),
        (("--impl-cmd", "false"), "--impl-cmd: 'false' has ended with status 1"),
        (("--impl", "reference", "--timeout", "0"), "--timeout"),
        (("--impl", "no.such:thing"), "its import fails: module 'no.such' cannot be imported"),
        (("--impl", "builtins:int"), "--impl builtins:int: its factory fails: TypeError"),
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


def test_pytest_says_once_that_a_manager_cannot_be_checked() -> None:
    options = ["-p", "pagedkv.pytest_plugin", "-p", "no:cacheprovider", "--impl", "builtins:int"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, "--pyargs", "pagedkv.suite_as_tests"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert (done.stdout + done.stderr).count("--impl builtins:int: its factory fails") == 1


def test_the_list_names_every_check() -> None:
    done = run_command("--list")
    assert [line.split()[0] for line in done.stdout.splitlines()] == [c.id for c in all_checks()]
