"""Running many worlds, one after the other or in several processes at once."""

from collections import Counter
from collections.abc import Generator, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from hashlib import sha256
from itertools import islice
from multiprocessing import get_context
from pathlib import Path

from pagedkv.conformance.recorded.specification import SpecificationFactory
from pagedkv.conformance.simulation.code_coverage import measure_until_exit
from pagedkv.conformance.simulation.failure import Failure
from pagedkv.conformance.simulation.machine import Simulator
from pagedkv.conformance.simulation.own_signals import signals_stay_here
from pagedkv.conformance.simulation.run import Run, run_world
from pagedkv.conformance.simulation.situations import Tried, tried_in
from pagedkv.conformance.simulation.world import World


@dataclass(frozen=True)
class Outcome:
    """How a world has fared; small enough to travel between processes."""

    world: World
    """Which one."""
    digest: str
    """See :attr:`Run.digest`."""
    failure: Failure | None
    """What is wrong; ``None``: nothing."""
    seen: Counter[str]
    """What has happened, and how often."""
    tried: Tried
    """What it has tried."""
    events: int
    """How many events were checked."""


def outcome_of(run: Run) -> Outcome:
    """A finished run in short."""
    return Outcome(
        run.world,
        run.digest,
        run.failure,
        run.seen,
        tried_in(run.world.setup, (record.events for record in run.lives)),
        sum(len(record.events) for record in run.lives),
    )


def run_in_short(
    world: World, simulator: Simulator, specification: SpecificationFactory
) -> Outcome:
    """Run a world, and forget all but the outcome.

    Raises:
        ValueError: The implementation cannot be set up like this.
    """
    return outcome_of(run_world(world, simulator, specification))


def one_by_one(
    worlds: Iterable[World], simulator: Simulator, specification: SpecificationFactory
) -> Generator[Outcome, None, None]:
    """The outcomes of worlds, in this process."""
    for world in worlds:
        yield run_in_short(world, simulator, specification)


def in_processes(
    worlds: Iterable[World],
    simulator: Simulator,
    specification: SpecificationFactory,
    jobs: int,
    lines_to: Path | None = None,
) -> Generator[Outcome, None, None]:
    """The outcomes of worlds as they come, from ``jobs`` processes.

    To close the iterator ends the processes, each after the world that it is at.

    Args:
        worlds: Which; taken as they are needed.
        simulator: The implementation.
        specification: What it is checked against.
        jobs: How many processes.
        lines_to: A folder for what :mod:`.code_coverage` measures; ``None``: it does not.
    """
    waiting = iter(worlds)
    packages = simulator.packages if lines_to is not None else ()
    pool = ProcessPoolExecutor(
        jobs, get_context("spawn"), initializer=_begin, initargs=(packages, lines_to)
    )
    running: set[Future[Outcome]] = set()

    def submit(count: int) -> None:
        with signals_stay_here():  # The pool starts its processes as it gets work.
            for world in islice(waiting, count):
                running.add(pool.submit(run_in_short, world, simulator, specification))

    try:
        submit(2 * jobs)
        while running:
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            running -= done
            submit(len(done))
            for future in done:
                yield future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _begin(packages: tuple[str, ...], lines_to: Path | None) -> None:
    """Prepare a process."""
    # Imported late: lines are measured from the import of the implementation on.
    if lines_to is not None:
        measure_until_exit(packages, lines_to)
    import torch

    torch.set_num_threads(1)


def common_digest(digests: Iterable[tuple[int, str]]) -> str:
    """One short digest of many runs, in whatever order they have come: by seed, its digest."""
    joined = "".join(f"{seed} {digest}\n" for seed, digest in sorted(digests))
    return sha256(joined.encode()).hexdigest()[:16]
