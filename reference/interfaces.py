"""What every manager and every connector offers: the seams between the parts of pagedkv.

Two manager Protocols, synchronous and asynchronous, with the same names; those methods that can
wait are coroutines in the second. The reference manager is a synchronous one.
"""

from collections.abc import Collection, Coroutine, Hashable, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from typing import Any, Protocol, TypeVar, runtime_checkable

from pagedkv.reference.buffers import KVCacheBufferInterface
from pagedkv.reference.context import Context
from pagedkv.reference.identity import PageKey
from pagedkv.reference.inputs import BatchCharacteristics, KVCacheInputs, KVCacheInputsInterface
from pagedkv.reference.metrics import KVCacheMetrics, PrefixCacheHits
from pagedkv.reference.tensor_types import Buffer
from pagedkv.reference.tier_names import FailReason, LowerTier


class ManagerQueries(Protocol):
    """The part of a manager that never waits: the same in both Protocols."""

    def claim(self, request_id: Hashable, replica_idx: int) -> None:
        """Assign a request to a replica, where it stays until it is released."""
        ...

    def alloc_dummy(self, request_id: Hashable, replica_idx: int) -> None:
        """Claim a request and map it to the null page."""
        ...

    def release(self, request_id: Hashable, replica_idx: int) -> None:
        """Give back the request's pages and forget its id."""
        ...

    def contains(self, request_id: Hashable, replica_idx: int) -> bool:
        """Whether the request is claimed on that replica."""
        ...

    def get_req_blocks(self, request_id: Hashable, replica_idx: int) -> list[int]:
        """The request's page ids, in token order; the list is the caller's own (CLAIM-6)."""
        ...

    def runtime_inputs(
        self,
        batches: Sequence[Sequence[Context]],
        *,
        max_cache_length: int | None = None,
        batch_characteristics: BatchCharacteristics | None = None,
    ) -> KVCacheInputsInterface[Buffer, Buffer]:
        """Page tables and lengths of one batch per replica, for the next forward."""
        ...

    def runtime_inputs_for_leaf(
        self,
        batches: Sequence[Sequence[Context]],
        *,
        max_cache_length: int | None = None,
        batch_characteristics: BatchCharacteristics | None = None,
    ) -> KVCacheInputs[Buffer, Buffer]:
        """``runtime_inputs`` for models with a single cache."""
        ...

    def step(self, batches: Sequence[Sequence[Context]]) -> None:
        """Commit the pages that forwards have filled, and queue their offload."""
        ...

    def poll_transfers(self) -> None:
        """Take note of transfers that have settled."""
        ...

    def pending_transfers_exist(self, replica_idx: int = 0) -> bool:
        """Whether a transfer in flight reads or writes pages of the replica (XFER-7)."""
        ...

    def get_prefix_cache_hit_counts(self, ctx: Context) -> list[PrefixCacheHits]:
        """By replica: the cached prefix that ``ctx`` would find; changes nothing."""
        ...

    def get_pct_used_blocks_after_allocation(self, ctx: Context, replica_idx: int) -> float:
        """Share of the replica's pages in use if ``ctx`` were allocated now, 0 to 1."""
        ...

    def num_free_blocks(self, replica_idx: int = 0) -> int:
        """Pages of the replica that may be taken, cached ones included."""
        ...

    def total_num_blocks(self, replica_idx: int = 0) -> int:
        """Pages of the replica, without the null page."""
        ...

    def get_num_pages(self, replica_idx: int) -> int:
        """Pages of the replica, without the null page."""
        ...

    def get_num_used_pages(self, replica_idx: int) -> int:
        """Pages of the replica that are held or pinned."""
        ...

    def get_num_host_pages(self, replica_idx: int) -> int:
        """Pages of the shared host tier."""
        ...

    def get_num_used_host_pages(self, replica_idx: int) -> int:
        """Host pages in use."""
        ...

    def get_num_disk_pages(self, replica_idx: int) -> int:
        """Pages of the shared disk tier."""
        ...

    def get_num_used_disk_pages(self, replica_idx: int) -> int:
        """Disk pages in use."""
        ...

    def get_device_buffer(self, replica_idx: int) -> KVCacheBufferInterface:
        """The replica's memory, null page included."""
        ...

    def get_metrics_aggregated(self) -> KVCacheMetrics:
        """Counters over all replicas and tiers."""
        ...

    def reset_metrics(self) -> None:
        """Set every counter to zero."""
        ...

    def reset_prefix_cache(self) -> None:
        """Forget all cached content, on the devices and below."""
        ...


@runtime_checkable
class SyncKVCacheManager(ManagerQueries, Protocol):
    """A manager whose calls return when they are done."""

    def alloc(self, data: Context, replica_idx: int) -> None:
        """Give a claimed request the pages of its next forward, its cached prefix loaded."""
        ...

    def reserve(self, replica_batches: Sequence[Sequence[Context]]) -> AbstractContextManager[None]:
        """Claim and allocate contexts, and release them at the end of the scope."""
        ...

    def shutdown(self) -> None:
        """Write what was accepted, then refuse every further call."""
        ...


@runtime_checkable
class AsyncKVCacheManager(ManagerQueries, Protocol):
    """A manager for an event loop: what can wait is awaited."""

    # Any: what an event loop sends into a coroutine, which is its own business.
    def alloc(self, data: Context, replica_idx: int) -> Coroutine[Any, Any, None]:
        """A coroutine: return when the pages are assigned and the cached prefix has landed."""
        ...

    def reserve(
        self, replica_batches: Sequence[Sequence[Context]]
    ) -> AbstractAsyncContextManager[None]:
        """Claim and allocate contexts, and release them at the end of the scope."""
        ...

    async def shutdown(self) -> None:
        """Write what was accepted, then refuse every further call."""
        ...


TransferT = TypeVar("TransferT")
"""A connector's own record of blocks on their way."""


class KVConnector(Protocol[TransferT]):
    """The tiers below the devices, as a manager sees them. One serves all replicas."""

    def lookup(
        self, keys: Sequence[PageKey], avoided: Collection[tuple[str, PageKey]] = ()
    ) -> Sequence[LowerTier | None]:
        """By block: the fastest tier that holds it and is not to be avoided. Changes nothing."""
        ...

    def load(
        self,
        source: LowerTier,
        keys: Sequence[PageKey],
        pages: Sequence[int],
        replica: int,
        chain: Sequence[PageKey],
    ) -> TransferT:
        """Issue the load of ``keys`` into device ``pages``; ``chain`` is the request's prefix."""
        ...

    def offload(
        self,
        chain: Sequence[PageKey],
        pages: Sequence[int],
        replica: int,
        *,
        new: int,
        arriving: Collection[int] = (),
    ) -> list[TransferT]:
        """Offer a committed chain, root first; its last ``new`` blocks were not offered before.

        Pages in ``arriving`` are still being loaded: they cannot be read yet.
        """
        ...

    def unsaved(self, keys: Sequence[PageKey]) -> Sequence[PageKey]:
        """Those of ``keys`` that must be offloaded before their pages may be evicted."""
        ...

    def clean(
        self,
        keys: Sequence[PageKey],
        pages: Sequence[int],
        replica: int,
        sparing: Sequence[PageKey] = (),
    ) -> list[TransferT]:
        """Offload dirty pages, without giving up blocks in ``sparing`` for them."""
        ...

    def touch(self, chain: Sequence[PageKey]) -> None:
        """Renew the recency of a chain, leaf before root."""
        ...

    def submit(self, transfer: TransferT) -> None:
        """A load's bytes are read and verified: the next forward is to find them in its pages."""
        ...

    def land(self, transfer: TransferT) -> list[TransferT]:
        """A transfer's bytes have arrived; the transfers that follow from it."""
        ...

    def damaged(self, transfer: TransferT) -> Sequence[PageKey]:
        """Blocks of a load whose bytes are not those that were written."""
        ...

    def fail(self, transfer: TransferT, reason: FailReason, keys: Sequence[PageKey]) -> None:
        """A transfer has failed, through the fault of ``keys``."""
        ...

    def reset_prefix_cache(self, new_store_prefix: bytes) -> None:
        """Forget everything local; look elsewhere on a shared store."""
        ...

    def holds(self, key: PageKey) -> bool:
        """Whether any tier has the block, or is getting it."""
        ...

    def num_blocks(self, name: LowerTier) -> int:
        """Capacity of a tier in blocks."""
        ...

    def num_used_blocks(self, name: LowerTier) -> int:
        """Blocks of a tier in use."""
        ...

    @property
    def metrics(self) -> KVCacheMetrics:
        """Copy and eviction counters."""
        ...

    def reset_metrics(self) -> None:
        """Set the counters to zero."""
        ...

    def shutdown(self) -> None:
        """The manager makes no further call."""
        ...
