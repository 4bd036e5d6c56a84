"""Two uses of the same rows that nothing orders, and what would order them."""

from dataclasses import dataclass, field
from typing import Literal

from pagedkv.conformance.stream_order.entries import HOST


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two uses."""

    index: int
    """Its entry in the log, from 0."""
    stream: str
    """Where it was enqueued."""
    kind: Literal["launch", "copy", "host"]
    """What it is."""
    writes: bool
    """Whether it writes the rows; else it reads them."""
    note: str = ""
    """What the log calls it."""

    @property
    def line(self) -> int:
        """Its line of the log, from 1; the first one is the header."""
        return self.index + 2

    @property
    def access(self) -> str:
        """What it does, without its place in the log."""
        where = "" if self.stream == HOST else f" on {self.stream}"
        return f"{self.kind}{where} {'writes' if self.writes else 'reads'}"

    def __str__(self) -> str:
        return f"entry {self.index} ({self.access})"


@dataclass(frozen=True)
class Race:
    """Two uses in either order, at least one of them a write: what is read is left to chance."""

    memory: str
    """Whose rows."""
    earlier: Side
    """The one that comes first in the log."""
    later: Side
    """The other."""
    event: int | None
    """An event that is recorded in between, behind the earlier one, so that to wait for it is all
    that is missing; None if there is none."""
    rows: list[int] = field(default_factory=list)
    """Which rows, in the order of the log."""

    @property
    def place(self) -> str:
        """The rows that both use, the first few by their numbers."""
        shown = ", ".join(map(str, self.rows[:8])) + (", ..." if len(self.rows) > 8 else "")
        row = "row" if len(self.rows) == 1 else f"{len(self.rows)} rows:"
        return f"{row} {shown} of {self.memory}"

    @property
    def missing(self) -> str:
        """The edge that would order the two."""
        waiter = "the host" if self.later.stream == HOST else self.later.stream
        wait = f"let {waiter} wait for {{}} before entry {self.later.index}"
        if self.event is not None:
            return wait.format(
                f"event {self.event}, which is recorded behind entry {self.earlier.index},"
            )
        record = f"record an event on {self.earlier.stream} behind entry {self.earlier.index}"
        return f"{record}, and {wait.format('it')}"

    def __str__(self) -> str:
        return (
            f"{self.place}: {self.earlier} and {self.later} are not ordered; "
            f"missing: {self.missing}"
        )
