"""Whole runs of the engine in worlds drawn from seeds, as ``pagedkv simulate`` makes them."""

from functools import cache

from pagedkv.conformance.simulation.drawing import draw_world
from pagedkv.conformance.simulation.run import Run, run_world
from pagedkv.engine_simulation import EngineSimulator
from pagedkv.specification import reference_specification


def run_seed(seed: int) -> Run:
    """Run a seed, whatever becomes of it."""
    return run_world(draw_world(seed), EngineSimulator(), reference_specification)


@cache
def right_run(seed: int) -> Run:
    """The run of a seed, in which nothing may be wrong."""
    run = run_seed(seed)
    assert run.failure is None, f"pagedkv simulate --seed {seed} --runs 1: {run.failure}"
    return run
