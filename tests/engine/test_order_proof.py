"""The order that the engine asks for suffices, and none of its waits can be spared.

What a log proves, and how, is in docs/stream-order.md.
"""

import asyncio
import json
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import pytest
from tests.engine.conftest import Making, prompt
from tests.engine.simulated_runs import right_run

from pagedkv.conformance.clients import Clients
from pagedkv.conformance.stream_order import check_order, read_order_log
from pagedkv.engine.streams.cuda import CudaStreams
from pagedkv.engine.streams.order_log import LoggedStreams, OrderLog
from pagedkv.engine.streams.recording_driver import RecordingDriver
from pagedkv.engine.streams.threads import ThreadStreams

SEEDS = range(40)
"""Together they have copies of every kind, several devices, and forwards that take a while."""

# Any: fields of JSON lines.
Wait = dict[str, Any]


@cache
def logs() -> list[list[str]]:
    return [record.stream_log for seed in SEEDS for record in right_run(seed).lives]


def waits(waiter: str, for_what: str, same_device: bool | None = None) -> Callable[..., bool]:
    """Whether a wait is one of a kind: who waits, behind what the event was recorded, and where."""

    def is_one(wait: Wait, recorded_on: str) -> bool:
        name, _, device = wait["stream"].partition(" ")
        other_name, _, other_device = recorded_on.partition(" ")
        where = same_device is None or (device == other_device) == same_device
        return (name, other_name) == (waiter, for_what) and where

    return is_one


NEEDED = {
    "an onload follows the forwards that read or wrote its pages": waits("onload", "compute"),
    "an offload follows the forwards that wrote its pages": waits("offload", "compute"),
    "a peer copy follows the forwards on the device it writes": waits("peer", "compute", True),
    "a peer copy follows the forwards on the device it reads": waits("peer", "compute", False),
    "shards that hold the same follow the one that is loaded": waits("peer", "onload"),
    "an onload has ended before its rows are used again": waits("host", "onload"),
    "an offload has ended before its slots are read": waits("host", "offload"),
    "a peer copy has ended before its pages are used": waits("host", "peer"),
    "tables are read before their staging is written again": waits("host", "compute"),
}


def without(lines: list[str], is_spared: Callable[..., bool]) -> Iterator[str]:
    """A log without waits of one kind."""
    recorded: dict[int, str] = {}
    for line in lines:
        entry = json.loads(line)
        if entry.get("entry") == "record":
            recorded[entry["event"]] = entry["stream"]
        if entry.get("entry") != "wait" or not is_spared(entry, recorded[entry["event"]]):
            yield line


@pytest.mark.parametrize("claim", NEEDED)
def test_without_this_wait_there_are_races(claim: str) -> None:
    shorter = [list(without(lines, NEEDED[claim])) for lines in logs()]
    assert sum(map(len, shorter)) < sum(map(len, logs())), "no such wait in these runs"
    assert any(check_order(read_order_log(lines)) for lines in shorter)


def test_with_all_of_them_there_are_none() -> None:
    assert not any(check_order(read_order_log(lines)) for lines in logs())


@pytest.mark.parametrize("cache", ["mha", "mla"])
async def test_the_calls_to_cuda_are_ordered(make: Making, cache: str) -> None:
    fields: dict[str, Any] = {
        "cache": cache,
        "replicas": 2,
        "shards": 2,
        "total_num_pages": 8,
        "host_pages": 20,
    }
    setup = make.setup(**fields)
    lines: list[str] = []
    streams = CudaStreams(setup.session(), RecordingDriver())
    manager = make.engine(LoggedStreams(streams, OrderLog(lines.append)), **fields)
    clients = Clients(manager, setup, seed=0, num_prompts=30, max_pages=4)
    await clients.run(clients=4, requests=25)
    metrics = manager.get_metrics_aggregated()
    await manager.aclose()
    assert metrics.host_blocks_served > 0
    assert metrics.peer_blocks_served > 0
    assert not check_order(read_order_log(lines))


async def test_what_a_step_commits_before_its_forward_is_launched_is_copied_after_it(
    make: Making,
) -> None:
    lines: list[str] = []
    manager = make.engine(LoggedStreams(ThreadStreams(1), OrderLog(lines.append)), host_pages=8)
    ctx = make.request(prompt(2), "a")
    async with manager.admit(ctx):
        manager.runtime_inputs([[ctx]])
        ctx.update(7)
        manager.step([[ctx]], launched=False)
        for _ in range(10):
            await asyncio.sleep(0)
        assert not offloads(lines)
        manager.forward_launched([[ctx]])
        while manager.in_flight():
            await asyncio.sleep(0.001)
        assert len(offloads(lines)) == 1
    await manager.aclose()


def offloads(lines: list[str]) -> list[str]:
    return [line for line in lines if '"entry":"copy","stream":"offload' in line]
