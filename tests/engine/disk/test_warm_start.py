"""What another opening of a directory finds, and when it refuses."""

import errno
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from pagedkv.engine.disk.errors import (
    DirectoryUnusableError,
    NewerIndexError,
)
from pagedkv.engine.disk.faulty_files import FaultyFiles
from pagedkv.engine.disk.index import Index
from pagedkv.reference.errors import LayoutMismatchError

Disk = Any  # the fixture of conftest.py, which cannot be imported


def files_in(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.iterdir() if file.name != "lock"}


async def test_a_missing_directory_is_made(disk: Disk) -> None:
    directory = disk.open(path=disk.path / "not" / "there")
    assert directory.survivors == []
    await disk.write(directory, a=0)


async def test_everything_survives_a_clean_close_in_its_order(disk: Disk) -> None:
    directory = disk.open()
    await disk.write(directory, a=3, b=1, c=6)
    await directory.aclose([6, 3, 1])
    assert await disk.survivors() == [(6, "c"), (3, "a"), (1, "b")]


async def test_blocks_of_one_call_survive_in_its_order(disk: Disk) -> None:
    directory = disk.open()
    assert not await disk.write_together(directory, a=3, b=1, c=2)
    await directory.aclose()
    assert await disk.survivors() == [(3, "a"), (1, "b"), (2, "c")]


async def test_slots_that_the_last_order_leaves_out_are_the_oldest(disk: Disk) -> None:
    directory = disk.open()
    await disk.write(directory, a=3, b=1, c=6)
    await directory.aclose([3])
    assert await disk.survivors() == [(1, "b"), (6, "c"), (3, "a")]


async def test_what_is_written_after_a_restart_is_younger(disk: Disk) -> None:
    directory = disk.open()
    await disk.write(directory, a=3, b=4)
    await directory.aclose([4, 3])
    directory = disk.open()
    await disk.write(directory, c=0)
    await directory.aclose()
    assert await disk.survivors() == [(4, "b"), (3, "a"), (0, "c")]


async def test_what_was_flushed_is_found_by_whoever_comes_after_a_crash(
    disk: Disk, tmp_path: Path
) -> None:
    directory = disk.open()
    await disk.write(directory, a=0, b=1)
    await directory.flush()
    left_behind = tmp_path / "left behind"
    left_behind.mkdir()
    for name, content in files_in(disk.path).items():
        (left_behind / name).write_bytes(content)
    found = disk.open(path=left_behind)
    assert found.survivors == [(0, b"a"), (1, b"b")]
    assert await disk.holds(found, "a", 0)


@pytest.mark.parametrize(("before", "after"), [("x", "y"), (None, "y"), ("x", None), (None, None)])
async def test_blocks_of_other_weights_are_dropped_and_named(
    disk: Disk, before: str | None, after: str | None
) -> None:
    directory = disk.open(model=before)
    await disk.write(directory, a=0, b=1)
    await directory.aclose()
    directory = disk.open(model=after)
    assert (directory.survivors, directory.strangers) == ([], [b"a", b"b"])
    await directory.aclose()
    directory = disk.open(model=before)
    assert (directory.survivors, directory.strangers) == ([], [])


async def test_another_layout_is_refused_and_nothing_is_touched(disk: Disk) -> None:
    directory = disk.open()
    await disk.write(directory, a=0)
    await directory.aclose()
    before = files_in(disk.path)
    with pytest.raises(LayoutMismatchError, match="layout, this manager has layout other"):
        disk.open(layout="other", block_nbytes=1)
    assert files_in(disk.path) == before
    assert await disk.survivors() == [(0, "a")]


async def test_a_directory_without_blocks_takes_any_layout(disk: Disk) -> None:
    directory = disk.open()
    await disk.write(directory, a=0)
    directory.forget(0)
    await directory.aclose()
    assert disk.open(layout="other", block_nbytes=100).survivors == []
    assert (disk.path / "blocks.slab").stat().st_size == 8 * 100


async def test_a_larger_capacity_keeps_all(disk: Disk) -> None:
    directory = disk.open(capacity=2)
    await disk.write(directory, a=0, b=1)
    await directory.aclose()
    assert await disk.survivors(capacity=20) == [(0, "a"), (1, "b")]


async def test_blocks_are_for_their_owner_alone(disk: Disk) -> None:
    disk.open()
    assert stat.S_IMODE((disk.path / "blocks.slab").stat().st_mode) == 0o600


async def test_a_place_that_cannot_be_written_is_told(disk: Disk) -> None:
    disk.path.write_text("a file, not a directory")
    with pytest.raises(DirectoryUnusableError, match="make it readable and writable"):
        disk.open()


@pytest.mark.parametrize("error", [errno.EACCES, errno.EROFS])
async def test_a_slab_that_cannot_be_opened_is_told(disk: Disk, error: int) -> None:
    files = FaultyFiles()
    files.fail("open", error)
    with pytest.raises(DirectoryUnusableError, match=os.strerror(error)):
        disk.open(files=files)
    assert disk.open().survivors == []  # the lock was given back


@pytest.mark.parametrize("argument", ["capacity", "block_nbytes", "depth"])
async def test_nothing_of_something_is_refused(disk: Disk, argument: str) -> None:
    with pytest.raises(ValueError, match=f"{argument} is 0; use 1 or more"):
        disk.open(**{argument: 0})


async def test_an_index_of_a_later_version_is_refused(disk: Disk) -> None:
    await disk.open().aclose()
    index = Index(disk.path)
    index._database.execute("PRAGMA user_version = 99")
    index.close()
    before = files_in(disk.path)
    with pytest.raises(NewerIndexError, match="version 99, but this pagedkv knows"):
        disk.open()
    assert files_in(disk.path) == before


async def test_another_format_is_another_layout(disk: Disk) -> None:
    directory = disk.open()
    await disk.write(directory, a=0)
    await directory.aclose()
    index = Index(disk.path)
    index._database.execute("UPDATE meta SET value = 2 WHERE name = 'format'")
    index.close()
    with pytest.raises(LayoutMismatchError, match="of format 2"):
        disk.open()
