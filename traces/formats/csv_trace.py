"""Traces in CSV that know lengths but no content: every request counts as unique."""

import csv
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from pagedkv.traces.ceil_div import ceil_div
from pagedkv.traces.errors import InvalidFieldError, MalformedLineError
from pagedkv.traces.formats.format import EMPTY_PROMPT
from pagedkv.traces.oddities import Oddities
from pagedkv.traces.workload import MAX_TOKENS, WorkloadRequest

CONTENT_FREE_BLOCK_SIZE = 128
"""Tokens per made-up hash id; any size is right for content that is never shared."""


@dataclass(frozen=True)
class CsvColumns:
    """Where a CSV trace keeps what a workload needs; columns are found by name."""

    arrival: str
    """Column of the arrival time."""
    seconds: Callable[[str], float]
    """Reads that column, as seconds from any origin; ``ValueError`` if it cannot."""
    arrival_example: str
    """What the arrival column looks like, for error messages."""
    input_length: str
    """Column of the number of prompt tokens."""
    output_length: str
    """Column of the number of generated tokens."""
    session: str | None = None
    """Column of the session; the column may be absent or empty."""
    type: str | None = None
    """Column of the kind of request; the column may be absent or empty."""

    @property
    def required(self) -> frozenset[str]:
        """The columns that have to be there."""
        return frozenset({self.arrival, self.input_length, self.output_length})


class CsvParser:
    """Reads the rows of one file; arrival times count from the first row."""

    def __init__(
        self, columns: CsvColumns, first_line: str, block_size: int, oddities: Oddities
    ) -> None:
        self._columns = columns
        self._names = split_row(first_line)
        self._block_size = block_size
        self._oddities = oddities
        self._start_s: float | None = None
        self._next_id = 0
        missing = columns.required - set(self._names)
        if missing:
            raise MalformedLineError(
                f"names no column {', '.join(map(repr, sorted(missing)))}",
                remedy="the first line has to name the columns as the published file does",
            )
        repeated = [name for name, count in Counter(self._names).items() if count > 1]
        if repeated:
            raise MalformedLineError(
                f"names column {repeated[0]!r} twice", remedy="rename or remove one of the two"
            )

    def __call__(self, text: str, number: int) -> WorkloadRequest | None:
        """See :class:`~pagedkv.traces.formats.format.LineParser`."""
        values = split_row(text)
        if len(values) != len(self._names):
            raise MalformedLineError(
                f"has {len(values)} columns, the first line names {len(self._names)}",
                remedy="complete or remove the line",
            )
        row = dict(zip(self._names, values, strict=True))
        arrival_ms = self._arrival_ms(row, number)
        input_length = self._count(row, self._columns.input_length)
        output_length = self._count(row, self._columns.output_length)
        if input_length == 0:
            self._oddities.add(EMPTY_PROMPT, number)
            return None
        first_id = self._next_id
        self._next_id += ceil_div(input_length, self._block_size)
        return WorkloadRequest.model_construct(
            arrival_ms=arrival_ms,
            input_length=input_length,
            output_length=output_length,
            hash_ids=tuple(range(first_id, self._next_id)),
            session=row.get(self._columns.session or "") or None,
            type=row.get(self._columns.type or "") or None,
        )

    def _arrival_ms(self, row: dict[str, str], number: int) -> float:
        name = self._columns.arrival
        try:
            seconds = self._columns.seconds(row[name])
            if not math.isfinite(seconds):
                raise ValueError("no origin to count from")
        except ValueError:
            raise InvalidFieldError(
                "is not an arrival time",
                field=name,
                value=row[name],
                remedy=f"write it like {self._columns.arrival_example}",
            ) from None
        if self._start_s is None:
            self._start_s = seconds
        if seconds < self._start_s:
            self._oddities.add("arrivals before the first request count as time 0", number)
        return max(0.0, round((seconds - self._start_s) * 1000, 3))

    @staticmethod
    def _count(row: dict[str, str], name: str) -> int:
        text = row[name]
        if not (
            text.isascii()
            and text.isdecimal()
            and len(text) <= len(str(MAX_TOKENS))
            and int(text) <= MAX_TOKENS
        ):
            raise InvalidFieldError(
                "is not a number of tokens",
                field=name,
                value=text,
                remedy=f"write a whole number from 0 to {MAX_TOKENS}",
            )
        return int(text)


def split_row(text: str) -> list[str]:
    """The values of one CSV line, without surrounding spaces.

    Raises:
        MalformedLineError: The line is not CSV, for example because of an endless field.
    """
    try:
        return [value.strip() for value in next(csv.reader([text.rstrip("\r\n")]), [])]
    except csv.Error as error:
        raise MalformedLineError(
            f"is not valid CSV ({error})", remedy="write one row of comma-separated values per line"
        ) from None
