"""A real file system that is too small, or becomes full: 16 MiB of ext4, where one may mount it."""

import errno
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.engine.real_disk_runs import opened, serve, tiered_setup

from pagedkv.engine import PagedKVCacheManager
from pagedkv.engine.disk.errors import DirectoryUnusableError

MIB = 2**20


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """Where it is mounted."""
    if os.geteuid() != 0 or shutil.which("mkfs.ext4") is None:
        pytest.skip("needs root and mkfs.ext4, to mount a file system of its own")
    image, mounted = tmp_path / "image", tmp_path / "mounted"
    image.write_bytes(bytes(16 * MIB))
    mounted.mkdir()
    subprocess.run(["mkfs.ext4", "-q", image], check=True)
    done = subprocess.run(["mount", "-o", "loop", image, mounted], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"needs loop devices: {done.stderr.strip()}")
    yield mounted
    subprocess.run(["umount", mounted], check=True)


def fill(folder: Path) -> None:
    """Write until nothing more fits."""
    with (folder / "filler").open("wb", buffering=0) as file:
        for size in (MIB, 4096, 1):
            while True:
                try:
                    file.write(bytes(size))
                except OSError as error:
                    assert error.errno == errno.ENOSPC
                    break


async def test_a_file_system_that_becomes_full(small: Path) -> None:
    async def fill_up(manager: PagedKVCacheManager) -> None:
        fill(small)

    served = await serve(small / "tier", meanwhile=fill_up, requests=60)
    assert served.clients.finished > 0
    (small / "filler").unlink()
    again = await serve(small / "tier")
    assert again.clients.finished > 0


async def test_a_start_on_a_full_file_system_is_refused_and_loses_nothing(small: Path) -> None:
    before = await serve(small / "tier")
    assert before.metrics.disk_blocks_written > 0
    fill(small)
    with pytest.raises(DirectoryUnusableError, match="no space is left"):
        opened(tiered_setup(small / "tier"))
    (small / "filler").unlink()
    again = await serve(small / "tier")
    assert again.metrics.disk_blocks_served > before.metrics.disk_blocks_served // 2


async def test_a_tier_that_does_not_fit_is_refused_at_start(small: Path) -> None:
    with pytest.raises(ValueError, match="disk_offload_max_gb"):
        opened(tiered_setup(small / "tier", layers=64, disk_pages=100_000))
    assert not (small / "tier" / "blocks.slab").exists() or (
        (small / "tier" / "blocks.slab").stat().st_size < 16 * MIB
    )
