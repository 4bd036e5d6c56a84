"""Lets simulated copies land by themselves, at moments that a seed decides."""

import asyncio
from random import Random

from pagedkv.engine.streams.simulated import SimulatedStreams


async def land_by_chance(streams: SimulatedStreams, rng: Random, mean_s: float = 0.001) -> None:
    """Run one copy or forward that is ready after the other, until this is cancelled.

    Args:
        streams: Whose work it is.
        rng: Picks what is next, and when.
        mean_s: How long that takes on average, in seconds of the loop's clock.
    """
    while True:
        # No timer while nothing is ready: it would hide that nothing ever will be.
        await streams.more_is_ready()
        await asyncio.sleep(rng.expovariate(1 / mean_s))
        if ready := len(streams.ready()):
            streams.run(rng.randrange(ready))
