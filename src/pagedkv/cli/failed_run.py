"""A failed run: told, written to a folder, and made as small as it can be."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from rich.progress import Progress, SpinnerColumn, TextColumn

from pagedkv.cli.output import complain, terminal
from pagedkv.cli.simulation_report import describe, told_failure

if TYPE_CHECKING:
    from pagedkv.conformance.simulation.machine import Simulator
    from pagedkv.conformance.simulation.many import Outcome
    from pagedkv.conformance.simulation.run import Run
    from pagedkv.conformance.simulation.shrinking import Shrunk


def reproduce(
    failed: "Outcome",
    simulator: "Simulator",
    impl: str,
    world_file: Path | None,
    out: Path,
    budget: int | None,
    *,
    to_stderr: bool,
) -> None:
    """Run a world that has failed again, tell what is wrong, write it down, and make it smaller.

    Args:
        failed: How it has fared.
        simulator: The implementation.
        impl: What people call it.
        world_file: Where the world comes from, if not from a seed.
        out: Where to write.
        budget: Runs in which to make it smaller; ``None``: the usual number.
        to_stderr: Whether stdout is for something else.

    Raises:
        KeyboardInterrupt: Somebody does not want to wait; the smallest so far is written.
    """
    from pagedkv.conformance.simulation.reproduction import write_divergence, write_run
    from pagedkv.conformance.simulation.run import run_world
    from pagedkv.conformance.simulation.shrinking import BUDGET
    from pagedkv.specification import reference_specification

    seed = failed.world.seed
    run = run_world(failed.world, simulator, reference_specification)
    if run.failure is None or run.digest != failed.digest:
        complain(
            f"seed {seed} does not fail in the same way again: the implementation depends on "
            "more than its world, such as time, threads or the order of a set"
        )
    if run.failure is None:
        return
    screen = terminal(stderr=to_stderr)
    screen.print(told_failure(run), soft_wrap=True)
    chosen = "" if impl == "engine" else f" --impl {shlex.quote(impl)}"
    again = f"pagedkv simulate{chosen}"
    which = f"--seed {seed} --runs 1" if world_file is None else f"--world {_quoted(world_file)}"
    complain(f"again: {again} {which} --expect {digest_of(run)}")
    # A world that is run again must not take the place of the run that it comes from.
    again_only = "" if world_file is None else f"-{digest_of(run)}"
    folder = out / f"seed-{seed}{again_only}"
    write_run(folder, run, simulator.name)
    complain(f"written to {folder}")
    if budget == 0:
        return
    shrunk, stopped = _shrunk(run, simulator, BUDGET if budget is None else budget)
    smallest = folder / "smallest"
    write_run(smallest, shrunk.run, simulator.name)
    screen.print(told_failure(shrunk.run), soft_wrap=True)
    limits = "" if shrunk.is_smallest else "; more runs might find a smaller one"
    complain(f"the same in {describe(shrunk.run.world)}, after {shrunk.tries} runs{limits}")
    file = _quoted(smallest / "world.json")
    complain(f"again: {again} --world {file} --expect {digest_of(shrunk.run)}")
    if stopped:
        raise KeyboardInterrupt
    path = smallest / "divergence.jsonl"
    events = write_divergence(path, shrunk.run, simulator.name, reference_specification)
    if events is not None:
        complain(f"{path} diverges in the same way after {events} events; see pagedkv trace check")


def digest_of(run: "Run") -> str:
    """What ``--expect`` takes to run this one again."""
    from pagedkv.conformance.simulation.many import common_digest

    return common_digest([(run.world.seed, run.digest)])


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))


def _shrunk(run: "Run", simulator: "Simulator", budget: int) -> "tuple[Shrunk, bool]":
    """The smallest that was found, and whether somebody has stopped the search."""
    from pagedkv.conformance.simulation.run import run_world
    from pagedkv.conformance.simulation.shrinking import Shrunk, shrink
    from pagedkv.specification import reference_specification

    latest = Shrunk(run, 0, is_smallest=False)
    with spinner() as progress:
        task = progress.add_task("making it smaller")

        def show(shrunk: Shrunk) -> None:
            nonlocal latest
            latest = shrunk
            text = f"making it smaller: {describe(shrunk.run.world)}, after {shrunk.tries} runs"
            progress.update(task, description=text)

        try:
            found = shrink(
                run,
                lambda world: run_world(world, simulator, reference_specification),
                budget=budget,
                on_progress=show,
            )
        except KeyboardInterrupt:
            return latest, True
        return found, False


def spinner() -> Progress:
    """A line on stderr that says how far something is, on a terminal only."""
    console = terminal(stderr=True)
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        console=console,
        disable=not console.is_terminal,
        transient=True,
    )
