"""Clients that send the traffic of a soak, and check every page that they rely on."""

import asyncio
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from random import Random

from pagedkv.conformance.clients import is_cancelled
from pagedkv.engine import PagedKVCacheManager
from pagedkv.reference.context import TextContext
from pagedkv.reference.errors import InsufficientBlocksError, ManagerClosedError
from pagedkv.reference.tokens import TokenBuffer
from pagedkv.soak.page_stamps import PageStamps, PrefixDigests
from pagedkv.soak.settings import PAGE_SIZE, SoakSettings
from pagedkv.soak.traffic import Prompt

PATIENCE_S = 30.0
"""How long a request waits for pages."""


@dataclass
class Tally:
    """What has become of requests, over all lives of the engine."""

    requests: Counter[str] = field(default_factory=Counter)
    """Finished, cancelled, refused."""
    pages_checked: int = 0
    """Pages whose bytes were compared."""
    alloc_ns: list[int] = field(default_factory=list)
    """Durations of the allocations since the last sample, in nanoseconds."""

    @property
    def ended(self) -> int:
        """Requests that have ended, whatever way."""
        return sum(self.requests.values())


class SoakClients:
    """The clients of one life of the engine.

    Args:
        manager: What serves them.
        settings: How many they are, and what they do.
        prompts: Where they get their requests from.
        tally: Counts them.
        rng: Decides on who gives up when.
    """

    def __init__(
        self,
        manager: PagedKVCacheManager,
        settings: SoakSettings,
        prompts: Iterator[Prompt],
        tally: Tally,
        rng: Random,
    ) -> None:
        self._manager, self._settings, self._prompts = manager, settings, prompts
        self._tally, self._rng = tally, rng
        self._replicas = len(manager.params.devices_per_replica)
        buffers = [manager.get_device_buffer(n) for n in range(self._replicas)]
        self._stamps = PageStamps(buffers, PAGE_SIZE)
        self._leaving = False
        self._may_go_on = asyncio.Event()
        self._may_go_on.set()

    async def serve(self) -> None:
        """Send requests until :meth:`leave`.

        Raises:
            Violation: A page holds wrong bytes.
        """
        await asyncio.gather(*(self._client() for _ in range(self._settings.clients)))

    def leave(self) -> None:
        """Send no more requests."""
        self._leaving = True
        self._may_go_on.set()

    def pause(self) -> None:
        """Send no more requests for a while."""
        self._may_go_on.clear()

    def go_on(self) -> None:
        """The while is over."""
        self._may_go_on.set()

    async def _client(self) -> None:
        with suppress(ManagerClosedError):
            while not self._leaving:
                await self._may_go_on.wait()
                served = asyncio.ensure_future(self._request(next(self._prompts)))
                if self._rng.random() < self._settings.cancel_share:
                    await asyncio.sleep(self._rng.random() / 50)
                    served.cancel()
                try:
                    await served
                    self._tally.requests["finished"] += 1
                except asyncio.CancelledError:
                    if is_cancelled():  # this client, not only its request
                        raise
                    self._tally.requests["cancelled"] += 1
                except InsufficientBlocksError:
                    self._tally.requests["refused"] += 1

    async def _request(self, prompt: Prompt) -> None:
        manager, replica = self._manager, self._rng.randrange(self._replicas)
        ctx = TextContext(
            max_length=len(prompt.tokens) + len(prompt.answer) + 1,
            tokens=TokenBuffer(prompt.tokens),
            request_id=prompt.name,
            cache_salt=prompt.tenant,
        )
        if self._rng.random() < self._settings.prefetch_share:
            manager.prefetch(ctx)
            await asyncio.sleep(self._rng.random() / 100)
        batches: list[list[TextContext]] = [[] for _ in range(self._replicas)]
        batches[replica] = [ctx]
        digests, known = PrefixDigests(ctx, PAGE_SIZE), list[int]()
        manager.claim(prompt.name, replica)
        try:
            for token in prompt.answer:
                begin_ns = time.perf_counter_ns()
                await manager.alloc(ctx, replica, wait_s=PATIENCE_S)
                self._tally.alloc_ns.append(time.perf_counter_ns() - begin_ns)
                known = self._forward(ctx, replica, batches, digests, known)
                ctx.update(token)
                manager.step(batches)
                await asyncio.sleep(0)
        finally:
            manager.release(prompt.name, replica)

    def _forward(
        self,
        ctx: TextContext,
        replica: int,
        batches: list[list[TextContext]],
        digests: PrefixDigests,
        known: list[int],
    ) -> list[int]:
        """Read what is cached, and write the rest; pages that are as they were are not read again.

        Returns:
            The page table, all of which is known to be right.
        """
        manager, name = self._manager, str(ctx.request_id)
        manager.runtime_inputs(batches)
        table = manager.get_req_blocks(name, replica)
        processed, end = ctx.tokens.processed_length, ctx.tokens.current_position
        for number in range(-(-processed // PAGE_SIZE)):
            if number >= len(known) or known[number] != table[number] or number == len(known) - 1:
                digest = digests.of_page(number, processed)
                self._stamps.check(replica, table[number], digest, name)
                self._tally.pages_checked += 1
        for number in range(processed // PAGE_SIZE, -(-end // PAGE_SIZE)):
            self._stamps.write(replica, table[number], digests.of_page(number, end))
        manager.forward_launched(batches)
        return table[: -(-end // PAGE_SIZE)]
