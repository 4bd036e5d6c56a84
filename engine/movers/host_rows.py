"""Rows of host memory that blocks come through, as copies and as disk calls see them."""

from collections.abc import Sequence

from pagedkv.engine.host_pool import HostPool
from pagedkv.engine.movers.units import Unit
from pagedkv.engine.streams.stream import Memory


class HostRows:
    """A pool's slots, each cut into the units of a replica.

    Args:
        name: What the log calls them.
        pool: The memory.
        units: The units of any replica: they are cut alike.
    """

    def __init__(self, name: str, pool: HostPool, units: Sequence[Unit]) -> None:
        self.memories = [
            Memory(
                f"{name} unit {n}",
                pool.rows[:, unit.offset : unit.offset + unit.nbytes],
                pool.chunk_slots,
            )
            for n, unit in enumerate(units)
        ]
        """By unit: its part of every slot."""
        self._pool = pool

    @property
    def num_slots(self) -> int:
        """How many slots there are."""
        return self._pool.rows.shape[0]

    def row(self, slot: int) -> memoryview:
        """All bytes of one slot."""
        return self._pool.row(slot)
