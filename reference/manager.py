"""The reference manager: one method per operation, over the functions that specify them.

It holds real bytes in torch tensors and waits for nothing. By default every transfer lands at
the end of the call that issued it, and then this is a plain synchronous manager. With
``auto_land=False`` the caller plays the environment: :meth:`PagedKVCacheManager.land` and
:meth:`PagedKVCacheManager.fail` decide when and whether transfers arrive.
"""

from collections.abc import Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager

from pagedkv.reference import (
    allocation,
    cleaning,
    commit,
    invariants,
    matching,
    prefetching,
    requests,
    reset,
    restore,
    runtime,
    store_answers,
    tier_setup,
    transfers,
)
from pagedkv.reference.batches import check_one_per_replica
from pagedkv.reference.buffers import KVCacheBufferInterface
from pagedkv.reference.config import TierOptions
from pagedkv.reference.context import Context
from pagedkv.reference.device import InferenceSession
from pagedkv.reference.errors import (
    KVLoadFailed,
    ManagerClosedError,
)
from pagedkv.reference.events import (
    Closed,
    DiskOpened,
    MetricsReset,
    Tracer,
    WriteBudgetRenewed,
)
from pagedkv.reference.fates import Fates
from pagedkv.reference.identity import PageKey
from pagedkv.reference.inputs import BatchCharacteristics, KVCacheInputs, KVCacheInputsInterface
from pagedkv.reference.media import Media
from pagedkv.reference.metrics import KVCacheMetrics, PrefixCacheHits
from pagedkv.reference.params import KVCacheParamInterface
from pagedkv.reference.pool import PagePool, PoolStatistics
from pagedkv.reference.snapshot import Snapshot
from pagedkv.reference.start_checks import check_sizes
from pagedkv.reference.state import AllocPlan, State
from pagedkv.reference.tensor_types import Buffer
from pagedkv.reference.tier_names import FailReason, LowerTier
from pagedkv.reference.transfer import Transfer


class PagedKVCacheManager:
    """Paged KV cache with data and tensor parallelism, and tiers below the devices.

    Typical use, for each request and each forward::

        manager.claim(ctx.request_id, replica_idx=0)
        manager.alloc(ctx, replica_idx=0)
        inputs = manager.runtime_inputs([[ctx]])
        ...                             # the forward reads and writes the pages in ``inputs``
        ctx.update(token)
        manager.step([[ctx]])
        manager.release(ctx.request_id, replica_idx=0)

    Args:
        params: Shapes, parallelism and policies; :class:`MultiKVCacheParams` for several caches.
        session: The devices; forwards are launched there.
        total_num_pages: Pages per replica, without the null page.
        total_num_host_pages: Pages of the host tier, shared by all replicas; 0 takes the size
            from ``host_kvcache_swap_space_gb``.
        enable_runtime_checks: Recount everything after every call, and fail on a discrepancy.
        max_batch_size: Most requests of one replica in one ``runtime_inputs`` call.
        tracer: Receives every event.
        media: Disks and stores to open; fresh ones by default.
        auto_land: Whether transfers land by themselves at the end of each call.

    Raises:
        ValueError: A size is impossible, or more than the machine has.
        LayoutMismatchError: The disk directory holds blocks of another layout.
    """

    def __init__(
        self,
        params: KVCacheParamInterface,
        session: InferenceSession,
        total_num_pages: int,
        total_num_host_pages: int = 0,
        enable_runtime_checks: bool = False,
        *,
        max_batch_size: int,
        tracer: Tracer | None = None,
        media: Media | None = None,
        auto_land: bool = True,
    ) -> None:
        check_sizes(params, total_num_pages, total_num_host_pages, max_batch_size)
        self.params = params
        """The parameters the manager was made with."""
        self.session = session
        """Devices and compute streams of the forwards."""
        self._buffers = params.allocate_buffers(total_num_pages + 1)
        memories = [buffer.to_memory() for buffer in self._buffers]
        media = media or Media()
        fates = Fates(limit=max(4 * total_num_pages * len(memories), 2**16))
        self._state = State(
            params=params,
            pools=[PagePool(total_num_pages) for _ in self._buffers],
            memories=memories,
            connector=tier_setup.open_connector(
                params, memories, total_num_pages, total_num_host_pages, media, fates
            ),
            media=media,
            fates=fates,
            tracer=tracer,
        )
        self._inputs = [
            runtime.InputBuffers.allocate(
                [device.to_device() for device in devices], max_batch_size, total_num_pages
            )
            for devices in params.devices_per_replica
        ]
        self._checks = enable_runtime_checks
        self._auto_land = auto_land
        if "disk" in self._state.connector.tiers:
            disk = self._state.connector.tiers["disk"]
            self._state.emit(DiskOpened(tuple(block.key for block in disk.blocks.values())))

    # --- requests ---------------------------------------------------------------------------

    def claim(self, request_id: Hashable, replica_idx: int) -> None:
        """Assign a request to a replica, where it stays until it is released (CLAIM-1).

        Raises:
            AlreadyClaimedError: It is claimed, on whatever replica.
            ReplicaIndexError: There is no such replica.
            ReplicaPoisonedError: Its device has failed.
        """
        with self._operation():
            requests.claim(self._state, request_id, replica_idx)

    def alloc_dummy(self, request_id: Hashable, replica_idx: int) -> None:
        """Claim a request and map it to the null page, to pad a batch (CLAIM-4).

        Raises: as :meth:`claim`.
        """
        with self._operation():
            requests.claim(self._state, request_id, replica_idx, dummy=True)

    def contains(self, request_id: Hashable, replica_idx: int) -> bool:
        """Whether the request is claimed on that replica."""
        with self._operation():
            self._state.pool(replica_idx)
            request = self._state.requests.get(request_id)
            return request is not None and request.replica == replica_idx

    def get_req_blocks(self, request_id: Hashable, replica_idx: int) -> list[int]:
        """The request's page ids, in token order; the list is the caller's own (CLAIM-6)."""
        with self._operation():
            return list(self._state.request(request_id, replica_idx).pages)

    def release(self, request_id: Hashable, replica_idx: int) -> None:
        """Give back the request's pages, tail first (REL-2), and forget its id (REL-1).

        Nothing is committed, and a pending allocation is cancelled (REL-4). Pages that a transfer
        still uses stay pinned until it settles (REL-3).
        """
        with self._operation():
            requests.release(self._state, request_id, replica_idx)

    # --- allocation -------------------------------------------------------------------------

    def alloc(self, data: Context, replica_idx: int) -> None:
        """Give a claimed request the pages of its next forward, its cached prefix included.

        The context's active window moves past what was cached. All or nothing (ALLOC-1, ALLOC-2);
        a load that fails on the way becomes tokens to compute (FAIL-1).

        Raises:
            InsufficientBlocksError: It does not fit; nothing was changed.
            UnknownRequestError, ReplicaIndexError, AllocPendingError: See :mod:`errors`.
        """
        with self._operation():
            state = self._state
            while True:
                while found := cleaning.page_to_clean(state, data, replica_idx):
                    page, hit_keys = found
                    self._land(cleaning.clean_pages(state, replica_idx, [page], hit_keys))
                plan = allocation.begin_alloc(state, data, replica_idx)
                self._land(plan.transfers)
                try:
                    allocation.finish_alloc(state, data, replica_idx)
                except KVLoadFailed:
                    continue
                return

    def begin_alloc(
        self, ctx: Context, replica_idx: int, hit_limit: int | None = None
    ) -> AllocPlan:
        """The first half of :meth:`alloc`: match, take and issue loads (ALLOC-13).

        Of the blocks that are found, no more than ``hit_limit`` are used (ALLOC-15).
        """
        with self._operation():
            return allocation.begin_alloc(self._state, ctx, replica_idx, hit_limit)

    def finish_alloc(self, ctx: Context, replica_idx: int) -> AllocPlan:
        """The second half of :meth:`alloc`, once its loads have settled, or were submitted.

        Raises:
            KVLoadFailed: A load has failed and the plan was undone: begin again.
            AllocPendingError: A load is still in flight, and was not submitted.
            NoPlannedAllocError: Nothing was begun.
        """
        with self._operation():
            return allocation.finish_alloc(self._state, ctx, replica_idx)

    def cancel_alloc(self, request_id: Hashable, replica_idx: int) -> None:
        """Undo :meth:`begin_alloc`; the request stays claimed, with what it had before."""
        with self._operation():
            allocation.cancel_alloc(self._state, request_id, replica_idx)

    def prefetch(self, ctx: Context) -> list[str]:
        """Load what ``ctx``, claimed or not, could hit into host memory; the transfers' ids.

        For requests that wait for their turn (TIER-11).
        """
        with self._operation():
            return prefetching.prefetch(self._state, ctx)

    def clean(self, replica_idx: int, count: int) -> list[str]:
        """Offload the oldest dirty pages under ``write_back``; the transfers' ids (TIER-7)."""
        with self._operation():
            return cleaning.clean(self._state, replica_idx, count)

    def clean_pages(
        self, replica_idx: int, pages: Sequence[int], sparing: Sequence[PageKey] = ()
    ) -> list[str]:
        """Offload these dirty pages, without giving up blocks in ``sparing`` for them (TIER-7).

        Raises:
            ValueError: A page is not dirty.
        """
        with self._operation():
            self._state.check_works(replica_idx)
            clean = set(pages) - self._state.pools[replica_idx].dirty
            if clean:
                raise ValueError(f"pages {sorted(clean)} of replica {replica_idx} are not dirty")
            return cleaning.clean_pages(self._state, replica_idx, pages, sparing)

    @contextmanager
    def reserve(self, replica_batches: Sequence[Sequence[Context]]) -> Iterator[None]:
        """Claim and allocate contexts, one batch per replica, and release them at the end.

        For passing flows such as warm-up. If one does not fit, none stays claimed. At the end,
        the windows of all contexts begin where they began before: the pages are gone (CLAIM-5).
        """
        with self._operation():
            check_one_per_replica(self._state, replica_batches, "reserve")
        before: list[tuple[Context, int, int, int | None]] = []
        counters = self._state.metrics
        try:
            try:
                for replica, batch in enumerate(replica_batches):
                    for ctx in batch:
                        self.claim(ctx.request_id, replica)
                        tokens, cached = ctx.tokens, ctx.cached_prefix_length
                        before.append((ctx, replica, tokens.processed_length, cached))
                        self.alloc(ctx, replica)
            except BaseException:
                self._state.metrics = counters.with_copies_of(self._state.metrics)
                raise
            yield
        finally:
            for ctx, replica, processed, cached in reversed(before):
                ctx.tokens.rewind_processing(max(0, ctx.tokens.processed_length - processed))
                ctx.cached_prefix_length = cached
                if not self._state.closed and self.contains(ctx.request_id, replica):
                    self.release(ctx.request_id, replica)

    # --- forwards ---------------------------------------------------------------------------

    def runtime_inputs(
        self,
        batches: Sequence[Sequence[Context]],
        *,
        max_cache_length: int | None = None,
        batch_characteristics: BatchCharacteristics | None = None,
    ) -> KVCacheInputsInterface[Buffer, Buffer]:
        """Page tables and lengths of one batch per replica, for the next forward (INPUT-1 to -7).

        Lookup tables are ``[batch, columns]`` int32 with the null page's id in unused entries,
        cache lengths ``[batch]`` int32, on every shard's device. They are overwritten by the next
        call; their addresses never change.

        Args:
            batches: One batch of contexts per replica.
            max_cache_length: Tokens that the tables must have columns for; by default those of
                the longest request.
            batch_characteristics: Bounds to prepare the forward for, in place of the real shape.

        Raises:
            BlocksNotAllocatedError: A request lacks pages for its next forward.
            BatchesError: The batches or ``max_cache_length`` do not fit the manager.
            ValueError: A batch exceeds ``batch_characteristics``.
        """
        with self._operation():
            rows = runtime.assignments(
                self._state, self._inputs, batches, max_cache_length, batch_characteristics
            )
            return self.params.build_runtime_inputs(rows, self._buffers)

    def runtime_inputs_for_leaf(
        self,
        batches: Sequence[Sequence[Context]],
        *,
        max_cache_length: int | None = None,
        batch_characteristics: BatchCharacteristics | None = None,
    ) -> KVCacheInputs[Buffer, Buffer]:
        """:meth:`runtime_inputs` for models with a single cache.

        Raises:
            AssertionError: The model has a tree of caches.
        """
        inputs = self.runtime_inputs(
            batches,
            max_cache_length=max_cache_length,
            batch_characteristics=batch_characteristics,
        )
        if not isinstance(inputs, KVCacheInputs):
            raise AssertionError(
                "runtime_inputs_for_leaf is for a single cache; these parameters have several: "
                "use runtime_inputs"
            )
        return inputs

    def step(self, batches: Sequence[Sequence[Context]]) -> None:
        """Commit the pages that forwards have filled, and queue their offload (STEP-1 to STEP-6).

        Raises:
            BatchesError: Not one batch per replica, or a request twice.
            BlocksNotAllocatedError: A request has computed more than its pages hold.
        """
        with self._operation():
            commit.step(self._state, batches)

    # --- environment ------------------------------------------------------------------------

    def submit(self, transfer_id: str) -> None:
        """What can fail of a load is done: who has hit it may go on (XFER-8)."""
        with self._operation():
            transfers.submit(self._state, transfer_id)

    def land(self, transfer_id: str) -> None:
        """All bytes of a transfer have arrived (XFER-3)."""
        with self._operation():
            transfers.land(self._state, transfer_id)

    def fail(
        self, transfer_id: str, reason: FailReason, keys: Iterable[PageKey] | None = None
    ) -> None:
        """A transfer has failed; ``keys`` names the blocks at fault, by default all (XFER-4)."""
        with self._operation():
            transfers.fail(self._state, transfer_id, reason, keys)

    def store_answered(
        self,
        found: Sequence[PageKey],
        missing: Sequence[PageKey] = (),
        endpoint: str | None = None,
    ) -> None:
        """A block store holds the blocks ``found``, with any bytes, and lacks others (EVENT-5).

        For runs whose store is not at hand; ``endpoint`` names a further one (STORE-4).

        Raises:
            ValueError: The manager has no store.
        """
        with self._operation():
            store_answers.take_answer(self._state, found, missing, endpoint)

    def in_flight(self) -> list[Transfer]:
        """Transfers that have neither landed nor failed, in the order of their issue."""
        with self._operation():
            return list(self._state.in_flight.values())

    def poison(self, replica_idx: int, reason: str) -> None:
        """The device of a replica has failed: it takes no more work (FAIL-2)."""
        with self._operation():
            transfers.poison(self._state, replica_idx, reason)

    def poll_transfers(self) -> None:
        """Nothing to do here: transfers land by themselves, or through :meth:`land`."""
        with self._operation():
            pass

    def pending_transfers_exist(self, replica_idx: int = 0) -> bool:
        """Whether a transfer in flight reads or writes pages of the replica (XFER-7)."""
        with self._operation():
            self._state.pool(replica_idx)
            return any(
                replica_idx in (t.replica, t.source_replica) for t in self._state.in_flight.values()
            )

    def renew_write_budget(self) -> None:
        """A new day for ``disk_write_budget_gb_per_day`` (TIER-8)."""
        with self._operation():
            disk = self._state.connector.tiers.get("disk")
            if disk is not None:
                options = TierOptions.from_connector_config(self.params.kv_connector_config)
                disk.writes_left = tier_setup.write_budget(self.params, options)
            self._state.emit(WriteBudgetRenewed())

    # --- look-ups and counters --------------------------------------------------------------

    def get_prefix_cache_hit_counts(self, ctx: Context) -> list[PrefixCacheHits]:
        """By replica: the cached prefix that ``ctx`` would find, claimed or not (ALLOC-14)."""
        with self._operation():
            return matching.hit_counts(self._state, ctx)

    def get_pct_used_blocks_after_allocation(self, ctx: Context, replica_idx: int) -> float:
        """Share of the replica's pages in use if ``ctx`` were allocated now, 0 to 1 (ALLOC-14)."""
        with self._operation():
            return matching.used_fraction_after(self._state, ctx, replica_idx)

    def num_free_blocks(self, replica_idx: int = 0) -> int:
        """Pages of the replica that nobody holds or pins; cached ones count."""
        with self._operation():
            return self._state.pool(replica_idx).num_free

    def total_num_blocks(self, replica_idx: int = 0) -> int:
        """Pages of the replica, without the null page."""
        with self._operation():
            return self._state.pool(replica_idx).total

    def get_num_pages(self, replica_idx: int) -> int:
        """The same as :meth:`total_num_blocks`."""
        return self.total_num_blocks(replica_idx)

    def get_num_used_pages(self, replica_idx: int) -> int:
        """Pages of the replica that are held or pinned."""
        return self.total_num_blocks(replica_idx) - self.num_free_blocks(replica_idx)

    def get_num_host_pages(self, replica_idx: int) -> int:
        """Pages of the host tier, which all replicas share; 0 without one."""
        return self._capacity("host", replica_idx)

    def get_num_used_host_pages(self, replica_idx: int) -> int:
        """Host pages in use, those in flight included."""
        return self._used("host", replica_idx)

    def get_num_disk_pages(self, replica_idx: int) -> int:
        """Pages of the disk tier, which all replicas share; 0 without one."""
        return self._capacity("disk", replica_idx)

    def get_num_used_disk_pages(self, replica_idx: int) -> int:
        """Disk pages in use, those in flight included."""
        return self._used("disk", replica_idx)

    def get_device_buffer(self, replica_idx: int) -> KVCacheBufferInterface:
        """The replica's memory, null page included; owned by the manager."""
        with self._operation():
            self._state.pool(replica_idx)
            return self._buffers[replica_idx]

    def statistics(self, replica_idx: int = 0) -> PoolStatistics:
        """How many of the replica's pages are held, pinned, cached and free."""
        with self._operation():
            return self._state.pool(replica_idx).statistics()

    def get_metrics_aggregated(self) -> KVCacheMetrics:
        """Counters over all replicas and tiers, since the start or the last reset."""
        with self._operation():
            disk_ops = sum("disk" in (t.source, t.target) for t in self._state.in_flight.values())
            return (self._state.metrics + self._state.connector.metrics).plus(
                device_blocks_evicted=sum(pool.evictions for pool in self._state.pools),
                inflight_disk_ops=disk_ops,
            )

    def reset_metrics(self) -> None:
        """Set every counter to zero; the cache stays as it is (METRIC-5)."""
        with self._operation():
            self._state.metrics = KVCacheMetrics()
            self._state.connector.reset_metrics()
            for pool in self._state.pools:
                pool.evictions = 0
            self._state.emit(MetricsReset())

    # --- reset and end ----------------------------------------------------------------------

    def reset_prefix_cache(self) -> None:
        """Forget all cached content, on the devices and below (RESET-1 to RESET-4).

        Live requests keep their pages, which are never hit again; what is in flight does not
        become visible when it lands.
        """
        with self._operation():
            reset.reset_prefix_cache(self._state)

    def shutdown(self) -> None:
        """Write what was accepted, then refuse every further call (CLOSE-1); twice is harmless."""
        if self._state.closed:
            return
        transfers.land_all(self._state)
        # One page at a time: each that lands makes room below for the next.
        for replica, pool in enumerate(self._state.pools):
            while pool.dirty:
                page = cleaning.next_dirty_page(self._state, replica)
                cleaning.clean_pages(self._state, replica, [page])
                transfers.land_all(self._state)
        self._state.connector.shutdown()
        self._state.emit(Closed())
        self._state.closed = True

    def snapshot(self) -> Snapshot:
        """All that the manager knows, as data; without the bytes of its pages."""
        return restore.take_snapshot(self._state)

    def restore(self, snapshot: Snapshot) -> None:
        """Go on from a snapshot, of a manager of the same setup; the bytes are made up.

        Raises:
            ValueError: This manager was used already, or the snapshot does not fit it; then it
                must not be used any more.
        """
        if self._state.closed:
            raise ManagerClosedError
        restore.restore(self._state, snapshot)

    # --- internals --------------------------------------------------------------------------

    @contextmanager
    def _operation(self) -> Iterator[None]:
        """What every call has in common: refuse after shutdown (CLOSE-1), land (XFER-6), check."""
        if self._state.closed:
            raise ManagerClosedError
        try:
            yield
        finally:
            if self._auto_land:
                transfers.land_all(self._state)
            if self._checks:
                invariants.check(self._state)

    def _land(self, transfer_ids: Iterable[str]) -> None:
        for transfer_id in transfer_ids:
            if transfer_id in self._state.in_flight:
                transfers.land(self._state, transfer_id)

    def _capacity(self, tier: LowerTier, replica_idx: int) -> int:
        with self._operation():
            self._state.pool(replica_idx)
            return self._state.connector.num_blocks(tier)

    def _used(self, tier: LowerTier, replica_idx: int) -> int:
        with self._operation():
            self._state.pool(replica_idx)
            return self._state.connector.num_used_blocks(tier)
