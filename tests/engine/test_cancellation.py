"""Whatever waits can be cancelled at any moment, and nothing stays behind.

Each scenario is run again and again, cancelled one turn of the loop later every time, until it gets
to its end.
"""

import asyncio
import threading
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from tests.engine.stage import SIZE, TIERED, Act, Stage, staged

from pagedkv.conformance.validation import Divergence, validate
from pagedkv.engine import PagedKVCacheManager
from pagedkv.engine.disk.errors import DirectoryInUseError
from pagedkv.engine.disk.files import RealFiles
from pagedkv.engine.simulated import clock
from pagedkv.engine.simulated.disk import DiskFaults
from pagedkv.reference import InsufficientBlocksError
from pagedkv.reference.events import Cleaned
from pagedkv.specification import reference_specification
from pagedkv.traces.manager_setup import ManagerSetup

PATIENCE_S = 100
"""Seconds of made-up time after which a scenario counts as stuck."""


async def cancelled_at(turn: int, prepare: Act, act: Act, fields: dict[str, Any]) -> bool:
    """Cancel ``act`` so many turns after its beginning; whether it had come to its end."""
    async with staged(**fields) as stage:
        await prepare(stage)
        loop = asyncio.get_running_loop()
        assert isinstance(loop, clock.VirtualClockLoop)
        task = asyncio.ensure_future(act(stage))
        loop.at_turn(loop.turns + turn, task.cancel)
        await asyncio.wait([task])
        if not task.cancelled():
            task.result()
        await nothing_stays_behind(stage)
        return not task.cancelled()


async def nothing_stays_behind(stage: Stage) -> None:
    manager, setup = stage.manager, stage.setup
    for replica in range(setup.replicas):
        for name in ("a", "b", "c"):
            if manager.contains(name, replica):
                manager.release(name, replica)
    await stage.settled()
    for replica in range(setup.replicas):
        left = manager.statistics(replica)
        assert (left.held, left.pinned) == (0, 0)
        await stage.serve(stage.request("again"), replica, wait_s=60)
        await stage.serve(stage.request("other", start=500), replica, wait_s=60)
    await manager.aclose()
    found = validate(setup.run_setup(), stage.events, reference_specification)
    assert not isinstance(found, Divergence), str(found)


def cancelled_everywhere(act: Act, prepare: Act | None = None, **fields: Any) -> int:
    """How many turns ``act`` takes; it was cancelled at each of them."""

    async def nothing(stage: Stage) -> None:
        pass

    return next(
        turn for turn in count() if clock.run(cancelled_at(turn, prepare or nothing, act, fields))
    )


def served(*starts: int, replica: int = 0) -> Act:
    """Serve requests with these first tokens."""

    async def prepare(stage: Stage) -> None:
        for start in starts:
            await stage.serve(stage.request(f"before {start}", start=start), replica)

    return prepare


def alloc(replica: int = 0, hits: str | None = None, **options: Any) -> Act:
    """Claim and allocate ``a``, and see that it hits where it should."""

    async def act(stage: Stage) -> None:
        ctx = stage.request("a")
        stage.manager.claim("a", replica)
        await stage.manager.alloc(ctx, replica, **options)
        if hits is not None:
            metrics = stage.manager.get_metrics_aggregated()
            assert getattr(metrics, f"{hits}_blocks_served") > 0
        stage.forward(ctx, replica)

    return act


def test_alloc_that_loads_from_host() -> None:
    assert cancelled_everywhere(alloc(hits="host"), served(0, 500), host_pages=12) > 3


def test_alloc_that_loads_from_disk() -> None:
    assert cancelled_everywhere(alloc(hits="disk"), served(0, 500), **TIERED) > 3


def test_alloc_that_loads_from_a_peer() -> None:
    assert cancelled_everywhere(alloc(1, hits="peer"), served(0), replicas=2) > 3


@pytest.mark.parametrize("policy", ["timeout", "best_effort"])
def test_alloc_that_does_not_wait_for_a_slow_disk(policy: str) -> None:
    fields: dict[str, Any] = {**TIERED, "slow_tier_policy": policy, "slow_tier_timeout_s": 0.003}
    # Room for the pages of the load that goes on, and for those of the request.
    fields |= {"total_num_pages": 8, "faults": DiskFaults(delay_s=0.1)}
    assert cancelled_everywhere(alloc(), served(0, 500, 900, 1300), **fields) >= 0


def test_who_waits_for_pages_also_waits_for_those_of_a_load_that_it_has_given_up() -> None:
    # The replica has no more pages than the request needs, and the load that takes too long pins
    # three of them until it lands.
    fields: dict[str, Any] = {**TIERED, "slow_tier_policy": "timeout", "slow_tier_timeout_s": 0.003}
    fields |= {"faults": DiskFaults(delay_s=0.1)}
    assert cancelled_everywhere(alloc(wait_s=60), served(0, 500), **fields) > 3


def test_alloc_whose_load_fails() -> None:
    async def broken(stage: Stage) -> None:
        await served(0, 500)(stage)
        assert stage.disk is not None
        stage.disk.faults.read_errors = 1.0

    assert cancelled_everywhere(alloc(), broken, **TIERED) > 3


def test_alloc_that_cleans_dirty_pages() -> None:
    fields: dict[str, Any] = {**TIERED, "write_policy": "write_back"}
    assert cancelled_everywhere(alloc(), served(500), **fields) > 3


def test_alloc_that_joins_a_load_which_goes_on() -> None:
    async def act(stage: Stage) -> None:
        first, second = stage.request("a"), stage.request("b")
        stage.manager.claim("a", 0)
        stage.manager.claim("b", 0)
        other = asyncio.create_task(stage.manager.alloc(second, 0))
        try:
            await stage.manager.alloc(first, 0)
        finally:
            await other
            stage.forward(second)

    assert cancelled_everywhere(act, served(0, 500), host_pages=12, total_num_pages=6) > 3


def test_alloc_that_waits_for_pages() -> None:
    async def act(stage: Stage) -> None:
        async with stage.manager.admit(stage.request("b", start=500)):
            waits = asyncio.ensure_future(alloc(wait_s=60)(stage))
            try:
                await asyncio.sleep(0.002)
            except asyncio.CancelledError:
                waits.cancel()
                raise
        await waits

    async def waiter(stage: Stage) -> None:
        """Here it is the one in line who is cancelled."""
        held = asyncio.create_task(holds_for_a_while(stage))
        await asyncio.sleep(0)
        try:
            await alloc(wait_s=60)(stage)
        finally:
            await held

    async def holds_for_a_while(stage: Stage) -> None:
        async with stage.manager.admit(stage.request("b", start=500)):
            await asyncio.sleep(0.002)

    assert cancelled_everywhere(act) > 3
    assert cancelled_everywhere(waiter) > 3


def test_who_leaves_the_line_lets_the_next_one_in() -> None:
    async def scenario() -> None:
        async with staged() as stage:
            async with stage.manager.admit(stage.request("running", pages=2)):
                stage.manager.claim("a", 0)
                large = asyncio.create_task(stage.manager.alloc(stage.request("a"), 0, wait_s=1))
                await asyncio.sleep(0.1)
                small = stage.request("b", pages=0, start=500)
                await asyncio.wait_for(stage.serve(small, wait_s=60), PATIENCE_S / 2)
                with pytest.raises(InsufficientBlocksError):
                    await large
                stage.manager.release("a", 0)
            await stage.manager.aclose()

    clock.run(scenario())


def test_a_scope_of_admit() -> None:
    async def act(stage: Stage) -> None:
        ctx = stage.request("a")
        async with stage.manager.admit(ctx, wait_s=1):
            stage.forward(ctx)
            await asyncio.sleep(0.001)
        assert not stage.manager.contains("a", 0)

    assert cancelled_everywhere(act, served(0, 500), **TIERED) > 3


def test_a_cancelled_admit_releases_by_itself() -> None:
    async def scenario() -> None:
        async with staged(**TIERED) as stage:
            await served(0, 500)(stage)
            task = asyncio.create_task(stage.serve(stage.request("a")))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
            assert task.cancelled()
            assert not stage.manager.contains("a", 0)
            await stage.manager.aclose()

    clock.run(scenario())


def test_a_reservation() -> None:
    async def act(stage: Stage) -> None:
        contexts = [stage.request("a"), stage.request("b", start=500)]
        before = [ctx.tokens.processed_length for ctx in contexts]
        try:
            async with stage.manager.reserve([contexts]):
                await asyncio.sleep(0.001)
        finally:
            assert [ctx.tokens.processed_length for ctx in contexts] == before
            assert not any(stage.manager.contains(name, 0) for name in "ab")

    fields: dict[str, Any] = {**TIERED, "total_num_pages": 8}
    assert cancelled_everywhere(act, served(0, 500, 900), **fields) > 3


def test_a_flush() -> None:
    async def act(stage: Stage) -> None:
        await stage.manager.flush()

    assert cancelled_everywhere(act, served(0), **TIERED) > 0


@pytest.mark.parametrize("policy", ["through", "write_back"])
def test_a_shutdown_that_is_cancelled_writes_everything_all_the_same(policy: str) -> None:
    async def cancelled(turn: int) -> bool:
        fields: dict[str, Any] = {**TIERED, "write_policy": policy}
        async with staged(**fields) as stage:
            async with stage.manager.admit(ctx := stage.request("a")):
                stage.forward(ctx)
            loop = asyncio.get_running_loop()
            assert isinstance(loop, clock.VirtualClockLoop)
            closing = asyncio.ensure_future(stage.manager.aclose())
            loop.at_turn(loop.turns + turn, closing.cancel)
            await asyncio.wait([closing])
            if turn == 0:
                await stage.manager.aclose()  # the first one had not even begun
            assert stage.disk is not None
            assert len(stage.disk.restarted().survivors) == 3
            found = validate(stage.setup.run_setup(), stage.events, reference_specification)
            assert not isinstance(found, Divergence), str(found)
            return not closing.cancelled()

    assert next(turn for turn in count() if clock.run(cancelled(turn))) > 3


def test_a_shutdown_writes_leaves_before_their_roots() -> None:
    async def scenario() -> None:
        async with staged(**TIERED, write_policy="write_back") as stage:
            ctx = stage.request("a")
            stage.manager.claim("a", 0)
            await stage.manager.alloc(ctx, 0)
            stage.forward(ctx)
            pages = stage.manager.get_req_blocks("a", 0)
            await stage.manager.aclose()
            cleaned = [event.pages for event in stage.events if isinstance(event, Cleaned)]
            assert cleaned == [(page,) for page in reversed(pages[:3])]

    clock.run(scenario())


def test_whoever_closes_second_returns_when_all_is_written() -> None:
    async def scenario() -> None:
        async with staged(**TIERED) as stage:
            async with stage.manager.admit(ctx := stage.request("a")):
                stage.forward(ctx)
            first = asyncio.create_task(stage.manager.aclose())
            await asyncio.sleep(0)
            await stage.manager.aclose()
            assert stage.disk is not None
            assert len(stage.disk.restarted().survivors) == 3
            await first

    clock.run(scenario())


class SlowFiles(RealFiles):
    """Files of which the first is opened when somebody says so."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self.go_on = threading.Event()

    def open(self, path: Path, flags: int) -> int:
        """See :class:`Files`."""
        self.reached.set()
        self.go_on.wait()
        return super().open(path, flags)


async def test_a_cancelled_opening_gives_the_directory_back(tmp_path: Path) -> None:
    fields: dict[str, Any] = {
        **TIERED,
        "page_size": SIZE,
        "total_num_pages": 4,
        "max_batch_size": 4,
    }
    fields["disk_dir"] = tmp_path
    setup = ManagerSetup(**fields)
    files = SlowFiles()

    async def opened(files: RealFiles) -> None:
        async with PagedKVCacheManager.open(
            setup.params(), setup.session(), 4, 3, max_batch_size=4, files=files
        ):
            pass

    opening = asyncio.create_task(opened(files))
    await asyncio.to_thread(files.reached.wait)
    opening.cancel()
    await asyncio.sleep(0)
    files.go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await opening
    try:
        await opened(RealFiles())
    except DirectoryInUseError as error:
        pytest.fail(str(error))
