"""After any end at any moment: every block that is found is whole, and what was flushed is found.

``PAGEDKV_KILLS`` says how many processes are killed.
"""

import asyncio
import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from enum import Enum, auto
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pagedkv.engine.disk.block import Block
from pagedkv.engine.disk.directory import BlockDirectory
from pagedkv.engine.disk.errors import BlockDamagedError
from pagedkv.engine.disk.faulty_files import FaultyFiles

KILLS = int(os.environ.get("PAGEDKV_KILLS", "20"))

NBYTES = 2048
SLOTS = 4


def content(key: bytes) -> bytes:
    return (key + b".") * (NBYTES // (len(key) + 1)) + b"x" * (NBYTES % (len(key) + 1))


def opened(path: Path, files: FaultyFiles | None = None) -> BlockDirectory:
    return BlockDirectory.open(
        path,
        layout="layout",
        model="model",
        capacity=SLOTS,
        block_nbytes=NBYTES,
        files=files or FaultyFiles(),
    )


async def read(directory: BlockDirectory, slot: int, key: bytes) -> bytes | None:
    into = bytearray(NBYTES)
    for error in (await directory.read([Block(slot, key, memoryview(into))])).values():
        if isinstance(error, BlockDamagedError):
            return None
        raise error
    return bytes(into)


async def write(directory: BlockDirectory, slot: int, key: bytes) -> None:
    for error in (await directory.write([Block(slot, key, memoryview(content(key)))])).values():
        raise error


@pytest.mark.timeout(300 + KILLS)
def test_every_block_that_a_killed_process_leaves_is_whole(tmp_path: Path) -> None:
    script = Path(__file__).with_name("killed_process.py")
    done = subprocess.run(
        [sys.executable, script, tmp_path / "tier", str(KILLS)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{KILLS} kills" in done.stdout


Moves = st.lists(
    st.one_of(
        st.tuples(st.just("write"), st.integers(0, SLOTS - 1), st.integers(0, 99)),
        st.tuples(st.just("forget"), st.integers(0, SLOTS - 1), st.just(0)),
        st.tuples(st.just("flush"), st.just(0), st.just(0)),
        st.tuples(st.just("reopen"), st.just(0), st.just(0)),
        st.tuples(st.just("forget all"), st.just(0), st.just(0)),
        st.tuples(st.just("remember index"), st.just(0), st.just(0)),
    ),
    max_size=25,
)


class End(Enum):
    """How a process comes to its end, and what goes with it."""

    KILLED = auto()
    POWER_LOST = auto()
    POWER_LOST_WITH_LATEST_COMMITS = auto()
    """The index is as it was remembered."""
    POWER_LOST_WITH_THE_LOG = auto()
    """The index is as it was synced."""


@settings(max_examples=100)  # each opens, fills and crashes a directory
@given(moves=Moves, seed=st.integers(0, 1000), end=st.sampled_from(End))
def test_a_directory_is_a_dict_that_a_crash_can_make_smaller(
    moves: list[tuple[str, int, int]], seed: int, end: End
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(run(Path(folder), moves, seed, end))


async def run(folder: Path, moves: list[tuple[str, int, int]], seed: int, end: End) -> None:
    """Make the moves, crash, and look at what is there.

    A killed process loses what was not flushed. A loss of power also takes sectors of the slab
    and the last commits of the index. But what the last clean close has stored and nobody has
    overwritten is there, and what a flushed reset has taken is not.
    """
    power = end is not End.KILLED
    path, files = folder / "tier", FaultyFiles(seed)
    directory = opened(path, files)
    model: dict[int, bytes] = {}
    flushed: dict[int, bytes] = {}
    forgotten: dict[int, bytes] = {}  # whose rows may still be there
    closed: dict[int, bytes] = {}
    reset: set[bytes] = set()
    earlier: dict[str, bytes] | None = None
    for number, (move, slot, tag) in enumerate(moves):
        match move:
            case "write":
                key = f"{tag} {number}".encode()
                flushed.pop(slot, None)
                closed.pop(slot, None)
                await write(directory, slot, key)
                model[slot] = key
            case "forget":
                directory.forget(slot)
                flushed.pop(slot, None)
                closed.pop(slot, None)
                if slot in model:
                    forgotten[slot] = model.pop(slot)
            case "forget all":
                directory.forget_all()
                await directory.flush()
                reset |= {*model.values(), *forgotten.values()}
                for blocks in (model, flushed, forgotten, closed):
                    blocks.clear()
                earlier = None
            case "flush":
                await directory.flush()
                flushed = dict(model)
                forgotten.clear()
            case "reopen":
                await directory.aclose(sorted(model))
                directory = opened(path, files)
                assert directory.survivors == sorted(model.items())
                flushed, closed, earlier = dict(model), dict(model), None
            case "remember index":
                await directory.flush()
                earlier = index_files(path)
    for slot, key in model.items():
        assert await read(directory, slot, key) == content(key)

    crashed = folder / "crashed"
    if power:
        files.crash()
    shutil.copytree(path, crashed)
    if end is End.POWER_LOST_WITH_LATEST_COMMITS and earlier is not None:
        for name in index_files(crashed):
            (crashed / name).unlink()
        for name, data in earlier.items():
            (crashed / name).write_bytes(data)
    elif end is End.POWER_LOST_WITH_THE_LOG:
        (crashed / "index.sqlite-wal").unlink()
    await directory.aclose()

    after = opened(crashed)
    found = dict(after.survivors)
    for slot, key in found.items():
        intact = await read(after, slot, key)
        assert intact == content(key) if not power else intact in (None, content(key))
        assert slot not in closed or intact is not None
    assert closed.items() <= found.items()
    assert reset.isdisjoint(found.values())
    if not power:
        assert flushed.items() <= found.items() <= model.items() | forgotten.items()
    await after.aclose()


def index_files(path: Path) -> dict[str, bytes]:
    """The files of an index that nobody writes to now, without the shared memory."""
    return {p.name: p.read_bytes() for p in path.glob("index.sqlite*") if p.suffix != ".sqlite-shm"}


@settings(max_examples=40)
@given(
    seed=st.integers(0, 1000),
    crash_at=st.integers(1, 30),
    shares=st.tuples(*[st.floats(0, 0.3)] * 3),
)
def test_faults_of_every_kind_are_misses_and_errors_of_the_disk(
    seed: int, crash_at: int, shares: tuple[float, float, float]
) -> None:
    async def work(path: Path) -> None:
        short, torn, flipped = shares
        files = FaultyFiles(seed, short, torn, flipped, crash_at=crash_at)
        directory = opened(path, files)

        async def one(slot: int) -> None:
            for number in range(4):
                key = f"{slot} {number}".encode()
                with contextlib.suppress(OSError):
                    await write(directory, slot, key)
                    assert await read(directory, slot, key) in (None, content(key))

        await asyncio.gather(*map(one, range(SLOTS)))
        await directory.aclose()
        directory = opened(path)
        for slot, key in directory.survivors:
            assert await read(directory, slot, key) in (None, content(key))
        await directory.aclose()

    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(work(Path(folder) / "tier"))
