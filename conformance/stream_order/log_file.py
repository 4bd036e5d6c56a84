"""Reads logs of stream order."""

from collections.abc import Iterable, Iterator

from pydantic import BaseModel, TypeAdapter, ValidationError

from pagedkv.conformance.stream_order.entries import Entry, EntryLine, Header

ENTRY: TypeAdapter[Entry] = TypeAdapter(EntryLine)


class OrderLogError(ValueError):
    """A log of stream order cannot be understood."""

    def __init__(self, line: int, problem: str) -> None:
        self.line = line
        """Which line, from 1."""
        self.problem = problem
        """What is wrong with it."""
        super().__init__(f"line {line} of the order log: {problem}")


def read_order_log(lines: Iterable[str]) -> Iterator[Entry]:
    """The entries of a log, such as an open file; entry 0 is the line after the header.

    Raises:
        OrderLogError: A line is not what docs/stream-order.md says it is.
    """
    number = 0
    for number, line in enumerate(lines, start=1):
        try:
            if number == 1:
                Header.model_validate_json(line)
            else:
                yield ENTRY.validate_json(line)
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(map(str, first["loc"]))
            raise OrderLogError(number, f"{field}: {first['msg']}".removeprefix(": ")) from None
    if number == 0:
        raise OrderLogError(
            1, 'is missing; begin with {"format":"pagedkv-stream-order","version":1}'
        )


def order_log_lines(entries: Iterable[Entry]) -> Iterator[str]:
    """The lines of a log, each with its line end, the header first."""
    header: BaseModel = Header(format="pagedkv-stream-order")
    for model in (header, *entries):
        yield model.model_dump_json() + "\n"
