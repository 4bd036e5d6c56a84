"""What is on disk, byte by byte, so that directories outlive their version of this package.

If one of these fails, directories that exist cannot be read any more, or are read wrongly: raise
``FORMAT``, or add a migration, and then write down here what there is now.
"""

import contextlib
import sqlite3
from typing import Any

from pagedkv.engine.disk.checksum import block_checksum, namespace_tag

Disk = Any  # the fixture of conftest.py, which cannot be imported

SCHEMA_VERSION = 1

TABLES = [
    "CREATE TABLE blocks ( slot INTEGER PRIMARY KEY, key BLOB NOT NULL, "
    "nbytes INTEGER NOT NULL, checksum BLOB NOT NULL, age INTEGER NOT NULL )",
    "CREATE TABLE meta (name TEXT PRIMARY KEY, value) WITHOUT ROWID",
]

META = [
    ("block_nbytes", 4096),
    ("capacity", 3),
    ("format", 1),
    ("layout", "layout"),
    ("model", "model"),
]

BLOCKS = [
    (0, b"b", 4096, bytes.fromhex("c965c17e9268aa092f7e252b43c25d6f"), 2),
    (2, b"a", 4096, bytes.fromhex("abdcc545acc241d5511e5fe48df89f79"), 1),
]


def slab(disk: Disk) -> bytes:
    return bytes(disk.content("b")) + bytes(disk.block_nbytes) + bytes(disk.content("a"))


async def test_a_directory_is_written_as_it_always_was(disk: Disk) -> None:
    directory = disk.open(capacity=3)
    await disk.write(directory, a=2, b=0)
    await directory.aclose()
    with contextlib.closing(sqlite3.connect(disk.path / "index.sqlite")) as database:
        tables = database.execute("SELECT sql FROM sqlite_master WHERE sql NOTNULL ORDER BY name")
        assert [" ".join(sql.split()) for (sql,) in tables] == TABLES
        assert database.execute("PRAGMA user_version").fetchall() == [(SCHEMA_VERSION,)]
        assert database.execute("SELECT * FROM meta ORDER BY name").fetchall() == META
        assert database.execute("SELECT * FROM blocks ORDER BY slot").fetchall() == BLOCKS
    assert (disk.path / "blocks.slab").read_bytes() == slab(disk)


async def test_a_directory_that_was_written_long_ago_is_read(disk: Disk) -> None:
    disk.path.mkdir()
    with contextlib.closing(sqlite3.connect(disk.path / "index.sqlite")) as database:
        for table in TABLES:
            database.execute(table)
        database.executemany("INSERT INTO meta VALUES (?, ?)", META)
        database.executemany("INSERT INTO blocks VALUES (?, ?, ?, ?, ?)", BLOCKS)
        database.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        database.commit()
    (disk.path / "blocks.slab").write_bytes(slab(disk))
    assert await disk.survivors(capacity=3) == [(2, "a"), (0, "b")]


def test_the_parts_of_a_checksum_do_not_run_into_each_other() -> None:
    checksums = {
        block_checksum(namespace, key, memoryview(content))
        for namespace, key, content in [
            (b"ab", b"c", b"d"),
            (b"a", b"bc", b"d"),
            (b"ab", b"", b"cd"),
            (b"", b"abc", b"d"),
        ]
    }
    assert len(checksums) == 4


def test_no_two_namespaces_share_a_tag() -> None:
    namespaces = [("ab", "c"), ("a", "bc"), ("a", "BC"), ("A", "bc"), ("a", None), ("a", "None")]
    assert len({namespace_tag(*namespace) for namespace in namespaces}) == len(namespaces)
