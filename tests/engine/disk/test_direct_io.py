"""Past the page cache where that is possible, and one warning where it is not."""

import errno
import logging
import mmap
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from pagedkv.engine.disk.block import Block
from pagedkv.engine.disk.directory import BlockDirectory
from pagedkv.engine.disk.files import RealFiles

Disk = Any  # the fixture of conftest.py, which cannot be imported


class CountedFlags(RealFiles):
    """Files that note which transfers go past the page cache. Folders may refuse that."""

    def __init__(self) -> None:
        self.direct: dict[int, Path] = {}
        self.transfers: list[bool] = []
        """For each write, whether it went past the page cache."""

    def open(self, path: Path, flags: int) -> int:
        if flags & os.O_DIRECT and path.parent.name == "refuses the flag":
            raise OSError(errno.EINVAL, "Invalid argument")
        fd = super().open(path, flags)
        if flags & os.O_DIRECT:
            self.direct[fd] = path
        return fd

    def close(self, fd: int) -> None:
        self.direct.pop(fd, None)
        super().close(fd)

    def preadv(self, fd: int, into: Sequence[memoryview], offset: int) -> int:
        self._check(fd)
        return super().preadv(fd, into, offset)

    def pwritev(self, fd: int, content: Sequence[memoryview], offset: int) -> int:
        self._check(fd)
        self.transfers.append(fd in self.direct)
        return super().pwritev(fd, content, offset)

    def _check(self, fd: int) -> None:
        if fd in self.direct and self.direct[fd].parent.name == "refuses transfers":
            raise OSError(errno.EINVAL, "Invalid argument")


async def transfer(directory: BlockDirectory, *offsets: int) -> None:
    """Write a block and read it, for each offset of its buffer from an aligned address."""
    nbytes = directory.namespace.block_nbytes
    blocks = [
        Block(slot, b"%d" % slot, memoryview(mmap.mmap(-1, 2 * 8192))[offset : offset + nbytes])
        for slot, offset in enumerate(offsets)
    ]
    assert not await directory.write(blocks)
    assert not await directory.read(blocks)


async def test_direct_io_is_used_where_it_is_possible(disk: Disk) -> None:
    files = CountedFlags()
    await transfer(disk.open(files=files, direct_io=True), 0)
    assert files.transfers == [True]


@pytest.mark.parametrize(
    ("path", "block_nbytes", "offsets", "reason"),
    [
        ("tier", 4096, [512 + 1], "a buffer does not begin at a multiple of 4096"),
        ("tier", 4096, [0, 1], "a buffer does not begin at a multiple of 4096"),
        ("tier", 4096 + 512, [0], "blocks of 4608 bytes are no multiple of 4096"),
        ("refuses the flag", 4096, [0], "the file system does not take it (Invalid argument)"),
        ("refuses transfers", 4096, [0], "the file system does not take it (Invalid argument)"),
    ],
)
async def test_where_direct_io_is_impossible_one_warning_says_why(
    disk: Disk,
    caplog: pytest.LogCaptureFixture,
    path: str,
    block_nbytes: int,
    offsets: list[int],
    reason: str,
) -> None:
    files = CountedFlags()
    directory = disk.open(
        path=disk.path / path, files=files, direct_io=True, block_nbytes=block_nbytes
    )
    await transfer(directory, *offsets)
    await transfer(directory, *offsets)
    assert files.transfers == [False, False]
    warnings = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert reason in warnings[0]
