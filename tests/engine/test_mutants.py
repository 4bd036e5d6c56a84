"""Each safeguard of the engine is needed: without it, a test fails.

All mutants take five minutes, so that a third of them is run, and the rest with
``PAGEDKV_ALL_MUTANTS=1``.
"""

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.engine.mutant_runs import ROOT, Mutant, MutantServer, read_mutants

MUTANTS = read_mutants()

SAMPLE = MUTANTS if os.environ.get("PAGEDKV_ALL_MUTANTS") else MUTANTS[::3]


@pytest.fixture(scope="module")
def server() -> Iterator[MutantServer]:
    server = MutantServer()
    yield server
    server.close()


@pytest.mark.parametrize("mutant", SAMPLE, ids=lambda mutant: mutant.why)
def test_without_it_a_test_fails(mutant: Mutant, server: MutantServer) -> None:
    assert server.outcome_of(mutant) == "killed", mutant.test


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.why)
def test_every_mutant_changes_one_place(mutant: Mutant) -> None:
    text = (ROOT / "engine" / mutant.file).read_text(encoding="utf-8")
    assert text.count(mutant.before) == 1
    compile(text.replace(mutant.before, mutant.after), mutant.file, "exec")
    assert Path(ROOT, mutant.test.partition("::")[0]).exists() or "::" not in mutant.test


def test_every_mutant_has_a_reason_of_its_own() -> None:
    assert [why for why, n in Counter(mutant.why for mutant in MUTANTS).items() if n > 1] == []


def test_what_passes_without_a_mutant_survives(server: MutantServer) -> None:
    file, test = "admission.py", "tests/engine/test_admission.py::"
    same = Mutant(file, "strictly first come", "strictly  first come", "", test)
    assert server.outcome_of(same) == "survived"


def test_a_mutant_that_cannot_be_read_is_not_killed(server: MutantServer) -> None:
    file, test = "admission.py", "tests/engine/test_admission.py::"
    broken = Mutant(file, "class Place:", "class Place(", "", test)
    assert server.outcome_of(broken) == "broken"


def test_documentation_lists_the_mutants() -> None:
    # Write it with: python -m tests.engine.mutant_runs --table
    text = (ROOT / "docs/mutants.md").read_text(encoding="utf-8")
    for mutant in MUTANTS:
        assert f"| {mutant.why} | `{mutant.file}` |" in text
