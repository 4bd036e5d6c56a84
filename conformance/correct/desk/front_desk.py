"""The part of a manager in which the rules leave no choice: what it checks, counts and answers."""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Generic

from pagedkv.conformance.correct.desk.lookup_tables import LookupTables, Row
from pagedkv.conformance.correct.desk.plan import FoundT, Plan, digests_of, look_up, plan_allocation
from pagedkv.conformance.correct.desk.requests import Request, RequestBook
from pagedkv.conformance.correct.desk.token_counts import TokenCounts
from pagedkv.reference.buffers import KVCacheBufferInterface
from pagedkv.reference.context import Context
from pagedkv.reference.errors import (
    BatchesError,
    BlocksNotAllocatedError,
    InsufficientBlocksError,
)
from pagedkv.reference.inputs import BatchCharacteristics, KVCacheInputs, KVCacheInputsInterface
from pagedkv.reference.lengths import ceil_div, identifiable_tokens, written_tokens
from pagedkv.reference.metrics import KVCacheMetrics, PrefixCacheHits
from pagedkv.reference.tensor_types import Buffer
from pagedkv.traces.manager_setup import ManagerSetup


class FrontDesk(ABC, Generic[FoundT]):
    """Answers the calls of a server; the pages are its subclasses' business.

    Args:
        setup: The manager's sizes.
        buffers: The memory that forwards get, one per replica. ``None``: the manager keeps only
            books, and forwards get a single page in place of all.
    """

    def __init__(
        self, setup: ManagerSetup, buffers: Sequence[KVCacheBufferInterface] | None = None
    ) -> None:
        self.setup = setup
        self.params = setup.params()
        self.requests = RequestBook(setup.replicas, null_page=setup.total_num_pages)
        self.counts = TokenCounts()
        self.copies = KVCacheMetrics()
        """Counters of evictions and copies."""
        self._buffers = buffers or self.params.allocate_buffers(1)
        self._tables = LookupTables(self.params, setup.total_num_pages, setup.max_batch_size)

    # What a subclass decides

    @abstractmethod
    def num_free_blocks(self, replica_idx: int = 0) -> int:
        """Pages of the replica that may be taken, cached ones included."""

    @abstractmethod
    def reset_prefix_cache(self) -> None:
        """Forget all cached content, on the devices and below."""

    @abstractmethod
    def _find(self, request: Request, chain: Sequence[bytes], start: int) -> Iterable[FoundT]:
        """Where the blocks of ``chain`` are, from ``start`` on, until the first gap."""

    @abstractmethod
    def _is_idle(self, replica: int, page: int) -> bool:
        """Whether a page may be taken."""

    @abstractmethod
    def _commit(self, request: Request, chain: list[bytes]) -> None:
        """The request has written the blocks of ``chain``, or had committed them before."""

    @abstractmethod
    def _let_go(self, request: Request) -> None:
        """The request gives back all it holds."""

    # Requests

    def claim(self, request_id: Hashable, replica_idx: int) -> None:
        """Assign a request to a replica, where it stays until it is released."""
        self.requests.claim(request_id, replica_idx)

    def alloc_dummy(self, request_id: Hashable, replica_idx: int) -> None:
        """Claim a request and map it to the null page."""
        self.requests.claim(request_id, replica_idx, dummy=True)

    def release(self, request_id: Hashable, replica_idx: int) -> None:
        """Give back the request's pages and forget its id."""
        request = self.requests.find(request_id, replica_idx)
        if not request.dummy:
            self._let_go(request)
        self.requests.forget(request_id)

    def contains(self, request_id: Hashable, replica_idx: int) -> bool:
        """Whether the request is claimed on that replica."""
        return self.requests.is_on(request_id, replica_idx)

    def get_req_blocks(self, request_id: Hashable, replica_idx: int) -> list[int]:
        """The request's page ids, in token order."""
        return list(self.requests.find(request_id, replica_idx).pages)

    @contextmanager
    def _claimed(self, batches: Sequence[Sequence[Context]]) -> Iterator[list[tuple[Context, int]]]:
        """Claim contexts; in the end, release them and put their windows back (CLAIM-5)."""
        self.requests.check_batches(batches, "reserve")
        claimed: list[tuple[Context, int, int]] = []
        try:
            for replica, batch in enumerate(batches):
                for ctx in batch:
                    self.claim(ctx.request_id, replica)
                    claimed.append((ctx, replica, ctx.tokens.processed_length))
            yield [(ctx, replica) for ctx, replica, _ in claimed]
        finally:
            for ctx, replica, start in claimed:
                if self.contains(ctx.request_id, replica):
                    self.release(ctx.request_id, replica)
                moved = ctx.tokens.processed_length - start
                ctx.tokens.rewind_processing(max(0, moved))
                ctx.tokens.skip_processing(max(0, -moved))

    @contextmanager
    def _all_or_none(self, contexts: Sequence[tuple[Context, int]]) -> Iterator[None]:
        """If the scope does not end well, no context was admitted, and nothing counts (CLAIM-5)."""
        lengths = [ctx.cached_prefix_length for ctx, _ in contexts]
        try:
            yield
        except BaseException:
            for (ctx, replica), length in zip(contexts, lengths, strict=True):
                self.counts.take_back(self.requests.find(ctx.request_id, replica))
                ctx.cached_prefix_length = length
            raise

    # Allocations

    def _plan(self, ctx: Context, request: Request) -> Plan[FoundT] | None:
        """What an allocation would do; ``None``: nothing."""
        return plan_allocation(
            ctx, request, self.params, lambda chain, start: self._find(request, chain, start)
        )

    def _check_room(self, plan: Plan[FoundT], request: Request) -> None:
        """Demand the pages that a plan takes, besides those that it hits (ALLOC-2, ALLOC-7)."""
        free = self.num_free_blocks(request.replica) - self._num_idle_hits(plan, request)
        if plan.to_take > free:
            total = self.setup.total_num_pages
            raise InsufficientBlocksError(
                needed=plan.to_take,
                free=free,
                total=total,
                can_ever_fit=plan.table_length <= total,
            )

    def _num_idle_hits(self, plan: Plan[FoundT], request: Request) -> int:
        """Pages that the plan hits and that are nobody's until then."""
        return sum(self._is_idle(request.replica, page) for page in plan.hit_pages)

    def _admit(
        self, ctx: Context, request: Request, plan: Plan[FoundT] | None, table: list[int]
    ) -> None:
        """An allocation returns: the request gets its table, and its window moves (ALLOC-1)."""
        first, start = request.kept_apart is None, ctx.tokens.processed_length
        self.counts.admitted(ctx, request)
        request.pages = table
        if plan is not None and plan.hits:
            request.chain = plan.chain
            window = range(start, len(plan.chain) * self.params.page_size)
            ctx.tokens.skip_processing(len(window))
            self.counts.served(request, window, plan.hits, self.params.page_size)
        if first and not request.dummy and ctx.cached_prefix_length is None:
            ctx.cached_prefix_length = ctx.tokens.processed_length - start

    # Steps and forwards

    def step(self, batches: Sequence[Sequence[Context]]) -> None:
        """Count what forwards have computed, and commit it (STEP-1 to STEP-3)."""
        size = self.params.page_size
        work: list[tuple[Request, int, list[bytes]]] = []
        for batch in self.requests.find_all(batches, "step"):
            for ctx, request in batch:
                if request.dummy:
                    continue
                written, held = written_tokens(ctx), len(request.pages)
                if written > held * size:
                    needed = ceil_div(written, size)
                    raise BlocksNotAllocatedError(ctx.request_id, needed=needed, allocated=held)
                chain = request.chain
                if self.params.enable_prefix_caching and not request.outdated:
                    chain = digests_of(ctx, written // size, chain, self.params)
                work.append((request, ctx.tokens.processed_length, chain))
        for request, processed, chain in work:
            self.counts.computed(request, processed)
            if not request.outdated:
                self._commit(request, chain)
                request.chain = chain

    def runtime_inputs(
        self,
        batches: Sequence[Sequence[Context]],
        *,
        max_cache_length: int | None = None,
        batch_characteristics: BatchCharacteristics | None = None,
    ) -> KVCacheInputsInterface[Buffer, Buffer]:
        """Page tables and lengths of one batch per replica, for the next forward."""
        rows = [
            [Row(ctx, request.pages, request.dummy) for ctx, request in batch]
            for batch in self.requests.find_all(batches, "runtime_inputs")
        ]
        largest = max(map(len, rows))
        if largest > self.setup.max_batch_size:
            raise BatchesError(
                f"a batch has {largest} requests, but max_batch_size is "
                f"{self.setup.max_batch_size}; split it"
            )
        assignments = self._tables.fill(rows, max_cache_length, batch_characteristics)
        return self.params.build_runtime_inputs(assignments, self._buffers)

    def runtime_inputs_for_leaf(
        self,
        batches: Sequence[Sequence[Context]],
        *,
        max_cache_length: int | None = None,
        batch_characteristics: BatchCharacteristics | None = None,
    ) -> KVCacheInputs[Buffer, Buffer]:
        """``runtime_inputs`` for models with a single cache."""
        inputs = self.runtime_inputs(
            batches,
            max_cache_length=max_cache_length,
            batch_characteristics=batch_characteristics,
        )
        assert isinstance(inputs, KVCacheInputs), "the model has several caches"
        return inputs

    # Probes and counters

    def get_prefix_cache_hit_counts(self, ctx: Context) -> list[PrefixCacheHits]:
        """By replica: the cached prefix that a fresh request like ``ctx`` would find."""
        self.requests.check_open()
        return [self._fresh_hits(ctx, replica) for replica in range(self.setup.replicas)]

    def _fresh_hits(self, ctx: Context, replica: int) -> PrefixCacheHits:
        fresh = Request(replica)
        last = identifiable_tokens(ctx)
        _, hits = look_up(
            ctx, [], last, self.params, lambda chain, start: self._find(fresh, chain, start)
        )
        return PrefixCacheHits(**Counter(f"{hit.tier}_blocks" for hit in hits))

    def get_pct_used_blocks_after_allocation(self, ctx: Context, replica_idx: int) -> float:
        """Share of the replica's pages in use if ``ctx`` were allocated now, 0 to 1."""
        call = "get_pct_used_blocks_after_allocation"
        request = self.requests.find(ctx.request_id, replica_idx, call)
        used = self.get_num_used_pages(replica_idx)
        plan = self._plan(ctx, request)
        if plan is not None:
            used += plan.to_take + self._num_idle_hits(plan, request) - len(plan.surplus)
        return min(1.0, used / self.setup.total_num_pages)

    def total_num_blocks(self, replica_idx: int = 0) -> int:
        """Pages of the replica, without the null page."""
        self.requests.check_replica(replica_idx)
        return self.setup.total_num_pages

    def get_num_pages(self, replica_idx: int) -> int:
        """Pages of the replica, without the null page."""
        return self.total_num_blocks(replica_idx)

    def get_num_used_pages(self, replica_idx: int) -> int:
        """Pages of the replica that are held or pinned."""
        return self.total_num_blocks(replica_idx) - self.num_free_blocks(replica_idx)

    def get_num_host_pages(self, replica_idx: int) -> int:
        """Pages of the host tier, 0 without one."""
        self.requests.check_replica(replica_idx)
        return self.setup.host_pages or 0

    def get_num_used_host_pages(self, replica_idx: int) -> int:
        """Host pages in use; a manager with a host tier counts them."""
        self.requests.check_replica(replica_idx)
        return 0

    def get_num_disk_pages(self, replica_idx: int) -> int:
        """Pages of the disk tier, 0 without one."""
        self.requests.check_replica(replica_idx)
        return self.setup.disk_pages or 0

    def get_num_used_disk_pages(self, replica_idx: int) -> int:
        """Disk pages in use; a manager with a disk tier counts them."""
        self.requests.check_replica(replica_idx)
        return 0

    def get_metrics_aggregated(self) -> KVCacheMetrics:
        """Counters over all replicas and tiers."""
        self.requests.check_open()
        return self.counts.metrics + self.copies

    def reset_metrics(self) -> None:
        """Set every counter to zero."""
        self.requests.check_open()
        self.counts.metrics = self.copies = KVCacheMetrics()
