"""One process per directory: a lock that the system takes back when its holder dies."""

import contextlib
import fcntl
import os
from pathlib import Path

from pagedkv.engine.disk.errors import DirectoryInUseError

LOCK_FILE = "lock"
"""File that is locked; it holds the pid of the process that locked it last."""


class DirectoryLock:
    """Holds a directory from its making until ``close``; there is never a second holder.

    Raises:
        DirectoryInUseError: Somebody holds it.
        OSError: The lock file cannot be opened.
    """

    def __init__(self, directory: Path) -> None:
        self._fd = os.open(directory / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(self._fd, 0)
            os.pwrite(self._fd, f"{os.getpid()}\n".encode(), 0)
        except BlockingIOError:
            pid = os.pread(self._fd, 32, 0).decode(errors="replace").strip()
            os.close(self._fd)
            raise DirectoryInUseError(directory, int(pid) if pid.isdecimal() else None) from None
        except BaseException:
            os.close(self._fd)
            raise

    def close(self) -> None:
        """Let others open the directory. The file stays: removing it would let two lock it."""
        os.close(self._fd)


def holder(directory: Path) -> int | None:
    """The process that holds a directory now; ``None`` if none does."""
    with contextlib.suppress(FileNotFoundError):
        try:
            DirectoryLock(directory).close()
        except DirectoryInUseError as error:
            return error.pid
    return None
