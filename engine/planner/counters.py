"""Counters that the planner moves in place; a snapshot of them is a ``KVCacheMetrics``."""

from dataclasses import asdict, dataclass, fields, replace

from pagedkv.engine.planner.fates import MissReason
from pagedkv.reference.metrics import KVCacheMetrics


@dataclass(slots=True)
class Counters:
    """The fields of :class:`KVCacheMetrics` that only ever grow; see there."""

    input_tokens: int = 0
    cache_tokens: int = 0
    preempted_input_tokens: int = 0
    preempted_cache_tokens: int = 0
    preempted_blocks_served: int = 0
    missed_blocks_never_seen: int = 0
    missed_blocks_evicted: int = 0
    missed_blocks_not_stored: int = 0
    missed_blocks_failed: int = 0
    missed_blocks_too_slow: int = 0
    missed_blocks_other_namespace: int = 0
    device_blocks_served: int = 0
    peer_blocks_served: int = 0
    host_blocks_served: int = 0
    disk_blocks_served: int = 0
    store_blocks_served: int = 0
    h2d_blocks_copied: int = 0
    d2h_blocks_copied: int = 0
    cross_replica_blocks_copied: int = 0
    cross_replica_bytes_copied: int = 0
    disk_blocks_written: int = 0
    disk_blocks_read: int = 0
    store_blocks_written: int = 0
    store_blocks_read: int = 0
    offload_blocks_dropped: int = 0
    load_blocks_failed: int = 0

    def missed(self, reason: MissReason, blocks: int) -> None:
        """``blocks`` were missed for a reason."""
        name = f"missed_blocks_{reason}"
        setattr(self, name, getattr(self, name) + blocks)

    def as_metrics(self) -> KVCacheMetrics:
        """A snapshot."""
        return KVCacheMetrics(**asdict(self))

    def copy(self) -> "Counters":
        """What they are now."""
        return replace(self)

    def take_back_tokens(self, before: "Counters") -> None:
        """Tokens, hits and misses as they were ``before``; copies have been made all the same."""
        for counter in fields(self):
            if counter.name.endswith(("_tokens", "_served")) or counter.name.startswith("missed"):
                setattr(self, counter.name, getattr(before, counter.name))

    def reset(self) -> None:
        """Set all to zero."""
        for counter in fields(self):
            setattr(self, counter.name, 0)
