"""What a directory holds when it is opened: which blocks survive, and room for those to come.

Rules NS-2 to NS-4 and SIZE-4. Every step leaves a directory that can be opened again, should the
process die behind it.
"""

import logging
import mmap
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from pagedkv.engine.disk.errors import DirectoryUnusableError, IndexDamagedError
from pagedkv.engine.disk.files import Files
from pagedkv.engine.disk.index import FORMAT, BlockRow, Index, Namespace, set_aside
from pagedkv.engine.disk.lock import DirectoryLock
from pagedkv.engine.disk.slab import REMEDY, Slab, room_for_slab
from pagedkv.reference.errors import LayoutMismatchError
from pagedkv.reference.identity import PageKey
from pagedkv.reference.sizing import InsufficientMemoryError

SLAB_FILE = "blocks.slab"
"""The slab of the directory's one layout."""

_logger = logging.getLogger(__name__)


@dataclass
class OpenedDirectory:
    """A directory that is ready for use, and owned by whoever opened it."""

    path: Path
    """Where it is."""
    namespace: Namespace
    """Whose blocks it holds."""
    lock: DirectoryLock
    """Keeps others out."""
    index: Index
    """Which block is in which slot."""
    slab: Slab
    """The bytes of the blocks."""
    survivors: dict[int, BlockRow]
    """The blocks that are there, by slot, oldest first."""
    strangers: list[PageKey]
    """The blocks that were there under another model, or under none, and were dropped."""


def open_directory(
    path: Path, wanted: Namespace, *, direct_io: bool, files: Files
) -> OpenedDirectory:
    """Open the directory at ``path``, which is made if it is missing, for blocks of ``wanted``.

    Raises:
        InsufficientMemoryError: The disk does not have the room.
        DirectoryUnusableError: It cannot be made, read or written.
        DirectoryInUseError: Somebody else has it open.
        LayoutMismatchError: It holds blocks of another layout; it is as it was.
        NewerIndexError: A later version has written it; it is as it was.
    """
    try:
        with ExitStack() as undo:
            _check_room(path, wanted, files)
            path.mkdir(parents=True, exist_ok=True)
            lock = DirectoryLock(path)
            undo.callback(lock.close)
            try:
                opened = _open_locked(path, wanted, lock, direct_io, files)
            except IndexDamagedError as error:
                set_aside(path, error.reason)
                opened = _open_locked(path, wanted, lock, direct_io, files)
            undo.pop_all()
            return opened
    except OSError as error:
        raise DirectoryUnusableError(path, error.strerror or str(error)) from error


def _check_room(path: Path, wanted: Namespace, files: Files) -> None:
    nbytes, room = wanted.capacity * wanted.block_nbytes, room_for_slab(files, path / SLAB_FILE)
    if nbytes > room:
        raise InsufficientMemoryError("disk_offload_max_gb", nbytes, room, REMEDY)


def _open_locked(
    path: Path, wanted: Namespace, lock: DirectoryLock, direct_io: bool, files: Files
) -> OpenedDirectory:
    with ExitStack() as undo:
        index = Index(path)
        undo.callback(index.close)
        found = index.namespace()
        rows = {} if found is None else index.rows(found)
        changes: dict[int, BlockRow | None] = {}
        strangers: list[PageKey] = []
        if found is not None and rows:
            _check_layout(path, found, wanted)
            if found.model is None or found.model != wanted.model:
                strangers = [row.key for row in rows.values()]
                changes.update(dict.fromkeys(rows))
            else:
                changes.update(dict.fromkeys(_cut_off(path, rows, wanted.block_nbytes)))
                kept = [slot for slot in rows if slot not in changes]
                changes.update(dict.fromkeys(kept[: max(0, len(kept) - wanted.capacity)]))
        slab = Slab(
            files, path / SLAB_FILE, wanted.block_nbytes, wanted.capacity, direct_io=direct_io
        )
        undo.callback(slab.close)
        survivors = {slot: row for slot, row in rows.items() if slot not in changes}
        if survivors and max(survivors) >= wanted.capacity:
            # Their rows go before their slots are written to.
            index.apply(changes, wanted.block_nbytes)
            survivors, moves = _moved_below(survivors, slab)
            changes = moves
        index.start(wanted, changes)
        slab.trim()
        undo.pop_all()
        return OpenedDirectory(path, wanted, lock, index, slab, survivors, strangers)


def _check_layout(path: Path, found: Namespace, wanted: Namespace) -> None:
    if found.format != FORMAT:
        raise LayoutMismatchError(
            str(path), found=f"of format {found.format}", wanted=wanted.layout
        )
    if found.layout != wanted.layout:
        raise LayoutMismatchError(str(path), found=found.layout, wanted=wanted.layout)
    if found.block_nbytes != wanted.block_nbytes:
        raise IndexDamagedError(
            f"blocks of this layout have {wanted.block_nbytes} bytes, not {found.block_nbytes}"
        )


def _cut_off(path: Path, rows: dict[int, BlockRow], block_nbytes: int) -> list[int]:
    """The slots that the slab is too short for."""
    slab = path / SLAB_FILE
    whole = slab.stat().st_size // block_nbytes if slab.exists() else 0
    lost = [slot for slot in rows if slot >= whole]
    if lost:
        _logger.warning("%s has lost its end: %d of %d blocks are gone", slab, len(lost), len(rows))
    return lost


def _moved_below(
    rows: dict[int, BlockRow], slab: Slab
) -> tuple[dict[int, BlockRow], dict[int, BlockRow | None]]:
    """Copy what lies behind the slab's new end to free slots.

    Returns:
        All blocks by their slots now, in the same order, and the changes that say so. A block that
        cannot be copied is dropped.
    """
    free = iter(sorted(set(range(slab.capacity)) - rows.keys()))
    moved: dict[int, BlockRow] = {}
    changes: dict[int, BlockRow | None] = {}
    block = memoryview(mmap.mmap(-1, slab.block_nbytes))  # aligned, for direct I/O
    for slot, row in rows.items():
        if slot < slab.capacity:
            moved[slot] = row
            continue
        changes[slot] = None
        target = next(free)
        if failed := slab.read(slot, [block]) or slab.write(target, [block]):
            _logger.warning("block %s could not be moved: %s", row.key.hex(), *failed.values())
            continue
        moved[target] = changes[target] = row
    slab.sync()
    return moved, changes
