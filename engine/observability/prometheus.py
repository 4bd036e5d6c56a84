"""Metrics for Prometheus: read when somebody scrapes, in whatever thread.

No label is a request, so there are never more series than replicas, tiers and ways. Needs
``prometheus-client``, which the extra ``server`` brings.
"""

import asyncio
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from prometheus_client import Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from pagedkv.engine.manager import PagedKVCacheManager
from pagedkv.engine.observability.observer import Observer
from pagedkv.engine.observability.overview import Overview, ReplicaOverview
from pagedkv.engine.observability.records import AllocRecord, DiskOperation, TransferRecord
from pagedkv.reference.errors import InsufficientBlocksError, ManagerClosedError
from pagedkv.reference.metrics import KVCacheMetrics

WAYS = (
    "peer_to_device",
    "host_to_device",
    "disk_to_device",
    "disk_to_host",
    "device_to_host",
    "host_to_disk",
)
"""The ways that transfers go."""

SECONDS = (1e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
"""Bounds of the histograms' buckets: from an allocation that waits for nothing to a long queue."""


@dataclass(frozen=True, slots=True)
class Family:
    """One metric, and the counters of :class:`KVCacheMetrics` that are its series."""

    name: str
    """Its name, without ``pagedkv_`` and ``_total``."""
    text: str
    """What it counts."""
    label: str | None
    """The label that tells the series apart; ``None``: there is only one."""
    series: dict[str, str]
    """By value of the label: the counter."""


FAMILIES = (
    Family(
        "computed_tokens",
        "Tokens that forwards have computed",
        "preempted",
        {"no": "input_tokens", "yes": "preempted_input_tokens"},
    ),
    Family(
        "cached_tokens",
        "Tokens served from the prefix cache",
        "preempted",
        {"no": "cache_tokens", "yes": "preempted_cache_tokens"},
    ),
    Family(
        "hit_blocks",
        "Blocks served from the prefix cache",
        "tier",
        {tier: f"{tier}_blocks_served" for tier in ("device", "peer", "host", "disk", "store")},
    ),
    Family(
        "preempted_hit_blocks",
        "Blocks served from the prefix cache after a preemption",
        None,
        {"": "preempted_blocks_served"},
    ),
    Family(
        "missed_blocks",
        "Full blocks that were looked up and are nowhere",
        "reason",
        {
            reason: f"missed_blocks_{reason}"
            for reason in (
                "never_seen",
                "evicted",
                "not_stored",
                "failed",
                "too_slow",
                "other_namespace",
            )
        },
    ),
    Family(
        "evicted_blocks",
        "Blocks given up to make room",
        "tier",
        {tier: f"{tier}_blocks_evicted" for tier in ("device", "host", "disk")},
    ),
    Family(
        "copied_blocks",
        "Blocks copied to, from and between devices",
        "way",
        {
            "host_to_device": "h2d_blocks_copied",
            "device_to_host": "d2h_blocks_copied",
            "peer_to_device": "cross_replica_blocks_copied",
        },
    ),
    Family(
        "peer_copied_bytes",
        "Bytes copied between replicas, over all shards",
        None,
        {"": "cross_replica_bytes_copied"},
    ),
    Family(
        "read_blocks",
        "Blocks read from a tier below host memory",
        "tier",
        {tier: f"{tier}_blocks_read" for tier in ("disk", "store")},
    ),
    Family(
        "written_blocks",
        "Blocks written to a tier below host memory",
        "tier",
        {tier: f"{tier}_blocks_written" for tier in ("disk", "store")},
    ),
    Family(
        "dropped_offload_blocks",
        "Blocks that a tier below did not get",
        None,
        {"": "offload_blocks_dropped"},
    ),
    Family(
        "failed_load_blocks",
        "Blocks at whose fault a load failed, and which became a miss",
        None,
        {"": "load_blocks_failed"},
    ),
)
"""All counters of :class:`KVCacheMetrics`, each once; the one that is a level is a gauge."""


class PrometheusCollector(Collector, Observer):
    """What Prometheus sees of a manager: ``registry.register(PrometheusCollector(manager))``.

    To be made on the manager's event loop, and scraped from any thread. A scrape asks the loop for
    an :class:`Overview`, and takes the one before if the loop is too busy or over: then
    ``pagedkv_fresh`` is 0.

    Args:
        manager: Whom to observe, from now on.
        patience_s: Seconds that a scrape waits for the event loop.
    """

    def __init__(self, manager: PagedKVCacheManager, patience_s: float = 1.0) -> None:
        self._manager = manager
        self._patience_s = patience_s
        self._loop = asyncio.get_running_loop()
        self._overview = manager.overview()
        self._allocs = _histogram("alloc_seconds", "Time that alloc takes", "outcome")
        self._queue = _histogram("alloc_queue_seconds", "Time until an alloc has pages")
        self._loads = _histogram("load_seconds", "Time to bring blocks to a device", "tier")
        self._disk = _histogram(
            "disk_operation_seconds", "Time to read or write one block, in line and on disk", "kind"
        )
        self._bytes = _counter("moved_bytes", "Bytes that have landed", "way")
        self._failures = _counter("failed_transfers", "Transfers that have failed", "way", "reason")
        self._retries = _counter("alloc_retries", "Allocations planned again after a failed load")
        for way in WAYS:
            self._bytes.labels(way)  # a rate wants to see it begin at zero
        manager.attach(self)

    def collect(self) -> Iterator[Metric]:
        """All metrics, as they are now."""
        fresh = self._ask_for_overview()
        overview = self._overview
        yield _gauge("fresh", "Whether the event loop has answered this scrape", float(fresh))
        yield from _counters_of(overview.metrics)
        yield from _levels_of(overview)
        for metric in (
            self._allocs,
            self._queue,
            self._loads,
            self._disk,
            self._bytes,
            self._failures,
            self._retries,
        ):
            yield from metric.collect()

    def alloc_ended(self, alloc: AllocRecord) -> None:
        """Observe how long it took."""
        if alloc.total_s is not None:
            self._allocs.labels(_outcome(alloc.error)).observe(alloc.total_s)
        if alloc.queue_s is not None:
            self._queue.observe(alloc.queue_s)
        if alloc.retries:
            self._retries.inc(alloc.retries)

    def transfer_settled(self, record: TransferRecord) -> None:
        """Observe how long it took, and what it has moved."""
        if record.reason is not None:
            self._failures.labels(record.way, record.reason).inc()
            return
        self._bytes.labels(record.way).inc(record.nbytes)
        if record.transfer.target == "device" and record.total_s is not None:
            self._loads.labels(record.transfer.source).observe(record.total_s)

    def disk_operated(self, operation: DiskOperation, seconds: float, *, failed: bool) -> None:
        """Observe how long it took, unless it failed."""
        if not failed:
            self._disk.labels(operation).observe(seconds)

    def _ask_for_overview(self) -> bool:
        """Have the loop renew :attr:`_overview`; whether it did."""
        try:
            on_the_loop = asyncio.get_running_loop() is self._loop
        except RuntimeError:
            on_the_loop = False
        answer = _Answer()
        if on_the_loop:
            self._publish(answer)
        else:
            try:
                self._loop.call_soon_threadsafe(self._publish, answer)
            except RuntimeError:  # the loop is closed
                return False
            answer.given.wait(self._patience_s)
        return answer.fresh

    def _publish(self, answer: "_Answer") -> None:
        try:
            self._overview = self._manager.overview()
            answer.fresh = True
        except ManagerClosedError:
            pass  # the last one stays
        finally:
            answer.given.set()


class _Answer:
    """The loop's answer to one scrape."""

    def __init__(self) -> None:
        self.given = threading.Event()
        self.fresh = False


def _counters_of(metrics: KVCacheMetrics) -> Iterator[Metric]:
    for family in FAMILIES:
        labels = [] if family.label is None else [family.label]
        metric = CounterMetricFamily(f"pagedkv_{family.name}", family.text, labels=labels)
        for value, field in family.series.items():
            metric.add_metric([value] if labels else [], getattr(metrics, field))
        yield metric


def _levels_of(overview: Overview) -> Iterator[Metric]:
    pages = GaugeMetricFamily(
        "pagedkv_pages", "Device pages; the states add up", labels=["replica", "state"]
    )
    for n, replica in enumerate(overview.replicas):
        pages.add_metric([str(n), "held"], replica.held_pages)
        pages.add_metric([str(n), "pinned"], replica.pinned_pages)
        pages.add_metric([str(n), "free"], replica.free_pages)
    yield pages
    yield _by_replica("cached_pages", "Device pages that can be hit, held or not", overview)
    yield _by_replica("dirty_pages", "Device pages to be offloaded before they go", overview)
    yield _by_replica("waiting_requests", "Requests that stand in line for pages", overview)
    poisoned = ((str(n), r.poisoned is not None) for n, r in enumerate(overview.replicas))
    yield _gauges(
        "replica_poisoned", "Whether the replica's device has failed", "replica", poisoned
    )
    capacities = ((name, tier.capacity) for name, tier in overview.tiers.items())
    yield _gauges("tier_capacity_blocks", "Slots of a tier below the devices", "tier", capacities)
    used = ((name, tier.used) for name, tier in overview.tiers.items())
    yield _gauges("tier_used_blocks", "Slots in use, those in flight included", "tier", used)
    in_flight = ((way, overview.transfers_in_flight.get(way, 0)) for way in WAYS)
    yield _gauges("transfers_in_flight", "Transfers that have not settled", "way", in_flight)
    level = overview.metrics.inflight_disk_ops
    yield _gauge("disk_transfers_in_flight", "Those from and to the disk", level)
    yield _gauge("claimed_requests", "Requests that are claimed", overview.claimed_requests)


def _by_replica(field: str, text: str, overview: Overview) -> Metric:
    """A gauge for a field of :class:`ReplicaOverview`."""
    assert field in ReplicaOverview.__annotations__
    values = ((str(n), getattr(replica, field)) for n, replica in enumerate(overview.replicas))
    return _gauges(field, text, "replica", values)


def _gauges(name: str, text: str, label: str, values: Iterable[tuple[str, float]]) -> Metric:
    metric = GaugeMetricFamily(f"pagedkv_{name}", text, labels=[label])
    for value, level in values:
        metric.add_metric([value], level)
    return metric


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(f"pagedkv_{name}", text, value=value)


def _histogram(name: str, text: str, *labels: str) -> Histogram:
    return Histogram(f"pagedkv_{name}", text, labels, buckets=SECONDS, registry=None)


def _counter(name: str, text: str, *labels: str) -> Counter:
    return Counter(f"pagedkv_{name}", text, labels, registry=None)


def _outcome(error: BaseException | None) -> str:
    match error:
        case None:
            return "done"
        case InsufficientBlocksError():
            return "refused"
        case asyncio.CancelledError():
            return "cancelled"
        case _:
            return "error"
