"""Whatever order the loop and the copies take: the reference allows it, and every byte is right."""

import asyncio
from pathlib import Path
from random import Random
from typing import Any

import pytest
from tests.engine.conftest import Making

from pagedkv.conformance.bench import Recording
from pagedkv.conformance.clients import Clients
from pagedkv.conformance.stream_order import check_order, read_order_log
from pagedkv.conformance.validation import Divergence, validate
from pagedkv.engine import PagedKVCacheManager
from pagedkv.engine.streams.order_log import LoggedStreams, OrderLog
from pagedkv.engine.streams.threads import ThreadStreams
from pagedkv.specification import reference_specification
from pagedkv.traces.manager_setup import ManagerSetup

SEEDS = range(24)


def drawn_setup(seed: int, folder: Path) -> dict[str, Any]:
    """Sizes, tiers and policies, small enough that everything thrashes."""
    rng = Random(seed)
    fields: dict[str, Any] = {
        "total_num_pages": rng.choice((8, 12, 20)),
        "replicas": rng.choice((1, 1, 2)),
        "write_policy": rng.choice(("through", "through", "write_back", "reuse")),
        "cache": rng.choice(("mha", "mla", "fp8", "tree")),
        "shards": rng.choice((1, 2)),
        "deduplication": rng.choice(("swap", "swap", "keep")),
        "enable_dp_cross_replica_prefix_copy": rng.random() < 0.8,
    }
    if rng.random() < 0.85:
        fields["host_pages"] = rng.choice((4, 10, 30))
        if rng.random() < 0.7:
            fields |= {"disk_pages": rng.choice((6, 40)), "disk_dir": folder}
    return fields


async def drained(manager: PagedKVCacheManager) -> None:
    while manager.in_flight():
        await asyncio.sleep(0.001)


@pytest.mark.parametrize("seed", SEEDS)
async def test_concurrent_clients_get_right_bytes_and_a_run_that_validates(
    make: Making, seed: int, tmp_path: Path
) -> None:
    rng = Random(seed)
    setup = make.setup(**drawn_setup(seed, tmp_path))
    lines: list[str] = []
    streams = LoggedStreams(ThreadStreams(setup.replicas * setup.shards), OrderLog(lines.append))
    manager = make.engine(streams, **drawn_setup(seed, tmp_path))
    clients = Clients(
        manager,
        setup,
        seed,
        cancel_share=rng.choice((0.0, 0.2, 0.5)),
        reset_share=rng.choice((0.0, 0.0, 0.05)),
    )
    await clients.run(clients=6, requests=12)
    await drained(manager)
    for replica in range(setup.replicas):
        left = manager.statistics(replica)
        assert (left.held, left.pinned) == (0, 0)
    await manager.aclose()
    assert clients.finished
    assert_valid(setup, make.events)
    assert_ordered(lines)


def assert_ordered(lines: list[str]) -> None:
    races = check_order(read_order_log(lines))
    assert not races, "\n".join(map(str, races[:3]))


def assert_valid(setup: ManagerSetup, events: Recording) -> None:
    found = validate(setup.run_setup(), events, reference_specification)
    assert not isinstance(found, Divergence), str(found)
