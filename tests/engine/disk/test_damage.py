"""Whatever happens to the files behind the tier's back: a miss, never a wrong byte."""

import os
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from pagedkv.engine.disk.errors import BlockDamagedError
from pagedkv.engine.disk.index import set_aside

Disk = Any  # the fixture of conftest.py, which cannot be imported


def change(path: Path, offset: int, content: bytes) -> None:
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(content)


async def filled(disk: Disk) -> None:
    directory = disk.open()
    for slot in range(8):
        await disk.write(directory, **{f"block {slot}": slot})
    await directory.aclose()


async def test_a_flipped_bit_is_noticed_and_the_block_deleted(disk: Disk) -> None:
    await filled(disk)
    slab = disk.path / "blocks.slab"
    change(slab, 3 * disk.block_nbytes + 5, bytes([slab.read_bytes()[3 * 4096 + 5] ^ 4]))
    directory = disk.open()
    with pytest.raises(BlockDamagedError):
        await disk.holds(directory, "block 3", 3)
    assert await disk.holds(directory, "block 4", 4)
    await directory.aclose()
    assert "block 3" not in [name for _, name in await disk.survivors()]


async def test_two_blocks_that_have_changed_places_are_noticed(disk: Disk) -> None:
    await filled(disk)
    change(disk.path / "blocks.slab", 0, bytes(disk.content("block 1")))
    change(disk.path / "blocks.slab", 4096, bytes(disk.content("block 0")))
    directory = disk.open()
    for slot in (0, 1):
        with pytest.raises(BlockDamagedError):
            await disk.holds(directory, f"block {slot}", slot)


async def test_rows_that_have_changed_places_are_noticed(disk: Disk) -> None:
    """Each slot has the right checksum for its bytes, and the wrong key."""
    await filled(disk)
    with closing(sqlite3.connect(disk.path / "index.sqlite")) as index:
        index.execute("UPDATE blocks SET key = ? WHERE slot = 0", (b"temporary",))
        index.execute("UPDATE blocks SET key = ? WHERE slot = 1", (b"block 0",))
        index.execute("UPDATE blocks SET key = ? WHERE slot = 0", (b"block 1",))
        index.commit()
    directory = disk.open()
    assert (1, b"block 0") in directory.survivors
    with pytest.raises(BlockDamagedError):
        await disk.holds(directory, "block 0", 1)


@pytest.mark.parametrize("part", ["model", "layout"])
async def test_the_namespace_is_part_of_what_is_verified(disk: Disk, part: str) -> None:
    await filled(disk)
    with closing(sqlite3.connect(disk.path / "index.sqlite")) as index:
        index.execute("UPDATE meta SET value = 'liar' WHERE name = ?", (part,))
        index.commit()
    directory = disk.open(**{part: "liar"})
    with pytest.raises(BlockDamagedError):
        await disk.holds(directory, "block 0", 0)


@pytest.mark.parametrize("left", [0, 5])
async def test_blocks_that_a_slab_has_lost_with_its_end_are_gone(
    disk: Disk, caplog: pytest.LogCaptureFixture, left: int
) -> None:
    await filled(disk)
    os.truncate(disk.path / "blocks.slab", left * 4096 + 100)
    found = await disk.survivors()
    assert found == [(slot, f"block {slot}") for slot in range(left)]
    assert f"{8 - left} of 8 blocks are gone" in caplog.text


async def test_a_missing_slab_is_a_cold_start(disk: Disk) -> None:
    await filled(disk)
    (disk.path / "blocks.slab").unlink()
    assert await disk.survivors() == []


async def test_a_slab_that_shrinks_while_it_is_open_is_an_error_of_the_disk(disk: Disk) -> None:
    await filled(disk)
    directory = disk.open()
    os.truncate(disk.path / "blocks.slab", 4096)
    with pytest.raises(OSError, match="the slab ends within slot 3"):
        await disk.holds(directory, "block 3", 3)
    assert await disk.holds(directory, "block 0", 0)


def execute(*statements: str) -> Callable[[Path], None]:
    def damage(index: Path) -> None:
        with closing(sqlite3.connect(index)) as database:
            for statement in statements:
                database.execute(statement)
            database.commit()

    return damage


DAMAGES: dict[str, Callable[[Path], object]] = {
    "no database": lambda index: index.write_bytes(b"what is this? " * 1000),
    "cut": lambda index: os.truncate(index, index.stat().st_size // 2),
    "a page overwritten": lambda index: change(index, index.stat().st_size - 4096, b"\xff" * 4096),
    "a root overwritten": lambda index: change(index, 4096, b"\xff" * 4096),
    "no blocks table": execute("DROP TABLE blocks"),
    "no meta table": execute("DROP TABLE meta"),
    "no namespace": execute("DELETE FROM meta"),
    "no layout": execute("DELETE FROM meta WHERE name = 'layout'"),
    "another type of layout": execute("UPDATE meta SET value = 5 WHERE name = 'layout'"),
    "a slot behind the end": execute("UPDATE blocks SET slot = 8 WHERE slot = 0"),
    "a slot before the beginning": execute("UPDATE blocks SET slot = -1 WHERE slot = 0"),
    "a block in two slots": execute("UPDATE blocks SET key = (SELECT key FROM blocks LIMIT 1)"),
    "a key of text": execute("UPDATE blocks SET key = 'text' WHERE slot = 3"),
    "text that is none": execute("UPDATE blocks SET key = CAST(x'ff' AS TEXT) WHERE slot = 3"),
    "a short checksum": execute("UPDATE blocks SET checksum = x'00' WHERE slot = 3"),
    "another length": execute("UPDATE blocks SET nbytes = 1 WHERE slot = 3"),
    "an age of text": execute("UPDATE blocks SET age = 'old' WHERE slot = 3"),
    "another block size": execute(
        "UPDATE blocks SET nbytes = 1", "UPDATE meta SET value = 1 WHERE name = 'block_nbytes'"
    ),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
async def test_a_damaged_index_is_set_aside_and_the_tier_starts_cold(
    disk: Disk, caplog: pytest.LogCaptureFixture, damage: Callable[[Path], object]
) -> None:
    await filled(disk)
    damage(disk.path / "index.sqlite")
    directory = disk.open()
    assert directory.survivors == []
    assert caplog.text.count("is damaged") == 1
    assert (disk.path / "index.sqlite.damaged").exists()
    await disk.write(directory, a=0)
    await directory.aclose()
    assert await disk.survivors() == [(0, "a")]


def test_the_log_of_a_damaged_index_goes_with_it(tmp_path: Path) -> None:
    """SQLite leaves it behind when it cannot tell what it is looking at."""
    for suffix in ("", "-wal", "-shm"):
        (tmp_path / f"index.sqlite{suffix}").write_text(f"new{suffix}")
        (tmp_path / f"index.sqlite.damaged{suffix}").write_text("earlier")
    set_aside(tmp_path, "it is damaged")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        f"index.sqlite.damaged{suffix}": f"new{suffix}" for suffix in ("", "-wal", "-shm")
    }
