"""An order of numbers from old to young, in which any of them can be moved at once."""

from array import array
from collections.abc import Iterable, Iterator

ABSENT = -1


class RecencyList:
    """Some of the numbers ``0 .. size - 1``, each at most once, the oldest first.

    A linked list in two arrays of its full size, so that it never grows: 8 bytes per number.
    :class:`~pagedkv.engine.planner.pages.PagePool` walks and splices the arrays itself.
    """

    __slots__ = ("after", "before", "end")

    def __init__(self, size: int, *, full: bool = False) -> None:
        self.end = size
        """Stands before the first number and behind the last."""
        if full:
            self.after = array("i", range(1, size + 2))
            self.before = array("i", range(-1, size))
            self.after[size], self.before[0] = (0, size) if size else (size, size)
            if size:
                self.before[size] = size - 1
        else:
            self.after = array("i", [ABSENT]) * (size + 1)
            self.before = array("i", [ABSENT]) * (size + 1)
            self.after[size] = self.before[size] = size

    def __contains__(self, number: int) -> bool:
        return self.after[number] != ABSENT

    def __iter__(self) -> Iterator[int]:
        number = self.after[self.end]
        while number != self.end:
            # Whoever gets it may remove it.
            following = self.after[number]
            yield number
            number = following

    def append(self, number: int) -> None:
        """Put ``number``, which is not in the list, at the young end."""
        after, before, end = self.after, self.before, self.end
        youngest = before[end]
        after[youngest] = before[end] = number
        before[number], after[number] = youngest, end

    def prepend(self, number: int) -> None:
        """Put ``number``, which is not in the list, at the old end."""
        after, before, end = self.after, self.before, self.end
        oldest = after[end]
        after[end] = before[oldest] = number
        before[number], after[number] = end, oldest

    def remove(self, number: int) -> None:
        """Take ``number`` out of the list."""
        after, before = self.after, self.before
        older, younger = before[number], after[number]
        after[older], before[younger] = younger, older
        after[number] = ABSENT

    def renew(self, numbers: Iterable[int]) -> None:
        """Move ``numbers``, which are in the list, to the young end, one after the other."""
        after, before, end = self.after, self.before, self.end
        for number in numbers:
            older, younger = before[number], after[number]
            after[older], before[younger] = younger, older
            youngest = before[end]
            after[youngest] = before[end] = number
            before[number], after[number] = youngest, end
