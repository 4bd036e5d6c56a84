"""Forks engines under load, kills each at a random moment, and serves again from what they leave.

It is a program of its own because a process with threads should not fork. Usage:
``python -m tests.engine.killed_engine DIRECTORY KILLS``.
"""

import asyncio
import os
import random
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from tests.engine.real_disk_runs import PROMPTS, opened, serve, tiered_setup

from pagedkv.conformance.clients import Clients
from pagedkv.reference.events import DiskOpened, Event, Released


class Reporter:
    """Writes a byte for each request that is over."""

    def __init__(self, report: int) -> None:
        self._report = report

    def emit(self, event: Event) -> None:
        """Take one event."""
        if isinstance(event, Released):
            os.write(self._report, b".")


async def serve_until_killed(folder: Path, report: int, seed: int) -> None:
    setup = tiered_setup(folder, tracer=Reporter(report))
    clients = Clients(opened(setup), setup, seed, num_prompts=PROMPTS, max_pages=4)
    await clients.run(clients=4, requests=10**9)


async def serve_again(folder: Path, report: int) -> None:
    """Serve the same prompts; every byte that comes from disk is looked at."""
    served = await serve(folder)
    survivors = next(e.keys for e in served.events if isinstance(e, DiskOpened))
    os.write(report, f"{len(survivors)} {served.metrics.disk_blocks_served}".encode())


def forked(work: Callable[[int], object]) -> tuple[int, int]:
    """A process that does ``work``, and where to read what it reports."""
    reports, report = os.pipe()
    process = os.fork()
    if not process:
        os.close(reports)
        status = 1
        try:
            work(report)
            status = 0
        finally:
            sys.stderr.flush()
            os._exit(status)
    os.close(report)
    return process, reports


def main() -> None:
    folder, kills = Path(sys.argv[1]), int(sys.argv[2])
    survivors = hits = 0
    for seed in range(kills):

        def work(report: int, seed: int = seed) -> None:
            asyncio.run(serve_until_killed(folder, report, seed))

        engine, reports = forked(work)
        for _ in range(random.Random(seed).randrange(1, 200)):
            assert os.read(reports, 1), "the engine has died of something else"
        os.kill(engine, signal.SIGKILL)
        os.waitpid(engine, 0)
        os.close(reports)
        checker, reports = forked(lambda report: asyncio.run(serve_again(folder, report)))
        with os.fdopen(reports) as lines:
            counts = lines.read().split()
        _, status = os.waitpid(checker, 0)
        assert status == 0, f"what was left by the engine of seed {seed} is not right"
        survivors += int(counts[0])
        hits += int(counts[1])
    print(f"{kills} kills, {survivors} blocks survived, {hits} hits on disk, all of them right")
    assert survivors > kills and hits > kills


if __name__ == "__main__":
    main()
