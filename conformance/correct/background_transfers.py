"""An asynchronous manager: host memory and a file per block on disk, written to at once.

Transfers run in the background: threads move their bytes, and what follows is decided on the event
loop. In every tier the least often used content is given up first. What comes from disk gets no
place in host memory on the way.
"""

import asyncio
from collections.abc import AsyncIterator, Hashable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import groupby

from pagedkv.conformance.correct.desk.front_desk import FrontDesk
from pagedkv.conformance.correct.desk.plan import Found, Plan
from pagedkv.conformance.correct.desk.requests import Request
from pagedkv.conformance.correct.storage.lower_tiers import Fault, LowerTiers, Transfer
from pagedkv.conformance.correct.storage.page_pool import PagePool
from pagedkv.conformance.correct.storage.tier import Slot
from pagedkv.conformance.implementation import Implementation
from pagedkv.reference.buffers import KVCacheBufferInterface
from pagedkv.reference.context import Context
from pagedkv.reference.errors import AllocPendingError, KVLoadFailed, NoPlannedAllocError
from pagedkv.reference.identity import PageKey
from pagedkv.reference.metrics import KVCacheMetrics
from pagedkv.reference.tier_names import FailReason
from pagedkv.traces.manager_setup import ManagerSetup


@dataclass(frozen=True)
class FoundBlock(Found):
    """A block that is somewhere, or on its way to the device."""

    slot: Slot | None = None
    """Where to load it from."""
    joined: Transfer | None = None
    """The load that is bringing it already (ALLOC-6)."""


@dataclass(eq=False)
class PlannedAlloc:
    """An allocation that was begun."""

    request: Request
    """Whose."""
    plan: Plan[FoundBlock] | None
    """What it does; ``None``: nothing."""
    pages: list[int]
    """The page table that the request gets."""
    transfers: list[str]
    """Loads that it waits for."""
    epoch: int
    """How many resets there had been."""
    failed: list[str] = field(default_factory=list)
    """Those of its loads that have failed."""


class BackgroundTransfersManager(FrontDesk[FoundBlock]):
    """An asynchronous manager of one device, with memory of its own."""

    def __init__(self, setup: ManagerSetup) -> None:
        if setup.replicas > 1 or setup.store:
            raise ValueError(f"{setup} asks for replicas or a store; leave them out")
        self.buffers = setup.params().allocate_buffers(setup.total_num_pages + 1)
        super().__init__(setup, self.buffers)
        self.pool = PagePool(setup.total_num_pages)
        layout, memory = self.params.layout_fingerprint(), self.buffers[0].to_memory()
        self.tiers = LowerTiers(setup, layout, memory, self.pool, on_issue=self._start)
        self.planned: dict[Hashable, PlannedAlloc] = {}
        """Allocations that were begun, by request."""
        self.epoch = 0
        """How many resets there were."""
        self._tasks: dict[str, asyncio.Task[None]] = {}

    # Looking up

    def num_free_blocks(self, replica_idx: int = 0) -> int:
        """Pages that nobody holds and no transfer uses."""
        self.requests.check_replica(replica_idx)
        return self.pool.num_free

    def _is_idle(self, replica: int, page: int) -> bool:
        return self.pool.is_idle(page)

    def _find(self, request: Request, chain: Sequence[bytes], start: int) -> Iterator[FoundBlock]:
        for block in chain[start:]:
            found = self._find_block(block, request.avoided)
            if found is None:
                return
            yield found

    def _find_block(self, block: bytes, avoided: set[tuple[str, bytes]]) -> FoundBlock | None:
        if block in self.pool.page_of:
            return FoundBlock("device", self.pool.page_of[block])
        if block in self.tiers.loading:
            page, transfer = self.tiers.loading[block]
            return FoundBlock(transfer.source, page, joined=transfer)
        if (slot := self.tiers.host.visible(block)) and ("host", block) not in avoided:
            return FoundBlock("host", slot=slot)
        if (slot := self.tiers.disk.visible(block)) and ("disk", block) not in avoided:
            return FoundBlock("disk", slot=slot)
        return None

    # Allocating

    async def alloc(self, data: Context, replica_idx: int) -> None:
        """Give a claimed request the pages of its next forward, its cached prefix loaded."""
        while True:
            planned = self.begin_alloc(data, replica_idx)
            try:
                await self._settled(planned.transfers)
                self.finish_alloc(data, replica_idx)
                return
            except KVLoadFailed:
                continue
            finally:
                if self.planned.get(data.request_id) is planned:
                    self.cancel_alloc(data.request_id, replica_idx)

    async def _settled(self, transfers: Iterable[str]) -> None:
        """Wait for loads; where nothing lands by itself, land them."""
        for transfer in transfers:
            if transfer in self._tasks:
                await asyncio.wait([self._tasks[transfer]])
            elif transfer in self.tiers.transfers:
                self.land(transfer)

    def begin_alloc(self, ctx: Context, replica_idx: int) -> PlannedAlloc:
        """Match, take, issue the loads (ALLOC-13)."""
        request = self.requests.find(ctx.request_id, replica_idx, "begin_alloc")
        plan = self._plan(ctx, request)
        planned = PlannedAlloc(request, plan, request.pages, [], self.epoch)
        if plan is not None:
            self._check_room(plan, request)
            for page in plan.hit_pages:
                self.pool.hold(page)
            planned.pages = plan.table([self._take() for _ in range(plan.to_take)])
            joined = {hit.joined.id: None for hit in plan.hits if hit.joined is not None}
            planned.transfers = [*joined, *self._load(plan, planned.pages)]
        self.planned[ctx.request_id] = planned
        request.pending = True
        return planned

    def _take(self) -> int:
        page = self.pool.next()
        if page in self.pool.block_in:
            self.copies = self.copies.plus(device_blocks_evicted=1)
            self.pool.forget(page)
        self.pool.hold(page)
        return page

    def _load(self, plan: Plan[FoundBlock], table: Sequence[int]) -> Iterator[str]:
        """Issue one load for each run of blocks from the same tier; their names."""
        found = [(page, hit.slot) for _, page, hit in plan.loads(table) if hit.slot]
        for _, run in groupby(found, key=lambda load: load[1].tier):
            yield self.tiers.load(list(run)).id

    def finish_alloc(self, ctx: Context, replica_idx: int) -> None:
        """Complete what was begun, or undo it if a load has failed.

        Raises:
            KVLoadFailed: One has; the request is as it was before.
        """
        request = self.requests.find(ctx.request_id, replica_idx)
        planned = self._begun(ctx.request_id)
        if any(transfer in self.tiers.transfers for transfer in planned.transfers):
            raise AllocPendingError(ctx.request_id, "finish_alloc")
        if planned.failed:
            self.cancel_alloc(ctx.request_id, replica_idx)
            raise KVLoadFailed(ctx.request_id, tuple(planned.failed))
        self._end(ctx.request_id)
        request.outdated |= planned.epoch != self.epoch
        self._admit(ctx, request, planned.plan, planned.pages)
        for page in planned.plan.surplus if planned.plan else ():
            self.pool.let_go(page)

    def cancel_alloc(self, request_id: Hashable, replica_idx: int) -> None:
        """Undo what was begun; its loads go on (ALLOC-12)."""
        request = self.requests.find(request_id, replica_idx)
        for page in self._begun(request_id).pages:
            if page not in request.pages:
                self.pool.let_go(page)
        self._end(request_id)

    def _begun(self, request_id: Hashable) -> PlannedAlloc:
        if request_id not in self.planned:
            raise NoPlannedAllocError(request_id)
        return self.planned[request_id]

    def _end(self, request_id: Hashable) -> None:
        self.planned.pop(request_id).request.pending = False

    # Committing and letting go

    def _commit(self, request: Request, chain: list[bytes]) -> None:
        for number in range(len(request.chain), len(chain)):
            self.pool.cache(request.pages[number], chain[number])
            self._share(request, number, chain[number])
        if len(chain) > request.offered:
            request.offered = len(chain)
            self.tiers.offer(chain, request.pages)

    def _share(self, request: Request, number: int, block: bytes) -> None:
        """Give the request the page that is found for its own (STEP-4)."""
        looks_ahead = self.params.speculative_method in ("eagle", "mtp")
        own, cached = request.pages[number], self.pool.page_of[block]
        if own != cached and self.params.deduplication == "swap" and not looks_ahead:
            self.pool.hold(cached)
            self.pool.let_go(own)
            request.pages[number] = cached

    def _let_go(self, request: Request) -> None:
        for request_id, planned in list(self.planned.items()):
            if planned.request is request:
                self.cancel_alloc(request_id, request.replica)
        for page in request.pages:
            self.pool.let_go(page)

    def reset_prefix_cache(self) -> None:
        """Forget all cached content; requests that hold pages keep them."""
        self.requests.check_open()
        self.epoch += 1
        self.pool.forget_all()
        self.tiers.reset()
        for request in self.requests:
            request.outdated |= bool(request.pages)

    @asynccontextmanager
    async def reserve(self, replica_batches: Sequence[Sequence[Context]]) -> AsyncIterator[None]:
        """Claim and allocate contexts, and release them at the end of the scope."""
        with self._claimed(replica_batches) as contexts:
            with self._all_or_none(contexts):
                for ctx, replica in contexts:
                    await self.alloc(ctx, replica)
            yield

    # Transfers

    def _start(self, transfer: Transfer) -> None:
        """Let a transfer run in the background, unless somebody else decides when it lands."""
        if self.setup.auto_land:
            task = asyncio.get_running_loop().create_task(self._run(transfer))
            self._tasks[transfer.id] = task
            task.add_done_callback(lambda _: self._tasks.pop(transfer.id))

    async def _run(self, transfer: Transfer) -> None:
        self._settle(transfer, await asyncio.to_thread(self.tiers.copy, transfer))

    def _settle(self, transfer: Transfer, fault: Fault | None) -> None:
        if fault is None:
            self.tiers.landed(transfer)
            return
        self.tiers.failed(transfer, fault)
        for planned in self.planned.values():
            if transfer.id in planned.transfers:
                planned.failed.append(transfer.id)
                planned.request.avoided |= {
                    (transfer.source, slot.block)
                    for key, slot in zip(transfer.keys, transfer.read, strict=True)
                    if key in fault.keys
                }

    def in_flight(self) -> list[Transfer]:
        """Transfers that have neither landed nor failed, in the order of their issue."""
        self.requests.check_open()
        return list(self.tiers.transfers.values())

    def land(self, transfer_id: str) -> None:
        """The bytes of a transfer arrive, or turn out to be damaged."""
        self.requests.check_open()
        transfer = self.tiers.in_flight(transfer_id)
        self._settle(transfer, self.tiers.copy(transfer))

    def fail(
        self, transfer_id: str, reason: FailReason, keys: Iterable[PageKey] | None = None
    ) -> None:
        """A transfer has failed, through the fault of ``keys``, by default all."""
        self.requests.check_open()
        transfer = self.tiers.in_flight(transfer_id)
        at_fault = transfer.keys if keys is None else list(keys)
        self._settle(transfer, Fault(reason, at_fault))

    def poll_transfers(self) -> None:
        """Transfers settle by themselves, as soon as the event loop lets them."""
        self.requests.check_open()

    def pending_transfers_exist(self, replica_idx: int = 0) -> bool:
        """Whether a transfer in flight uses pages of the device."""
        self.requests.check_replica(replica_idx)
        return bool(self.pool.pins)

    async def shutdown(self) -> None:
        """Write what was accepted, then refuse every further call."""
        while self._tasks:
            await asyncio.wait(self._tasks.values())
        while self.tiers.transfers:
            self.land(next(iter(self.tiers.transfers)))
        self.requests.closed = True

    # The rest

    def get_metrics_aggregated(self) -> KVCacheMetrics:
        """Counters over all tiers."""
        on_disk = sum("disk" in (t.source, t.target) for t in self.in_flight())
        total = super().get_metrics_aggregated() + self.tiers.copies
        return total.plus(inflight_disk_ops=on_disk)

    def reset_metrics(self) -> None:
        """Set every counter to zero."""
        super().reset_metrics()
        self.tiers.copies = KVCacheMetrics()

    def get_num_used_host_pages(self, replica_idx: int) -> int:
        """Slots of host memory in use."""
        self.requests.check_replica(replica_idx)
        return self.tiers.host.used

    def get_num_used_disk_pages(self, replica_idx: int) -> int:
        """Slots of the disk in use."""
        self.requests.check_replica(replica_idx)
        return self.tiers.disk.used

    def get_device_buffer(self, replica_idx: int) -> KVCacheBufferInterface:
        """The device's memory, null page included."""
        self.requests.check_replica(replica_idx)
        return self.buffers[replica_idx]


implementation = Implementation(
    name="background transfers",
    make=BackgroundTransfersManager,
    version="1",
    capabilities=frozenset(
        {
            *("device", "prefix", "inputs", "probes", "metrics", "memory", "reset", "dummy"),
            *("reserve", "host", "disk", "async", "mla", "fp8", "multi", "speculative"),
            *("shutdown", "transfers"),
        }
    ),
    follows=frozenset({"STEP-4"}),
)
