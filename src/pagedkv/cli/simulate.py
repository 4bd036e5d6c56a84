"""``pagedkv simulate``: whole runs in worlds that go wrong, drawn from seeds."""

import os
import re
import time
from collections.abc import Iterator
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from itertools import count, islice, takewhile
from pathlib import Path
from secrets import randbelow
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

import typer

from pagedkv.cli.errors import CommandError, ImplementationFailedError
from pagedkv.cli.failed_run import reproduce, spinner
from pagedkv.cli.options import MOST, JsonOption, between
from pagedkv.cli.output import STDOUT, complain, terminal, write_json
from pagedkv.cli.simulation_report import standing, told
from pagedkv.implementations import UnknownImplementationError
from pagedkv.simulators import resolve_simulator

if TYPE_CHECKING:
    from pagedkv.conformance.simulation.campaign import Campaign
    from pagedkv.conformance.simulation.code_coverage import CodeCovered
    from pagedkv.conformance.simulation.machine import Simulator
    from pagedkv.conformance.simulation.world import World

RUNS = 100
"""Runs if neither their number nor a time is given."""

FAILED = 1
"""Exit status if a run has failed, or has not been the one that was expected."""


def a_digest(text: str) -> str:
    """A digest as it is told: 16 hexadecimal digits."""
    if re.fullmatch("[0-9a-f]{16}", text) is None:
        raise typer.BadParameter(f"{text!r} is no digest: they have 16 digits from 0 to f.")
    return text


def simulate(
    seed: Annotated[
        int | None,
        typer.Option(
            parser=between(0, MOST), metavar="N", help="The first seed; by default any, and told."
        ),
    ] = None,
    runs: Annotated[
        int | None,
        typer.Option(
            parser=between(1, MOST),
            metavar="N",
            help=f"How many seeds, counted on from the first; by default {RUNS}, or as many as "
            "--minutes allow.",
        ),
    ] = None,
    minutes: Annotated[
        float | None,
        typer.Option(
            parser=between(0.01, 100_000.0), metavar="M", help="Begin no run after so long."
        ),
    ] = None,
    impl: Annotated[
        str,
        typer.Option(metavar="NAME", help="'engine', 'reference', or package.module:factory."),
    ] = "engine",
    jobs: Annotated[
        int | None,
        typer.Option(
            parser=between(1, 1024), metavar="N", help="Processes; by default one per core."
        ),
    ] = None,
    out: Annotated[
        Path,
        typer.Option(metavar="DIR", file_okay=False, help="Where a failed run is written."),
    ] = Path("pagedkv-simulate"),
    world: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", dir_okay=False, help="Run the world of this world.json, not of seeds."
        ),
    ] = None,
    expect: Annotated[
        str | None,
        typer.Option(
            parser=a_digest, metavar="DIGEST", help="Fail if these are not the runs of that digest."
        ),
    ] = None,
    budget: Annotated[
        int | None,
        typer.Option(
            parser=between(0, MOST),
            metavar="N",
            help="Runs in which a failure may be made smaller; 0: leave it as it is.",
        ),
    ] = None,
    coverage: Annotated[
        bool,
        typer.Option("--coverage", help="Tell lines and branches that were not tried; slower."),
    ] = False,
    json: JsonOption = None,
) -> None:
    """Run a manager in worlds in which all that can go wrong does, and check everything.

    Every seed draws a world: sizes, tiers, policies, clients, faults, crashes. A seed is the same
    run on any machine. The first that fails ends the command: it is told, written to --out, and
    made as small as it can be.

    The exit status is 0 if every run was right, 1 if one was not, 2 for a wrong option. Who stops
    it, with Ctrl-C or SIGTERM, gets what was found so far.
    """
    simulator = resolved(impl)
    if world is not None and (coverage or (seed, runs, minutes) != (None, None, None)):
        raise CommandError("--world is one run: leave --seed, --runs, --minutes, --coverage out")
    if coverage:
        check_coverage()
    worlds = drawn(seed, runs, minutes) if world is None else iter([world_of(world)])
    check_out(out)
    campaign, code = run_all(worlds, simulator, impl, jobs or cores(), coverage=coverage)
    result = campaign.as_data()
    if code is not None:
        result["code"] = [module.as_data() for module in code]
    write_json(result, json)
    if json != STDOUT:
        terminal().print(told(campaign, code), soft_wrap=True)
    if campaign.failed is not None:
        reproduce(campaign.failed, simulator, impl, world, out, budget, to_stderr=json == STDOUT)
        raise typer.Exit(FAILED)
    if campaign.stopped:
        raise KeyboardInterrupt
    if expect is not None and expect != campaign.digest:
        complain(f"the digest is {campaign.digest}, but should be {expect}: these are other runs")
        raise typer.Exit(FAILED)


def resolved(name: str) -> "Simulator":
    """The simulator of ``--impl``."""
    try:
        return resolve_simulator(name)
    except UnknownImplementationError as error:
        raise typer.BadParameter(str(error), param_hint="--impl") from error


def check_out(out: Path) -> None:
    """Say in time that nothing can be written there.

    Raises:
        CommandError: It cannot.
    """
    was_there = out.exists()
    try:
        out.mkdir(parents=True, exist_ok=True)
        if not was_there:
            out.rmdir()
    except OSError as error:
        raise CommandError(f"--out {out} cannot be written: {error.strerror}") from None


def check_coverage() -> None:
    """Say in time that ``--coverage`` needs a library."""
    from pagedkv.conformance.simulation.code_coverage import is_available

    if not is_available():
        raise CommandError("--coverage needs the library coverage; pip install coverage")


def cores() -> int:
    """How many cores this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)  # not on every system
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def drawn(seed: int | None, runs: int | None, minutes: float | None) -> "Iterator[World]":
    """The worlds of the seeds that are asked for."""
    from pagedkv.conformance.simulation.drawing import draw_world

    first = randbelow(MOST // 2) if seed is None else seed
    limit = runs if runs is not None or minutes is not None else RUNS
    seeds: Iterator[int] = islice(count(first), limit)
    if minutes is not None:
        end_s = time.monotonic() + 60 * minutes
        seeds = takewhile(lambda _: time.monotonic() < end_s, seeds)
    return map(draw_world, seeds)


def world_of(path: Path) -> "World":
    """The world in a file.

    Raises:
        CommandError: There is none.
    """
    from pagedkv.conformance.simulation.reproduction import read_world

    try:
        return read_world(path)
    except OSError as error:
        raise CommandError(f"{path}: {error.strerror}") from error
    except ValueError as error:
        raise CommandError(f"{path} is no world that a simulation has written: {error}") from error


def run_all(
    worlds: "Iterator[World]", simulator: "Simulator", impl: str, jobs: int, *, coverage: bool
) -> "tuple[Campaign, list[CodeCovered] | None]":
    """Run worlds until one fails, there are no more, or somebody stops it.

    Returns:
        What they have come to, and by module what was tried, if ``coverage`` asks for it.

    Raises:
        CommandError: The implementation cannot be set up like this, or has ended a process.
    """
    from pagedkv.conformance.simulation.campaign import Campaign
    from pagedkv.conformance.simulation.code_coverage import measured
    from pagedkv.conformance.simulation.many import in_processes, one_by_one
    from pagedkv.specification import reference_specification

    campaign, begin_s = Campaign(impl), time.monotonic()
    with TemporaryDirectory(prefix="pagedkv-lines-") as folder, spinner() as progress:
        task = progress.add_task("preparing")
        lines_to = Path(folder) if coverage else None
        if jobs == 1 and not coverage:
            outcomes = one_by_one(worlds, simulator, reference_specification)
        else:
            outcomes = in_processes(worlds, simulator, reference_specification, jobs, lines_to)
        try:
            with closing(outcomes):
                for outcome in outcomes:
                    campaign.add(outcome)
                    campaign.seconds = time.monotonic() - begin_s
                    progress.update(task, description=standing(campaign))
                    if outcome.failure is not None:
                        break
        except KeyboardInterrupt:
            campaign.stopped = True
        except BrokenProcessPool as error:
            raise ImplementationFailedError(
                f"--impl {impl}: a process has died; --jobs 1 shows where"
            ) from error
        except ValueError as error:
            raise CommandError(f"--impl {impl}: {error}") from error
        is_measured = lines_to is not None and campaign.runs
        return campaign, measured(simulator.packages, Path(folder)) if is_measured else None
