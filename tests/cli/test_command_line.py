"""What holds for the command line as a whole: version, help, demo, Ctrl-C, pipes."""

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pagedkv import __version__

Pagedkv = Callable[..., Any]

COMMAND = [sys.executable, "-m", "pagedkv"]


def test_version(pagedkv: Pagedkv) -> None:
    assert pagedkv("--version").out == f"pagedkv {__version__}\n"


@pytest.mark.parametrize("arguments", [(), ("--help",), ("replay", "-h"), ("trace", "--help")])
def test_help_is_no_error(pagedkv: Pagedkv, arguments: tuple[str, ...]) -> None:
    outcome = pagedkv(*arguments)
    assert (outcome.status, outcome.err) == (0, "")
    assert "Usage: pagedkv" in outcome.out


def test_an_unknown_command_is_told_in_one_line(pagedkv: Pagedkv) -> None:
    outcome = pagedkv("dance")
    assert outcome.status == 2
    assert outcome.err.startswith("pagedkv: No such command 'dance'.")
    assert outcome.err.count("\n") == 1


def test_the_demo_shows_capacity_tiers_and_the_bound(pagedkv: Pagedkv) -> None:
    result = pagedkv("demo", "--requests", 300, "--json").json
    *device_only, unbounded, host, disk = result["runs"]
    rates = [run["hit_rate"] for run in [*device_only, unbounded]]
    assert rates == sorted(rates), "more pages never hurt here"
    assert unbounded["hit_rate"] == result["summary"]["infinite_cache_hit_rate"]
    assert disk["hit_rate"] > host["hit_rate"] > device_only[0]["hit_rate"]
    assert all(run["refused"] == 0 for run in result["runs"])


@pytest.mark.parametrize("columns", ["50", "80", "120"])
def test_the_demo_explains_itself_at_any_width(
    pagedkv: Pagedkv, workload: Path, monkeypatch: pytest.MonkeyPatch, columns: str
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    outcome = pagedkv("demo", "--workload", workload)
    assert outcome.status == 0
    assert max(map(len, outcome.out.splitlines())) <= int(columns)
    text = " ".join(outcome.out.split())
    for sentence in ("Why the hit rate grows", "What host and disk bring back", "infinite-cache"):
        assert sentence in text


def test_a_demo_without_a_full_page_says_so(pagedkv: Pagedkv, tmp_path: Path) -> None:
    (tmp_path / "w").write_text(
        '{"timestamp": 0, "input_length": 3, "output_length": 1, "hash_ids": [0]}\n'
    )
    outcome = pagedkv("demo", "--workload", tmp_path / "w")
    assert (outcome.status, outcome.err.count("\n")) == (2, 1)
    assert "no prompt of a full page" in outcome.err


def test_interrupting_ends_with_130_and_leaves_nothing(tmp_path: Path) -> None:
    # Enough work for minutes; the temporary file shows that it has begun.
    process = subprocess.Popen(
        [*COMMAND, "trace", "generate", str(tmp_path / "w"), "--requests", "10000000"],
        stderr=subprocess.PIPE,
        text=True,
    )
    while not list(tmp_path.iterdir()):
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, complaint = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in complaint
    assert list(tmp_path.iterdir()) == []


def test_a_reader_that_has_seen_enough_hears_no_complaint() -> None:
    process = subprocess.Popen(
        [*COMMAND, "trace", "generate", "-", "--requests", "100000"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None and process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    complaint = process.stderr.read()
    process.stderr.close()
    assert (process.wait(timeout=60), complaint) == (1, b"")
