"""The way in and out of the process: its streams, its signals, its exit status."""

import contextlib
import io
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import NoReturn

STOPPED = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}
"""The signals that stop a command, and what a command says then."""

NO_STDOUT = 2
"""Exit status if stdout is closed from the start, which is a wrong way to start a command."""


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line on ``arguments``, by default the process's own, and exit.

    The exit status is 0 on success, 1 if the implementation under replay fails, 2 for bad input
    of any kind, 130 after Ctrl-C, 143 after SIGTERM; nothing is left half-written. Any other
    exception is a bug of this package and keeps its traceback.
    """
    status = 0
    with stop_signals() as received:
        try:
            status = _run(list(sys.argv[1:] if arguments is None else arguments))
        except BaseException:
            # An interrupted import may turn the interrupt into any other error.
            if not received:
                raise
        if received:
            status = 128 + received[0]
            print(f"pagedkv: {STOPPED[received[0]]}", file=sys.stderr)
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

    before = {number: signal.getsignal(number) for number in STOPPED}
    usual = {n: h for n, h in before.items() if h in (signal.SIG_DFL, signal.default_int_handler)}
    for number in usual:
        signal.signal(number, stop)
    try:
        yield received
    finally:
        for number, handler in usual.items():
            signal.signal(number, handler)


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
