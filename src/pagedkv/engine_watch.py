"""Whether an engine serves whoever can be served, and nobody who cannot, looked at from outside."""

import asyncio
from collections.abc import Hashable, Iterator
from contextlib import contextmanager

from pagedkv.engine import PagedKVCacheManager
from pagedkv.engine.planner import allocation
from pagedkv.engine.streams.simulated import SimulatedStreams
from pagedkv.reference.context import Context
from pagedkv.reference.errors import ReplicaPoisonedError

LOOK_S = 0.01
"""How often somebody looks: long enough for what is due at once to be done in between."""


class EngineWatch:
    """Knows who waits for pages, and looks at them now and then.

    Args:
        manager: The engine.
        streams: Its streams, which know what devices have failed.
    """

    def __init__(self, manager: PagedKVCacheManager, streams: SimulatedStreams) -> None:
        self._manager, self._streams = manager, streams
        self._line: list[list[Context]] = [[] for _ in manager.params.devices_per_replica]

    @contextmanager
    def waiting(self, ctx: Context, replica: int) -> Iterator[None]:
        """Somebody waits for pages until the end of the scope."""
        self._line[replica].append(ctx)
        try:
            yield
        finally:
            self._line[replica].remove(ctx)

    async def watch(self) -> None:
        """Look now and then, until this is cancelled.

        Raises:
            AssertionError: Somebody waits for nothing, a replica was given up although its devices
                work, or takes a request although one has failed.
        """
        before: list[list[Hashable]] = [[] for _ in self._line]
        while not self._manager._closed:
            self._look_at_devices()
            now = [self._all_fit(replica) for replica in range(len(self._line))]
            for waited, waits in zip(before, now, strict=True):
                assert not waits or waits != waited, f"{waits} wait for pages that are there"
            before = now
            await asyncio.sleep(LOOK_S)

    def _all_fit(self, replica: int) -> list[Hashable]:
        """Who stands in line, if there is nothing to wait for, whoever stands first.

        That may be any of them: who has been served, and whose load has failed, comes again.
        """
        state = self._manager._state
        if state.in_flight or replica in {**state.failing, **state.poisoned}:
            return []
        waits: list[Hashable] = []
        for ctx in self._line[replica]:
            request = state.requests.get(ctx.request_id)
            if request is None or request.pages:
                continue
            if request.plan is not None:
                return []
            lacking = allocation.refusal(state, ctx, replica)
            if lacking.needed > lacking.free:
                return []
            waits.append(ctx.request_id)
        return waits

    def _look_at_devices(self) -> None:
        state, shards = self._manager._state, self._manager.params.tensor_parallel_degree
        for replica in {**state.failing, **state.poisoned}:
            devices = range(replica * shards, (replica + 1) * shards)
            failed = [device for device in devices if device in self._streams.failures]
            assert failed, f"replica {replica} is given up, but its devices {devices} work"
            try:
                self._manager.claim("comes too late", replica)
            except ReplicaPoisonedError:
                continue
            raise AssertionError(f"replica {replica}, whose device has failed, takes a request")
