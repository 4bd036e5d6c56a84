"""What observers are told: allocations, transfers and copies, with times.

Times are seconds on the clock of the :class:`~pagedkv.engine.observability.watch.Watch`, which
begins anywhere and never goes back.
"""

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from pagedkv.engine.planner.state import AllocPlan
from pagedkv.engine.planner.transfer import Transfer
from pagedkv.engine.streams.stream import StreamName
from pagedkv.reference.tier_names import FailReason

DiskOperation: TypeAlias = Literal["read", "write"]
"""What is done with one block on disk."""


@dataclass(eq=False, slots=True)
class AllocRecord:
    """One call of ``alloc``, from its first moment."""

    number: int
    """Counts the calls; unique in its watch."""
    request_id: Hashable
    """The request."""
    replica: int
    """Where."""
    began_s: float
    """When it was called."""
    planned_s: float | None = None
    """When it first had pages; ``None`` as long as it waits for its turn."""
    ended_s: float | None = None
    """When it returned or raised."""
    plans: int = 0
    """How often it was planned: more than once if a load has failed or was too slow."""
    plan: AllocPlan | None = None
    """The latest plan: once the call has returned, what it was given."""
    error: BaseException | None = None
    """What it raised: a refusal, a cancellation."""

    @property
    def retries(self) -> int:
        """How often it was planned again."""
        return max(0, self.plans - 1)

    @property
    def queue_s(self) -> float | None:
        """Seconds until it had pages; ``None`` if it never got any."""
        return None if self.planned_s is None else self.planned_s - self.began_s

    @property
    def total_s(self) -> float | None:
        """Seconds from the call to its end; ``None`` before."""
        return None if self.ended_s is None else self.ended_s - self.began_s


@dataclass(eq=False, slots=True)
class TransferRecord:
    """One transfer, from its issue."""

    transfer: Transfer
    """What moves whereto."""
    nbytes: int
    """Bytes of its blocks; what all shards hold alike counts once, but for copies from peers."""
    began_s: float
    """When it was issued."""
    requests: list[Hashable] = field(default_factory=list)
    """Requests whose allocations wait for it, as far as they have said so."""
    ended_s: float | None = None
    """When it landed or failed."""
    reason: FailReason | None = None
    """Why it failed; ``None`` if it has landed or is in flight."""

    @property
    def way(self) -> str:
        """From where to where: ``host_to_device``."""
        return f"{self.transfer.source}_to_{self.transfer.target}"

    @property
    def total_s(self) -> float | None:
        """Seconds from its issue to its end; ``None`` while it is in flight."""
        return None if self.ended_s is None else self.ended_s - self.began_s


@dataclass(frozen=True, slots=True)
class CopyRecord:
    """A copy of a transfer on one stream, as the host sees it."""

    transfer: Transfer
    """What it is part of."""
    device_idx: int
    """The device whose stream it was on."""
    stream: StreamName
    """Which of its streams."""
    blocks: int
    """Blocks of which it copied a unit."""
    nbytes: int
    """Bytes it moved."""
    began_s: float
    """When nothing held it up but earlier copies of its stream."""
    ended_s: float
    """When the event loop learnt that it is over."""
