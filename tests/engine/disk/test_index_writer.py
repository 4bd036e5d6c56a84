"""Rows are written in batches by a thread: none is lost, none comes back, nobody waits in vain."""

import asyncio
import contextlib
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.engine.disk.held_index import HeldIndex
from tests.engine.disk.stored_rows import stored_rows, synced_rows

from pagedkv.engine.disk import index_writer
from pagedkv.engine.disk.index import BlockRow, Index
from pagedkv.engine.disk.index_writer import IndexWriter

A, B = BlockRow(b"a", bytes(16), 1), BlockRow(b"b", bytes(16), 2)

FAILURE = sqlite3.OperationalError("disk I/O error")

End = Callable[[IndexWriter], None]

ENDS = [
    pytest.param(lambda writer: writer.put({0: None}), id="its end"),
    pytest.param(IndexWriter.clear, id="a reset"),
]
"""What takes the row of slot 0 away."""


@pytest.fixture
def index(tmp_path: Path) -> Iterator[Index]:
    with contextlib.closing(Index(tmp_path)) as index:
        yield index


@pytest.fixture
def held(index: Index) -> HeldIndex:
    return HeldIndex(index)


@pytest.fixture
def writer(index: Index, held: HeldIndex, monkeypatch: pytest.MonkeyPatch) -> Iterator[IndexWriter]:
    monkeypatch.setattr(index_writer, "RETRY_S", 0)
    writer = IndexWriter(index, 1)
    yield writer
    held.let_go()
    writer.stop()


async def turns() -> None:
    """All that the event loop can do without the thread."""
    for _ in range(5):
        await asyncio.sleep(0)


async def idle(writer: IndexWriter) -> None:
    """Return when the thread waits for something to do."""
    while not vars(writer._changed)["_waiters"]:
        await asyncio.sleep(0)


@pytest.mark.parametrize("end", ENDS)
async def test_changes_are_written_although_nobody_waits(
    writer: IndexWriter,
    held: HeldIndex,
    monkeypatch: pytest.MonkeyPatch,
    end: End,
) -> None:
    monkeypatch.setattr(index_writer, "RETRY_S", 3600)  # is for failures alone
    held.let_go()
    await idle(writer)
    writer.put({0: A})
    await held.begun()
    await writer.flush()
    await idle(writer)
    end(writer)
    await held.begun()
    await writer.flush()
    assert held.batches[0] == {0: A}


async def test_a_flush_does_not_wait_for_changes_to_gather(index: Index, tmp_path: Path) -> None:
    writer = IndexWriter(index, 1, gather_s=3600)
    try:
        writer.put({0: A})
        async with asyncio.timeout(10):
            await writer.flush()
        assert stored_rows(tmp_path) == {0: b"a"}
    finally:
        writer.stop()


async def test_a_flush_waits_for_what_is_being_written(
    writer: IndexWriter, held: HeldIndex
) -> None:
    writer.put({0: A})
    await held.begun()
    flush = asyncio.create_task(writer.flush())
    await turns()
    assert not flush.done()
    held.let_go()
    await flush


async def test_a_flush_during_a_batch_waits_for_the_next_one(
    writer: IndexWriter, held: HeldIndex, tmp_path: Path
) -> None:
    writer.put({0: A})
    await held.begun()
    writer.put({1: B})
    flush = asyncio.create_task(writer.flush())
    await turns()
    held.let_go(1)
    await held.begun()
    await turns()
    assert not flush.done()
    held.let_go()
    await flush
    assert stored_rows(tmp_path) == {0: b"a", 1: b"b"}


async def test_a_cancelled_flush_takes_no_other_along(writer: IndexWriter, held: HeldIndex) -> None:
    writer.put({0: A})
    first, second = (asyncio.create_task(writer.flush()) for _ in range(2))
    await turns()
    first.cancel()
    await turns()
    assert first.cancelled()
    assert not second.done()
    held.let_go()
    await second


async def test_what_is_queued_during_the_last_batch_is_written(
    writer: IndexWriter, held: HeldIndex, tmp_path: Path
) -> None:
    writer.put({0: A})
    await held.begun()
    writer.put({1: B})
    stop = asyncio.create_task(asyncio.to_thread(writer.stop))
    while not writer._stopping:
        await asyncio.sleep(0)
    held.let_go()
    await stop
    assert stored_rows(tmp_path) == {0: b"a", 1: b"b"}


@pytest.mark.parametrize("end", ENDS)
async def test_a_batch_that_fails_does_not_outlive_the_end_of_its_rows(
    writer: IndexWriter,
    held: HeldIndex,
    tmp_path: Path,
    end: End,
) -> None:
    held.errors = [FAILURE]
    writer.put({0: A})
    await held.begun()
    end(writer)
    held.let_go()
    await writer.flush()
    assert stored_rows(tmp_path) == {}


@pytest.mark.parametrize("kind", [sqlite3.OperationalError, sqlite3.DatabaseError])
async def test_a_batch_that_fails_is_written_later_and_then_once(
    writer: IndexWriter, held: HeldIndex, tmp_path: Path, kind: type[sqlite3.Error]
) -> None:
    held.errors = [kind("no")]
    writer.put({0: A})
    held.let_go()
    async with asyncio.timeout(10):
        await writer.flush()
        await writer.flush()
    writer.stop()
    assert stored_rows(tmp_path) == {0: b"a"}
    assert held.batches.count({0: A}) == 2


async def test_a_reset_that_could_not_be_stored_is_tried_again(
    writer: IndexWriter, held: HeldIndex, tmp_path: Path
) -> None:
    held.let_go()
    writer.put({0: A})
    await writer.flush()
    held.errors = [FAILURE]
    writer.clear()
    await writer.flush()
    await writer.flush()
    assert stored_rows(tmp_path) == {}


async def test_no_loss_of_power_takes_a_reset_back(index: Index, tmp_path: Path) -> None:
    index.apply({0: A}, 1)
    index.checkpoint()
    assert synced_rows(tmp_path) == {0: b"a"}
    writer = IndexWriter(index, 1)
    writer.clear()
    await writer.flush()
    assert synced_rows(tmp_path) == {}
    writer.stop()
