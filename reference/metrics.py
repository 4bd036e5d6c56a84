"""Counters of a manager, and the per-tier result of a read-only prefix look-up."""

from dataclasses import dataclass, fields, replace
from typing import Self


@dataclass(frozen=True, slots=True)
class PrefixCacheHits:
    """Blocks of one contiguous cached prefix, by the tier that would serve each (ALLOC-4).

    Tiers may alternate within the prefix, so the counts say how many blocks come from where,
    not in which order.
    """

    device_blocks: int = 0
    """Blocks resident in the replica's own device pool."""
    peer_blocks: int = 0
    """Blocks to be copied from another replica's device pool."""
    host_blocks: int = 0
    """Blocks to be loaded from host memory."""
    disk_blocks: int = 0
    """Blocks to be read from disk."""
    store_blocks: int = 0
    """Blocks to be fetched from the block store."""

    @property
    def total_blocks(self) -> int:
        """Length of the cached prefix in blocks."""
        return (
            self.device_blocks
            + self.peer_blocks
            + self.host_blocks
            + self.disk_blocks
            + self.store_blocks
        )


@dataclass(frozen=True, slots=True)
class KVCacheMetrics:
    """Counters since start or ``reset_metrics``; two of them add up field by field.

    Cached tokens count when an allocation returns, computed ones at ``step``, copies when they
    land (METRIC-1, METRIC-2), so a refused or failed call moves no counter of tokens or hits.
    None goes down but by ``reset_metrics`` (METRIC-7).
    """

    input_tokens: int = 0
    """Tokens that forwards have computed (cache misses)."""
    cache_tokens: int = 0
    """Tokens served from the prefix cache, whatever the tier."""
    preempted_input_tokens: int = 0
    """Tokens that a preempted request had, computed after its return (METRIC-4)."""
    preempted_cache_tokens: int = 0
    """Tokens served from the cache after a preemption; in no other counter."""
    preempted_blocks_served: int = 0
    """Hit blocks after a preemption, whatever the tier; in no other counter."""
    missed_blocks_never_seen: int = 0
    """Full blocks that were looked up and are not known to have been cached before (METRIC-6)."""
    missed_blocks_evicted: int = 0
    """Missed blocks that were given up to make room."""
    missed_blocks_not_stored: int = 0
    """Missed blocks that left the device without having been stored below."""
    missed_blocks_failed: int = 0
    """Missed blocks whose load failed, or whose copy was damaged or lost."""
    missed_blocks_too_slow: int = 0
    """Missed blocks whose load timed out."""
    missed_blocks_other_namespace: int = 0
    """Missed blocks that are only known from before a reset or under another model."""
    device_blocks_served: int = 0
    """Hit blocks that were resident in the replica's own device pool."""
    peer_blocks_served: int = 0
    """Hit blocks that came from another replica's device pool."""
    host_blocks_served: int = 0
    """Hit blocks that came from host memory."""
    disk_blocks_served: int = 0
    """Hit blocks that came from disk."""
    store_blocks_served: int = 0
    """Hit blocks that came from the block store."""
    device_blocks_evicted: int = 0
    """Committed device pages whose content was given up to make room."""
    host_blocks_evicted: int = 0
    """Host blocks given up to make room."""
    disk_blocks_evicted: int = 0
    """Disk blocks given up to make room."""
    h2d_blocks_copied: int = 0
    """Blocks copied to the device from host memory (also those that came there from below)."""
    d2h_blocks_copied: int = 0
    """Blocks copied from the device to host memory."""
    cross_replica_blocks_copied: int = 0
    """Blocks copied from one replica's device pool to another's."""
    cross_replica_bytes_copied: int = 0
    """Bytes of those copies, over all shards."""
    disk_blocks_written: int = 0
    """Blocks written to disk."""
    disk_blocks_read: int = 0
    """Blocks read from disk."""
    store_blocks_written: int = 0
    """Blocks put into the block store."""
    store_blocks_read: int = 0
    """Blocks fetched from the block store."""
    offload_blocks_dropped: int = 0
    """Blocks that a tier below did not get: no slot, no budget, failed or fenced (METRIC-7)."""
    load_blocks_failed: int = 0
    """Blocks at whose fault a load failed, and which became a miss."""
    inflight_disk_ops: int = 0
    """Disk transfers in flight right now (a level, not a counter)."""

    @property
    def prompt_tokens(self) -> int:
        """Tokens computed and cached, each once; what a preemption repeats is not among them."""
        return self.input_tokens + self.cache_tokens

    @property
    def cache_hit_rate(self) -> float:
        """Share of cached tokens in all tokens, 0 to 1; 0.0 before the first token."""
        return self.cache_tokens / self.prompt_tokens if self.prompt_tokens else 0.0

    def __add__(self, other: Self) -> Self:
        """The field-by-field sum of two sets of counters."""
        return type(self)(
            **{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)}
        )

    def with_copies_of(self, other: Self) -> Self:
        """These counters, with what ``other`` says of copies between devices and failed loads."""
        return replace(
            self,
            cross_replica_blocks_copied=other.cross_replica_blocks_copied,
            cross_replica_bytes_copied=other.cross_replica_bytes_copied,
            load_blocks_failed=other.load_blocks_failed,
        )

    def plus(self, **counts: int) -> Self:
        """These counters with ``counts`` added."""
        return self + type(self)(**counts)
