"""What a recorded run is fed to: a manager whose environment the caller plays."""

from collections.abc import Hashable, Iterable, Sequence
from typing import Any, Protocol

from pagedkv.reference.context import Context
from pagedkv.reference.events import Tracer
from pagedkv.reference.identity import PageKey
from pagedkv.reference.interfaces import SyncKVCacheManager
from pagedkv.reference.snapshot import Snapshot
from pagedkv.reference.tier_names import FailReason
from pagedkv.traces.events.setup import RunSetup


class Specification(SyncKVCacheManager, Protocol):
    """A manager whose environment the caller plays: the reference, with ``auto_land=False``."""

    # Any: what these return is not looked at; the events say it.
    def begin_alloc(self, ctx: Context, replica_idx: int, hit_limit: int | None = None) -> Any:
        """Plan an allocation."""
        ...

    def prefetch(self, ctx: Context) -> Any:
        """Load what a request could hit into host memory."""
        ...

    def finish_alloc(self, ctx: Context, replica_idx: int) -> Any:
        """Complete a planned allocation."""
        ...

    def cancel_alloc(self, request_id: Hashable, replica_idx: int) -> None:
        """Undo a planned allocation."""
        ...

    def clean_pages(
        self, replica_idx: int, pages: Sequence[int], sparing: Sequence[PageKey] = ()
    ) -> Any:
        """Offload dirty pages."""
        ...

    def submit(self, transfer_id: str) -> None:
        """What can fail of a load is done."""
        ...

    def land(self, transfer_id: str) -> None:
        """A transfer has landed."""
        ...

    def fail(
        self, transfer_id: str, reason: FailReason, keys: Iterable[PageKey] | None = None
    ) -> None:
        """A transfer has failed."""
        ...

    def store_answered(
        self,
        found: Sequence[PageKey],
        missing: Sequence[PageKey] = (),
        endpoint: str | None = None,
    ) -> None:
        """A block store has said what it holds."""
        ...

    def poison(self, replica_idx: int, reason: str) -> None:
        """A device has failed."""
        ...

    def renew_write_budget(self) -> None:
        """A new day has begun."""
        ...

    def snapshot(self) -> Snapshot:
        """All that it knows."""
        ...

    def restore(self, snapshot: Snapshot) -> None:
        """Go on from a snapshot; only before anything else."""
        ...


class SpecificationFactory(Protocol):
    """Makes the specification of a run."""

    def __call__(
        self, setup: RunSetup, tracer: Tracer, disk: Sequence[PageKey] = ()
    ) -> Specification:
        """A specification that reports to ``tracer``, and whose disk holds ``disk``, oldest first.

        Raises:
            ValueError: The setup cannot be.
        """
        ...
