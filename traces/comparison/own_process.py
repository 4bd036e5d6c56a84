"""Work in a fresh process, which may use what memory it likes, and die, without harm to others."""

import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Generic, TypeVar

Order = TypeVar("Order")
Result = TypeVar("Result")

Progress = Callable[[int], None]
"""Takes how much of the work is done."""

Work = Callable[[Order, Progress], Result]
"""What to do: a function at the top of its module, since the new process imports it by name."""

PATIENCE_S = 10.0
"""How long a process that has given its result may take to end by itself."""


class ProcessDiedError(RuntimeError):
    """The process has ended without a result."""


class _Done(Generic[Result]):
    """The last message of the process."""

    def __init__(self, result: Result) -> None:
        self.result = result


def in_own_process(
    work: Callable[[Order, Progress], Result], order: Order, on_progress: Progress
) -> Result:
    """Run ``work(order, progress)`` in a fresh process and return its result.

    What it prints is discarded, but for the last line if it dies.

    Args:
        work: See :data:`Work`.
        order: Its argument, which is pickled, as is the result.
        on_progress: Called here with what the work reports there.

    Raises:
        ProcessDiedError: It ended without a result; says how.
    """
    context = get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    with TemporaryDirectory(prefix="pagedkv-process-") as folder, receiver:
        output = Path(folder, "output")
        process = context.Process(target=_report_to, args=(sender, output, work, order))
        # Ctrl-C reaches every process of a terminal. This one decides what becomes of the other,
        # which inherits the mask.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        sender.close()
        try:
            while not isinstance(message := receiver.recv(), _Done):
                on_progress(message)
            process.join(PATIENCE_S)
        except EOFError:
            process.join()
            raise ProcessDiedError(_how_it_died(process.exitcode or 0, output)) from None
        finally:
            process.kill()
            process.join()
            process.close()
        result: Result = message.result
        return result


def _report_to(
    sender: "Connection[object, object]",
    output: Path,
    work: Callable[[Order, Progress], Result],
    order: Order,
) -> None:
    """The other process: work, and tell how it goes."""
    with output.open("w") as file:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
            os.dup2(file.fileno(), stream.fileno())
    sender.send(_Done(work(order, sender.send)))


def _how_it_died(exit_code: int, output: Path) -> str:
    """An exit code, and the last line that was printed, in words."""
    ending = f"with status {exit_code}"
    if exit_code < 0:
        ending = f"by signal {-exit_code}"
        with suppress(ValueError):
            ending = f"by {signal.Signals(-exit_code).name}"
    lines = output.read_text(errors="replace").split("\n") if output.exists() else []
    last = next((line.strip() for line in reversed(lines) if line.strip()), "it printed nothing")
    return f"its process ended {ending}: {last}"
