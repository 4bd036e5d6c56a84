"""The asyncio manager: the planner decides on the event loop, the movers work beside it."""

import asyncio
import math
import warnings
from collections.abc import AsyncIterator, Coroutine, Hashable, Iterable, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from typing import Any, Literal, Self, overload

import anyio
import torch

from pagedkv.engine.alloc_handle import AllocHandle
from pagedkv.engine.allocator import Allocator
from pagedkv.engine.disk.files import REAL_FILES, Files
from pagedkv.engine.disk.io_queue import to_the_end
from pagedkv.engine.first_state import first_state
from pagedkv.engine.input_tables import InputTables
from pagedkv.engine.loop_thread import LoopThread
from pagedkv.engine.movers.copier import PageCopier
from pagedkv.engine.movers.host_rows import HostRows
from pagedkv.engine.movers.mover import Mover
from pagedkv.engine.movers.units import units_of
from pagedkv.engine.moves import Moves, running_loop
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
    prefetching,
    reset,
)
from pagedkv.engine.planner.batches import check_batches, check_one_per_replica
from pagedkv.engine.planner.forward_shape import forward_shape
from pagedkv.engine.planner.state import AllocPlan
from pagedkv.engine.queries import Queries
from pagedkv.engine.start_checks import check_sizes
from pagedkv.engine.streams.capture_gate import CapturingError
from pagedkv.engine.streams.choice import streams_for
from pagedkv.engine.streams.stream import DeviceFailedError, Streams
from pagedkv.engine.tiers import DiskBlocks, open_tiers, write_budget
from pagedkv.reference.config import TierOptions
from pagedkv.reference.context import Context
from pagedkv.reference.device import InferenceSession
from pagedkv.reference.errors import (
    ReplicaPoisonedError,
)
from pagedkv.reference.events import (
    Closed,
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
from pagedkv.reference.lengths import ceil_div
from pagedkv.reference.params import KVCacheParamInterface
from pagedkv.reference.tensor_types import Buffer
from pagedkv.reference.tier_names import FailReason

DAY_S = 24 * 60 * 60
"""How long a write budget lasts."""


class PagedKVCacheManager(Queries):
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
        self._state = first_state(params, tiers, total_num_pages, total_num_host_pages, tracer)
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
        config = params.kv_connector_config
        self._debug_loop = LoopThread() if config and config.use_debug_tiered_mode else None
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
        self._allocator = Allocator(
            self._state,
            self._moves,
            self._options,
            self._log,
            acted=self._acted,
            check_open=self._check_open,
        )
        self._checks = enable_runtime_checks
        self._captures = 0
        self._to_launch: list[tuple[int, Sequence[int], Sequence[int]]] | None = None
        self._budget_ends_s: float | None = None
        self._closed = False
        self._closing: asyncio.Future[None] | None = None

    def __del__(self) -> None:
        if not getattr(self, "_closed", True):
            warnings.warn(
                "a manager was not closed, and what it was still to write is lost: use "
                "PagedKVCacheManager.open, or await aclose()",
                ResourceWarning,
                stacklevel=2,
                source=self,
            )

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

    def release(self, request_id: Hashable, replica_idx: int) -> None:
        """Give back the request's pages, tail first (REL-2), and forget its id (REL-1).

        Nothing is committed, and a pending allocation is cancelled (REL-4). Pages that a transfer
        still uses stay pinned until it settles (REL-3).
        """
        self._check_open()
        claims.release(self._state, request_id, replica_idx)
        if self._moves.watch is not None:
            self._moves.watch.released(request_id)
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

    @overload
    def alloc(
        self, data: Context, replica_idx: int, *, wait_s: float = 0.0, defer: Literal[False] = False
    ) -> Coroutine[Any, Any, None]: ...

    @overload
    def alloc(
        self, data: Context, replica_idx: int, *, wait_s: float = 0.0, defer: Literal[True]
    ) -> AllocHandle: ...

    def alloc(
        self, data: Context, replica_idx: int, *, wait_s: float = 0.0, defer: bool = False
    ) -> Coroutine[Any, Any, None] | AllocHandle:
        """Give a claimed request the pages of its next forward, its cached prefix included.

        Returns, when it is awaited, once the pages are assigned and the prefix has landed; the
        context's active window begins behind it. All or nothing (ALLOC-1, ALLOC-2); a load that
        fails on the way becomes tokens to compute (FAIL-1). If it is cancelled, the request is as
        it was before.

        With ``defer`` it is begun at once, and a handle is returned. That is ready earlier: when
        the pages are assigned, and what is read from disk is read and verified. Copies to the
        device may still be under way: :meth:`runtime_inputs` has the compute stream wait for those
        of its batch (XFER-8).

        Args:
            data: The request.
            replica_idx: Where it was claimed.
            wait_s: Seconds to wait until there are pages. Those who wait hold nothing and are
                served in the order of their coming. A request that holds pages already does not
                wait: it is served at once, or not at all.
            defer: Whether to return a handle in place of a coroutine.

        Raises:
            InsufficientBlocksError: It does not fit, or will never; nothing was changed.
            UnknownRequestError, ReplicaIndexError, AllocPendingError: See :mod:`errors`.
            ValueError: ``wait_s`` is negative.
        """
        self._check_open()
        self._state.pool(replica_idx)
        if not wait_s >= 0:
            raise ValueError(f"wait_s is {wait_s}; use 0 or more seconds, or math.inf")
        if defer:
            return self._allocator.defer(data, replica_idx, wait_s)
        return self._allocator.alloc(data, replica_idx, wait_s)

    def begin_alloc(
        self, ctx: Context, replica_idx: int, hit_limit: int | None = None
    ) -> AllocPlan:
        """The first half of :meth:`alloc`: match, take and issue loads (ALLOC-13).

        Of the blocks that are found, no more than ``hit_limit`` are used (ALLOC-15).

        Raises:
            InsufficientBlocksError: It does not fit; nothing was changed.
        """
        self._check_open()
        return self._allocator.begin(ctx, replica_idx, hit_limit)

    def finish_alloc(self, ctx: Context, replica_idx: int) -> AllocPlan:
        """The second half of :meth:`alloc`, once the plan's transfers have settled.

        Raises:
            KVLoadFailed: A load has failed and the plan was undone: begin again.
            AllocPendingError: A load is still in flight.
            NoPlannedAllocError: Nothing was begun.
        """
        self._check_open()
        return self._allocator.finish(ctx, replica_idx)

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
            CapturingError: A graph is being captured: build the inputs before.
            ValueError: A batch exceeds ``batch_characteristics``.
        """
        # CHECK
        self._check_open()
        if self._captures:
            raise CapturingError
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
                for (_, request), cached, used in zip(rows, shape.lengths, shape.used, strict=True):
                    request.window = cached, used
                    if request.arriving:
                        self._moves.before_forward(request.arriving)
                        request.arriving.clear()
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

    @contextmanager
    def capturing(self) -> Iterator[None]:
        """While a CUDA graph is captured, keep everything of the manager's away from the driver.

        ::

            inputs = manager.runtime_inputs([[ctx]])
            with manager.capturing(), torch.cuda.graph(graph, stream=session.stream(0)):
                model(inputs)

        It begins when threads have left the driver, which takes at most as long as the copies, or
        the pinning of host memory, that are under way. What is enqueued meanwhile is kept back, in
        order, until the end. Inputs are built before: their addresses stay (INPUT-7).
        """
        self._check_open()
        with ExitStack() as gates:
            for pool in (self._tiers.host, self._tiers.passing):
                if pool is not None:
                    gates.enter_context(pool.pinning_paused())
            gates.enter_context(self._streams.capturing())
            self._captures += 1
            try:
                yield
            finally:
                self._captures -= 1

    def forward_launched(self, batches: Sequence[Sequence[Context]]) -> None:
        """The forward of these batches was launched, with the inputs built for them last.

        Needed after a :meth:`step` with ``launched=False``: what was issued since begins here.
        Otherwise it only tells a log of the streams which pages the forward reads and writes.

        Raises:
            BatchesError: Not one batch per replica, or a request twice.
        """
        self._check_open()
        check_one_per_replica(self._state, batches, "forward_launched")
        forward, self._to_launch = self._to_launch, None
        if forward is None:
            forward = self._pages_of_forward(batches, "forward_launched")
        for replica, reads, writes in forward:
            self._mover.copier.launched(replica, reads, writes)
        self._moves.begin_held_back()
        self._acted()

    def step(self, batches: Sequence[Sequence[Context]], *, launched: bool = True) -> None:
        """Commit the pages that forwards have filled, and queue their offload (STEP-1 to STEP-6).

        To be called once the forwards are launched: what they write is copied behind them. A
        scheduler that steps before it launches says ``launched=False``, and tells
        :meth:`forward_launched` when it has: no copy of anybody's begins before that, and who
        waits for one waits.

        Raises:
            BatchesError: Not one batch per replica, or a request twice.
            BlocksNotAllocatedError: A request has computed more than its pages hold.
        """
        self._check_open()
        # Of what is yet to be launched, the step may swap pages, and others may be released.
        forward = [] if launched else self._pages_of_forward(batches, "step")
        commit.step(self._state, batches)
        if not launched:
            self._to_launch = [*(self._to_launch or ()), *forward]
            self._moves.hold_back()
        self._acted()

    # --- transfers --------------------------------------------------------------------------

    async def submit(self, transfer_id: str) -> None:
        """With ``auto_land=False``: move the bytes of a load now, and let it land later (XFER-8).

        Raises:
            UnknownTransferError: It is not in flight.
            SubmittedTransferError: It was submitted before, or is no load from below into a device.
        """
        self._check_open()
        await self._moves.submit(transfer_id)

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

    def poison(self, replica_idx: int, reason: str) -> None:
        """The device of a replica has failed: it takes no more work (FAIL-2)."""
        self._check_open()
        self._moves.poison(replica_idx, reason)
        self._acted()

    def renew_write_budget(self) -> None:
        """Begin a new day for ``disk_write_budget_gb_per_day`` (TIER-8); it begins by itself, too.

        The next one begins 24 hours later.
        """
        self._check_open()
        disk = self._state.lower.tiers.get("disk")
        if disk is not None:
            disk.writes_left = write_budget(self.params)
        self._budget_ends_s = None
        self._emit_simple(WriteBudgetRenewed())

    # --- look-ups and counters --------------------------------------------------------------

    def overview(self) -> Overview:
        """Everything that can be counted now, as one frozen tree; no walk over pages."""
        waiting = [len(queue) for queue in self._allocator.queues]
        return overview_of(self._state, waiting, self.get_metrics_aggregated())

    def attach(self, observer: Observer) -> None:
        """Tell ``observer`` what happens from now on; see :mod:`pagedkv.engine.observability`.

        Raises:
            TypeError: It is no :class:`Observer`.
        """
        if not isinstance(observer, Observer):
            raise TypeError(f"{observer!r} is no Observer: derive its class from that one")
        self._check_open()
        if self._moves.watch is None:
            self._moves.watch = Watch(self._state, self._streams)
            self._mover.watched_by(self._moves.watch)
        self._moves.watch.observers.append(observer)
        observer.attached(self._moves.watch)

    def detach(self, observer: Observer) -> None:
        """Tell ``observer`` no more; harmless if it is not attached."""
        if self._moves.watch is None or observer not in self._moves.watch.observers:
            return
        self._moves.watch.observers.remove(observer)
        observer.detached()
        if not self._moves.watch.observers:
            self._moves.watch = None
            self._mover.watched_by(None)

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
        for queue in self._allocator.queues:
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
        for queue in self._allocator.queues:
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

    def _pages_of_forward(
        self, batches: Sequence[Sequence[Context]], call: str
    ) -> list[tuple[int, Sequence[int], Sequence[int]]]:
        """For a log: by request its replica, and the pages that its forward reads and writes."""
        size = self.params.page_size
        pages: list[tuple[int, Sequence[int], Sequence[int]]] = []
        for replica, rows in enumerate(check_batches(self._state, batches, call)):
            for _, request in rows:
                cached, end = request.window
                reads = request.pages[: ceil_div(cached, size)]
                pages.append((replica, reads, request.pages[cached // size : end]))
        return pages

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

    def _check_open(self) -> None:
        super()._check_open()
        self._moves.check_loop()

    def _emit_simple(self, event: MetricsReset | WriteBudgetRenewed | Closed) -> None:
        if self._state.tracer is not None:
            self._state.tracer.emit(event)

    def _acted(self) -> None:
        """After every decision: let go what was given up, begin what was issued, wake who waits."""
        state = self._state
        if self._options.disk_write_budget_gb_per_day is not None and not self._closed:
            self._begin_day()
        for name, tier in state.lower.tiers.items():
            if tier.given_up:
                # Before a slot is written anew.
                if name == "disk" and self._tiers.disk is not None:
                    for slot in tier.given_up:
                        self._tiers.disk.forget(slot)
                tier.given_up.clear()
        while state.issued:
            self._moves.begin(state.take_issued())
        for queue in self._allocator.queues:
            queue.pages_came_free()
        if self._checks:
            invariants.check(state)

    def _begin_day(self) -> None:
        """Renew the write budget, if a day has gone by since it was."""
        loop = running_loop()
        if loop is None:
            return
        if self._budget_ends_s is not None and loop.time() >= self._budget_ends_s:
            self.renew_write_budget()
        elif self._budget_ends_s is None:
            self._budget_ends_s = loop.time() + DAY_S

    async def _beside(self, work: Coroutine[Any, Any, None]) -> None:
        """Run what belongs to the loop of the movers there."""
        if self._debug_loop is None:
            await work
        else:
            self._debug_loop.run(work)


def _scalar(value: int) -> Buffer:
    """``[1]`` int32 on the CPU."""
    return torch.tensor([value], dtype=torch.int32)
