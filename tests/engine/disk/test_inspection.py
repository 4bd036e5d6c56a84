"""Looking at a directory changes nothing in it."""

import contextlib
import shutil
from pathlib import Path
from typing import Any

from pagedkv.engine.disk.inspection import inspect, verify
from pagedkv.engine.disk.lock import DirectoryLock

Disk = Any  # the fixture of conftest.py, which cannot be imported


def files_in(path: Path) -> dict[str, bytes]:
    """All but what SQLite keeps in shared memory."""
    return {p.name: p.read_bytes() for p in path.iterdir() if p.suffix != ".sqlite-shm"}


async def killed(disk: Disk, folder: Path) -> Path:
    """What a process leaves that is killed: a log that is not in the database yet."""
    directory = disk.open()
    await disk.write(directory, a=0)
    await directory.flush()
    return Path(shutil.copytree(disk.path, folder / "killed"))


async def test_inspecting_changes_nothing(disk: Disk) -> None:
    directory = disk.open()
    await disk.write(directory, a=0)
    await directory.aclose()
    before = files_in(disk.path)
    assert inspect(disk.path).rows.keys() == {0}
    assert [intact for _, intact in verify(disk.path)] == [True]
    assert files_in(disk.path).keys() == before.keys()
    assert files_in(disk.path) == before | {"lock": (disk.path / "lock").read_bytes()}


async def test_inspecting_a_directory_in_use_changes_nothing(disk: Disk, tmp_path: Path) -> None:
    path = await killed(disk, tmp_path)
    with contextlib.closing(DirectoryLock(path)):
        before = files_in(path)
        assert inspect(path).rows.keys() == {0}
        assert files_in(path) == before
