"""A disk that has good times and bad times, one after the other."""

import asyncio
import errno
from collections.abc import Callable, Iterator
from itertools import cycle
from random import Random

from pagedkv.engine.disk.faulty_files import FaultyFiles, FileCall


class TroubledFiles(FaultyFiles):
    """Files with faults that come and go; nobody turns the machine off."""

    def _remember(self, fd: int, offset: int, nbytes: int) -> None:
        """What a loss of power would undo is not kept: it would grow as long as the soak lasts."""

    def be_calm(self) -> None:
        """No faults from now on."""
        self.short = self.torn = self.flipped = self.delay_s = 0.0
        self.capacity_nbytes = None


def _slow(files: TroubledFiles) -> None:
    files.delay_s = 0.03


def _short(files: TroubledFiles) -> None:
    files.short = 0.3


def _corrupt(files: TroubledFiles) -> None:
    files.torn = files.flipped = 0.05


def _full(files: TroubledFiles) -> None:
    files.capacity_nbytes = 0


def _failing(files: TroubledFiles) -> None:
    """See :func:`troubles`, which lets single calls fail."""


PHASES: dict[str, Callable[[TroubledFiles], None]] = {
    "calm": TroubledFiles.be_calm,
    "slow": _slow,
    "short transfers": _short,
    "I/O errors": _failing,
    "corruption": _corrupt,
    "full": _full,
}
"""What the disk goes through, again and again."""


async def troubles(
    files: TroubledFiles, rng: Random, phase_s: float, tell: Callable[[str], None]
) -> None:
    """Let one phase follow the other until this is cancelled; the end is calm.

    Args:
        files: Whose.
        rng: Picks the calls that fail.
        phase_s: How long each of them lasts.
        tell: Called with the name of each phase as it begins.
    """
    try:
        for name, begin in _from_anywhere(rng):
            files.be_calm()
            begin(files)
            tell(name)
            for _ in range(10):
                if begin is _failing:
                    reads = rng.random() < 0.5
                    call: FileCall = "preadv" if reads else "pwritev"
                    files.fail(call, errno.EIO, nth=rng.randrange(1, 20))
                await asyncio.sleep(phase_s / 10)
    finally:
        files.be_calm()


def _from_anywhere(rng: Random) -> Iterator[tuple[str, Callable[[TroubledFiles], None]]]:
    phases = cycle(PHASES.items())
    for _ in range(rng.randrange(len(PHASES))):
        next(phases)
    return phases
