"""Processes that leave Ctrl-C and SIGTERM to the one that has started them."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker


@contextmanager
def signals_stay_here() -> Iterator[None]:
    """Processes that are started within this scope, in this thread, are deaf to both."""
    # A helper of the first process that is ever started, which would take the mask off again.
    resource_tracker.ensure_running()
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
