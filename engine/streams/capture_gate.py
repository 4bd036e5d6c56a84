"""Keeps everybody away from the CUDA driver while a graph is being captured."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pagedkv.reference.errors import PagedKVError


class CapturingError(PagedKVError, RuntimeError):
    """What needs the driver at once was called while a graph is being captured."""

    def __init__(self) -> None:
        super().__init__(
            "runtime_inputs was called while a graph is being captured; build the inputs before "
            "manager.capturing(), their addresses are the same at every call"
        )


class CaptureGate:
    """Driver calls happen now, or once no graph is captured any more, in the order they came.

    A call on any stream, even one that only asks whether an event is done, can end a capture that
    another thread is at. So the gate waits at first for the calls that are under way.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._captures = 0
        self._in_driver = 0
        self._kept: list[Callable[[], None]] = []

    @contextmanager
    def capturing(self) -> Iterator[None]:
        """Close the gate; may be nested. At the end, what was kept back is done."""
        with self._changed:
            self._captures += 1
            self._changed.wait_for(lambda: self._in_driver == 0)
        try:
            yield
        finally:
            with self._changed:
                if self._captures == 1:
                    for call in self._kept:
                        call()
                    self._kept.clear()
                self._captures -= 1
                self._changed.notify_all()

    def do(self, call: Callable[[], None], *, keep: bool = True) -> None:
        """Do ``call`` now. Where the gate is closed, do it when it opens, if it is to be kept.

        A call that is kept must not raise.
        """
        with self._changed:
            if self._captures:
                if keep:
                    self._kept.append(call)
                return
            self._in_driver += 1
        try:
            call()
        finally:
            self._leave()

    @contextmanager
    def passing(self) -> Iterator[None]:
        """For threads: wait until the gate is open, and keep it from closing meanwhile."""
        with self._changed:
            self._changed.wait_for(lambda: not self._captures)
            self._in_driver += 1
        try:
            yield
        finally:
            self._leave()

    def _leave(self) -> None:
        with self._changed:
            self._in_driver -= 1
            self._changed.notify_all()
