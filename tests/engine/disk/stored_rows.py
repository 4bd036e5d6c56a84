"""What others find in the index of a directory that is open."""

import contextlib
import shutil
import sqlite3
import tempfile
from pathlib import Path


def stored_rows(directory: Path) -> dict[int, bytes]:
    """By slot, the keys that a killed process would leave."""
    with contextlib.closing(sqlite3.connect(directory / "index.sqlite")) as database:
        return dict(database.execute("SELECT slot, key FROM blocks").fetchall())


def synced_rows(directory: Path) -> dict[int, bytes]:
    """By slot, the keys that a loss of power would leave at least: it can take the whole log."""
    with tempfile.TemporaryDirectory() as copy:
        shutil.copy(directory / "index.sqlite", copy)
        return stored_rows(Path(copy))
