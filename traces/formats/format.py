"""What a trace format has to say about itself."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from pagedkv.traces.oddities import Oddities
from pagedkv.traces.workload import WorkloadRequest

EMPTY_PROMPT = "requests without a prompt are skipped"
"""Oddity of public traces, which also record requests that failed."""


class LineParser(Protocol):
    """Turns the lines of one file into requests; keeps what later lines need of earlier ones."""

    def __call__(self, text: str, number: int) -> WorkloadRequest | None:
        """Read line ``number``; ``None`` if it holds nothing to serve.

        Raises:
            TraceError: The line is malformed. The place is not filled in.
        """
        ...


@dataclass(frozen=True)
class Format:
    """A format, and how to read it."""

    name: str
    """What ``--format`` calls it."""
    signature: frozenset[str]
    """Fields or columns in the first line by which it is recognised."""
    block_size: int | None
    """Tokens per hash id unless told otherwise; ``None`` if a header says."""
    first_line_is_header: bool
    """Whether requests start on the second line."""
    ids_are_chained: bool
    """Whether an id names a block *and its prefix*, so that it has one parent only."""
    parser: Callable[[str, int, Oddities], LineParser]
    """Makes a parser for one pass, from the first line, the block size and where to warn."""
