"""Files whose writes wait until a test lets them go on."""

import threading
from collections.abc import Sequence

from pagedkv.engine.disk.files import RealFiles


class HeldWrites(RealFiles):
    """Real files; writes to one slot of 4096 bytes, or to any, wait."""

    def __init__(self, slot: int | None = None) -> None:
        self.slot = slot
        """Writes from here on wait; ``None``: all do."""
        self.begun, self.go_on = threading.Event(), threading.Event()
        self.offsets: list[int] = []
        """Where something was written."""

    def pwritev(self, fd: int, content: Sequence[memoryview], offset: int) -> int:
        if self.slot in (None, offset // 4096):
            self.begun.set()
            assert self.go_on.wait(10), "nobody lets the write go on"
        self.offsets.append(offset)
        return super().pwritev(fd, content, offset)
