"""Faults come when they were asked for, and the same ones for the same seed."""

import errno
import os
from pathlib import Path

import pytest

from pagedkv.engine.disk.faulty_files import CrashedError, FaultyFiles

FLAGS = os.O_RDWR | os.O_CREAT
BEFORE, AFTER = b"-" * 8192, b"+" * 8192


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(BEFORE)
    return path


def test_the_call_that_was_named_fails_once(file: Path) -> None:
    files = FaultyFiles()
    fd = files.open(file, FLAGS)
    files.fail("pwritev", errno.ENOSPC, nth=2)
    assert files.pwritev(fd, [memoryview(AFTER)], 0) == len(AFTER)
    with pytest.raises(OSError) as failure:
        files.pwritev(fd, [memoryview(AFTER)], 0)
    assert failure.value.errno == errno.ENOSPC
    assert files.pwritev(fd, [memoryview(AFTER)], 0) == len(AFTER)
    files.close(fd)


def test_each_buffer_of_a_call_is_a_transfer_of_its_own(file: Path) -> None:
    files = FaultyFiles()
    fd = files.open(file, FLAGS)
    files.fail("pwritev", errno.EIO, nth=2)
    halves = [memoryview(AFTER[:4096]), memoryview(AFTER[4096:])]
    assert files.pwritev(fd, halves, 0) == 4096
    with pytest.raises(OSError):
        files.pwritev(fd, halves[1:], 4096)
    assert files.pwritev(fd, halves[1:], 4096) == 4096
    files.close(fd)
    assert file.read_bytes() == AFTER


def test_a_short_write_says_so_and_a_torn_one_does_not(file: Path) -> None:
    files = FaultyFiles(short=1.0)
    fd = files.open(file, FLAGS)
    count = files.pwritev(fd, [memoryview(AFTER)], 0)
    assert file.read_bytes().count(b"+") == count < len(AFTER)
    files.short, files.torn = 0.0, 1.0
    assert files.pwritev(fd, [memoryview(AFTER)], 0) == len(AFTER)
    assert file.read_bytes().count(b"+") < len(AFTER)
    files.close(fd)


def test_a_flip_is_one_bit(file: Path) -> None:
    files = FaultyFiles(flipped=1.0)
    fd = files.open(file, FLAGS)
    files.pwritev(fd, [memoryview(AFTER)], 0)
    written = file.read_bytes()
    assert sum(a != b for a, b in zip(written, AFTER, strict=True)) == 1
    into = bytearray(len(AFTER))
    files.preadv(fd, [memoryview(into)], 0)
    assert sum(a != b for a, b in zip(into, written, strict=True)) == 1
    files.close(fd)


def test_a_crash_takes_back_sectors_that_were_not_synced(file: Path) -> None:
    files = FaultyFiles()
    fd = files.open(file, FLAGS)
    files.pwritev(fd, [memoryview(AFTER[:4096])], 0)
    files.fsync(fd)
    files.pwritev(fd, [memoryview(AFTER[4096:])], 4096)
    files.crash()
    with pytest.raises(CrashedError):
        files.fsync(fd)
    files.close(fd)
    left = file.read_bytes()
    assert left[:4096] == AFTER[:4096]
    sectors = {left[n : n + 512] for n in range(4096, 8192, 512)}
    assert sectors == {BEFORE[:512], AFTER[:512]}


def test_a_full_disk_takes_no_more(file: Path) -> None:
    files = FaultyFiles(capacity_nbytes=10_000)
    fd = files.open(file, FLAGS)
    assert files.free_nbytes(file.parent) == 10_000
    files.pwritev(fd, [memoryview(AFTER)], 0)
    with pytest.raises(OSError) as failure:
        files.pwritev(fd, [memoryview(AFTER)], 0)
    assert failure.value.errno == errno.ENOSPC
    files.close(fd)


def test_the_same_seed_brings_the_same_faults(file: Path) -> None:
    def run(seed: int) -> list[int]:
        files = FaultyFiles(seed, short=0.5)
        fd = files.open(file, FLAGS)
        counts = [files.pwritev(fd, [memoryview(AFTER)], 0) for _ in range(20)]
        files.close(fd)
        return counts

    assert run(1) == run(1) != run(2)
