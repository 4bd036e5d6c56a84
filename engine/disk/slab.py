"""One preallocated file of fixed slots, read and written at their positions, whole or not at all.

Slot ``n`` begins at byte ``n * block_nbytes``. The file says nothing about what is in a slot.
"""

import errno
import logging
import mmap
import os
import resource
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from pagedkv.engine.disk.files import Files
from pagedkv.reference.sizing import InsufficientMemoryError

DIRECT_IO_ALIGNMENT = 4096
"""What offset, length and address of a transfer past the page cache are multiples of."""

_MAX_BUFFERS = os.sysconf("SC_IOV_MAX")

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

_logger = logging.getLogger(__name__)


class Slab:
    """An open slab; it owns its descriptors. Reads and writes may run in several threads at once.

    Args:
        files: The calls to the operating system.
        path: The file; it is made if it is missing, and keeps all bytes it has.
        block_nbytes: Bytes of one slot.
        capacity: How many slots.
        direct_io: Past the page cache, where block size, file system and buffer allow it.

    Raises:
        InsufficientMemoryError: The disk does not have the room; the file is as it was.
        OSError: The file cannot be opened.
    """

    def __init__(
        self, files: Files, path: Path, block_nbytes: int, capacity: int, *, direct_io: bool
    ) -> None:
        self.path = path
        """Where the file is."""
        self.block_nbytes = block_nbytes
        """Bytes of one slot."""
        self.capacity = capacity
        """How many slots."""
        self._files = files
        self._direct: int | None = None
        self._warned = False
        self._buffered = files.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
        try:
            self._allocate()
            if direct_io:
                self._open_direct()
        except BaseException:
            self.close()
            raise

    def __repr__(self) -> str:
        return f"Slab({self.path}, {self.capacity} slots of {self.block_nbytes} bytes)"

    def read(self, slot: int, into: Sequence[memoryview]) -> dict[int, OSError]:
        """Fill buffers with the bytes of as many adjacent slots, in one call if the system likes.

        Args:
            slot: The first of them.
            into: Writable memory, ``block_nbytes`` of it for each slot.

        Returns:
            By slot, why it cannot be read; its buffer holds anything then.
        """
        return self._transfer(self._files.preadv, slot, into)

    def write(self, slot: int, content: Sequence[memoryview]) -> dict[int, OSError]:
        """Replace the bytes of adjacent slots, in one call if the system likes.

        Args:
            slot: The first of them.
            content: ``block_nbytes`` bytes for each slot.

        Returns:
            By slot, why it cannot be written; what is in it then is not known.
        """
        return self._transfer(self._files.pwritev, slot, content)

    def trim(self) -> None:
        """Cut off what a larger capacity has left behind the last slot."""
        if os.fstat(self._buffered).st_size > self.capacity * self.block_nbytes:
            self._files.truncate(self._buffered, self.capacity * self.block_nbytes)

    def sync(self) -> None:
        """Return once everything written would survive a loss of power."""
        self._files.fsync(self._buffered)

    def close(self) -> None:
        """Give the descriptors back."""
        for fd in (self._buffered, self._direct):
            if fd is not None:
                self._files.close(fd)

    def _allocate(self) -> None:
        before, nbytes = os.fstat(self._buffered).st_size, self.capacity * self.block_nbytes
        try:
            self._files.fallocate(self._buffered, nbytes)
        except OSError as error:
            if error.errno not in _NO_SPACE:
                raise
            self._files.truncate(self._buffered, before)
            raise InsufficientMemoryError(
                "disk_offload_max_gb", nbytes, room_for_slab(self._files, self.path), REMEDY
            ) from error

    def _open_direct(self) -> None:
        if self.block_nbytes % DIRECT_IO_ALIGNMENT:
            self._warn_once(
                f"blocks of {self.block_nbytes} bytes are no multiple of {DIRECT_IO_ALIGNMENT}"
            )
            return
        try:
            self._direct = self._files.open(self.path, os.O_RDWR | os.O_CLOEXEC | os.O_DIRECT)
            # Some file systems take the flag and refuse the transfers.
            self._files.preadv(self._direct, [memoryview(mmap.mmap(-1, DIRECT_IO_ALIGNMENT))], 0)
        except OSError as error:
            if self._direct is not None:
                self._files.close(self._direct)
                self._direct = None
            self._warn_once(f"the file system does not take it ({error.strerror})")

    def _transfer(
        self,
        call: Callable[[int, Sequence[memoryview], int], int],
        slot: int,
        buffers: Sequence[memoryview],
    ) -> dict[int, OSError]:
        """Call until all is done, and go on behind a block at which it fails."""
        failed: dict[int, OSError] = {}
        fd, position, nbytes = self._descriptor_for(buffers), slot * self.block_nbytes, 0
        while nbytes < len(buffers) * self.block_nbytes:
            number, done = divmod(nbytes, self.block_nbytes)
            rest = [buffers[number][done:], *buffers[number + 1 : number + _MAX_BUFFERS]]
            try:
                count = call(fd, rest, position + nbytes)
                if count == 0:
                    reason = f"the slab ends within slot {slot + number}"
                    raise OSError(errno.EIO, reason, str(self.path))
                nbytes += count
            except OSError as error:
                failed[slot + number] = error
                nbytes = (number + 1) * self.block_nbytes
        return failed

    def _descriptor_for(self, buffers: Sequence[memoryview]) -> int:
        if self._direct is None:
            return self._buffered
        if any(_address(buffer) % DIRECT_IO_ALIGNMENT for buffer in buffers):
            self._warn_once(f"a buffer does not begin at a multiple of {DIRECT_IO_ALIGNMENT} bytes")
            return self._buffered
        return self._direct

    def _warn_once(self, reason: str) -> None:
        if not self._warned:
            self._warned = True
            _logger.warning(
                "disk_offload_direct_io is on, but %s: transfers go through the page cache", reason
            )


def _address(buffer: memoryview) -> int:
    return int(np.frombuffer(buffer, np.uint8).ctypes.data)


REMEDY = "lower disk_offload_max_gb, free some space, or choose another disk_offload_dir"
"""What to do about a disk that is too small."""


def room_for_slab(files: Files, path: Path) -> int:
    """Bytes that the slab at ``path`` may take: those that are free, and those that it has.

    No more than this process may put into one file. Changes nothing. Folders that are missing
    count as their closest ancestor that is there.
    """
    allocated = path.stat().st_blocks * 512 if path.exists() else 0
    folder = next(parent for parent in path.absolute().parents if parent.is_dir())
    room = files.free_nbytes(folder) + allocated
    largest_file = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    return room if largest_file == resource.RLIM_INFINITY else min(room, largest_file)
