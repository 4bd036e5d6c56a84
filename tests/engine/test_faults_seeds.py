"""Under every fault at once: no wrong byte, no leak, no hang, and a run that the reference allows.

More seeds: ``pagedkv simulate --seed 0 --runs 1000``.
"""

import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from tests.engine.simulated_runs import right_run, run_seed

from pagedkv.conformance.simulation.situations import Tried, tried_in

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.xdist_group("fault seeds")  # they share what they have found

SEEDS = (*range(40), 318)
"""The last two show what no other does: see ``mutants.toml``."""


@pytest.mark.parametrize("seed", SEEDS)
def test_nothing_is_lost(seed: int) -> None:
    assert right_run(seed).seen["finished"]


@cache
def tried() -> Tried:
    all_tried = Tried()
    for seed in SEEDS:
        run = right_run(seed)
        all_tried.add(tried_in(run.world.setup, (record.events for record in run.lives)))
    return all_tried


@pytest.mark.parametrize("reason", ["corrupt", "io_error", "no_space", "unavailable"])
def test_the_seeds_meet_every_failure_of_a_transfer(reason: str) -> None:
    assert any(how == reason for _, how in +tried().ended)


@pytest.mark.parametrize(
    "situation",
    [
        "alloc after a preemption",
        "alloc of a chunk",
        "alloc that does not use all it finds",
        "alloc that hits another replica",
        "alloc that hits the disk",
        "alloc that is cancelled",
        "alloc that is refused",
        "alloc where drafts look ahead",
        "device that fails",
        "end under load",
        "landing after a reset",
        "new write budget",
        "restart that finds blocks after a crash",
        "restart that finds blocks after an end",
    ],
)
def test_the_seeds_come_to(situation: str) -> None:
    assert tried().situations[situation]


@pytest.mark.parametrize("seed", [2, 5])
def test_a_seed_gives_the_same_run_again(seed: int) -> None:
    assert run_seed(seed).digest == right_run(seed).digest


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
    assert done.stdout.strip() == right_run(3).digest


def test_different_seeds_give_different_runs() -> None:
    assert len({right_run(seed).digest for seed in SEEDS}) == len(SEEDS)
