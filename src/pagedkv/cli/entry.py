"""The way in and out of the process: its streams, its signals, its exit status."""

import contextlib
import io
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import NoReturn

STOPPED = {
    signal.SIGINT: (signal.default_int_handler, "interrupted"),
    signal.SIGTERM: (signal.SIG_DFL, "terminated"),
}
"""What stops a command: how Python handles the signal by default, and what to call it."""

NO_STDOUT = 2
"""Exit status if stdout is closed from the start, which is a wrong way to start a command."""


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line on ``arguments``, by default the process's own, and exit.

    The exit status is 0 on success, 1 if the implementation under replay fails, 2 for bad input
    of any kind, 130 after Ctrl-C, 143 after SIGTERM; nothing is left half-written. Any other
    exception is a bug of this package and keeps its traceback.
    """
    with stop_signals() as received:
        try:
            status = _run(list(sys.argv[1:] if arguments is None else arguments))
        except BaseException:
            # An interrupted import may turn the interrupt into any other error.
            if not received:
                raise
        if received:
            status = 128 + received[0]
            print(f"pagedkv: {STOPPED[received[0]][1]}", file=sys.stderr)
    sys.exit(status)


@contextlib.contextmanager
def stop_signals() -> Iterator[list[signal.Signals]]:
    """Raise ``KeyboardInterrupt`` at each signal in :data:`STOPPED`, and list what has come.

    A signal that the parent process has set to be ignored stays ignored.
    """
    received: list[signal.Signals] = []

    def stop(number: int, frame: FrameType | None) -> NoReturn:
        received.append(signal.Signals(number))
        raise KeyboardInterrupt

    handled = [
        number for number, (usual, _) in STOPPED.items() if signal.getsignal(number) == usual
    ]
    for number in handled:
        signal.signal(number, stop)
    try:
        yield received
    finally:
        for number in handled:
            signal.signal(number, STOPPED[number][0])


def _run(arguments: list[str]) -> int:
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - stays open as long as the process
    if sys.stdout is None:
        print("pagedkv: stdout is closed; redirect it to a file or /dev/null", file=sys.stderr)
        return NO_STDOUT
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a poor terminal gets a poor table, not an error
    # Imported late because it takes a while, in which Ctrl-C should already be handled.
    from pagedkv.cli.app import run

    return run(arguments)
