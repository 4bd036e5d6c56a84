"""One process that speaks the protocol: requests go in, results or errors come out."""

from collections.abc import Sequence
from itertools import count
from typing import Any

from pydantic import ValidationError
from pydantic_core import to_json

from pagedkv.conformance.protocol import replies, requests
from pagedkv.conformance.protocol.errors import MalformedReplyError, ProtocolError, as_error
from pagedkv.conformance.protocol.message import VERSION
from pagedkv.conformance.protocol.process import LineProcess
from pagedkv.reference.events import Tracer
from pagedkv.traces.events.codec import decode

QUOTED_CHARACTERS = 300
"""Most of a malformed line that an error quotes."""

MISTAKES = 20
"""Most mistakes of one line that an error tells."""


class Session:
    """One process that speaks the protocol, and the managers that are open in it.

    Raises:
        ProtocolError: It does not speak it.
    """

    def __init__(self, command: Sequence[str], timeout_s: float) -> None:
        self.process = LineProcess(command, timeout_s)
        """The process."""
        self.numbers = count(1)
        """Numbers for managers and reservations that were not used yet."""
        self.forgotten: list[int] = []
        """Numbers of managers that nobody refers to any more."""
        self.introduction: replies.Introduction = self._introduction()
        """What it says of itself."""

    def _introduction(self) -> replies.Introduction:
        command = self.process.command
        try:
            who: replies.Introduction = self.ask(requests.Hello(version=VERSION))
        except ProtocolError:
            raise
        except Exception as error:  # an error reply, of whatever kind
            raise ProtocolError(f"{command!r} refuses version {VERSION}: {error}") from error
        return who

    # Any: the result's type depends on the call; replies.RESULTS has it.
    def ask(self, request: requests.Request, tracer: Tracer | None = None) -> Any:
        """Send a request and give its result; the events of the reply go to ``tracer``.

        Raises:
            ProtocolError: There is no reply, or it is none to this request.
            Exception: The error in the reply.
        """
        line = self.process.ask(request.as_line())
        try:
            reply = replies.reply_to(request.call).validate_json(line)
        except ValidationError as error:
            raise self._malformed(request.call, line, error) from None
        if tracer is not None:
            for event in reply.events:
                tracer.emit(decode(to_json(event).decode())[1])
        if reply.error is not None:
            raise as_error(reply.error)
        return reply.result

    def _malformed(self, call: str, line: bytes, error: ValidationError) -> MalformedReplyError:
        text = line.decode(errors="replace")
        if len(text) > QUOTED_CHARACTERS:
            text = f"{text[:QUOTED_CHARACTERS]}... ({len(line)} bytes)"
        mistakes = [".".join(map(str, m["loc"])) + f": {m['msg']}" for m in error.errors()]
        problem = self.process.quote(
            f"has answered {call!r} with a line that is no reply to it: {text}\n"
            + "\n".join(mistake.removeprefix(": ") for mistake in mistakes[:MISTAKES])
        )
        self.process.close()  # what else it has to say would be taken for other answers
        return MalformedReplyError(problem)
