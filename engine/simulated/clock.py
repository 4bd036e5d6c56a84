"""An event loop whose time is made up: it jumps to the next timer, so that nobody waits.

::

    outcome = clock.run(scenario())

Without threads and sockets, the same coroutines then run in the same order every time.
"""

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

Result = TypeVar("Result")


class StandstillError(RuntimeError):
    """Every task waits for something that nobody will ever do: a deadlock."""

    def __init__(self, now_s: float) -> None:
        self.now_s = now_s
        """When."""
        super().__init__(
            f"nothing will ever happen after {now_s:.6f} s: no task can go on and no timer is set; "
            "look for what the tasks of the traceback wait for"
        )


class VirtualClockLoop(asyncio.SelectorEventLoop):
    """A loop that counts its turns, and whose time passes only between two timers.

    Threads and sockets would be too late for it: use what waits on timers and futures alone.
    """

    def __init__(self) -> None:
        """A loop at second 0."""
        self.now_s = 0.0
        """Its time, in seconds."""
        self.turns = 0
        """How many turns it has taken."""
        self._at_turn: dict[int, Callable[[], object]] = {}
        super().__init__(_JumpingSelector(self))

    def time(self) -> float:
        """Seconds since the loop was made."""
        return self.now_s

    def at_turn(self, turn: int, call: Callable[[], object]) -> None:
        """Make a call before turn number ``turn``, counted from the first of the loop."""
        self._at_turn[turn] = call

    def next_turn(self, timeout_s: float | None) -> None:
        """The loop has nothing to do for that long: it takes no time.

        Raises:
            StandstillError: For ever, that is.
        """
        call = self._at_turn.pop(self.turns, None)
        self.turns += 1
        if call is not None:
            call()
        elif timeout_s is None:
            raise StandstillError(self.now_s)
        else:
            self.now_s += timeout_s


class _JumpingSelector(selectors.SelectSelector):
    """Looks at the loop's own wake-up calls, and never waits for one."""

    def __init__(self, loop: VirtualClockLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        self._loop.next_turn(None if timeout is None else max(0.0, timeout))
        return super().select(0)


def run(main: Coroutine[Any, Any, Result]) -> Result:
    """What ``main`` returns or raises, on a loop of its own at second 0.

    Raises:
        StandstillError: ``main`` can never end.
    """
    with asyncio.Runner(loop_factory=VirtualClockLoop) as runner:
        return runner.run(main)
