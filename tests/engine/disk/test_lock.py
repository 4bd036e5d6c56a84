"""A directory has one holder, and says who that is."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pagedkv.engine.disk.errors import DirectoryInUseError
from pagedkv.engine.disk.lock import DirectoryLock, holder

Disk = Any  # the fixture of conftest.py, which cannot be imported


async def test_a_directory_is_open_once(disk: Disk) -> None:
    disk.open()
    with pytest.raises(DirectoryInUseError, match=f"open in process {os.getpid()}") as refusal:
        disk.open()
    assert refusal.value.pid == os.getpid()


async def test_another_process_keeps_the_directory_until_it_is_killed(disk: Disk) -> None:
    await disk.open().aclose()
    code = (
        "import sys; from pathlib import Path; from pagedkv.engine.disk.lock import DirectoryLock\n"
        "lock = DirectoryLock(Path(sys.argv[1])); print('locked', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(disk.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"locked\n"
        with pytest.raises(DirectoryInUseError, match=f"process {process.pid}"):
            disk.open()
        process.kill()
    assert disk.open().survivors == []


def test_a_lock_names_its_latest_holder(tmp_path: Path) -> None:
    (tmp_path / "lock").write_text("a longer text than a pid, of an earlier holder")
    lock = DirectoryLock(tmp_path)
    assert holder(tmp_path) == os.getpid()
    lock.close()
    assert holder(tmp_path) is None


def test_the_file_of_a_lock_stays(tmp_path: Path) -> None:
    """Or one holder locks the file that was removed, and another the new one."""
    DirectoryLock(tmp_path).close()
    before = (tmp_path / "lock").stat().st_ino
    DirectoryLock(tmp_path).close()
    assert (tmp_path / "lock").stat().st_ino == before
