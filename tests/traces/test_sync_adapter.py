"""An asynchronous manager is replayed as a synchronous one is."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest
from tests.reference.conftest import Making

from pagedkv.implementations import reference_manager
from pagedkv.reference import AsyncKVCacheManager, Context, InsufficientBlocksError
from pagedkv.traces.manager_setup import ManagerSetup
from pagedkv.traces.replay import replay
from pagedkv.traces.sync_adapter import as_sync
from pagedkv.traces.workload import WorkloadRequest

SETUP = ManagerSetup(page_size=4, total_num_pages=8)


class AsyncReference:
    """The reference behind coroutines, which notices when it is called off its loop."""

    def __init__(self, setup: ManagerSetup) -> None:
        self.manager = reference_manager(setup)

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.manager, name)

        def on_the_loop(*args: Any) -> Any:
            asyncio.get_running_loop()
            return method(*args)

        return on_the_loop

    async def alloc(self, data: Context, replica_idx: int) -> None:
        await asyncio.sleep(0)
        self.manager.alloc(data, replica_idx)

    @asynccontextmanager
    async def reserve(self, replica_batches: Sequence[Sequence[Context]]) -> AsyncIterator[None]:
        with self.manager.reserve(replica_batches):
            yield

    async def shutdown(self) -> None:
        await asyncio.sleep(0)
        self.manager.shutdown()


def async_reference(setup: ManagerSetup) -> AsyncKVCacheManager:
    return cast("AsyncKVCacheManager", AsyncReference(setup))


def request(*ids: int) -> WorkloadRequest:
    return WorkloadRequest(arrival_ms=0, input_length=4 * len(ids), output_length=1, hash_ids=ids)


def test_both_kinds_replay_alike() -> None:
    requests = [request(1, 2, 3), request(1, 2, 4), request(5)]
    reports = [replay(requests, 4, f, SETUP) for f in (reference_manager, async_reference)]
    assert reports[0].hits_by_tier == reports[1].hits_by_tier
    assert (reports[0].pages_hit or 0) > 0


def test_errors_and_scopes_come_through() -> None:
    manager = as_sync(async_reference(SETUP))
    small, large = Making().context(range(9)), Making().context(range(1000))
    with manager.reserve([[small]]):
        assert len(manager.get_req_blocks(small.request_id, 0)) == 3
    with pytest.raises(InsufficientBlocksError), manager.reserve([[large]]):
        raise AssertionError("unreachable")
    assert manager.num_free_blocks() == 8
    manager.shutdown()
    manager.shutdown()


def test_a_synchronous_manager_stays_itself() -> None:
    manager = reference_manager(SETUP)
    assert as_sync(manager) is manager
