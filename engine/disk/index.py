"""Which block is in which slot: an SQLite database that a killed process leaves consistent.

Its journal is a write-ahead log that is synced at checkpoints alone. So a commit is cheap and
outlives the process; a loss of power takes the last commits back, in their order.
"""

import logging
import shutil
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

from pagedkv.engine.disk.checksum import CHECKSUM_NBYTES
from pagedkv.engine.disk.errors import (
    DirectoryUnusableError,
    IndexDamagedError,
    NewerIndexError,
)
from pagedkv.reference.identity import PageKey

INDEX_FILE = "index.sqlite"
"""The database; SQLite keeps two more files beside it while it is open."""

DAMAGED_SUFFIX = ".damaged"
"""What an index that cannot be used is renamed to; the latest one is kept."""

FORMAT = 1
"""Version of what slab and checksums mean; other formats are other layouts (NS-1)."""

MIGRATIONS = (
    """
    CREATE TABLE meta (name TEXT PRIMARY KEY, value) WITHOUT ROWID;
    CREATE TABLE blocks (
        slot INTEGER PRIMARY KEY,
        key BLOB NOT NULL,
        nbytes INTEGER NOT NULL,
        checksum BLOB NOT NULL,
        age INTEGER NOT NULL
    );
    """,
)
"""Each leads from the schema version that is its position to the next; 0 is an empty database."""

_DAMAGED = {
    sqlite3.SQLITE_CONSTRAINT,
    sqlite3.SQLITE_CORRUPT,
    sqlite3.SQLITE_ERROR,
    sqlite3.SQLITE_FORMAT,
    sqlite3.SQLITE_MISMATCH,
    sqlite3.SQLITE_NOTADB,
    sqlite3.SQLITE_SCHEMA,
}
"""What SQLite says of a database that is none of ours, or not any more. Whatever else it says may
pass, and is no reason to throw a warm disk away."""

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Namespace:
    """What all blocks of a directory have in common."""

    layout: str
    """Layout fingerprint."""
    model: str | None
    """The caller's name for the weights; ``None``: nobody can say whose blocks these are."""
    block_nbytes: int
    """Bytes of a block."""
    capacity: int
    """Slots of the slab."""
    format: int = FORMAT
    """Version of the format."""


class BlockRow(NamedTuple):
    """A block in a slot."""

    key: PageKey
    """Which block."""
    checksum: bytes
    """Of its namespace, key and bytes."""
    age: int
    """Orders blocks: smaller is older."""


class Index:
    """An open index. It may be used by one thread at a time, whichever.

    A missing one is made. One of an older version is migrated.

    Raises:
        IndexDamagedError: It is not a database, or one with other tables.
        NewerIndexError: A later version has written it.
        DirectoryUnusableError: It cannot be opened or written.
    """

    def __init__(self, directory: Path, *, read_only: bool = False) -> None:
        self._directory = directory
        mode = "ro" if read_only else "rwc"
        with self._explained():
            self._database = sqlite3.connect(
                f"{(directory / INDEX_FILE).absolute().as_uri()}?mode={mode}",
                uri=True,
                isolation_level=None,
                check_same_thread=False,
                timeout=1.0,
            )
        try:
            with self._explained():
                version = self._value("PRAGMA user_version")
                if version > len(MIGRATIONS):
                    raise NewerIndexError(directory, version, len(MIGRATIONS))
                if not read_only:
                    self._execute("PRAGMA journal_mode = WAL")
                    self._execute("PRAGMA synchronous = NORMAL")
                    self._migrate(version)
        except BaseException:
            self.close()
            raise

    def namespace(self) -> Namespace | None:
        """Whose blocks these are; ``None`` if there have never been any.

        Raises:
            IndexDamagedError: That cannot be told.
        """
        with self._explained():
            found = dict(self._execute("SELECT name, value FROM meta").fetchall())
            if not found and not self._value("SELECT count(*) FROM blocks"):
                return None
        match found:
            case {
                "layout": str(layout),
                "model": str() | None as model,
                "block_nbytes": int(block_nbytes),
                "capacity": int(capacity),
                "format": int(version),
            }:
                return Namespace(layout, model, block_nbytes, capacity, version)
        raise IndexDamagedError("its namespace is incomplete")

    def rows(self, namespace: Namespace) -> dict[int, BlockRow]:
        """All blocks by slot, oldest first.

        Raises:
            IndexDamagedError: They cannot be read, or contradict each other or the namespace.
        """
        with self._explained():
            unfit = self._database.execute(
                "SELECT count(*) FROM blocks WHERE slot NOT BETWEEN 0 AND ? - 1 OR nbytes IS NOT ? "
                "OR typeof(key) != 'blob' OR typeof(checksum) != 'blob' OR length(checksum) != ? "
                "OR typeof(age) != 'integer'",
                (namespace.capacity, namespace.block_nbytes, CHECKSUM_NBYTES),
            ).fetchone()[0]
            if unfit:
                raise IndexDamagedError(f"{unfit} rows do not fit the slab")
            found = self._execute("SELECT slot, key, checksum, age FROM blocks ORDER BY age")
            rows = {slot: BlockRow(*row) for slot, *row in found}
        if len({row.key for row in rows.values()}) < len(rows):
            raise IndexDamagedError("a block is in two slots")
        return rows

    def start(self, namespace: Namespace, changes: Mapping[int, BlockRow | None]) -> None:
        """In one transaction, apply ``changes`` and name whose blocks these are from now on.

        Raises:
            IndexDamagedError: That has turned out now.
            DirectoryUnusableError: It cannot be written.
        """
        with self._explained(), self._transaction():
            self._change(changes, namespace.block_nbytes)
            self._execute("DELETE FROM meta")
            self._database.executemany(
                "INSERT INTO meta VALUES (?, ?)", list(vars(namespace).items())
            )

    def apply(
        self, changes: Mapping[int, BlockRow | None], nbytes: int, *, clear: bool = False
    ) -> None:
        """In one transaction, put a row of a block of ``nbytes`` into each slot, or empty it.

        Args:
            changes: The new rows; ``None`` empties a slot.
            nbytes: Bytes of every block.
            clear: Empty all slots before.

        Raises:
            sqlite3.Error: Nothing has changed.
        """
        with self._transaction():
            if clear:
                self._execute("DELETE FROM blocks")
            self._change(changes, nbytes)

    def reorder(self, oldest_first: Sequence[int], first_age: int) -> None:
        """Number the blocks in these slots in this order, from ``first_age`` on.

        Raises:
            sqlite3.Error: Nothing has changed.
        """
        ages = enumerate(oldest_first, first_age)
        with self._transaction():
            self._database.executemany(
                "UPDATE blocks SET age = ? WHERE slot = ?",
                sorted(ages, key=itemgetter(1)),  # in the order of the table: a third of the time
            )

    def checkpoint(self) -> None:
        """Move what was committed from the log into the database, and sync it.

        Raises:
            sqlite3.Error: It is still in the log.
        """
        self._execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def close(self) -> None:
        """Close the database."""
        self._database.close()

    def _migrate(self, version: int) -> None:
        for number, script in enumerate(MIGRATIONS[version:], version + 1):
            self._database.executescript(
                f"BEGIN IMMEDIATE; {script}; PRAGMA user_version = {number}; COMMIT;"
            )

    def _change(self, changes: Mapping[int, BlockRow | None], nbytes: int) -> None:
        # Emptied first: a block that moves is never in two slots.
        self._database.executemany(
            "DELETE FROM blocks WHERE slot = ?",
            [(slot,) for slot, row in changes.items() if row is None],
        )
        self._database.executemany(
            "INSERT OR REPLACE INTO blocks (slot, key, checksum, age, nbytes) "
            "VALUES (?, ?, ?, ?, ?)",
            [(slot, *row, nbytes) for slot, row in changes.items() if row is not None],
        )

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._execute("BEGIN IMMEDIATE")
        try:
            yield
            self._execute("COMMIT")
        except BaseException:
            if self._database.in_transaction:
                self._execute("ROLLBACK")
            raise

    def _execute(self, statement: str) -> sqlite3.Cursor:
        return self._database.execute(statement)

    def _value(self, query: str) -> Any:  # whatever the database holds
        return self._execute(query).fetchone()[0]

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Tell an index that is damaged from one that cannot be reached."""
        try:
            yield
        except sqlite3.Error as error:
            # The low byte is the kind of the error.
            code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF
            if code in _DAMAGED:
                raise IndexDamagedError(str(error)) from error
            # SQLite needs room beside the database, even to read it.
            is_full = code == sqlite3.SQLITE_IOERR and _is_full(self._directory)
            reason = "no space is left" if is_full else str(error)
            raise DirectoryUnusableError(self._directory, reason) from error


def _is_full(directory: Path) -> bool:
    """Whether its file system has no room for what SQLite writes first."""
    return shutil.disk_usage(directory).free < 128 * 1024


def index_files(directory: Path) -> list[Path]:
    """The database and the files that SQLite may keep beside it."""
    return [directory / f"{INDEX_FILE}{suffix}" for suffix in ("", "-wal", "-shm")]


def set_aside(directory: Path, reason: str) -> None:
    """Rename an index that cannot be used, with a warning, so that the tier starts cold.

    Raises:
        OSError: It cannot be renamed.
    """
    _logger.warning(
        "the index of disk_offload_dir %r is damaged (%s): it is kept as %s, and the disk tier "
        "starts cold",
        str(directory),
        reason,
        INDEX_FILE + DAMAGED_SUFFIX,
    )
    for path in index_files(directory):
        aside = path.with_name(path.name.replace(INDEX_FILE, INDEX_FILE + DAMAGED_SUFFIX))
        # Its log goes with it: that belongs to no other database.
        aside.unlink(missing_ok=True)
        if path.exists():
            path.replace(aside)
