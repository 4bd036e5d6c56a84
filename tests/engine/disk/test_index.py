"""The table of blocks: a dict on disk, in transactions, set aside only when it is damaged."""

import contextlib
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pagedkv.engine.disk.errors import DirectoryUnusableError, IndexDamagedError
from pagedkv.engine.disk.index import BlockRow, Index, Namespace

Disk = Any  # the fixture of conftest.py, which cannot be imported

SLOTS = 4

OURS = Namespace("layout", "model", 1, SLOTS)

A = BlockRow(b"a", bytes(16), 1)


@pytest.fixture
def index(tmp_path: Path) -> Iterator[Index]:
    with contextlib.closing(Index(tmp_path)) as index:
        yield index


batches = st.tuples(st.dictionaries(st.integers(0, SLOTS - 1), st.booleans()), st.booleans())


@settings(max_examples=30)
@given(st.lists(batches, max_size=8))
def test_an_index_is_a_dict_by_slot(moves: list[tuple[dict[int, bool], bool]]) -> None:
    model: dict[int, BlockRow | None] = {}
    with tempfile.TemporaryDirectory() as folder, contextlib.closing(Index(Path(folder))) as index:
        for number, (kept, clear) in enumerate(moves):
            changes: dict[int, BlockRow | None] = {
                slot: BlockRow(b"%d %d" % (slot, number), bytes(16), SLOTS * number + slot)
                if is_kept
                else None
                for slot, is_kept in kept.items()
            }
            index.apply(changes, 1, clear=clear)
            model = changes if clear else model | changes
            assert index.rows(OURS) == {s: row for s, row in model.items() if row is not None}


@pytest.mark.parametrize(
    ("namespace", "row"),
    [
        # What no column takes.
        (Namespace("layout", "other model", 1, SLOTS), A._replace(age=cast(int, None))),
        (Namespace("layout", cast(str, object()), 1, SLOTS), None),
    ],
    ids=["the rows", "the namespace"],
)
def test_a_start_that_fails_changes_nothing(
    index: Index, namespace: Namespace, row: BlockRow | None
) -> None:
    """Or blocks of one model stay under the name of another."""
    index.start(OURS, {0: A})
    with pytest.raises(IndexDamagedError):
        index.start(namespace, {0: row})
    assert index.namespace() == OURS
    assert index.rows(OURS) == {0: A}


def test_the_log_is_synced_at_checkpoints(index: Index) -> None:
    assert index._database.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert index._database.execute("PRAGMA synchronous").fetchone() == (1,)  # NORMAL


def failing_with(code: int) -> Callable[..., None]:
    def fail(*_: object) -> None:
        error = sqlite3.OperationalError("no")
        error.sqlite_errorcode = code
        raise error

    return fail


UNREACHABLE = """AUTH BUSY BUSY_RECOVERY BUSY_SNAPSHOT CANTOPEN CANTOPEN_ISDIR FULL INTERRUPT
    IOERR_NOMEM IOERR_READ LOCKED NOLFS PERM PROTOCOL READONLY READONLY_CANTLOCK
    READONLY_DIRECTORY"""

DAMAGED = "CORRUPT CORRUPT_INDEX CORRUPT_SEQUENCE CONSTRAINT ERROR FORMAT MISMATCH NOTADB SCHEMA"


@pytest.mark.parametrize("code", UNREACHABLE.split())
async def test_an_index_that_cannot_be_reached_is_not_set_aside(
    disk: Disk, monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    directory = disk.open()
    await disk.write(directory, a=0)
    await directory.aclose()
    with monkeypatch.context() as patch:
        patch.setattr(Index, "_migrate", failing_with(getattr(sqlite3, f"SQLITE_{code}")))
        with pytest.raises(DirectoryUnusableError):
            disk.open()
    assert not (disk.path / "index.sqlite.damaged").exists()
    assert await disk.survivors() == [(0, "a")]


@pytest.mark.parametrize("code", DAMAGED.split())
def test_an_index_that_sqlite_calls_damaged_is_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    monkeypatch.setattr(Index, "_migrate", failing_with(getattr(sqlite3, f"SQLITE_{code}")))
    with pytest.raises(IndexDamagedError):
        Index(tmp_path)
