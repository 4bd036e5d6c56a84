"""Under every fault at once: no wrong byte, no leak, no hang, and a run that the reference allows.

1,000 seeds take about ten minutes: ``python -m tests.engine.simulated_runs 0 1000``.
"""

import os
import subprocess
import sys
from collections import Counter
from functools import cache
from pathlib import Path

import pytest
from tests.engine.simulated_runs import Outcome, run_seed

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.xdist_group("fault seeds")  # they share what they have found

SEEDS = range(40)


@cache
def outcome(seed: int) -> Outcome:
    return run_seed(seed)


@pytest.mark.parametrize("seed", SEEDS)
def test_nothing_is_lost(seed: int) -> None:
    assert outcome(seed).seen["lives"]


def test_the_seeds_meet_every_fault() -> None:
    seen: Counter[str] = sum((outcome(seed).seen for seed in SEEDS), Counter())
    events = ["cancelled", "finished", "poisoned", "refused", "crashes under load", "survivors"]
    reasons = ["corrupt", "io_error", "no_space", "unavailable"]
    hits = ["peer", "host", "disk"]
    wanted = {
        *events,
        *(f"failed {reason}" for reason in reasons),
        *(f"{hit} hits" for hit in hits),
    }
    assert wanted <= (+seen).keys()


@pytest.mark.parametrize("seed", [2, 5])
def test_a_seed_gives_the_same_run_again(seed: int) -> None:
    assert run_seed(seed).digest == outcome(seed).digest


def test_a_seed_gives_the_same_run_in_another_process() -> None:
    program = "from tests.engine.simulated_runs import run_seed; print(run_seed(3).digest)"
    hash_seed = "1" if os.environ.get("PYTHONHASHSEED") != "1" else "2"
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env=os.environ | {"PYTHONHASHSEED": hash_seed},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == outcome(3).digest


def test_different_seeds_give_different_runs() -> None:
    assert len({outcome(seed).digest for seed in SEEDS}) == len(SEEDS)
