"""How far the resident memory of this process grows."""

import contextlib
import re
import resource
import sys
from pathlib import Path

import psutil

STATUS, CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")
"""Where Linux tells a process of its memory, and where it may forget the peak so far."""


class MemoryGrowth:
    """Measures from its construction on.

    Only in a process of its own does this say anything: memory that was freed before, and is used
    again, is no growth.
    """

    def __init__(self) -> None:
        with contextlib.suppress(OSError):
            CLEAR_REFS.write_text("5")
        self._before = psutil.Process().memory_info().rss

    def nbytes(self) -> int:
        """The peak so far, less what was resident in the beginning.

        Where the peak cannot be forgotten (not Linux), an earlier, higher one counts.
        """
        return max(0, peak_nbytes() - self._before)


def peak_nbytes() -> int:
    """The most memory that this process has had resident."""
    # Not from getrusage where there is a choice: there a new process inherits its parent's peak.
    with contextlib.suppress(OSError):
        if peak := re.search(r"^VmHWM:\s+(\d+) kB$", STATUS.read_text(), re.MULTILINE):
            return int(peak[1]) * 1024
    peak_rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak_rss if sys.platform == "darwin" else peak_rss * 1024
