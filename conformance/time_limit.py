"""A limit on how long a piece of code may run, so that a manager that hangs is found out."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

CHECK_TIMEOUT_S = 120.0
"""Longest a check may take by default, in seconds; a manager that hangs fails it."""


class OutOfTimeError(RuntimeError):
    """A piece of code took too long: it hangs, or waits for something that does not come."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Interrupt the block after so many seconds, and what clears away after it after as many more.

    In other threads than the main one nothing is interrupted.

    Raises:
        OutOfTimeError: It took longer.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(signum: int, frame: FrameType | None) -> None:
        raise OutOfTimeError(f"no end after {seconds:g} s")

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, seconds, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
