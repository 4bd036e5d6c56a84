"""The asyncio manager: the planner decides on the event loop, the movers work beside it."""

import asyncio
import math
from collections.abc import AsyncIterator, Coroutine, Hashable, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, Self

import anyio
import torch

from pagedkv.engine.admission import AdmissionQueue
from pagedkv.engine.disk.files import REAL_FILES, Files
from pagedkv.engine.disk.io_queue import to_the_end
from pagedkv.engine.identity import PageHasher
from pagedkv.engine.input_tables import InputTables
from pagedkv.engine.loop_thread import LoopThread
from pagedkv.engine.movers.copier import PageCopier
from pagedkv.engine.movers.host_rows import HostRows
from pagedkv.engine.movers.mover import Mover
from pagedkv.engine.movers.units import units_of
from pagedkv.engine.moves import Moves
from pagedkv.engine.observability.observer import Observer
from pagedkv.engine.observability.operator_log import OperatorLog
from pagedkv.engine.observability.overview import Overview, overview_of
from pagedkv.engine.observability.watch import Watch
from pagedkv.engine.planner import (
    allocation,
    claims,
    cleaning,
    commit,
    invariants,
    matching,
    prefetching,
    reset,
)
from pagedkv.engine.planner.batches import check_batches, check_one_per_replica
from pagedkv.engine.planner.counters import Counters
from pagedkv.engine.planner.fates import Fates
from pagedkv.engine.planner.forward_shape import forward_shape
from pagedkv.engine.planner.lower_tiers import LowerTiers
from pagedkv.engine.planner.pages import PagePool, PoolStatistics
from pagedkv.engine.planner.slots import TierSlots
from pagedkv.engine.planner.state import AllocPlan, State
from pagedkv.engine.planner.transfer import Transfer
from pagedkv.engine.planner.uses import RecentUses
from pagedkv.engine.start_checks import check_sizes
from pagedkv.engine.streams.choice import streams_for
from pagedkv.engine.streams.stream import DeviceFailedError, Streams
from pagedkv.engine.tiers import DiskBlocks, open_tiers, write_budget
from pagedkv.reference.buffers import KVCacheBufferInterface
from pagedkv.reference.config import TierOptions
from pagedkv.reference.context import Context
from pagedkv.reference.device import InferenceSession
from pagedkv.reference.errors import (
    InsufficientBlocksError,
    KVLoadFailed,
    ManagerClosedError,
    ReplicaPoisonedError,
)
from pagedkv.reference.events import (
    Closed,
    DiskOpened,
    InputsBuilt,
    MetricsReset,
    Tracer,
    WriteBudgetRenewed,
)
from pagedkv.reference.identity import PageKey
from pagedkv.reference.inputs import (
    BatchCharacteristics,
    KVCacheAssignments,
    KVCacheInputs,
    KVCacheInputsInterface,
)
from pagedkv.reference.lengths import cache_length, ceil_div, query_length, required_pages
from pagedkv.reference.metrics import KVCacheMetrics, PrefixCacheHits
from pagedkv.reference.params import KVCacheParamInterface
from pagedkv.reference.sizing import compute_num_disk_blocks
from pagedkv.reference.tensor_types import Buffer
from pagedkv.reference.tier_names import FailReason, LowerTier


class PagedKVCacheManager:
    """Paged KV cache with data and tensor parallelism, and tiers below the devices, for asyncio.

    Typical use, in a coroutine::

        async with PagedKVCacheManager.open(params, session, 1000, max_batch_size=8) as manager:
            async with manager.admit(ctx):
                inputs = manager.runtime_inputs([[ctx]])
                ...                     # the forward reads and writes the pages in ``inputs``
                ctx.update(token)
                manager.step([[ctx]])

    Everything is decided on one event loop: call it from there only. What waits is a coroutine;
    cancelling it anywhere leaves nothing behind.

    Args:
        params: Shapes, parallelism and policies; :class:`MultiKVCacheParams` for several caches.
        session: The devices; forwards are launched there.
        total_num_pages: Pages per replica, without the null page.
        total_num_host_pages: Pages of the host tier, shared by all replicas; 0 takes the size
            from ``host_kvcache_swap_space_gb``.
        enable_runtime_checks: Recount everything after every call, and fail on a discrepancy.
        max_batch_size: Most requests of one replica in one ``runtime_inputs`` call.
        tracer: Receives every event; ``None`` costs nothing.
        streams: Where copies run; by default CUDA streams for GPUs, threads for CPUs.
        files: The operating system's files, for the disk tier.
        disk: A disk tier in place of the one in ``disk_offload_dir``; it belongs to the manager.
        auto_land: Whether transfers start and land by themselves. Otherwise the caller plays the
            environment: :meth:`land` moves the bytes, :meth:`fail` says that it went wrong.

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
        streams: Streams | None = None,
        files: Files = REAL_FILES,
        disk: DiskBlocks | None = None,
        auto_land: bool = True,
    ) -> None:
        check_sizes(params, total_num_pages, total_num_host_pages, max_batch_size)
        self.params = params
        """The parameters the manager was made with."""
        self.session = session
        """Devices and compute streams of the forwards."""
        self.max_batch_size = max_batch_size
        """Most requests of one replica in one ``runtime_inputs`` call."""
        self._options = TierOptions.from_connector_config(params.kv_connector_config)
        self._tiers = tiers = open_tiers(params, total_num_host_pages, files, disk)
        self._buffers = params.allocate_buffers(total_num_pages + 1)
        self._streams = streams or streams_for(session)
        shards = params.tensor_parallel_degree
        units = [units_of(buffer, n, shards) for n, buffer in enumerate(self._buffers)]
        self._mover = Mover(
            PageCopier(self._streams, units),
            HostRows("host", tiers.host, units[0]) if tiers.host else None,
            tiers.disk,
            HostRows("passing", tiers.passing, units[0]) if tiers.passing else None,
        )
        self._state = self._plan_state(total_num_pages, total_num_host_pages, tracer)
        self._inputs = [
            InputTables(
                self._streams,
                replica * shards,
                [device.to_device() for device in devices],
                max_batch_size,
                total_num_pages,
            )
            for replica, devices in enumerate(params.devices_per_replica)
        ]
        self._queues = [AdmissionQueue() for _ in self._buffers]
        config = params.kv_connector_config
        self._debug_loop = LoopThread() if config and config.use_debug_tiered_mode else None
        self._watch: Watch | None = None
        self._log = OperatorLog()
        for name, tier in self._state.lower.tiers.items():
            self._log.tier_opened(name, capacity=tier.capacity, used=tier.used)
        self._warn_of_settings()
        self._moves = Moves(
            self._state,
            self._mover,
            shards,
            self._acted,
            self._log,
            auto_land=auto_land,
            debug_loop=self._debug_loop,
        )
        self._checks = enable_runtime_checks
        self._closed = False
        self._closing: asyncio.Future[None] | None = None

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        params: KVCacheParamInterface,
        session: InferenceSession,
        total_num_pages: int,
        total_num_host_pages: int = 0,
        enable_runtime_checks: bool = False,
        *,
        max_batch_size: int,
        tracer: Tracer | None = None,
        streams: Streams | None = None,
        files: Files = REAL_FILES,
    ) -> "AsyncIterator[Self]":
        """A manager for the length of a scope; at its end what was accepted is written.

        Opening, which may read a large index or map much memory, does not hold up the loop.
        Arguments and errors are those of the class.
        """
        opening = asyncio.ensure_future(
            asyncio.to_thread(
                cls,
                params,
                session,
                total_num_pages,
                total_num_host_pages,
                enable_runtime_checks,
                max_batch_size=max_batch_size,
                tracer=tracer,
                streams=streams,
                files=files,
            )
        )
        try:
            manager = await to_the_end(opening)
        except asyncio.CancelledError:
            if not opening.cancelled() and opening.exception() is None:
                await opening.result().aclose()
            raise
        try:
            yield manager
        finally:
            with anyio.CancelScope(shield=True):
                await manager.aclose()

    # --- requests ---------------------------------------------------------------------------

    def claim(self, request_id: Hashable, replica_idx: int) -> None:
        """Assign a request to a replica, where it stays until it is released (CLAIM-1).

        Raises:
            AlreadyClaimedError: It is claimed, on whatever replica.
            ReplicaIndexError: There is no such replica.
            ReplicaPoisonedError: Its device has failed.
        """
        self._check_open()
        claims.claim(self._state, request_id, replica_idx)

    def alloc_dummy(self, request_id: Hashable, replica_idx: int) -> None:
        """Claim a request and map it to the null page, to pad a batch (CLAIM-4).

        Raises: as :meth:`claim`.
        """
        self._check_open()
        claims.claim(self._state, request_id, replica_idx, dummy=True)

    def contains(self, request_id: Hashable, replica_idx: int) -> bool:
        """Whether the request is claimed on that replica."""
        self._check_open()
        self._state.pool(replica_idx)
        request = self._state.requests.get(request_id)
        return request is not None and request.replica == replica_idx

    def get_req_blocks(self, request_id: Hashable, replica_idx: int) -> list[int]:
        """The request's page ids, in token order; the list is the caller's own."""
        self._check_open()
        return self._state.request(request_id, replica_idx).pages.tolist()

    def release(self, request_id: Hashable, replica_idx: int) -> None:
        """Give back the request's pages, tail first (REL-2), and forget its id (REL-1).

        Nothing is committed, and a pending allocation is cancelled (REL-4). Pages that a transfer
        still uses stay pinned until it settles (REL-3).
        """
        self._check_open()
        claims.release(self._state, request_id, replica_idx)
        if self._watch is not None:
            self._watch.released(request_id)
        self._acted()

    @asynccontextmanager
    async def admit(
        self, ctx: Context, replica_idx: int = 0, *, wait_s: float = math.inf
    ) -> AsyncIterator[Context]:
        """Claim and allocate a request, and release it at the end of the scope, whatever happens.

        Args:
            ctx: The request.
            replica_idx: Where.
            wait_s: Seconds to wait for pages, see :meth:`alloc`.

        Raises: as :meth:`claim` and :meth:`alloc`.
        """
        self.claim(ctx.request_id, replica_idx)
        try:
            await self.alloc(ctx, replica_idx, wait_s=wait_s)
            yield ctx
        finally:
            if not self._closed and self.contains(ctx.request_id, replica_idx):
                self.release(ctx.request_id, replica_idx)

    # --- allocation -------------------------------------------------------------------------

    async def alloc(self, data: Context, replica_idx: int, *, wait_s: float = 0.0) -> None:
        """Give a claimed request the pages of its next forward, its cached prefix included.

        Returns when the pages are assigned and the prefix has landed; the context's active window
        begins behind it. All or nothing (ALLOC-1, ALLOC-2); a load that fails on the way becomes
        tokens to compute (FAIL-1). If it is cancelled, the request is as it was before.

        Args:
            data: The request.
            replica_idx: Where it was claimed.
            wait_s: Seconds to wait until there are pages. Those who wait hold nothing and are
                served in the order of their coming. A request that holds pages already does not
                wait: it is served at once, or not at all.

        Raises:
            InsufficientBlocksError: It does not fit, or will never; nothing was changed.
            UnknownRequestError, ReplicaIndexError, AllocPendingError: See :mod:`errors`.
        """
        self._check_open()
        self._state.pool(replica_idx)
        if self._watch is None:
            await self._alloc(data, replica_idx, wait_s)
            return
        with self._watch.allocating(data, replica_idx):
            await self._alloc(data, replica_idx, wait_s)

    async def _alloc(self, data: Context, replica_idx: int, wait_s: float) -> None:
        deadline_s = anyio.current_time() + wait_s if wait_s > 0 else 0.0
        patient = True
        # Who runs already does not stand in line behind who has not begun.
        waits = wait_s > 0 and not self._state.request(data.request_id, replica_idx).pages
        while True:
            if waits:
                plan = await self._plan_in_turn(data, replica_idx, deadline_s, patient=patient)
            else:
                plan = await self._plan(data, replica_idx, patient=patient)
            if await self._completed(data, replica_idx, plan):
                return
            patient = self._options.slow_tier_policy == "wait"

    def begin_alloc(
        self, ctx: Context, replica_idx: int, hit_limit: int | None = None
    ) -> AllocPlan:
        """The first half of :meth:`alloc`: match, take and issue loads (ALLOC-13).

        Of the blocks that are found, no more than ``hit_limit`` are used (ALLOC-15).

        Raises:
            InsufficientBlocksError: It does not fit; nothing was changed.
        """
        self._check_open()
        if self._watch is not None:
            self._watch.alloc_planning()
        plan = allocation.begin_alloc(self._state, ctx, replica_idx, hit_limit)
        if self._watch is not None:
            self._watch.alloc_planned(ctx, plan)
        self._acted()
        return plan

    def finish_alloc(self, ctx: Context, replica_idx: int) -> AllocPlan:
        """The second half of :meth:`alloc`, once the plan's transfers have settled.

        Raises:
            KVLoadFailed: A load has failed and the plan was undone: begin again.
            AllocPendingError: A load is still in flight.
            NoPlannedAllocError: Nothing was begun.
        """
        self._check_open()
        try:
            return allocation.finish_alloc(self._state, ctx, replica_idx)
        finally:
            self._acted()

    def cancel_alloc(self, request_id: Hashable, replica_idx: int) -> None:
        """Undo :meth:`begin_alloc`; the request stays claimed, with what it had before."""
        self._check_open()
        allocation.cancel_alloc(self._state, request_id, replica_idx)
        self._acted()

    def prefetch(self, ctx: Context) -> list[str]:
        """Load what ``ctx``, claimed or not, could hit into host memory; the transfers' names.

        For requests that wait for their turn: they hold no page meanwhile (TIER-11).
        """
        self._check_open()
        issued = prefetching.prefetch(self._state, ctx)
        self._acted()
        return issued

    def clean(self, replica_idx: int, count: int) -> list[str]:
        """Offload the oldest dirty pages under ``write_back``; the transfers' names (TIER-7)."""
        self._check_open()
        cleaned = cleaning.clean(self._state, replica_idx, count)
        self._acted()
        return cleaned

    @asynccontextmanager
    async def reserve(self, replica_batches: Sequence[Sequence[Context]]) -> AsyncIterator[None]:
        """Claim and allocate contexts, one batch per replica, and release them at the end.

        For passing flows such as warm-up. If one does not fit, none stays claimed. At the end,
        the windows of all contexts begin where they began before: the pages are gone (CLAIM-5).
        """
        self._check_open()
        check_one_per_replica(self._state, replica_batches, "reserve")
        before: list[tuple[Context, int, int, int | None]] = []
        counters = self._state.counters.as_metrics()
        try:
            try:
                for replica, batch in enumerate(replica_batches):
                    for ctx in batch:
                        self.claim(ctx.request_id, replica)
                        tokens, cached = ctx.tokens, ctx.cached_prefix_length
                        before.append((ctx, replica, tokens.processed_length, cached))
                        await self.alloc(ctx, replica)
            except BaseException:
                self._state.counters.take_back_tokens(counters)
                raise
            yield
        finally:
            for ctx, replica, processed, cached in reversed(before):
                ctx.tokens.rewind_processing(max(0, ctx.tokens.processed_length - processed))
                ctx.cached_prefix_length = cached
                if not self._closed and self.contains(ctx.request_id, replica):
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
        call; their addresses never change. They are copied on the compute stream: a forward that
        is launched there finds them.

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
        # CHECK
        self._check_open()
        state = self._state
        checked = check_batches(state, batches, "runtime_inputs")
        shapes = [
            forward_shape(
                state,
                replica,
                rows,
                self._inputs[replica].max_batch_size,
                max_cache_length,
                batch_characteristics,
            )
            for replica, rows in enumerate(checked)
        ]

        # MOVE
        assignments: list[KVCacheAssignments] = []
        for replica, (rows, shape) in enumerate(zip(checked, shapes, strict=True)):
            try:
                tables, lengths = self._inputs[replica].write(
                    zip((request.pages for _, request in rows), shape.used, strict=True),
                    shape.lengths,
                    shape.columns,
                    state.pools[replica].null_page,
                )
            except DeviceFailedError as error:
                self.poison(replica, error.reason)
                raise ReplicaPoisonedError(replica, error.reason) from error
            found = shape.characteristics
            assignments.append(
                KVCacheAssignments(
                    cache_lengths_by_device=lengths,
                    lookup_table_by_device=tables,
                    max_prompt_length=_scalar(found.max_prompt_length),
                    max_cache_length=_scalar(found.max_cache_valid_length),
                    batch_characteristics=found,
                )
            )

        # RECORD
        if state.tracer is not None:
            ids = tuple(tuple(ctx.request_id for ctx in batch) for batch in batches)
            contexts = tuple(tuple(state.snapshot(ctx, ()) for ctx in batch) for batch in batches)
            state.tracer.emit(InputsBuilt(ids, contexts, max_cache_length, batch_characteristics))
        return self.params.build_runtime_inputs(assignments, self._buffers)

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

    def forward_launched(self, batches: Sequence[Sequence[Context]]) -> None:
        """The forward of these batches was launched, with the inputs they have now.

        Needed after a :meth:`step` with ``launched=False``, whose transfers begin here. Otherwise
        it only tells a log of the streams which pages the forward reads and writes.

        Raises:
            BatchesError: Not one batch per replica, or a request twice.
        """
        self._check_open()
        for replica, rows in enumerate(check_batches(self._state, batches, "forward_launched")):
            size = self.params.page_size
            for ctx, request in rows:
                cached = cache_length(ctx)
                end = ceil_div(cached + query_length(ctx), size)
                reads, writes = (
                    request.pages[: ceil_div(cached, size)],
                    request.pages[cached // size : end],
                )
                self._mover.copier.launched(replica, reads, writes)
        self._moves.begin_held_back()
        self._acted()

    def step(self, batches: Sequence[Sequence[Context]], *, launched: bool = True) -> None:
        """Commit the pages that forwards have filled, and queue their offload (STEP-1 to STEP-6).

        To be called once the forwards are launched: what they write is copied behind them. A
        scheduler that steps before it launches says ``launched=False``, and tells
        :meth:`forward_launched` when it has: no copy begins before that.

        Raises:
            BatchesError: Not one batch per replica, or a request twice.
            BlocksNotAllocatedError: A request has computed more than its pages hold.
        """
        self._check_open()
        commit.step(self._state, batches)
        if not launched:
            self._moves.hold_back(self._state.take_issued())
        self._acted()

    # --- transfers --------------------------------------------------------------------------

    async def land(self, transfer_id: str) -> None:
        """With ``auto_land=False``: move the bytes of a transfer, which lands, or fails by itself.

        Raises:
            UnknownTransferError: It is not in flight.
        """
        self._check_open()
        await self._moves.land(transfer_id)

    def fail(
        self, transfer_id: str, reason: FailReason, keys: Iterable[PageKey] | None = None
    ) -> None:
        """With ``auto_land=False``: a transfer has failed; ``keys`` are at fault, by default all.

        Raises:
            UnknownTransferError: It is not in flight.
            ValueError: ``keys`` names a block that it does not carry.
        """
        self._check_open()
        self._moves.fail(transfer_id, reason, keys)
        self._acted()

    def in_flight(self) -> list[Transfer]:
        """Transfers that have neither landed nor failed, in the order of their issue."""
        self._check_open()
        return list(self._state.in_flight.values())

    def poison(self, replica_idx: int, reason: str) -> None:
        """The device of a replica has failed: it takes no more work (FAIL-2)."""
        self._check_open()
        self._moves.poison(replica_idx, reason)
        self._acted()

    def poll_transfers(self) -> None:
        """Nothing to do here: transfers land by themselves, on the loop."""
        self._check_open()

    def pending_transfers_exist(self, replica_idx: int = 0) -> bool:
        """Whether a transfer in flight uses pages of the replica."""
        self._check_open()
        self._state.pool(replica_idx)
        return any(
            replica_idx in (t.replica, t.source_replica) for t in self._state.in_flight.values()
        )

    def renew_write_budget(self) -> None:
        """A new day for ``disk_write_budget_gb_per_day`` (TIER-8)."""
        self._check_open()
        disk = self._state.lower.tiers.get("disk")
        if disk is not None:
            disk.writes_left = write_budget(self.params)
        self._emit_simple(WriteBudgetRenewed())

    # --- look-ups and counters --------------------------------------------------------------

    def get_prefix_cache_hit_counts(self, ctx: Context) -> list[PrefixCacheHits]:
        """By replica: the cached prefix that ``ctx`` would find, claimed or not (ALLOC-14)."""
        self._check_open()
        return matching.hit_counts(self._state, ctx)

    def get_pct_used_blocks_after_allocation(self, ctx: Context, replica_idx: int) -> float:
        """Share of the replica's pages in use if ``ctx`` were allocated now, 0 to 1 (ALLOC-14)."""
        self._check_open()
        return matching.used_fraction_after(self._state, ctx, replica_idx)

    def num_free_blocks(self, replica_idx: int = 0) -> int:
        """Pages of the replica that nobody holds or pins; cached ones count."""
        self._check_open()
        return self._state.pool(replica_idx).num_free

    def total_num_blocks(self, replica_idx: int = 0) -> int:
        """Pages of the replica, without the null page."""
        self._check_open()
        return self._state.pool(replica_idx).total

    def get_num_pages(self, replica_idx: int) -> int:
        """The same as :meth:`total_num_blocks`."""
        return self.total_num_blocks(replica_idx)

    def get_num_used_pages(self, replica_idx: int) -> int:
        """Pages of the replica that are held or pinned."""
        return self.total_num_blocks(replica_idx) - self.num_free_blocks(replica_idx)

    def get_num_host_pages(self, replica_idx: int) -> int:
        """Pages of the host tier, which all replicas share; 0 without one."""
        tier = self._tier("host", replica_idx)
        return 0 if tier is None else tier.capacity

    def get_num_used_host_pages(self, replica_idx: int) -> int:
        """Host pages in use, those in flight included."""
        tier = self._tier("host", replica_idx)
        return 0 if tier is None else tier.used

    def get_num_disk_pages(self, replica_idx: int) -> int:
        """Pages of the disk tier, which all replicas share; 0 without one."""
        tier = self._tier("disk", replica_idx)
        return 0 if tier is None else tier.capacity

    def get_num_used_disk_pages(self, replica_idx: int) -> int:
        """Disk pages in use, those in flight included."""
        tier = self._tier("disk", replica_idx)
        return 0 if tier is None else tier.used

    def get_device_buffer(self, replica_idx: int) -> KVCacheBufferInterface:
        """The replica's memory, null page included; owned by the manager."""
        self._check_open()
        self._state.pool(replica_idx)
        return self._buffers[replica_idx]

    def statistics(self, replica_idx: int = 0) -> PoolStatistics:
        """How many of the replica's pages are held, pinned, cached and free."""
        self._check_open()
        return self._state.pool(replica_idx).statistics()

    def overview(self) -> Overview:
        """Everything that can be counted now, as one frozen tree; no walk over pages."""
        waiting = [len(queue) for queue in self._queues]
        return overview_of(self._state, waiting, self.get_metrics_aggregated())

    def attach(self, observer: Observer) -> None:
        """Tell ``observer`` what happens from now on; see :mod:`pagedkv.engine.observability`.

        Raises:
            TypeError: It is no :class:`Observer`.
        """
        if not isinstance(observer, Observer):
            raise TypeError(f"{observer!r} is no Observer: derive its class from that one")
        self._check_open()
        if self._watch is None:
            self._watch = self._moves.watch = Watch(self._state, self._streams)
            self._mover.watched_by(self._watch)
        self._watch.observers.append(observer)
        observer.attached(self._watch)

    def detach(self, observer: Observer) -> None:
        """Tell ``observer`` no more; harmless if it is not attached."""
        if self._watch is None or observer not in self._watch.observers:
            return
        self._watch.observers.remove(observer)
        observer.detached()
        if not self._watch.observers:
            self._watch = self._moves.watch = None
            self._mover.watched_by(None)

    def get_metrics_aggregated(self) -> KVCacheMetrics:
        """Counters over all replicas and tiers, since the start or the last reset."""
        self._check_open()
        state = self._state
        evicted = {f"{name}_blocks_evicted": t.evictions for name, t in state.lower.tiers.items()}
        return state.counters.as_metrics().plus(
            device_blocks_evicted=sum(pool.evictions for pool in state.pools),
            inflight_disk_ops=sum("disk" in (t.source, t.target) for t in state.in_flight.values()),
            **evicted,
        )

    def reset_metrics(self) -> None:
        """Set every counter to zero; the cache stays as it is (METRIC-5)."""
        self._check_open()
        self._state.counters.reset()
        for pool in self._state.pools:
            pool.evictions = 0
        for tier in self._state.lower.tiers.values():
            tier.evictions = 0
        self._emit_simple(MetricsReset())

    # --- reset and end ----------------------------------------------------------------------

    def reset_prefix_cache(self) -> None:
        """Forget all cached content, on the devices and below (RESET-1 to RESET-3).

        Live requests keep their pages, which are never hit again; what is in flight does not
        become visible when it lands.
        """
        self._check_open()
        reset.reset_prefix_cache(self._state)
        if self._tiers.disk is not None:
            self._tiers.disk.forget_all()
            self._state.lower.tiers["disk"].given_up.clear()
        self._acted()

    async def flush(self) -> None:
        """Return once what has landed on disk so far, or was forgotten, survives ``kill -9``."""
        self._check_open()
        if self._tiers.disk is not None:
            await self._beside(self._tiers.disk.flush())

    async def crash(self) -> None:
        """End as a killed process would: nothing more is written, and the folder is given back.

        For tests of what a restart finds. The manager refuses every further call.
        """
        self._closed = True
        for queue in self._queues:
            queue.pages_came_free()
        await self._moves.cancel()
        await self._beside(self._streams.aclose())
        await self._beside(self._tiers.crash())

    async def shutdown(self) -> None:
        """Write what was accepted, then refuse every further call (CLOSE-1).

        A second call waits for the first. Cancelling it changes nothing, and returns at the end.
        """
        if not self._closed:
            self._moves.check_loop()
            self._closing = asyncio.ensure_future(self._close())
        if self._closing is not None:
            await to_the_end(self._closing)

    async def aclose(self) -> None:
        """The same as :meth:`shutdown`."""
        await self.shutdown()

    # --- internals --------------------------------------------------------------------------

    def _close(self) -> Coroutine[Any, Any, None]:
        """Refuse every further call; what is left to do."""
        self._closed = True
        state = self._state
        for queue in self._queues:
            queue.pages_came_free()
        self._log.closing(in_flight=len(state.in_flight), claimed=len(state.requests))
        self._moves.begin_held_back()
        for request_id, request in state.requests.items():
            if request.plan is not None:
                allocation.cancel_alloc(state, request_id, request.replica)
        return self._write_and_give_back()

    async def _write_and_give_back(self) -> None:
        state = self._state
        try:
            await self._moves.drained()
            # One page at a time: each that lands makes room below for the next.
            for replica, pool in enumerate(state.pools):
                while pool.dirty:
                    page = cleaning.next_dirty_page(state, replica)
                    cleaning.clean_pages(state, replica, [page])
                    self._acted()
                    await self._moves.drained()
            self._emit_simple(Closed())
            self._log.closed()
        finally:
            disk = state.lower.tiers.get("disk")
            await self._beside(self._streams.aclose())
            await self._beside(self._tiers.aclose([] if disk is None else disk.oldest_first()))
            if self._debug_loop is not None:
                self._debug_loop.close()

    def _warn_of_settings(self) -> None:
        """Say what is allowed, and hardly ever meant."""
        config = self.params.kv_connector_config
        if config is None:
            return
        unknown = (config.model_extra or {}).keys() - TierOptions.model_fields.keys()
        if unknown:
            self._log.options_not_known(sorted(unknown))
        if self._tiers.disk is not None and config.disk_offload_dir is not None:
            if self._options.model_fingerprint is None:
                self._log.disk_starts_cold(config.disk_offload_dir)
            if self._tiers.disk.strangers:
                self._log.strangers_dropped(
                    config.disk_offload_dir, len(self._tiers.disk.strangers)
                )

    def _plan_state(
        self, total_num_pages: int, total_num_host_pages: int, tracer: Tracer | None
    ) -> State:
        params, tiers = self.params, self._tiers
        fates = Fates(total_num_pages * len(self._buffers))
        counters = Counters()
        uses_limit = max(total_num_pages * len(self._buffers), total_num_host_pages)
        lower = LowerTiers(counters, policy=self._options.write_policy, uses=RecentUses(uses_limit))
        if tiers.host is not None:
            lower.tiers["host"] = TierSlots("host", tiers.host.rows.shape[0], fates)
        if tiers.disk is not None:
            disk = TierSlots("disk", compute_num_disk_blocks(params), fates, write_budget(params))
            disk.adopt(tiers.disk.survivors)
            lower.tiers["disk"] = disk
            fates.note(tiers.disk.strangers, "other_namespace")
            if tracer is not None:
                tracer.emit(DiskOpened(tuple(key for _, key in tiers.disk.survivors)))
        return State(
            params=params,
            pools=[PagePool(total_num_pages) for _ in self._buffers],
            lower=lower,
            hasher=PageHasher(params.page_size, params.kv_hash_algo, params.kv_hash_seed),
            counters=counters,
            fates=fates,
            page_nbytes=params.bytes_per_block,
            tracer=tracer,
        )

    def _check_open(self) -> None:
        if self._closed:
            raise ManagerClosedError
        self._moves.check_loop()

    def _emit_simple(self, event: MetricsReset | WriteBudgetRenewed | Closed) -> None:
        if self._state.tracer is not None:
            self._state.tracer.emit(event)

    def _acted(self) -> None:
        """After every decision: let go what was given up, begin what was issued, wake who waits."""
        state = self._state
        for name, tier in state.lower.tiers.items():
            if tier.given_up:
                # Before a slot is written anew.
                if name == "disk" and self._tiers.disk is not None:
                    for slot in tier.given_up:
                        self._tiers.disk.forget(slot)
                tier.given_up.clear()
        while state.issued:
            self._moves.begin(state.take_issued())
        for queue in self._queues:
            queue.pages_came_free()
        if self._checks:
            invariants.check(state)

    async def _plan_in_turn(
        self, ctx: Context, replica_idx: int, deadline_s: float, *, patient: bool
    ) -> AllocPlan:
        """Plan an allocation once there are pages and nobody stands before it."""
        if required_pages(ctx, self.params) > self._state.pools[replica_idx].total:
            return await self._plan(ctx, replica_idx)  # It will never fit, and this says so.
        with (
            self._queues[replica_idx].place() as place,
            anyio.CancelScope(deadline=deadline_s),
        ):
            while True:
                if place.is_first:
                    with suppress(InsufficientBlocksError):
                        return await self._plan(ctx, replica_idx, patient=patient)
                await place.changed()
                self._check_open()
        raise allocation.refusal(self._state, ctx, replica_idx)

    async def _plan(self, ctx: Context, replica_idx: int, *, patient: bool = True) -> AllocPlan:
        """Make dirty pages clean that stand in the way (TIER-7), then plan.

        Unless it is ``patient``, what is below host memory is not waited for (ALLOC-15).
        """
        state = self._state
        while True:
            limit = None
            if not patient or self._options.slow_tier_policy == "best_effort":
                limit = matching.fast_prefix(state, ctx, replica_idx)
            found = cleaning.page_to_clean(state, ctx, replica_idx, limit)
            if found is None:
                return self.begin_alloc(ctx, replica_idx, limit)
            page, hit_keys = found
            cleaned = cleaning.clean_pages(state, replica_idx, [page], hit_keys)
            self._acted()
            await self._moves.settled(cleaned)
            self._check_open()

    async def _completed(self, ctx: Context, replica_idx: int, plan: AllocPlan) -> bool:
        """Wait for a plan's loads and finish it; ``False`` if it was undone.

        It is, if a load has failed, or something below host memory takes too long.
        """
        slow = plan.hits.disk_blocks or plan.hits.store_blocks
        limited = slow and self._options.slow_tier_policy == "timeout"
        patience = self._options.slow_tier_timeout_s if limited else math.inf
        try:
            if plan.transfers:
                with anyio.move_on_after(patience) as waiting:
                    await self._moves.settled(plan.transfers)
                if waiting.cancelled_caught:
                    self._log.tier_too_slow(ctx.request_id, waited_s=patience)
                    return False
            self.finish_alloc(ctx, replica_idx)
        except KVLoadFailed:
            return False
        finally:
            request = self._state.requests.get(ctx.request_id)
            if request is not None and request.plan is plan:
                allocation.cancel_alloc(self._state, ctx.request_id, replica_idx)
                self._acted()
        return True

    async def _beside(self, work: Coroutine[Any, Any, None]) -> None:
        """Run what belongs to the loop of the movers there."""
        if self._debug_loop is None:
            await work
        else:
            self._debug_loop.run(work)

    def _tier(self, name: LowerTier, replica_idx: int) -> TierSlots | None:
        self._check_open()
        self._state.pool(replica_idx)
        return self._state.lower.tiers.get(name)


def _scalar(value: int) -> Buffer:
    """``[1]`` int32 on the CPU."""
    return torch.tensor([value], dtype=torch.int32)
