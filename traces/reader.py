"""Reads workloads as streams: any known format, plain or gzip, told apart by content."""

import codecs
import gzip
import json
import os
import zlib
from collections.abc import Iterator
from pathlib import Path

from pagedkv.traces.errors import (
    MalformedLineError,
    TraceError,
    UnknownFormatError,
    UnreadableTraceError,
)
from pagedkv.traces.formats import FORMATS, Format
from pagedkv.traces.formats.csv_trace import split_row
from pagedkv.traces.oddities import Oddities
from pagedkv.traces.workload import VERSION, WorkloadHeader, WorkloadRequest

GZIP_MAGIC = b"\x1f\x8b"
"""The first two bytes of every gzip file."""

BACKWARDS = "arrival times go backwards; the order of the file is kept"
"""Oddity of a trace that is not sorted by time. Ties are no oddity: file order decides."""


class Workload:
    """A trace file, read line by line, as often as wanted.

    Iterating yields a :class:`WorkloadRequest` per request, in file order, and never holds more
    than one line. Each pass opens the file anew and collects :attr:`oddities` anew.

    Args:
        path: The file.
        format: A name in :data:`~pagedkv.traces.formats.FORMATS`; by default told from the
            first line.
        block_size: Tokens per hash id, for the formats that do not say.

    Raises:
        TraceError: The file cannot be opened, or its first line is of no known format.
    """

    def __init__(
        self, path: Path | str, *, format: str | None = None, block_size: int | None = None
    ) -> None:
        self.path = Path(path)
        """The file."""
        self.oddities = Oddities()
        """The oddities that the latest pass has met so far."""
        self._first_number, self._first_line = self._read_first_line()
        try:
            self.format: Format = by_name(format) if format else recognise(self._first_line)
            """The format of the file."""
            self.header: WorkloadHeader = self._make_header(block_size)
            """The header of the file, or one made up for a format without."""
        except TraceError as error:
            raise error.at(self.path, self._first_number) from None

    def __iter__(self) -> Iterator[WorkloadRequest]:
        """Every request, in file order.

        Raises:
            TraceError: A line is malformed; says which.
        """
        for _, parsed in self.lines():
            if isinstance(parsed, TraceError):
                raise parsed
            yield parsed

    def lines(self) -> Iterator[tuple[int, WorkloadRequest | TraceError]]:
        """Every line with its number, malformed ones as the error that they are.

        Raises:
            TraceError: The rest cannot be read either: columns without known names, a truncated
                gzip stream.
        """
        self.oddities = Oddities()
        lines = read_lines(self.path)
        if self.format.first_line_is_header:
            next(lines)
        block_size = self.header.block_size
        try:
            parse = self.format.parser(self._first_line, block_size, self.oddities)
        except TraceError as error:
            raise error.at(self.path, self._first_number) from None
        latest_ms = 0.0
        for number, text in lines:
            try:
                request = parse(text, number)
                if request is None:
                    continue
                request.check(block_size)
            except TraceError as error:
                yield number, error.at(self.path, number)
                continue
            if request.arrival_ms < latest_ms:
                self.oddities.add(BACKWARDS, number)
            latest_ms = request.arrival_ms
            yield number, request

    def __repr__(self) -> str:
        return (
            f"Workload({str(self.path)!r}, format={self.format.name!r}, "
            f"block_size={self.header.block_size})"
        )

    def _read_first_line(self) -> tuple[int, str]:
        for numbered in read_lines(self.path):
            return numbered
        raise UnreadableTraceError(
            "the file is empty", remedy="check that it was written completely"
        ).at(self.path, None)

    def _make_header(self, block_size: int | None) -> WorkloadHeader:
        if self.format.block_size is None:
            if block_size is not None:
                raise UnknownFormatError(
                    "already says its block size", remedy="leave --block-size out"
                )
            check_version(self._first_line)
            return WorkloadHeader.parse(self._first_line)
        # A file's name need not be UTF-8, but what is written has to be.
        name = os.fsencode(self.path.name).decode(errors="replace")
        return WorkloadHeader(
            block_size=self.format.block_size if block_size is None else block_size,
            origin=f"{self.format.name} trace {name}",
        )


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a text file that are not blank, plain or gzip, numbered from 1.

    Raises:
        UnreadableTraceError: There is no such file, it is truncated, or it is not UTF-8 text.
    """
    number = 0
    try:
        if not path.is_file():
            raise UnreadableTraceError(
                "is not a file" if path.exists() else "does not exist", remedy="check the path"
            ).at(path, None)
        with path.open("rb") as raw:
            packed = raw.peek(2)[:2] == GZIP_MAGIC
            stream = gzip.GzipFile(fileobj=raw) if packed else raw
            with stream:
                for number, line in enumerate(stream, 1):
                    if not line.isspace():
                        yield number, line.removeprefix(codecs.BOM_UTF8).decode()
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UnreadableTraceError(
            f"the gzip stream is truncated or damaged after line {number}",
            remedy="fetch or write the file again",
        ).at(path, None) from error
    except UnicodeDecodeError as error:
        raise UnreadableTraceError("is not UTF-8 text", remedy="check that the file is a trace").at(
            path, number
        ) from error
    except OSError as error:
        raise UnreadableTraceError(
            f"cannot be read ({error.strerror})", remedy="check the path and its permissions"
        ).at(path, None) from error


def by_name(name: str) -> Format:
    """The format called ``name``.

    Raises:
        UnknownFormatError: There is none of that name.
    """
    if name not in FORMATS:
        raise UnknownFormatError(
            f"cannot be read as {name!r}", remedy=f"the formats are {', '.join(FORMATS)}"
        )
    return FORMATS[name]


def recognise(first_line: str) -> Format:
    """The format whose first line looks like this one.

    Raises:
        MalformedLineError: The line is broken JSON.
        UnknownFormatError: No format looks like this.
    """
    if first_line.lstrip().startswith("{"):
        try:
            names = set(json.loads(first_line))
        except (ValueError, RecursionError) as error:
            raise MalformedLineError(
                f"is not valid JSON ({error})", remedy="write one JSON object per line"
            ) from None
    else:
        names = set(split_row(first_line))
    for format in FORMATS.values():
        if format.signature <= names:
            return format
    raise UnknownFormatError(
        "has the fields of no known format",
        remedy=f"name the format with --format ({', '.join(FORMATS)}), or see docs/workloads.md",
    )


def check_version(first_line: str) -> None:
    """Say clearly that a header was written by a later version of this package.

    Raises:
        UnknownFormatError: The version is a larger number than :data:`VERSION`.
    """
    try:
        version = json.loads(first_line).get("version")
    except (ValueError, AttributeError):
        return
    if isinstance(version, int) and version > VERSION:
        raise UnknownFormatError(
            f"says workload version {version}, this program reads up to version {VERSION}",
            remedy="upgrade pagedkv",
        )
