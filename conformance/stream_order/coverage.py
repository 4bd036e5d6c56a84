"""What a log of stream order names: nothing can be said of the order of anything else."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from pagedkv.conformance.stream_order.entries import Entry, Use


@dataclass
class Coverage:
    """Counts what passes through :meth:`of`."""

    entries: Counter[str] = field(default_factory=Counter)
    """How many there are of each kind."""
    without_rows: Counter[str] = field(default_factory=Counter)
    """Launches, copies and host accesses that name no row."""
    memories: dict[str, set[str]] = field(default_factory=dict)
    """By memory: the streams that use it."""

    def of(self, entries: Iterable[Entry]) -> Iterator[Entry]:
        """The same entries, counted."""
        for entry in entries:
            self.entries[entry.entry] += 1
            if isinstance(entry, Use):
                self._use(entry)
            yield entry

    def _use(self, use: Use) -> None:
        named = [memory for rows in (use.reads, use.writes) for memory in rows if rows[memory]]
        for memory in named:
            self.memories.setdefault(memory, set()).add(use.stream)
        if not named:
            self.without_rows[use.entry] += 1

    @property
    def gaps(self) -> list[str]:
        """What a log without races may still hide; empty if nothing is striking."""
        if not self.memories:
            return [
                "the log names no rows, so nothing was checked; let launches and copies say what "
                "they read and write"
            ]
        gaps = []
        if not self.entries["launch"]:
            gaps.append(
                "the log names no launches, so nothing says when the model reads and writes its "
                "pages; log every forward"
            )
        gaps += [
            f"{count} of {self.entries[entry]} {entry} entries name no rows, so nothing of them "
            "was checked"
            for entry, count in self.without_rows.items()
        ]
        if all(len(streams) == 1 for streams in self.memories.values()):
            gaps.append(
                "no memory is used on two streams, so nothing could race; the same bytes have to "
                "have the same name"
            )
        return gaps
