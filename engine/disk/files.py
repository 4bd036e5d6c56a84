"""The calls to the operating system that the slab makes, behind one interface."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol


class Files(Protocol):
    """Files by descriptor, as in :mod:`os`; every method raises ``OSError`` as the system does.

    Methods may be called from several threads at a time. Transfers are positional: there is no
    file offset that two threads could fight over. Whoever opens a descriptor closes it.
    """

    def open(self, path: Path, flags: int) -> int:
        """A descriptor; a file that is made is readable and writable for its owner alone."""
        ...

    def close(self, fd: int) -> None:
        """Give a descriptor back."""
        ...

    def preadv(self, fd: int, into: Sequence[memoryview], offset: int) -> int:
        """Fill buffers from ``offset`` on; how many bytes were read, 0 at the end of the file."""
        ...

    def pwritev(self, fd: int, content: Sequence[memoryview], offset: int) -> int:
        """Write buffers at ``offset``; how many bytes were written, perhaps not all."""
        ...

    def fallocate(self, fd: int, nbytes: int) -> None:
        """Reserve disk space for the first ``nbytes`` bytes; the file gets at least that size."""
        ...

    def truncate(self, fd: int, nbytes: int) -> None:
        """Set the size of the file."""
        ...

    def fsync(self, fd: int) -> None:
        """Return once what was written would survive a loss of power."""
        ...

    def free_nbytes(self, folder: Path) -> int:
        """Bytes that this user may still write to the file system of ``folder``."""
        ...


class RealFiles:
    """The operating system itself."""

    def open(self, path: Path, flags: int) -> int:
        """See :class:`Files`."""
        return os.open(path, flags, 0o600)

    def close(self, fd: int) -> None:
        """See :class:`Files`."""
        os.close(fd)

    def preadv(self, fd: int, into: Sequence[memoryview], offset: int) -> int:
        """See :class:`Files`."""
        return os.preadv(fd, into, offset)

    def pwritev(self, fd: int, content: Sequence[memoryview], offset: int) -> int:
        """See :class:`Files`."""
        return os.pwritev(fd, content, offset)

    def fallocate(self, fd: int, nbytes: int) -> None:
        """See :class:`Files`."""
        os.posix_fallocate(fd, 0, nbytes)

    def truncate(self, fd: int, nbytes: int) -> None:
        """See :class:`Files`."""
        os.ftruncate(fd, nbytes)

    def fsync(self, fd: int) -> None:
        """See :class:`Files`."""
        os.fsync(fd)

    def free_nbytes(self, folder: Path) -> int:
        """See :class:`Files`."""
        status = os.statvfs(folder)
        return status.f_bavail * status.f_frsize


REAL_FILES = RealFiles()
"""The files of this machine."""
