"""An order of numbers from old to young, in which any of them can be moved at once."""

from array import array
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import TypeAlias

from pagedkv.reference.errors import PoolCorruptedError

Run: TypeAlias = bytearray
"""Numbers that became the youngest together, the oldest first, as int32.

No array, which the garbage collector would keep count of: at ten million pages that made it look
at everything, for 0.4 s.
"""

ENTRY_NBYTES = 4
"""Of a number in a run."""

LONGEST_RUN = 1024
"""Of those that grow number by number: little to move when its first numbers are taken out."""


class RecencyList:
    """Some of the numbers ``0 .. size - 1``, each at most once, the oldest first.

    Pages come and go by the request, so the order is one of runs, not of numbers: to add or to
    take many is one call, a third as long as walking a linked list. A number that leaves only
    forgets its run: it is passed over where it stood. Before those that were left behind are more
    than those that are there, the runs are written anew, a few at a time.
    """

    __slots__ = ("_num_numbers", "_open", "_run_of", "_tidied", "_untidied", "num_entries")

    def __init__(self, size: int, *, full: bool = False) -> None:
        self._run_of: list[Run | None] = [None] * size
        """By number: the run where it stands. Where else it is found, it was left behind."""
        self._tidied: deque[Run] = deque()
        """The older runs: nothing was left behind when they were last looked at."""
        self._untidied: deque[Run] = deque()
        """The younger runs."""
        self._open: Run | None = None
        """The youngest run, while it may grow: no number was left behind in it."""
        self.num_entries = 0
        """Numbers in all runs, those that were left behind included."""
        self._num_numbers = 0
        """Numbers that are there."""
        if full:
            for start in range(0, size, LONGEST_RUN):
                self.extend(range(start, min(start + LONGEST_RUN, size)))

    def __contains__(self, number: int) -> bool:
        return self._run_of[number] is not None

    def __len__(self) -> int:
        return self._num_numbers

    def __iter__(self) -> Iterator[int]:
        """The oldest first; whoever gets one may remove it, and add none meanwhile."""
        run_of = self._run_of
        for run in chain(self._tidied, self._untidied):
            for number in _numbers(run):
                if run_of[number] is run:
                    yield number

    def append(self, number: int) -> None:
        """Put ``number``, which is not in the list, at the young end."""
        run = self._open
        if not run or len(run) >= LONGEST_RUN * ENTRY_NBYTES:
            self.extend((number,))
            self._open = self._untidied[-1]
            return
        run += array("i", (number,))
        self._run_of[number] = run
        self.num_entries += 1
        self._num_numbers += 1

    def extend(self, numbers: Sequence[int]) -> None:
        """Put ``numbers``, none of which is in the list, at the young end, in their order."""
        if not numbers:
            return
        run = self._new_run(numbers)  # first, because it may swap the older and the younger runs
        self._untidied.append(run)
        self._open = None

    def prepend(self, numbers: Sequence[int]) -> None:
        """Put ``numbers``, none of which is in the list, at the old end, in their order."""
        if not numbers:
            return
        run = self._new_run(numbers)
        self._tidied.appendleft(run)

    def remove(self, number: int) -> None:
        """Take ``number``, which is in the list, out of it."""
        self.discard((number,))

    def discard(self, numbers: Iterable[int]) -> tuple[list[int], list[int]]:
        """Take those of ``numbers`` that are in the list out of it.

        Returns those that were in it, and those that were not.
        """
        run_of, open_run = self._run_of, self._open
        removed: list[int] = []
        absent: list[int] = []
        for number in numbers:
            run = run_of[number]
            if run is None:
                absent.append(number)
                continue
            if run is open_run:
                self._open = None
            run_of[number] = None
            removed.append(number)
        self._num_numbers -= len(removed)
        return removed, absent

    def renew(self, numbers: Sequence[int]) -> None:
        """Move ``numbers``, which are in the list, to the young end, one after the other."""
        # Of one that comes twice the last place counts.
        order = list(dict.fromkeys(reversed(numbers)))
        self.discard(order)
        self.extend(order[::-1])

    def take(self, count: int) -> list[int]:
        """Take out the ``count`` oldest, or all if there are fewer, the oldest first."""
        run_of = self._run_of
        taken: list[int] = []
        for runs in (self._tidied, self._untidied):
            while runs and len(taken) < count:
                run = runs[0]
                nbytes = ENTRY_NBYTES * (count - len(taken))
                some = _numbers(run[:nbytes])
                del run[:nbytes]
                if not run:
                    runs.popleft()
                self.num_entries -= len(some)
                taken += [number for number in some if run_of[number] is run]
        for number in taken:
            run_of[number] = None
        self._num_numbers -= len(taken)
        return taken

    def _new_run(self, numbers: Sequence[int]) -> Run:
        run_of, run = self._run_of, bytearray(array("i", numbers))
        for number in numbers:
            if run_of[number] is not None:
                raise PoolCorruptedError(f"page or slot {number} came free, but nobody held it")
            run_of[number] = run
        self._num_numbers += len(numbers)
        self.num_entries += len(numbers)
        if self.num_entries > 2 * self._num_numbers + LONGEST_RUN:
            self._tidy(2 * len(numbers))
        return run

    def _tidy(self, num_entries: int) -> None:
        """Write runs of at least so many entries anew, without what was left behind in them."""
        run_of = self._run_of
        while num_entries > 0 and (self._tidied or self._untidied):
            if not self._untidied:
                self._tidied, self._untidied = self._untidied, self._tidied
            run = self._untidied.popleft()
            numbers = _numbers(run)
            there = [number for number in numbers if run_of[number] is run]
            num_entries -= len(numbers)
            self.num_entries -= len(numbers) - len(there)
            run[:] = bytearray(array("i", there))
            if run:
                self._tidied.append(run)


def _numbers(run: Run) -> list[int]:
    return memoryview(run).cast("i").tolist()
