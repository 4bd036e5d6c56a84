"""What a manager can be asked: every method here changes nothing."""

from collections.abc import Hashable, Sequence

from pagedkv.engine.planner import matching
from pagedkv.engine.planner.pages import PoolStatistics
from pagedkv.engine.planner.slots import TierSlots
from pagedkv.engine.planner.state import State
from pagedkv.engine.planner.transfer import Transfer
from pagedkv.reference.buffers import KVCacheBufferInterface
from pagedkv.reference.context import Context
from pagedkv.reference.errors import ManagerClosedError
from pagedkv.reference.metrics import KVCacheMetrics, PrefixCacheHits
from pagedkv.reference.tier_names import LowerTier


class Queries:
    """The part of :class:`~pagedkv.engine.PagedKVCacheManager` that only looks."""

    _state: State
    _buffers: Sequence[KVCacheBufferInterface]
    _closed: bool

    # --- requests ---------------------------------------------------------------------------

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

    # --- pages and tiers --------------------------------------------------------------------

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

    # --- transfers and counters --------------------------------------------------------------

    def in_flight(self) -> list[Transfer]:
        """Transfers that have neither landed nor failed, in the order of their issue."""
        self._check_open()
        return list(self._state.in_flight.values())

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

    def _check_open(self) -> None:
        if self._closed:
            raise ManagerClosedError

    def _tier(self, name: LowerTier, replica_idx: int) -> TierSlots | None:
        self._check_open()
        self._state.pool(replica_idx)
        return self._state.lower.tiers.get(name)
