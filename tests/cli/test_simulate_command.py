"""``pagedkv simulate``: seeds, failures that can be looked into, and what was not tried."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tests.cli.conftest import Pagedkv

BROKEN = "tests.conformance.simulation.broken_engine:head_first"

ROOT = Path(__file__).parents[2]

ALONE = ("--jobs", 1)
"""In this process."""


def test_seeds_that_are_right_end_with_0_and_a_digest(pagedkv: Pagedkv) -> None:
    outcome = pagedkv("simulate", "--seed", 3, "--runs", 2, *ALONE, "--json")
    assert outcome.status == 0
    result = outcome.json
    assert (result["runs"], result["first_seed"], result["failed_seed"]) == (2, 3, None)
    assert result["events"] > 100
    assert result["coverage"]["tried"] > 10
    again = pagedkv("simulate", "--seed", 3, "--runs", 2, *ALONE, "--expect", result["digest"])
    assert again.status == 0
    assert result["digest"] in again.out
    assert "never tried" in again.out


def test_other_runs_than_expected_end_with_1(pagedkv: Pagedkv) -> None:
    outcome = pagedkv("simulate", "--seed", 3, "--runs", 1, *ALONE, "--expect", "0" * 16)
    assert outcome.status == 1
    assert "should be 0000000000000000" in outcome.err


def test_any_seed_is_told(pagedkv: Pagedkv) -> None:
    seeds = {pagedkv("simulate", "--runs", 1, *ALONE, "--json").json["first_seed"] for _ in "ab"}
    assert len(seeds) == 2


def test_the_reference_can_be_simulated(pagedkv: Pagedkv) -> None:
    outcome = pagedkv("simulate", "--impl", "reference", "--seed", 0, "--runs", 2, *ALONE)
    assert outcome.status == 0


def test_lines_that_were_not_tried_are_told(pagedkv: Pagedkv) -> None:
    pytest.importorskip("coverage")
    options = ("--seed", 0, "--runs", 1, "--jobs", 1, "--coverage", "--json")
    modules = {
        module["file"].rpartition("/")[2]: module
        for module in pagedkv("simulate", *options).json["code"]
    }
    for name, most in (("commit.py", 0.5), ("cleaning.py", 1.0)):
        statements, missed = modules[name]["statements"], modules[name]["missed"]
        assert 0 < len(missed) < most * statements


@pytest.fixture
def failed(pagedkv: Pagedkv, tmp_path: Path) -> tuple[Path, str, str]:
    """The folder of a failure, and what was said."""
    options = ("--seed", 0, "--runs", 50, *ALONE, "--impl", BROKEN, "--out", tmp_path)
    outcome = pagedkv("simulate", *options)
    assert outcome.status == 1
    (folder,) = tmp_path.iterdir()
    return folder, outcome.out, outcome.err


def test_a_failure_is_told_and_can_be_had_again(
    pagedkv: Pagedkv, failed: tuple[Path, str, str], tmp_path: Path
) -> None:
    folder, out, err = failed
    assert "divergence: AllocPlanned with another pages" in out
    assert "expected AllocPlanned(pages=[" in out and "seen     AllocPlanned(pages=[" in out
    commands = [line.partition("again: pagedkv ")[2] for line in err.splitlines()]
    for command in filter(None, commands):
        outcome = pagedkv(*command.split(), *ALONE, "--budget", 0, "--out", tmp_path / "again")
        assert outcome.status == 1
        assert "AllocPlanned with another pages" in outcome.out
        assert command.split()[-1] in outcome.err
    assert len(list(filter(None, commands))) == 2
    assert json.loads((folder / "failure.json").read_text())["life"] == 0


def test_what_is_written_can_be_checked(pagedkv: Pagedkv, failed: tuple[Path, str, str]) -> None:
    folder, _, _ = failed
    for name in ("life-0.events.jsonl", "smallest/life-0.events.jsonl"):
        checked = pagedkv("trace", "check", folder / name)
        assert checked.status == 1
        assert "AllocPlanned: pages: expected" in checked.err
    assert pagedkv("trace", "check", folder / "smallest/divergence.jsonl").status == 1
    assert (folder / "life-0.streams.jsonl").read_text().startswith('{"format":')


def test_a_world_of_ones_own_can_be_run(pagedkv: Pagedkv, failed: tuple[Path, str, str]) -> None:
    folder, _, _ = failed
    outcome = pagedkv("simulate", "--world", folder / "smallest/world.json", *ALONE, "--json")
    assert outcome.status == 0
    assert outcome.json["runs"] == 1


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (("--runs", 0), "no whole number from 1"),
        (("--impl", "nobody"), "'nobody' cannot be simulated"),
        (("--impl", "no.such:thing"), "install it"),
        (("--impl", "json:nothing"), "has no function 'nothing'"),
        (("--impl", "builtins:dict"), "lacks name, packages, run, machine"),
        (("--world", "missing.json"), "missing.json"),
        (("--world", __file__, "--seed", 1), "leave --seed"),
        (("--world", __file__), "is no world"),
    ],
)
def test_bad_input_ends_with_2(
    pagedkv: Pagedkv, options: tuple[object, ...], complaint: str
) -> None:
    outcome = pagedkv("simulate", *options)
    assert outcome.status == 2
    assert complaint in outcome.err
    assert "Traceback" not in outcome.err


def test_ctrl_c_ends_it_with_what_was_found() -> None:
    program = [sys.executable, "-m", "pagedkv", "simulate", "--minutes", "10", "--jobs", "2"]
    process = subprocess.Popen(
        [*program, "--json"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=10)
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert json.loads(out)["stopped"]
    assert err.strip() == "pagedkv: interrupted"
