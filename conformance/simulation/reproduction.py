"""A folder with all that somebody needs to look into a failure, and to see it again.

========================= ==========================================================================
world.json                what happens in the run; ``pagedkv simulate --world`` runs it again
failure.json              what is wrong
life-0.events.jsonl       what the first manager has reported; ``pagedkv trace check`` reads it
life-0.streams.jsonl      what was enqueued on its streams
smallest/                 the same for the smallest world that fails in the same way
smallest/divergence.jsonl the shortest sequence of calls that diverges in this way
========================= ==========================================================================
"""

import json
from pathlib import Path

from pagedkv.conformance.recorded.minimise import minimise
from pagedkv.conformance.recorded.specification import SpecificationFactory
from pagedkv.conformance.simulation.run import Run
from pagedkv.conformance.simulation.world import World
from pagedkv.traces.atomic_file import replace_file
from pagedkv.traces.events.recorder import record_to
from pagedkv.traces.events.setup import EventTraceHeader

DIVERGENCE_BUDGET = 300_000
"""Events that are played at most to find a shorter divergence."""


def write_run(folder: Path, run: Run, implementation: str) -> None:
    """Write a failed run into a folder, which is made if need be.

    Args:
        folder: Where to.
        run: What has happened.
        implementation: On what.

    Raises:
        OSError: A file cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / "world.json", run.world.model_dump_json(indent=2) + "\n")
    failure = None if run.failure is None else run.failure.as_data()
    _write(folder / "failure.json", json.dumps(failure, indent=2) + "\n")
    for place, record in enumerate(run.lives):
        with record_to(
            folder / f"life-{place}.events.jsonl", header_of(run, place, implementation)
        ) as file:
            for event in record.events:
                file.emit(event)
        if record.stream_log:
            _write(folder / f"life-{place}.streams.jsonl", "".join(record.stream_log))


def write_divergence(
    path: Path, run: Run, implementation: str, specification: SpecificationFactory
) -> int | None:
    """Write the shortest run of calls that diverges as the events of a failed run do.

    Returns:
        How many events it has; ``None`` if the failure is no divergence, and there is no file.

    Raises:
        OSError: It cannot be written.
    """
    if run.failure is None or run.failure.seq is None:
        return None
    place = run.failure.life
    header = header_of(run, place, implementation)
    events = run.lives[place].events
    shortest = minimise(header, events, specification, budget=DIVERGENCE_BUDGET)
    with record_to(
        path, header.model_copy(update={"origin": f"{header.origin}, minimised"})
    ) as file:
        for event in shortest.events:
            file.emit(event)
    return len(shortest.events)


def header_of(run: Run, place: int, implementation: str) -> EventTraceHeader:
    """The header of the events of a life."""
    origin = f"simulation of seed {run.world.seed}, life {place}"
    return EventTraceHeader(setup=run.world.setup, implementation=implementation, origin=origin)


def read_world(path: Path) -> World:
    """The world of a ``world.json``.

    Raises:
        OSError: It cannot be read.
        ValueError: It is none.
    """
    return World.model_validate_json(path.read_bytes())


def _write(path: Path, text: str) -> None:
    with replace_file(path) as file:
        file.write(text.encode())
