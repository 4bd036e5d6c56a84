"""Why requests hit and missed: every block that was looked up is accounted for, in words, too."""

import asyncio
from collections.abc import Hashable
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import pytest
from tests.engine.conftest import Making, prompt, serve

from pagedkv.conformance.clients import Clients
from pagedkv.engine import PagedKVCacheManager
from pagedkv.engine.observability.explainer import Explainer, NotExplainedError
from pagedkv.engine.observability.explanation import BlockRun, Explanation, duration
from pagedkv.engine.planner.state import AllocPlan, Request
from pagedkv.reference import KVLoadFailed


async def drained(manager: PagedKVCacheManager) -> None:
    while manager.in_flight():
        await asyncio.sleep(0.001)


async def serve_alone(
    manager: PagedKVCacheManager, make: Making, name: str, start: int, pages: int
) -> None:
    await serve(manager, make.request(prompt(pages, start), name))
    await drained(manager)


def explained(manager: PagedKVCacheManager) -> Explainer:
    explainer = Explainer()
    manager.attach(explainer)
    return explainer


def told(explanation: Explanation) -> list[str]:
    """Its lines, without times."""
    lines = str(explanation).splitlines()[1:]
    return [line.strip().partition(" (")[0] for line in lines]


async def test_first_request_was_never_seen_and_second_hits_the_device(make: Making) -> None:
    manager = make.engine()
    explainer = explained(manager)
    await serve_alone(manager, make, "first", 0, 2)
    await serve_alone(manager, make, "second", 0, 5)
    assert told(explainer.explain("first")) == ["blocks 0-1: never seen"]
    assert told(explainer.explain("second")) == ["blocks 0-1: device", "blocks 2-4: never seen"]
    assert explainer.explain("second").hit_blocks == 2
    await manager.aclose()


async def test_live_request_can_be_asked_about(make: Making) -> None:
    manager = make.engine()
    explainer = explained(manager)
    async with manager.admit(make.request(prompt(2), "r")):
        explanation = explainer.explain("r")
        assert not explanation.released
        assert explanation.total_s is not None
    assert explainer.explain("r").released
    await manager.aclose()


async def test_load_is_told_with_its_time_and_who_joined_it(make: Making) -> None:
    manager = make.engine(host_pages=20)
    explainer = explained(manager)
    await serve_alone(manager, make, "first", 0, 2)
    await serve_alone(manager, make, "fills the device", 100, 15)
    await asyncio.gather(*(serve(manager, make.request(prompt(2), n)) for n in ("a", "b")))
    (loaded,), (joined,) = explainer.explain("a").runs, explainer.explain("b").runs
    assert (loaded.tier, loaded.joined, joined.tier, joined.joined) == ("host", False, "host", True)
    assert loaded.load_s is not None
    assert loaded.load_s > 0
    assert joined.load_s == loaded.load_s
    assert "host (loaded in " in str(loaded)
    assert "host (joined a load of " in str(joined)
    await manager.aclose()


async def test_evicted_block_names_the_tier_that_lost_it_and_when(make: Making) -> None:
    manager = make.engine(host_pages=8)
    explainer = explained(manager)
    await serve_alone(manager, make, "first", 0, 2)
    await serve_alone(manager, make, "more", 100, 15)
    await serve_alone(manager, make, "again", 0, 2)
    (run,) = explainer.explain("again").runs
    assert (run.outcome, run.reason, run.first, run.last) == ("missed", "evicted", 0, 1)
    assert run.tier in ("device", "host")
    assert run.lost_s_ago is not None
    assert run.lost_s_ago > 0
    assert f"evicted from {run.tier} " in str(run)
    await manager.aclose()


async def test_block_that_was_not_stored_says_so(make: Making) -> None:
    manager = make.engine(host_pages=1)
    explainer = explained(manager)
    await serve_alone(manager, make, "first", 0, 2)
    await serve_alone(manager, make, "more", 100, 15)
    await serve_alone(manager, make, "again", 0, 2)
    assert "left the device" in str(explainer.explain("again").runs[-1])
    await manager.aclose()


async def test_disk_is_told_apart_from_host(make: Making, tmp_path: Path) -> None:
    manager = make.engine(host_pages=4, disk_pages=40, disk_dir=tmp_path)
    explainer = explained(manager)
    await serve_alone(manager, make, "first", 0, 2)
    await serve_alone(manager, make, "more", 100, 15)
    await serve_alone(manager, make, "again", 0, 2)
    assert [run.tier for run in explainer.explain("again").runs] == ["disk"]
    await manager.aclose()


async def test_failed_load_is_told_as_the_reason_of_the_miss(make: Making) -> None:
    manager = make.engine(host_pages=20, auto_land=False)
    explainer = explained(manager)
    for name, start, pages in (("first", 0, 2), ("more", 100, 15)):
        await serve(manager, make.request(prompt(pages, start), name))
        for transfer in manager.in_flight():
            await manager.land(transfer.id)
    again = make.request(prompt(2), "again")
    manager.claim("again", 0)
    manager.begin_alloc(again, 0)
    manager.fail(manager.in_flight()[0].id, "corrupt")
    with pytest.raises(KVLoadFailed):
        manager.finish_alloc(again, 0)
    await manager.alloc(again, 0)
    explanation = explainer.explain("again")
    assert explanation.plans == 2
    assert [run.reason for run in explanation.runs] == ["failed"]
    assert "its load failed, or it was damaged on host" in str(explanation)
    await manager.aclose()


async def test_block_behind_a_gap_is_told_where_it_is(make: Making) -> None:
    manager = make.engine(total_num_pages=6, host_pages=20, auto_land=False)
    explainer = explained(manager)
    for name, start, pages in (("first", 0, 3), ("more", 100, 5)):
        await serve(manager, make.request(prompt(pages, start), name))
        for transfer in manager.in_flight():
            await manager.land(transfer.id)
    again = make.request(prompt(3), "again")
    manager.claim("again", 0)
    plan = manager.begin_alloc(again, 0)
    (load,) = manager.in_flight()
    manager.fail(plan.transfers[0], "corrupt", [load.keys[1]])
    with pytest.raises(KVLoadFailed):
        manager.finish_alloc(again, 0)
    manager.begin_alloc(again, 0)
    outcomes = [(run.outcome, run.tier, run.reason) for run in explainer.explain("again").runs]
    assert outcomes == [
        ("hit", "host", None),
        ("missed", "host", "failed"),
        ("behind_gap", "host", None),
    ]
    await manager.aclose()


async def test_reset_is_told_as_the_reason(make: Making) -> None:
    manager = make.engine()
    explainer = explained(manager)
    await serve_alone(manager, make, "before", 0, 2)
    manager.reset_prefix_cache()
    await serve_alone(manager, make, "after", 0, 2)
    assert [run.reason for run in explainer.explain("after").runs] == ["other_namespace"]
    await manager.aclose()


async def test_growing_request_keeps_its_explanation(make: Making) -> None:
    manager = make.engine()
    explainer = explained(manager)
    await serve_alone(manager, make, "first", 0, 2)
    ctx = make.request(prompt(3), "grows")
    async with manager.admit(ctx):
        before = explainer.explain("grows").runs
        for token in range(9):
            manager.runtime_inputs([[ctx]])
            ctx.update(token)
            manager.step([[ctx]])
            await manager.alloc(ctx, 0)
        assert explainer.explain("grows").runs == before
    await manager.aclose()


async def test_chunked_prompt_keeps_its_explanation(make: Making) -> None:
    manager = make.engine()
    explainer = explained(manager)
    ctx = make.request(prompt(6), "chunked")
    ctx.tokens.chunk(12)
    manager.claim("chunked", 0)
    await manager.alloc(ctx, 0)
    before = explainer.explain("chunked").runs
    manager.runtime_inputs([[ctx]])
    ctx.update(1)
    manager.step([[ctx]])
    await manager.alloc(ctx, 0)
    assert explainer.explain("chunked").runs == before
    await manager.aclose()


async def test_only_the_latest_released_requests_are_remembered(make: Making) -> None:
    manager = make.engine()
    explainer = Explainer(keep=2)
    manager.attach(explainer)
    for n in range(4):
        await serve_alone(manager, make, f"r{n}", 20 * n, 1)
    explainer.explain("r2")
    explainer.explain("r3")
    with pytest.raises(NotExplainedError, match=r"'r1'.*keep"):
        explainer.explain("r1")
    await manager.aclose()


async def test_detached_explainer_still_answers(make: Making) -> None:
    manager = make.engine()
    explainer = explained(manager)
    await serve_alone(manager, make, "r", 0, 2)
    manager.detach(explainer)
    await serve_alone(manager, make, "later", 0, 2)
    assert explainer.explain("r").looked_up_blocks == 2
    with pytest.raises(NotExplainedError):
        explainer.explain("later")
    await manager.aclose()


class Compared(Explainer):
    """Compares every explanation with the plan that it is made from."""

    compared = 0

    def alloc_planned(self, request_id: Hashable, request: Request, plan: AllocPlan) -> None:
        super().alloc_planned(request_id, request, plan)
        if request.admitted and not plan.found:
            return
        self.compared += 1
        runs = self.explain(request_id).runs
        assert all(run.first <= run.last for run in runs)
        assert all(before.last < after.first for before, after in pairwise(runs))
        if not request.admitted:
            assert sum(run.last - run.first + 1 for run in runs) == plan.looked_up
        new = [run for run in runs if run.first >= request.committed]
        for tier in ("device", "peer", "host", "disk"):
            blocks = sum(r.last - r.first + 1 for r in new if (r.outcome, r.tier) == ("hit", tier))
            assert blocks == getattr(plan.hits, f"{tier}_blocks")
        if not request.admitted and runs and not request.looked_up:
            missed = sum(r.last - r.first + 1 for r in new if r.outcome == "missed")
            assert missed == sum(plan.misses.values())


@pytest.mark.parametrize("seed", range(8))
async def test_explanations_agree_with_the_plans(make: Making, seed: int, tmp_path: Path) -> None:
    rng = Random(seed)
    fields: dict[str, Any] = {
        "total_num_pages": rng.choice((8, 12, 20)),
        "replicas": rng.choice((1, 2)),
        "host_pages": rng.choice((4, 10, 30)),
        "disk_pages": rng.choice((6, 40)),
        "disk_dir": tmp_path,
    }
    manager, explainer = make.engine(**fields), Compared()
    manager.attach(explainer)
    clients = Clients(manager, make.setup(**fields), seed, cancel_share=0.2, num_prompts=4)
    await clients.run(clients=6, requests=12)
    await drained(manager)
    assert explainer.compared
    assert not explainer._loads, "what nobody waits for any more must not be kept"
    await manager.aclose()


def test_explanation_reads_like_a_sentence() -> None:
    runs = (
        BlockRun(0, 31, "hit", "device"),
        BlockRun(32, 40, "hit", "disk", load_s=0.012),
        BlockRun(41, 41, "missed", "host", "evicted", lost_s_ago=3.2),
        BlockRun(42, 42, "behind_gap", "device"),
        BlockRun(43, 44, "not_used", "disk", "too_slow"),
        BlockRun(45, 63, "missed", None, "never_seen"),
    )
    explanation = Explanation("r7", 0, runs, plans=2, queue_s=0.25, total_s=0.3)
    assert str(explanation).splitlines() == [
        "r7 on replica 0: 41 of 64 blocks hit, admitted in 300 ms, 250 ms of it in line for pages, "
        "planned 2 times",
        "  blocks 0-31: device",
        "  blocks 32-40: disk (loaded in 12 ms)",
        "  block 41: evicted from host 3.2 s ago",
        "  block 42: device, but behind a gap",
        "  blocks 43-44: disk, but too slow to wait for",
        "  blocks 45-63: never seen",
    ]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(3.21, "3.2 s"), (1234.0, "1,234 s"), (0.0123, "12 ms"), (0.0015, "1.5 ms"), (4e-6, "4.0 µs")],
)
def test_durations_have_the_unit_that_suits_them(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize("arguments", [{"keep": -1}, {"keep_losses": -1}])
def test_negative_limits_are_refused(arguments: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="neither may be negative"):
        Explainer(**arguments)
