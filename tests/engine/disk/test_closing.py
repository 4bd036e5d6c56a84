"""The end of a directory: nothing that was written is lost, and nobody gets in too early."""

import asyncio
import os
from typing import Any

import pytest
from tests.engine.disk.held_files import HeldWrites
from tests.engine.disk.stored_rows import synced_rows

from pagedkv.engine.disk.faulty_files import FaultyFiles
from pagedkv.engine.disk.files import RealFiles
from pagedkv.engine.disk.index import Index
from pagedkv.engine.disk.lock import holder

Disk = Any  # the fixture of conftest.py, which cannot be imported


@pytest.mark.parametrize("end", ["aclose", "crash"])
async def test_the_end_waits_for_all_calls_in_flight(disk: Disk, end: str) -> None:
    files = HeldWrites(slot=0)
    directory = disk.open(files=files)
    write = asyncio.create_task(disk.write(directory, a=0))
    await asyncio.to_thread(files.begun.wait)
    await disk.write(directory, b=1)
    ends = [asyncio.create_task(getattr(directory, end)()) for _ in range(2)]
    for _ in range(5):
        await asyncio.sleep(0)
    files.go_on.set()
    # The loop stands still: the row of the block is not queued yet, and the index must not close.
    directory._rows._thread.join(0.2)
    assert directory._rows._thread.is_alive()
    await asyncio.gather(write, *ends)


async def test_closing_keeps_the_writes_in_flight(disk: Disk) -> None:
    files = HeldWrites()
    directory = disk.open(files=files)
    write = asyncio.create_task(disk.write(directory, a=0))
    await asyncio.to_thread(files.begun.wait)
    close = asyncio.create_task(directory.aclose())
    await asyncio.sleep(0)
    files.go_on.set()
    await asyncio.gather(write, close)
    assert await disk.survivors() == [(0, "a")]


async def test_a_closed_directory_says_so(disk: Disk) -> None:
    directory = disk.open()
    await directory.aclose()
    with pytest.raises(RuntimeError, match="closed; open it again"):
        await disk.write(directory, a=0)


async def test_no_loss_of_power_takes_what_was_closed(disk: Disk) -> None:
    files = FaultyFiles()
    directory = disk.open(files=files)
    await disk.write(directory, a=0, b=1)
    await directory.aclose()
    files.crash()
    assert await disk.survivors() == [(0, "a"), (1, "b")]


async def test_the_bytes_are_synced_before_their_rows(disk: Disk) -> None:
    promised: list[dict[int, bytes]] = []

    class Watching(RealFiles):
        def fsync(self, fd: int) -> None:
            promised.append(synced_rows(disk.path))
            super().fsync(fd)

    await disk.open().aclose()  # so that there are tables
    directory = disk.open(files=Watching())
    await disk.write(directory, a=0)
    await directory.aclose()
    assert promised == [{}]
    assert synced_rows(disk.path) == {0: b"a"}


async def test_the_rows_are_synced_although_somebody_looks_at_them(disk: Disk) -> None:
    directory = disk.open()
    await disk.write(directory, a=0)
    index = Index(disk.path, read_only=True)  # it keeps SQLite from tidying up by itself
    await directory.aclose()
    assert synced_rows(disk.path) == {0: b"a"}
    index.close()


async def test_nobody_gets_in_before_all_is_closed(
    disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory, holders = disk.open(), []
    for part in (directory._opened.index, directory._opened.slab):

        def watched(close: Any = part.close) -> None:
            holders.append(holder(disk.path))
            close()

        monkeypatch.setattr(part, "close", watched)
    await directory.aclose()
    assert holders == [os.getpid()] * 2


async def test_an_index_that_cannot_be_written_stops_no_end(
    disk: Disk, caplog: pytest.LogCaptureFixture
) -> None:
    directory = disk.open()
    await disk.write(directory, a=0)
    await directory.flush()
    directory._opened.index._database.execute("PRAGMA query_only = ON")
    await directory.aclose([0])
    assert "could be stored" in caplog.text
    assert await disk.survivors() == [(0, "a")]
