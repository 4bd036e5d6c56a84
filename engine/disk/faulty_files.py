"""Files that fail on purpose, so that servers and tests can see what a bad disk does."""

import errno
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal, TypeAlias

from pagedkv.engine.disk.files import Files, RealFiles

FileCall: TypeAlias = Literal[
    "open", "close", "preadv", "pwritev", "fallocate", "truncate", "fsync", "free_nbytes"
]
"""A method of :class:`Files`."""

SECTOR_NBYTES = 512
"""What a disk writes completely or not at all."""


class CrashedError(OSError):
    """The machine is off: nothing works any more."""

    def __init__(self) -> None:
        super().__init__(errno.EIO, "the simulated machine has crashed")


@dataclass
class FaultyFiles:
    """Real files with faults, the same ones for the same seed and order of calls.

    Each buffer that a call moves is a transfer of its own, as if there were a call for each. Shares
    are probabilities from 0 to 1, drawn anew for every transfer.
    """

    seed: int = 0
    """Of all random choices."""
    short: float = 0.0
    """Share of transfers that move only the first part of what was asked for."""
    torn: float = 0.0
    """Share of writes that claim to be complete although only the first part was written."""
    flipped: float = 0.0
    """Share of transfers in which one bit changes."""
    delay_s: float = 0.0
    """Each transfer takes up to this much longer."""
    capacity_nbytes: int | None = None
    """Bytes that may be allocated or written before the disk is full; ``None``: no bound."""
    crash_at: int | None = None
    """The number of the transfer at which the machine crashes, counted from 1."""
    files: Files = field(default_factory=RealFiles)
    """Where calls go that do not fail."""

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)
        self._lock = threading.RLock()
        self._failing: dict[tuple[FileCall, int], int] = {}
        self._calls: Counter[FileCall] = Counter()
        self._paths: dict[int, Path] = {}
        self._unsynced: list[tuple[Path, int, bytes]] = []  # what was there before each write
        self._crashed = False

    def fail(self, call: FileCall, error: int, *, nth: int = 1) -> None:
        """Let the ``nth`` next call or transfer of a method fail with a number of :mod:`errno`."""
        with self._lock:
            self._failing[call, self._calls[call] + nth] = error

    def crash(self) -> None:
        """Turn the machine off: every sector that was written but not synced may be as before.

        From now on every call but ``close`` is a :class:`CrashedError`.
        """
        with self._lock:
            self._crashed = True
            for path, offset, before in reversed(self._unsynced):
                fd = os.open(path, os.O_RDWR)
                for start in range(0, len(before), SECTOR_NBYTES):
                    if self._random.random() < 0.5:
                        os.pwrite(fd, before[start : start + SECTOR_NBYTES], offset + start)
                os.close(fd)
            self._unsynced.clear()

    def open(self, path: Path, flags: int) -> int:
        """See :class:`Files`."""
        self._count("open")
        fd = self.files.open(path, flags)
        self._paths[fd] = path
        return fd

    def close(self, fd: int) -> None:
        """See :class:`Files`. Works after a crash too, so that no descriptor is left behind."""
        self._paths.pop(fd, None)
        self.files.close(fd)

    def preadv(self, fd: int, into: Sequence[memoryview], offset: int) -> int:
        """See :class:`Files`."""
        return self._each("preadv", partial(self._read, fd), into, offset)

    def pwritev(self, fd: int, content: Sequence[memoryview], offset: int) -> int:
        """See :class:`Files`."""
        return self._each("pwritev", partial(self._write, fd), content, offset)

    def _each(
        self,
        call: FileCall,
        move: Callable[[memoryview, int], int],
        buffers: Sequence[memoryview],
        offset: int,
    ) -> int:
        """Move buffers one by one. What precedes an error counts: the next call meets it again."""
        done = 0
        for buffer in buffers:
            try:
                count = move(buffer, offset + done)
            except OSError as error:
                if not done:
                    raise
                self.fail(call, error.errno or errno.EIO)
                break
            done += count
            if count < len(buffer):
                break
        return done

    def _read(self, fd: int, into: memoryview, offset: int) -> int:
        with self._lock:
            self._count("preadv")
            wanted = into[: self._shortened(len(into), self.short)]
            flips, pause = self._draw(self.flipped), self._random.uniform(0, self.delay_s)
        time.sleep(pause)
        count = self.files.preadv(fd, [wanted], offset)
        if flips and count:
            into[self._random.randrange(count)] ^= 1
        return count

    def _write(self, fd: int, content: memoryview, offset: int) -> int:
        with self._lock:
            self._count("pwritev")
            claimed = self._shortened(len(content), self.short)
            written = self._shortened(claimed, self.torn)
            flips, pause = self._draw(self.flipped), self._random.uniform(0, self.delay_s)
            self._spend(written)
            self._remember(fd, offset, written)
        time.sleep(pause)
        self.files.pwritev(fd, [content[:written]], offset)
        if flips:
            self._flip(fd, offset + self._random.randrange(written))
        return claimed

    def fallocate(self, fd: int, nbytes: int) -> None:
        """See :class:`Files`."""
        self._count("fallocate")
        missing = nbytes - os.fstat(fd).st_blocks * 512
        if self.capacity_nbytes is not None and missing > self.capacity_nbytes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.files.fallocate(fd, nbytes)

    def truncate(self, fd: int, nbytes: int) -> None:
        """See :class:`Files`."""
        self._count("truncate")
        self.files.truncate(fd, nbytes)

    def fsync(self, fd: int) -> None:
        """See :class:`Files`. What was written until now survives a crash."""
        with self._lock:
            self._count("fsync")
            self.files.fsync(fd)
            path = self._paths[fd]
            self._unsynced = [write for write in self._unsynced if write[0] != path]

    def free_nbytes(self, folder: Path) -> int:
        """See :class:`Files`."""
        self._count("free_nbytes")
        free = self.files.free_nbytes(folder)
        return free if self.capacity_nbytes is None else min(free, self.capacity_nbytes)

    def _count(self, call: FileCall) -> None:
        with self._lock:
            if self._crashed:
                raise CrashedError
            self._calls[call] += 1
            if self._calls["preadv"] + self._calls["pwritev"] == self.crash_at:
                self.crash()
                raise CrashedError
            error = self._failing.pop((call, self._calls[call]), None)
        if error is not None:
            raise OSError(error, os.strerror(error))

    def _draw(self, share: float) -> bool:
        return self._random.random() < share

    def _shortened(self, nbytes: int, share: float) -> int:
        return self._random.randrange(1, nbytes) if nbytes > 1 and self._draw(share) else nbytes

    def _spend(self, nbytes: int) -> None:
        if self.capacity_nbytes is not None:
            if nbytes > self.capacity_nbytes:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self.capacity_nbytes -= nbytes

    def _remember(self, fd: int, offset: int, nbytes: int) -> None:
        path = self._paths[fd]
        plain = os.open(path, os.O_RDONLY)  # the one to be written may insist on aligned buffers
        self._unsynced.append((path, offset, os.pread(plain, nbytes, offset)))
        os.close(plain)

    def _flip(self, fd: int, offset: int) -> None:
        plain = os.open(self._paths[fd], os.O_RDWR)
        os.pwrite(plain, bytes([os.pread(plain, 1, offset)[0] ^ 1]), offset)
        os.close(plain)
