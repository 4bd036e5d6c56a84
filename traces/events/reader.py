"""Reads event traces as streams, plain or gzip."""

from collections.abc import Iterator
from pathlib import Path

from pagedkv.reference.events import Event
from pagedkv.traces.errors import InvalidFieldError, TraceError, UnreadableTraceError
from pagedkv.traces.events.codec import decode, decode_header
from pagedkv.traces.reader import read_lines


class EventTrace:
    """A recorded run, read line by line, as often as wanted.

    Raises:
        TraceError: The file cannot be opened, or does not begin with the header of a trace.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        """The file."""
        for number, text in read_lines(self.path):
            try:
                self.header = decode_header(text)
                """How the recorded manager was set up, and where it stood."""
            except TraceError as error:
                raise error.at(self.path, number) from None
            return
        raise UnreadableTraceError(
            "the file is empty", remedy="check that it was written completely"
        ).at(self.path, None)

    def __iter__(self) -> Iterator[Event]:
        """Every event in order.

        Raises:
            TraceError: A line is malformed, or events are missing; says which.
        """
        first = self.header.first_seq
        for expected, (number, text) in enumerate(read_lines(self.path), first - 1):
            if expected < first:
                continue
            try:
                seq, event = decode(text)
                if seq != expected:
                    raise InvalidFieldError(
                        f"should be {expected}: events are missing or out of order",
                        remedy="use the file as it was recorded",
                        field="seq",
                        value=seq,
                    )
            except TraceError as error:
                raise error.at(self.path, number) from None
            yield event
