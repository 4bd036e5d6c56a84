"""Public bugs in the real engine are noticed by simulated worlds.

A third of them is tried, and all with ``PAGEDKV_ALL_MUTANTS=1``.
"""

import os
import subprocess
import sys

import pytest
from tests.engine.engine_zoo import DOCUMENT, ZOO, Bug, read_zoo
from tests.engine.mutant_runs import ROOT

BUGS = read_zoo()

SAMPLE = sorted({bug.number for bug in BUGS})[:: 1 if os.environ.get("PAGEDKV_ALL_MUTANTS") else 3]


def test_a_seed_fails_on_every_bug() -> None:
    # In a process that has not imported the engine yet: its children import it from other trees.
    command = [sys.executable, "-m", "tests.engine.engine_zoo", "--first", *map(str, SAMPLE)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = [line for line in done.stdout.splitlines() if line.startswith("| ")]
    assert len(rows) == sum(bug.number in SAMPLE for bug in BUGS)
    assert not [row for row in rows if "never" in row]


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: f"{bug.number} {bug.what}")
def test_every_bug_is_one_place_of_the_engine(bug: Bug) -> None:
    text = (ROOT / "engine" / bug.file).read_text(encoding="utf-8")
    assert text.count(bug.before) == 1, ZOO
    compile(text.replace(bug.before, bug.after), bug.file, "exec")


def test_the_document_lists_them() -> None:
    # Write it with: python -m tests.engine.engine_zoo
    text = DOCUMENT.read_text(encoding="utf-8")
    assert not [bug.what for bug in BUGS if f"| {bug.number} | {bug.what} |" not in text]
