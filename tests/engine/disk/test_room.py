"""A directory takes its room when it is opened, or says how much there is (SIZE-4)."""

import errno
import os
import resource
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pagedkv.engine.disk.faulty_files import FaultyFiles
from pagedkv.engine.disk.files import RealFiles
from pagedkv.reference.sizing import InsufficientMemoryError

Disk = Any  # the fixture of conftest.py, which cannot be imported


async def test_a_disk_that_is_too_small_is_told_before_anything_is_written(disk: Disk) -> None:
    files = FaultyFiles(capacity_nbytes=5 * disk.block_nbytes)
    with pytest.raises(InsufficientMemoryError, match="disk_offload_max_gb needs") as refusal:
        disk.open(capacity=6, files=files)
    assert refusal.value.field == "disk_offload_max_gb"
    assert refusal.value.wanted_bytes == 6 * disk.block_nbytes
    assert refusal.value.available_bytes == 5 * disk.block_nbytes
    assert not disk.path.exists()


async def test_the_room_that_the_slab_has_counts_as_available(disk: Disk) -> None:
    await disk.open().aclose()
    disk.open(files=FaultyFiles(capacity_nbytes=0))


async def test_room_that_is_gone_when_it_is_taken_is_told_the_same_way(disk: Disk) -> None:
    class Filling(RealFiles):
        def fallocate(self, fd: int, nbytes: int) -> None:
            os.ftruncate(fd, nbytes - 1)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    await disk.open(capacity=2).aclose()
    with pytest.raises(InsufficientMemoryError, match="disk_offload_max_gb"):
        disk.open(capacity=4, files=Filling())
    assert (disk.path / "blocks.slab").stat().st_size == 2 * disk.block_nbytes


async def test_the_largest_file_of_the_process_counts(disk: Disk) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8 * disk.block_nbytes - 1, before[1]))
    try:
        with pytest.raises(InsufficientMemoryError) as refusal:
            disk.open()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert refusal.value.available_bytes == 8 * disk.block_nbytes - 1


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
async def test_every_way_of_having_no_room_is_told_the_same_way(disk: Disk, error: int) -> None:
    files = FaultyFiles()
    files.fail("fallocate", error)
    with pytest.raises(InsufficientMemoryError, match="disk_offload_max_gb"):
        disk.open(files=files)


async def test_holes_in_the_slab_are_no_room(disk: Disk) -> None:
    await disk.open(capacity=2).aclose()
    os.truncate(disk.path / "blocks.slab", 0)
    os.truncate(disk.path / "blocks.slab", 8 * disk.block_nbytes)
    with pytest.raises(InsufficientMemoryError) as refusal:
        disk.open(files=FaultyFiles(capacity_nbytes=0))
    assert refusal.value.available_bytes == 0


def test_what_is_reserved_for_the_administrator_is_not_free(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    status = SimpleNamespace(f_bavail=3, f_bfree=5, f_frsize=512, f_bsize=4096)
    monkeypatch.setattr(os, "statvfs", lambda folder: status)
    assert RealFiles().free_nbytes(tmp_path) == 3 * 512
