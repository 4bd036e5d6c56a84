"""A manager that moves a page to host memory when it is about to be evicted, and no sooner.

It has any number of replicas, and knows the write policy ``write_back`` alone. Everything is a
queue: device pages and host blocks leave in the order in which they came, hits change nothing
about that, and fresh pages are taken even ids first. Nothing is copied between replicas, and of
equal pages the latest is the one that is found.
"""

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from pagedkv.conformance.correct.desk.front_desk import FrontDesk
from pagedkv.conformance.correct.desk.plan import Found
from pagedkv.conformance.correct.desk.requests import Request
from pagedkv.conformance.correct.storage.block_bytes import Content, read_page, write_page
from pagedkv.conformance.implementation import Implementation
from pagedkv.reference.buffers import KVCacheBufferInterface
from pagedkv.reference.context import Context
from pagedkv.traces.manager_setup import ManagerSetup


@dataclass(eq=False)
class Pool:
    """The pages of one replica."""

    queue: dict[int, None]
    """Pages that nobody holds, the next to be taken first."""
    holders: dict[int, int] = field(default_factory=dict)
    """How many requests hold a page."""
    block_in: dict[int, bytes] = field(default_factory=dict)
    """The block that is cached in a page, by its digest."""
    page_of: dict[bytes, int] = field(default_factory=dict)
    """The same the other way round."""

    def hold(self, page: int) -> None:
        """One more request has the page."""
        self.queue.pop(page, None)
        self.holders[page] = self.holders.get(page, 0) + 1

    def let_go(self, page: int) -> None:
        """One request fewer has the page; after the last one it queues up."""
        self.holders[page] -= 1
        if not self.holders[page]:
            del self.holders[page]
            self.queue[page] = None

    def cache(self, page: int, block: bytes) -> None:
        """The page holds the block from now on, and is the one to be found."""
        self.forget(self.page_of.get(block))
        self.block_in[page], self.page_of[block] = block, page

    def forget(self, page: int | None) -> None:
        """Whatever the page holds is cached no more."""
        if page in self.block_in:
            del self.page_of[self.block_in.pop(page)]


class LazyOffloadManager(FrontDesk[Found]):
    """A synchronous manager of several replicas over one host tier, with memory of its own."""

    def __init__(self, setup: ManagerSetup) -> None:
        if setup.disk_pages is not None or setup.store:
            raise ValueError(f"{setup} asks for a disk or a store; leave them out")
        num_pages = setup.total_num_pages
        self.buffers = setup.params().allocate_buffers(num_pages + 1)
        super().__init__(setup, self.buffers)
        self.memory = [buffer.to_memory() for buffer in self.buffers]
        order = [*range(0, num_pages, 2), *range(1, num_pages, 2)]
        self.pools = [Pool(dict.fromkeys(order)) for _ in range(setup.replicas)]
        self.host: dict[bytes, Content] = {}
        """Blocks in host memory by digest, the next to be given up first."""

    # Pages

    def num_free_blocks(self, replica_idx: int = 0) -> int:
        """Pages of the replica that nobody holds; dirty ones are cleaned when they are taken."""
        self.requests.check_replica(replica_idx)
        return len(self.pools[replica_idx].queue)

    def _is_idle(self, replica: int, page: int) -> bool:
        return page in self.pools[replica].queue

    def _take(self, replica: int, sparing: Collection[bytes]) -> int:
        """The next page of a replica, its content offloaded; ``sparing`` stays in host memory."""
        pool = self.pools[replica]
        page = next(iter(pool.queue))
        if page in pool.block_in:
            self._offload(replica, page, sparing)
            pool.forget(page)
            self.copies = self.copies.plus(device_blocks_evicted=1)
        pool.hold(page)
        return page

    # The host tier

    def _offload(self, replica: int, page: int, sparing: Collection[bytes]) -> None:
        """Copy a cached page to host memory, unless it is there, or there is no room (TIER-7)."""
        block, room = self.pools[replica].block_in[page], self.setup.host_pages or 0
        if not room or block in self.host:
            return
        if len(self.host) == room:
            victim = next((block for block in self.host if block not in sparing), None)
            if victim is None:
                self.copies = self.copies.plus(offload_blocks_dropped=1)
                return
            del self.host[victim]
            self.copies = self.copies.plus(host_blocks_evicted=1)
        self.host[block] = read_page(self.memory[replica], page)
        self.copies = self.copies.plus(d2h_blocks_copied=1)

    def _load(self, replica: int, page: int, block: bytes) -> None:
        write_page(self.memory[replica], page, self.host[block])
        self.pools[replica].cache(page, block)
        self.copies = self.copies.plus(h2d_blocks_copied=1)

    def _find(self, request: Request, chain: Sequence[bytes], start: int) -> Iterator[Found]:
        page_of = self.pools[request.replica].page_of
        for block in chain[start:]:
            if block in page_of:
                yield Found("device", page_of[block])
            elif block in self.host:
                yield Found("host")
            else:
                return

    def _commit(self, request: Request, chain: list[bytes]) -> None:
        pool, known = self.pools[request.replica], len(request.chain)
        for page, block in zip(request.pages[known:], chain[known:], strict=False):
            pool.cache(page, block)

    def reset_prefix_cache(self) -> None:
        """Forget what is cached on the devices and in host memory."""
        self.requests.check_open()
        self.host.clear()
        for pool in self.pools:
            pool.block_in.clear()
            pool.page_of.clear()
        for request in self.requests:
            request.outdated |= bool(request.pages)

    # Requests

    def alloc(self, data: Context, replica_idx: int) -> None:
        """Give a claimed request the pages of its next forward, its cached prefix loaded."""
        request = self.requests.find(data.request_id, replica_idx)
        plan = self._plan(data, request)
        if plan is None:
            self._admit(data, request, None, request.pages)
            return
        self._check_room(plan, request)
        pool = self.pools[replica_idx]
        for page in plan.hit_pages:
            pool.hold(page)
        table = plan.table([self._take(replica_idx, plan.chain) for _ in range(plan.to_take)])
        for block, page, _ in plan.loads(table):
            self._load(replica_idx, page, block)
        self._admit(data, request, plan, table)
        for page in plan.surplus:
            pool.let_go(page)

    def _let_go(self, request: Request) -> None:
        for page in request.pages:
            self.pools[request.replica].let_go(page)

    @contextmanager
    def reserve(self, replica_batches: Sequence[Sequence[Context]]) -> Iterator[None]:
        """Claim and allocate contexts, and release them at the end of the scope."""
        with self._claimed(replica_batches) as contexts:
            with self._all_or_none(contexts):
                for ctx, replica in contexts:
                    self.alloc(ctx, replica)
            yield

    # The rest

    def get_num_used_host_pages(self, replica_idx: int) -> int:
        """Blocks in the host tier."""
        self.requests.check_replica(replica_idx)
        return len(self.host)

    def get_device_buffer(self, replica_idx: int) -> KVCacheBufferInterface:
        """The replica's memory, null page included."""
        self.requests.check_replica(replica_idx)
        return self.buffers[replica_idx]

    def poll_transfers(self) -> None:
        """Whatever was copied has landed."""
        self.requests.check_open()

    def pending_transfers_exist(self, replica_idx: int = 0) -> bool:
        """Whatever was copied has landed."""
        self.requests.check_replica(replica_idx)
        return False

    def shutdown(self) -> None:
        """Offload what is dirty, then refuse every further call."""
        for replica, pool in enumerate(self.pools):
            for page in pool.block_in:
                self._offload(replica, page, ())
        self.requests.closed = True


implementation = Implementation(
    name="lazy offload",
    make=LazyOffloadManager,
    version="1",
    capabilities=frozenset(
        {
            *("device", "prefix", "inputs", "probes", "metrics", "memory", "reset", "dummy"),
            *("reserve", "replicas", "host", "mla", "fp8", "multi", "speculative", "shutdown"),
        }
    ),
    follows=frozenset({"POOL-3", "POOL-4", "XFER-6"}),
    write_policies=("write_back",),
)
