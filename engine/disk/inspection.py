"""A directory as a person looks at it: whose it is, what is in it, whether the bytes are right."""

import mmap
import os
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from pagedkv.engine.disk.checksum import block_checksum, namespace_tag
from pagedkv.engine.disk.errors import DirectoryUnusableError
from pagedkv.engine.disk.index import INDEX_FILE, BlockRow, Index, Namespace, index_files
from pagedkv.engine.disk.lock import DirectoryLock, holder
from pagedkv.engine.disk.warm_start import SLAB_FILE
from pagedkv.reference.identity import PageKey

REMEDY = "give the directory that disk_offload_dir names"
"""For who looks at another one."""


@dataclass(frozen=True)
class Contents:
    """What a directory holds."""

    namespace: Namespace | None
    """Whose blocks; ``None`` if there have never been any."""
    rows: dict[int, BlockRow]
    """The blocks by slot, oldest first."""
    slab_nbytes: int
    """Size of the slab; 0 without one."""
    pid: int | None
    """The process that has it open, if one has."""


def inspect(path: Path) -> Contents:
    """What the index of a directory says. Another process may have it open; no block is changed.

    Of what a killed process has left, SQLite puts its log into the index.

    Raises:
        DirectoryUnusableError: There is no index, or it cannot be read.
        IndexDamagedError: It is damaged.
        NewerIndexError: A later version has written it.
    """
    _check_index(path)
    pid = holder(path)
    return _contents(path, pid)


def verify(path: Path) -> Iterator[tuple[PageKey, bool]]:
    """Each block and whether its bytes are those that were written, oldest first.

    The directory is locked meanwhile, and no block in it is changed.

    Raises:
        DirectoryInUseError: Somebody has it open.
        DirectoryUnusableError: There is no index, or it cannot be read.
        IndexDamagedError: The index is damaged.
        NewerIndexError: A later version has written it.
        OSError: The slab cannot be opened.
    """
    _check_index(path)
    with closing(DirectoryLock(path)):
        contents = _contents(path, None)
        if contents.namespace is None or not contents.rows:
            return
        tag = namespace_tag(contents.namespace.layout, contents.namespace.model)
        nbytes = contents.namespace.block_nbytes
        block = memoryview(mmap.mmap(-1, nbytes))
        with open(path / SLAB_FILE, "rb", buffering=0) as slab:
            for slot, row in contents.rows.items():
                yield (
                    row.key,
                    (
                        os.preadv(slab.fileno(), [block], slot * nbytes) == nbytes
                        and block_checksum(tag, row.key, block) == row.checksum
                    ),
                )


def clear(path: Path) -> int:
    """Remove slab and index, damaged ones too, and nothing else; how many bytes that frees.

    Raises:
        DirectoryInUseError: Somebody has it open.
        DirectoryUnusableError: There is no such directory.
        OSError: A file cannot be removed.
    """
    _check_directory(path)
    freed = 0
    with closing(DirectoryLock(path)):
        for file in [*index_files(path), *path.glob(f"{INDEX_FILE}.*"), path / SLAB_FILE]:
            if file.exists():
                freed += file.stat().st_blocks * 512
                file.unlink()
    return freed


def _check_directory(path: Path) -> None:
    if not path.is_dir():
        raise DirectoryUnusableError(path, "there is no such directory", REMEDY)


def _check_index(path: Path) -> None:
    _check_directory(path)
    if not (path / INDEX_FILE).exists():
        reason = f"it has no {INDEX_FILE}: no disk tier was ever here"
        raise DirectoryUnusableError(path, reason, REMEDY)


def _contents(path: Path, pid: int | None) -> Contents:
    with closing(Index(path, read_only=pid is not None)) as index:
        namespace = index.namespace()
        rows = {} if namespace is None else index.rows(namespace)
    slab = path / SLAB_FILE
    return Contents(namespace, rows, slab.stat().st_size if slab.exists() else 0, pid)
