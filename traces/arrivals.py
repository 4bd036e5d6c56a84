"""When sessions start: processes that differ in how evenly they spread."""

from collections.abc import Callable, Iterator
from random import Random

BURSTINESS = 9.0
"""Variance of a bursty gap, relative to that of a Poisson process of the same rate."""

ARRIVALS: dict[str, Callable[[Random, float], float]] = {
    "poisson": lambda random, mean: random.expovariate(1 / mean),
    "uniform": lambda random, mean: mean,
    "bursty": lambda random, mean: random.gammavariate(1 / BURSTINESS, mean * BURSTINESS),
}
"""Draws the gap between two starts, given its mean, by the name of the process."""


def starts_s(process: str, rate: float, random: Random) -> Iterator[float]:
    """Start times in seconds, ascending from the first at 0, without end.

    Args:
        process: A name in :data:`ARRIVALS`.
        rate: Mean starts per second, above 0.
        random: Where the randomness comes from.
    """
    now = 0.0
    while True:
        yield now
        now += ARRIVALS[process](random, 1 / rate)
