"""What can be wrong with a trace file: one class per reason, made to be read by people."""

import reprlib
from pathlib import Path
from typing import Self


class TraceError(ValueError):
    """Base of every error about a trace file.

    The reader that knows the place completes an error with :meth:`at`, so that parsers need
    not carry file names around.
    """

    def __init__(
        self, problem: str, *, remedy: str, field: str | None = None, value: object = None
    ) -> None:
        self.problem = problem
        """What is wrong, as the end of a sentence about the field or the line."""
        self.remedy = remedy
        """What to change."""
        self.field = field
        """Name of the field, as the file spells it; ``None`` if the whole line is meant."""
        self.value = value
        """What the field holds; meaningful only with a field."""
        self.path: Path | None = None
        """The file."""
        self.line: int | None = None
        """Number of the line, counted from 1; ``None`` if the whole file is meant."""
        super().__init__(problem)

    def at(self, path: Path, line: int | None) -> Self:
        """Say where the error is, and return it."""
        self.path, self.line = path, line
        return self

    def __str__(self) -> str:
        place = "" if self.path is None else f"{self.path}: "
        if self.line is not None:
            place = place.removesuffix(": ") + f", line {self.line}: "
        subject = "" if self.field is None else f"{self.field} = {reprlib.repr(self.value)} "
        return f"{place}{subject}{self.problem}; {self.remedy}"


class UnreadableTraceError(TraceError):
    """The bytes cannot be had: no such file, a truncated gzip stream, not UTF-8."""


class UnknownFormatError(TraceError):
    """The content is none of the known formats, or a newer version of one."""


class MalformedLineError(TraceError):
    """A line is not what the format is made of: broken JSON, too few columns."""


class InvalidFieldError(TraceError):
    """A field is missing, unknown, of the wrong type or out of range."""


class BrokenChainError(TraceError):
    """A hash id stands after two different prefixes, so it does not identify a prefix."""
