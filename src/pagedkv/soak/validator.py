"""Validating the events of a running engine, window by window, in a process of its own."""

from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection

from pagedkv.conformance.recorded.restart import wrong_survivors
from pagedkv.conformance.simulation.own_signals import signals_stay_here
from pagedkv.conformance.validation import Divergence, Follower
from pagedkv.reference.events import DiskOpened, Event
from pagedkv.specification import reference_specification
from pagedkv.traces.events.setup import EventTraceHeader, RunSetup


@dataclass(frozen=True)
class Window:
    """Events that came one after the other."""

    events: Sequence[Event]
    """They."""
    begins: bool
    """Whether the engine was opened before the first of them."""
    ends: bool
    """Whether it was closed after the last."""


class Validator:
    """The process. What it is told, and asked, blocks: call it in a thread.

    Args:
        setup: How the engine is set up in each of its lives.
    """

    def __init__(self, setup: RunSetup) -> None:
        context = get_context("spawn")
        self._pipe, other = context.Pipe()
        self._process = context.Process(target=_validate, args=(setup, other), daemon=True)
        with signals_stay_here():
            self._process.start()
        other.close()

    def check(self, window: Window) -> str | None:
        """What is wrong with a window; ``None``: nothing.

        Raises:
            EOFError: The process has died.
        """
        self._pipe.send(window)
        wrong: str | None = self._pipe.recv()
        return wrong

    def close(self) -> None:
        """End the process, whatever it is doing."""
        self._process.kill()
        self._process.join()
        self._pipe.close()


def _validate(setup: RunSetup, pipe: Connection) -> None:
    header, follower = EventTraceHeader(setup=setup), Follower(setup, reference_specification)
    is_first = True
    while True:
        try:
            window: Window = pipe.recv()
        except EOFError:
            return
        wrong = None
        if window.begins:
            if not is_first:
                wrong = _wrong_restart(header, follower, window)
            follower, is_first = Follower(setup, reference_specification), False
        for event in window.events if wrong is None else ():
            divergence = follower.follow(event)
            if divergence is not None:
                wrong = _told(divergence)
                break
        if wrong is None and window.ends and (divergence := follower.unfinished()) is not None:
            wrong = _told(divergence)
        pipe.send(wrong)


def _wrong_restart(header: EventTraceHeader, before: Follower, window: Window) -> str | None:
    opened = next((event for event in window.events if isinstance(event, DiskOpened)), None)
    if opened is None:
        return "the disk was not opened"
    ended = header.model_copy(update={"start": before.start()})
    return wrong_survivors(ended, (), header, opened, reference_specification)


def _told(divergence: Divergence) -> str:
    return f"event {divergence.seq} of this life is not allowed: {divergence.reason}"
