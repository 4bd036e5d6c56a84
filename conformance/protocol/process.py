"""A process that answers each line on its stdin with one line on its stdout."""

import contextlib
import os
import select
import subprocess
import tempfile
import time
import weakref
from collections.abc import Sequence
from typing import IO

from pagedkv.conformance.protocol.errors import (
    CannotStartError,
    NoReplyError,
    ProcessEndedError,
    ProtocolError,
)

PATIENCE_S = 2.0
"""How long a process may take to end once its stdin is closed, in seconds."""

QUOTED_BYTES = 2_000
"""Most of stderr that an error quotes."""


class LineProcess:
    """Runs a command and talks to it, a line for a line. It ends with this object.

    Args:
        command: The program and its arguments; no shell is involved.
        timeout_s: Longest wait for a reply, in seconds.

    Raises:
        CannotStartError: There is no such program, or it may not be run.
    """

    def __init__(self, command: Sequence[str], timeout_s: float) -> None:
        self.command = " ".join(command)
        """What runs, for messages."""
        self.timeout_s = timeout_s
        """Longest wait for a reply, in seconds."""
        # A file, so that whatever the process says there, it never waits for us to read it.
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - closed by the finalizer
        try:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._stderr
            )
        except (OSError, ValueError) as error:
            self._stderr.close()
            raise CannotStartError(f"{self.command!r} cannot be run: {error}") from error
        assert self._process.stdin is not None and self._process.stdout is not None
        self._stdin, self._stdout = self._process.stdin.fileno(), self._process.stdout.fileno()
        for pipe in (self._stdin, self._stdout):
            os.set_blocking(pipe, False)
        self._unread = bytearray()
        self._end = weakref.finalize(self, _end, self._process, self._stderr)

    @property
    def is_alive(self) -> bool:
        """Whether it can be asked."""
        return self._end.alive and self._process.poll() is None

    def ask(self, line: bytes) -> bytes:
        """Write a line and read the one that answers it; both without their ends.

        Raises:
            ProcessEndedError: The process has ended.
            NoReplyError: It does not answer in time. It is killed then.
        """
        if not self._end.alive:
            raise ProcessEndedError(f"{self.command!r} was ended, and its managers with it")
        deadline = time.monotonic() + self.timeout_s
        try:
            self._write(line + b"\n", deadline)
            return self._read_line(deadline)
        except BaseException:
            # Whatever it would answer later on would be taken for the answer to something else.
            self._process.kill()
            self.close()
            raise

    def close(self) -> None:
        """Close its stdin and wait for its end; one that does not end is killed."""
        self._end()

    def quote(self, problem: str) -> str:
        """A message: what has happened, of which command, and what that said last on stderr."""
        if self._stderr.closed:
            return f"{self.command!r} {problem}"
        size = os.fstat(self._stderr.fileno()).st_size
        # pread: the process writes through the same file position.
        said = os.pread(self._stderr.fileno(), QUOTED_BYTES, max(0, size - QUOTED_BYTES))
        text = said.decode(errors="replace").strip()
        return f"{self.command!r} {problem}; " + (
            f"its stderr ends with:\n{text}" if text else "it has written nothing on stderr"
        )

    def _write(self, data: bytes, deadline: float) -> None:
        rest = memoryview(data)
        while rest:
            try:
                rest = rest[os.write(self._stdin, rest) :]
            except BlockingIOError:
                self._wait(self._stdin, select.POLLOUT, deadline)
            except BrokenPipeError:
                raise self._ended() from None

    def _read_line(self, deadline: float) -> bytes:
        while (end := self._unread.find(b"\n")) < 0:
            self._wait(self._stdout, select.POLLIN, deadline)
            data = os.read(self._stdout, 1 << 16)
            if not data:
                raise self._ended()
            self._unread += data
        line = bytes(self._unread[:end])
        del self._unread[: end + 1]
        return line

    def _wait(self, pipe: int, event: int, deadline: float) -> None:
        poll = select.poll()
        poll.register(pipe, event)
        if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
            raise NoReplyError(self.quote(f"has not answered within {self.timeout_s:g} s"))

    def _ended(self) -> ProtocolError:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(PATIENCE_S)
        status = self._process.returncode
        return ProcessEndedError(
            self.quote(
                "has closed its stdout" if status is None else f"has ended with status {status}"
            )
        )


def _end(process: subprocess.Popen[bytes], stderr: IO[bytes]) -> None:
    """Close the pipes and leave no zombie behind."""
    assert process.stdin is not None and process.stdout is not None
    process.stdin.close()
    try:
        process.wait(PATIENCE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    process.stdout.close()
    stderr.close()
