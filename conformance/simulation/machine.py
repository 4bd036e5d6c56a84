"""What a simulation asks of an implementation: a manager in surroundings that obey a seed."""

from collections.abc import Coroutine
from random import Random
from typing import Any, Protocol, TypeVar

from pagedkv.conformance.forwards import Launch
from pagedkv.conformance.simulation.world import Life, World
from pagedkv.reference.events import Tracer
from pagedkv.reference.interfaces import AsyncKVCacheManager

Result = TypeVar("Result")


class SimulatedManager(Protocol):
    """A manager, and the copies, devices and power supply that it depends on."""

    @property
    def manager(self) -> AsyncKVCacheManager:
        """The manager; it has ``in_flight`` too, and ``prefetch`` if it can."""
        ...

    @property
    def stream_log(self) -> list[str]:
        """What was enqueued on streams so far, as lines of docs/stream-order.md; may stay empty."""
        ...

    @property
    def launch(self) -> Launch | None:
        """Launches a forward that runs later; ``None``: forwards run at once."""
        ...

    async def alloc_patiently(self, ctx: Any, replica: int) -> None:  # Any: a Context
        """An ``alloc`` that waits for pages in a queue."""
        ...

    async def copies_land(self) -> None:
        """Let copies and forwards land, one after the other, until this is cancelled.

        Raises:
            AssertionError: Nothing orders what two of them do to the same memory.
        """
        ...

    def fail_device(self, device: int) -> None:
        """A device fails."""
        ...

    async def crash(self) -> None:
        """The power is cut: nothing more is written, and every later call is refused."""
        ...

    def leftovers(self) -> str | None:
        """What is left behind, now that nobody holds anything; only what nobody sees outside."""
        ...


class Machine(Protocol):
    """What outlives a manager: a disk, perhaps, with its troubles."""

    def open(self, life: Life, tracer: Tracer) -> SimulatedManager:
        """The manager of a life, on the disk as the life before has left it."""
        ...

    def misplace(self, rng: Random) -> None:
        """Two blocks on the disk change places behind everybody's back."""
        ...

    def flip_bit(self, rng: Random) -> None:
        """A bit on the disk changes behind everybody's back."""
        ...


class Simulator(Protocol):
    """An implementation that can be simulated. It can be pickled: worlds run in many processes."""

    @property
    def name(self) -> str:
        """How people ask for it: ``--impl NAME``."""
        ...

    @property
    def limits_hits(self) -> bool:
        """Whether allocations follow the world's ``slow_tier_policy`` (ALLOC-15)."""
        ...

    @property
    def packages(self) -> tuple[str, ...]:
        """The packages whose decisions a simulation is to try, for coverage by lines."""
        ...

    def run(self, main: Coroutine[Any, Any, Result]) -> Result:
        """What ``main`` returns or raises, on an event loop whose time is made up.

        Raises:
            Exception: Everybody waits for something that nobody will ever do.
            AssertionError: The implementation has met what it did not foresee, and has said so in
                its log.
        """
        ...

    def machine(self, world: World) -> Machine:
        """A machine for a world, with an empty disk.

        Raises:
            ValueError: The implementation cannot be set up like this.
        """
        ...
