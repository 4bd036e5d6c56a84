"""What holds for the command line as a whole: version, help, demo, Ctrl-C, pipes."""

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pagedkv import __version__
from pagedkv.cli.entry import stop_signals
from pagedkv.engine.observability.overlap import copy_overlaps

Pagedkv = Callable[..., Any]

COMMAND = [sys.executable, "-m", "pagedkv"]


def test_version(pagedkv: Pagedkv) -> None:
    assert pagedkv("--version").out == f"pagedkv {__version__}\n"


@pytest.mark.parametrize("arguments", [(), ("--help",), ("replay", "-h"), ("trace", "--help")])
def test_help_is_no_error(pagedkv: Pagedkv, arguments: tuple[str, ...]) -> None:
    outcome = pagedkv(*arguments)
    assert (outcome.status, outcome.err) == (0, "")
    assert "Usage: pagedkv" in outcome.out


@pytest.mark.parametrize("columns", ["40", "60", "80"])
def test_help_spells_every_option_out_at_any_width(
    pagedkv: Pagedkv, monkeypatch: pytest.MonkeyPatch, columns: str
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    out = pagedkv("replay", "--help").out
    for option in ("--concurrency", "--runtime-inputs", "--no-decode", "--traceback"):
        assert option in out
    assert "…" not in out


def test_an_unknown_command_is_told_in_one_line(pagedkv: Pagedkv) -> None:
    outcome = pagedkv("dance")
    assert outcome.status == 2
    assert outcome.err.startswith("pagedkv: No such command 'dance'.")
    assert outcome.err.count("\n") == 1


def test_the_demo_shows_capacity_tiers_and_the_bound(pagedkv: Pagedkv, tmp_path: Path) -> None:
    timeline = tmp_path / "timeline.json"
    result = pagedkv("demo", "--requests", 300, "--timeline", timeline, "--json").json
    *device_only, unbounded, host, disk = result["runs"]
    rates = [run["hit_rate"] for run in [*device_only, unbounded]]
    assert rates == sorted(rates), "more pages never hurt here"
    assert unbounded["hit_rate"] == result["summary"]["infinite_cache_hit_rate"]
    assert disk["hit_rate"] > host["hit_rate"] > device_only[0]["hit_rate"]
    assert all(run["refused"] == 0 for run in result["runs"])
    first, restarted = result["engine"]
    assert abs(sum(first["hits"].values()) - sum(result["runs"][-1]["hits_by_tier"].values())) < 20
    assert restarted["hits"]["disk"] > restarted["hits"]["host"], "the disk is warm, memory is not"
    assert copy_overlaps(timeline)


@pytest.mark.parametrize("columns", ["60", "80", "120"])
def test_the_demo_explains_itself_at_any_width(
    pagedkv: Pagedkv,
    workload: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    columns: str,
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.chdir(tmp_path)
    outcome = pagedkv("demo", "--workload", workload)
    assert outcome.status == 0
    lines = outcome.out.splitlines()
    assert max(map(len, lines)) <= int(columns)
    assert lines == [line.rstrip() for line in lines], "no trailing blanks"
    assert lines[:3] == ["mix.jsonl.gz: 200 requests", lines[1], ""], "no word wraps"
    text = " ".join(outcome.out.split())
    for sentence in (
        "Why the hit rate grows",
        "What host and disk bring back",
        "infinite-cache",
        "The engine serves the workload",
    ):
        assert sentence in text


def test_a_demo_without_a_full_page_says_so(pagedkv: Pagedkv, tmp_path: Path) -> None:
    (tmp_path / "w").write_text(
        '{"timestamp": 0, "input_length": 3, "output_length": 1, "hash_ids": [0]}\n'
    )
    outcome = pagedkv("demo", "--workload", tmp_path / "w")
    assert (outcome.status, outcome.err.count("\n")) == (2, 1)
    assert "no prompt of a full page" in outcome.err


def interruptible() -> None:
    """Undo what a shell does to jobs in the background, which would be inherited."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.parametrize(
    ("number", "status", "message"),
    [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")],
)
def test_a_stopped_command_says_so_and_leaves_nothing(
    tmp_path: Path, number: signal.Signals, status: int, message: str
) -> None:
    # Enough work for minutes; the temporary file shows that it has begun.
    process = subprocess.Popen(
        [*COMMAND, "trace", "generate", str(tmp_path / "w"), "--requests", "10000000"],
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=interruptible,
    )
    try:
        while not list(tmp_path.iterdir()):
            assert process.poll() is None
        process.send_signal(number)
        _, complaint = process.communicate(timeout=60)
    finally:
        process.kill()
    assert (process.returncode, complaint) == (status, f"pagedkv: {message}\n")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("module", ["typer", "torch"])
def test_an_interrupted_import_is_an_interrupt_whatever_it_raises(module: str) -> None:
    script = f"""
import signal, sys

class Interrupting:
    def find_spec(name, path, target=None):
        if name == {module!r}:
            try:
                signal.raise_signal(signal.SIGINT)
            except KeyboardInterrupt:
                raise ImportError(name)

sys.meta_path.insert(0, Interrupting)
from pagedkv.cli import main
main(["demo"])
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=60,
        preexec_fn=interruptible,
    )
    assert (done.returncode, done.stderr) == (130, "pagedkv: interrupted\n")


def test_a_signal_that_is_ignored_from_the_start_stays_ignored() -> None:
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with stop_signals() as received:
            signal.raise_signal(signal.SIGTERM)
        assert received == []
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_closed_stdout_is_told_in_one_line(workload: Path) -> None:
    command = shlex.join([*COMMAND, "trace", "info", str(workload)])
    done = subprocess.run(["sh", "-c", f"{command} >&-"], capture_output=True, text=True)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "stdout is closed" in done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("option", [(), ("--json",)])
def test_a_full_disk_behind_stdout_is_told_as_that(workload: Path, option: tuple[str, ...]) -> None:
    command = shlex.join([*COMMAND, "trace", "info", str(workload), *option])
    done = subprocess.run(["sh", "-c", f"{command} >/dev/full"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, "pagedkv: stdout: No space left on device\n")


@pytest.mark.parametrize("command", [("demo",), ("replay", "-h"), ("trace", "info")])
def test_a_terminal_that_knows_ascii_only_is_enough(
    workload: Path, command: tuple[str, ...]
) -> None:
    file = {"demo": ["--workload", str(workload)], "trace": [str(workload)]}.get(command[0], [])
    done = subprocess.run(
        [*COMMAND, *command, *file],
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": "ascii", "COLUMNS": "100"},
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.isascii()


def test_a_reader_that_has_seen_enough_hears_no_complaint() -> None:
    process = subprocess.Popen(
        [*COMMAND, "trace", "generate", "-", "--requests", "100000"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None and process.stderr is not None
    try:
        process.stdout.readline()
        process.stdout.close()
        complaint = process.stderr.read()
        process.stderr.close()
        assert (process.wait(timeout=60), complaint) == (1, b"")
    finally:
        process.kill()
