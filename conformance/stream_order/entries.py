"""What a log of stream order says: rows were used, an event was recorded, something waits for it.

Streams have free names, such as ``onload 0``; ``host`` is the program that enqueues, in the order
of the log.
"""

from typing import Annotated, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt

HOST = "host"
"""The stream that is the program itself."""

RowRange = tuple[NonNegativeInt, PositiveInt]
"""The first of adjacent rows, and how many there are."""

Rows: TypeAlias = dict[str, list[RowRange]]
"""Rows by the name of their memory. The same bytes have to have the same name and row."""


class LogModel(BaseModel):
    """A line of the log: frozen, and without fields that nobody knows."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Header(LogModel):
    """The first line."""

    format: Literal["pagedkv-stream-order"]
    """What this is."""
    version: Literal[1] = 1
    """Of the format."""


class Use(LogModel):
    """Work that touches rows: a forward or copies on a stream, or the program itself."""

    entry: Literal["launch", "copy", "host"]
    """What does it."""
    stream: str = HOST
    """Where it was enqueued."""
    reads: Rows = {}
    """What it reads."""
    writes: Rows = {}
    """What it writes."""
    note: str = ""
    """What people call it, for reports."""


class Record(LogModel):
    """An event is recorded behind everything that is on a stream."""

    entry: Literal["record"] = "record"
    """What this line is."""
    stream: str
    """Where."""
    event: int
    """Its number; one that was recorded before means the later point from now on."""


class Wait(LogModel):
    """What a stream does from now on happens after an event; the host has waited for it."""

    entry: Literal["wait"] = "wait"
    """What this line is."""
    stream: str
    """Who waits; ``host`` where the program has seen that the event is done."""
    event: int
    """For what: the latest point recorded under this number."""


Entry = Use | Record | Wait
"""Any line but the first."""

EntryLine: TypeAlias = Annotated[Entry, Field(discriminator="entry")]
"""How the kind of a line is told from its text."""
