"""A directory that is opened with fewer slots: the youngest blocks move to where there is room."""

import contextlib
import errno
import os
from collections.abc import Sequence
from typing import Any

import pytest
from tests.engine.disk.stored_rows import stored_rows

from pagedkv.engine.disk.errors import DirectoryUnusableError
from pagedkv.engine.disk.faulty_files import FaultyFiles, FileCall
from pagedkv.engine.disk.files import RealFiles

Disk = Any  # the fixture of conftest.py, which cannot be imported


async def test_a_smaller_capacity_keeps_the_youngest(disk: Disk) -> None:
    directory = disk.open(capacity=8)
    await disk.write(directory, a=0, b=7, c=1, d=6, e=2)
    await directory.aclose([7, 0, 6, 2, 1])
    assert [name for _, name in await disk.survivors(capacity=3)] == ["d", "e", "c"]
    assert (disk.path / "blocks.slab").stat().st_size == 3 * disk.block_nbytes


@pytest.mark.parametrize("nth", [1, 2, 3, 4])
async def test_a_crash_while_blocks_move_loses_only_what_had_to_go(disk: Disk, nth: int) -> None:
    directory = disk.open(capacity=8)
    await disk.write(directory, old=0, b=6, c=7)
    await directory.aclose()
    files = FaultyFiles(seed=nth, crash_at=nth)
    with contextlib.suppress(DirectoryUnusableError):
        await disk.open(capacity=2, files=files).aclose()
    directory = disk.open(capacity=2)
    for slot, key in directory.survivors:
        assert await disk.holds(directory, key.decode(), slot)
    assert [key for _, key in directory.survivors] == [b"b", b"c"]


@pytest.mark.parametrize("call", ["preadv", "pwritev"])
async def test_a_block_that_cannot_be_moved_is_dropped(disk: Disk, call: FileCall) -> None:
    directory = disk.open(capacity=8)
    await disk.write(directory, b=6, c=7)
    await directory.aclose()
    files = FaultyFiles()
    files.fail(call, errno.EIO)
    directory = disk.open(capacity=2, files=files)
    assert [key for _, key in directory.survivors] == [b"c"]


class Watching(RealFiles):
    """Files that see to it that no row stands for bytes that change or go."""

    def __init__(self, disk: Disk) -> None:
        self.disk = disk
        """Where they are."""

    def pwritev(self, fd: int, content: Sequence[memoryview], offset: int) -> int:
        assert offset // self.disk.block_nbytes not in stored_rows(self.disk.path)
        return super().pwritev(fd, content, offset)

    def truncate(self, fd: int, nbytes: int) -> None:
        assert max(stored_rows(self.disk.path)) < nbytes // self.disk.block_nbytes
        super().truncate(fd, nbytes)


@pytest.mark.parametrize("slot", [3, 4, 5])
@pytest.mark.parametrize("direct_io", [False, True])
async def test_what_lies_behind_the_new_end_moves_in_its_order(
    disk: Disk, slot: int, direct_io: bool
) -> None:
    directory = disk.open(capacity=8)
    await disk.write(directory, a=0, b=1, c=2, d=7, e=slot, f=6)
    await directory.aclose()
    directory = disk.open(capacity=4, files=Watching(disk), direct_io=direct_io)
    assert [key for _, key in directory.survivors] == [b"c", b"d", b"e", b"f"]
    await directory.aclose()
    assert [name for _, name in await disk.survivors(capacity=4)] == ["c", "d", "e", "f"]


async def test_the_first_slot_behind_the_new_end_is_behind_it(disk: Disk) -> None:
    directory = disk.open(capacity=8)
    await disk.write(directory, a=4)
    await directory.aclose()
    assert await disk.survivors(capacity=4) == [(0, "a")]


async def test_blocks_that_the_slab_has_lost_take_no_place(disk: Disk) -> None:
    directory = disk.open(capacity=8)
    await disk.write(directory, a=0, b=1, c=2, d=7)
    await directory.aclose()
    os.truncate(disk.path / "blocks.slab", 3 * disk.block_nbytes)
    assert [name for _, name in await disk.survivors(capacity=3)] == ["a", "b", "c"]


async def test_blocks_of_other_weights_behind_the_new_end_are_gone_for_good(disk: Disk) -> None:
    directory = disk.open(capacity=8)
    await disk.write(directory, a=0, b=7)
    await directory.aclose()
    directory = disk.open(model="other", capacity=2)
    assert directory.strangers == [b"a", b"b"]
    assert stored_rows(disk.path) == {}
