"""A scrape shows what the manager counts, from any thread, with a bounded number of series."""

import asyncio
import threading
from collections import Counter
from dataclasses import fields
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from tests.engine.conftest import Making, prompt, serve

from pagedkv.engine.observability.prometheus import FAMILIES, PrometheusCollector
from pagedkv.reference import InsufficientBlocksError
from pagedkv.reference.metrics import KVCacheMetrics

Series = tuple[str, tuple[tuple[str, str], ...]]


def scrape(collector: PrometheusCollector) -> dict[Series, float]:
    """What a Prometheus server makes of the page."""
    registry = CollectorRegistry()
    registry.register(collector)
    text = generate_latest(registry).decode()
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(series: dict[Series, float], name: str, **labels: str) -> float:
    return series[f"pagedkv_{name}", tuple(sorted(labels.items()))]


def test_every_counter_is_exposed_once() -> None:
    shown = Counter(field for family in FAMILIES for field in family.series.values())
    shown["inflight_disk_ops"] += 1  # a level: pagedkv_disk_transfers_in_flight
    assert shown == Counter(field.name for field in fields(KVCacheMetrics))


async def test_scrape_from_a_thread_shows_what_the_manager_counts(
    make: Making, tmp_path: Path
) -> None:
    manager = make.engine(host_pages=20, disk_pages=40, disk_dir=tmp_path)
    collector = PrometheusCollector(manager)
    for n in range(6):
        await serve(manager, make.request(prompt(3, start=20 * (n % 4)), f"r{n}"))
    while manager.in_flight():
        await asyncio.sleep(0.001)
    series = await asyncio.to_thread(scrape, collector)
    metrics = manager.get_metrics_aggregated()
    for family in FAMILIES:
        for label, field in family.series.items():
            labels = {} if family.label is None else {family.label: label}
            assert value(series, f"{family.name}_total", **labels) == getattr(metrics, field)
    assert value(series, "fresh") == 1
    assert value(series, "alloc_seconds_count", outcome="done") == 6
    states = ("held", "pinned", "free")
    assert sum(value(series, "pages", replica="0", state=s) for s in states) == 16
    nbytes = manager.params.bytes_per_offloaded_block
    moved = value(series, "moved_bytes_total", way="device_to_host")
    assert moved == metrics.d2h_blocks_copied * nbytes > 0
    assert value(series, "disk_operation_seconds_count", kind="write") == (
        metrics.disk_blocks_written
    )
    await manager.aclose()


async def test_scrape_on_the_loop_does_not_wait_for_it(make: Making) -> None:
    manager = make.engine()
    assert value(scrape(PrometheusCollector(manager, patience_s=0)), "fresh") == 1
    await manager.aclose()


async def test_busy_loop_gives_the_scrape_before(make: Making) -> None:
    manager = make.engine()
    collector = PrometheusCollector(manager, patience_s=0.01)
    manager.claim("r", 0)
    seen: list[dict[Series, float]] = []
    thread = threading.Thread(target=lambda: seen.append(scrape(collector)))
    thread.start()
    thread.join()  # the loop stands still meanwhile
    assert value(seen[0], "fresh") == 0
    assert value(seen[0], "claimed_requests") == 0
    assert value(await asyncio.to_thread(scrape, collector), "claimed_requests") == 1
    await manager.aclose()


async def test_closed_manager_can_still_be_scraped(make: Making) -> None:
    manager = make.engine()
    collector = PrometheusCollector(manager)
    await serve(manager, make.request(prompt(2), "r"))
    before = await asyncio.to_thread(scrape, collector)
    await manager.aclose()
    after = await asyncio.to_thread(scrape, collector)
    assert value(after, "fresh") == 0
    assert value(scrape(collector), "fresh") == 0  # on the loop itself
    name = "computed_tokens_total"
    assert value(after, name, preempted="no") == value(before, name, preempted="no") > 0


def test_closed_loop_can_still_be_scraped(make: Making) -> None:
    async def collector_of_a_short_life() -> PrometheusCollector:
        manager = make.engine()
        collector = PrometheusCollector(manager)
        await manager.aclose()
        return collector

    assert value(scrape(asyncio.run(collector_of_a_short_life())), "fresh") == 0


async def test_requests_add_no_series(make: Making) -> None:
    manager = make.engine(host_pages=20)
    collector = PrometheusCollector(manager)

    async def requests(prefix: str) -> set[Series]:
        for n in range(5):
            await serve(manager, make.request(prompt(2, start=10 * (n % 3)), f"{prefix}{n}"))
        while manager.in_flight():
            await asyncio.sleep(0.001)
        return set(await asyncio.to_thread(scrape, collector))

    assert await requests("a") == await requests("b")
    await manager.aclose()


async def test_outcomes_of_allocations_are_told_apart(make: Making) -> None:
    manager = make.engine(total_num_pages=2)
    collector = PrometheusCollector(manager)
    manager.claim("large", 0)
    with pytest.raises(InsufficientBlocksError):
        await manager.alloc(make.request(prompt(3), "large"), 0)
    async with manager.admit(make.request(prompt(1), "holds all")):
        manager.claim("waits", 0)
        waiting = asyncio.ensure_future(
            manager.alloc(make.request(prompt(1, start=50), "waits"), 0, wait_s=60)
        )
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait([waiting])
    series = scrape(collector)
    for outcome in ("refused", "cancelled", "done"):
        assert value(series, "alloc_seconds_count", outcome=outcome) == 1
    await manager.aclose()


async def test_failed_transfer_counts_with_its_reason_and_moves_nothing(make: Making) -> None:
    manager = make.engine(host_pages=8, auto_land=False)
    collector = PrometheusCollector(manager)
    await serve(manager, make.request(prompt(2), "r"))
    manager.fail(manager.in_flight()[0].id, "no_space")
    series = scrape(collector)
    failures = value(series, "failed_transfers_total", way="device_to_host", reason="no_space")
    assert failures == 1
    assert value(series, "moved_bytes_total", way="device_to_host") == 0
    await manager.aclose()
