"""Forks writers, kills each at a random moment, and looks at what they leave.

It is a program of its own because a process with threads should not fork. Usage:
``python killed_process.py DIRECTORY KILLS``.
"""

import asyncio
import os
import random
import signal
import sys
from pathlib import Path

from pagedkv.engine.disk.block import Block
from pagedkv.engine.disk.directory import BlockDirectory

NBYTES = 16384
SLOTS = 32


def opened(path: Path) -> BlockDirectory:
    return BlockDirectory.open(
        path, layout="layout", model="model", capacity=SLOTS, block_nbytes=NBYTES, direct_io=True
    )


def content(key: bytes) -> bytes:
    return (key * NBYTES)[:NBYTES]


async def write_until_killed(path: Path, report: int, seed: int) -> None:
    """Write random blocks to random slots, and report each step in one line of 32 bytes."""
    directory, choice = opened(path), random.Random(seed)

    def tell(event: str, slot: int = 0, key: str = "") -> None:
        os.write(report, f"{event} {slot} {key}".ljust(31).encode() + b"\n")

    async def one(worker: int) -> None:
        for number in range(10**9):
            slot = choice.randrange(SLOTS // 8) * 8 + worker
            key = f"{seed}.{worker}.{number}"
            tell("begun", slot)
            block = Block(slot, key.encode(), memoryview(content(key.encode())))
            assert not await directory.write([block])
            tell("written", slot, key)
            if choice.random() < 0.1:
                await directory.flush()
                tell("flushed", worker)

    await asyncio.gather(*map(one, range(8)))


async def check(path: Path, steps: list[list[str]]) -> int:
    """Verify all that is there; how many blocks that are."""
    directory = opened(path)
    found = {slot: key.decode() for slot, key in directory.survivors}
    into = bytearray(NBYTES)
    for slot, key in found.items():
        assert not await directory.read([Block(slot, key.encode(), memoryview(into))])
        assert into == content(key.encode())
    written: dict[str, str] = {}
    certain: dict[str, str] = {}
    for event, about, *names in steps:
        if event == "begun":
            written.pop(about, None)
            certain.pop(about, None)
        elif event == "written":
            written[about] = names[0]
        else:  # a worker sees to its own slots, one after the other
            certain |= {s: k for s, k in written.items() if int(s) % 8 == int(about)}
    for place, name in certain.items():
        assert found.get(int(place)) == name, f"slot {place} has lost {name}, which was flushed"
    await directory.aclose()
    return len(found)


def main() -> None:
    path, kills = Path(sys.argv[1]), int(sys.argv[2])
    blocks = 0
    for seed in range(kills):
        reports, report = os.pipe()
        writer = os.fork()
        if not writer:
            os.close(reports)
            asyncio.run(write_until_killed(path, report, seed))
        os.close(report)
        with os.fdopen(reports, "rb") as lines:
            steps = [next(lines) for _ in range(random.Random(seed).randrange(1, 400))]
            os.kill(writer, signal.SIGKILL)
            steps += lines
        os.waitpid(writer, 0)
        blocks += asyncio.run(check(path, [line.decode().split() for line in steps]))
    print(f"{kills} kills, {blocks} blocks found, all of them whole")
    assert blocks > kills


main()
