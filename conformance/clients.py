"""Clients that use an asynchronous manager all at once, check every byte, and change their minds.

What one request may rely on does not depend on the others: whatever its pages are said to hold is
read back before each of its forwards. What the manager did in what order is for
:mod:`~pagedkv.conformance.validation` to judge, from the events it reports.
"""

import asyncio
from dataclasses import dataclass
from random import Random

import numpy as np

from pagedkv.conformance.slots import BufferSlots, check_cached, slots_of, token_values
from pagedkv.reference.context import TextContext
from pagedkv.reference.errors import InsufficientBlocksError
from pagedkv.reference.interfaces import AsyncKVCacheManager
from pagedkv.reference.tokens import TokenBuffer
from pagedkv.traces.manager_setup import ManagerSetup

NAMESPACE = "one model"
"""One for all, resets included: whether old content comes back is seen in the events."""


@dataclass
class Clients:
    """A number of clients with requests that share prefixes.

    Raises:
        Violation: A request would have read wrong bytes.
    """

    manager: AsyncKVCacheManager
    """What serves them."""
    setup: ManagerSetup
    """How it was set up."""
    seed: int
    """Decides on the requests, and on who gives up when."""
    max_pages: int = 6
    """Most full pages of a prompt."""
    cancel_share: float = 0.2
    """Share of the requests that are cancelled somewhere on their way."""
    reset_share: float = 0.0
    """Share of the requests after which the prefix cache is reset."""
    finished: int = 0
    """Requests that went their whole way."""
    cancelled: int = 0
    """Requests that were cancelled."""
    refused: int = 0
    """Requests for which there were no pages in time."""

    async def run(self, clients: int, requests: int) -> None:
        """Let ``clients`` send ``requests`` each, one after the other."""
        buffers = [self.manager.get_device_buffer(n) for n in range(self.setup.replicas)]
        self._slots = BufferSlots(buffers)
        async with asyncio.TaskGroup() as group:
            for n in range(clients):
                group.create_task(self._client(Random(f"{self.seed} {n}"), f"client {n}", requests))

    async def _client(self, rng: Random, name: str, requests: int) -> None:
        for n in range(requests):
            served = asyncio.ensure_future(self._request(rng, f"{name} request {n}"))
            if rng.random() < self.cancel_share:
                await asyncio.sleep(rng.choice((0, 0, 0.0005, 0.002)))
                served.cancel()
            try:
                await served
                self.finished += 1
            except asyncio.CancelledError:
                self.cancelled += 1
            except InsufficientBlocksError:
                self.refused += 1
            if rng.random() < self.reset_share:
                self.manager.reset_prefix_cache()

    async def _request(self, rng: Random, name: str) -> None:
        manager, replica = self.manager, rng.randrange(self.setup.replicas)
        ctx = self._context(rng, name)
        manager.claim(name, replica)
        try:
            if rng.random() < 0.3 and ctx.tokens.active_length > 1:
                ctx.chunk(rng.randrange(1, ctx.tokens.active_length))
            for _ in range(rng.randrange(1, 4)):
                await self._alloc(rng, ctx, replica)
                self._forward(ctx, replica)
                ctx.update(rng.randrange(3))
                if rng.random() < 0.5:
                    await asyncio.sleep(0)
                batches: list[list[TextContext]] = [[] for _ in range(self.setup.replicas)]
                batches[replica] = [ctx]
                manager.step(batches)
        finally:
            manager.release(name, replica)

    async def _alloc(self, rng: Random, ctx: TextContext, replica: int) -> None:
        for patience in range(50):
            try:
                return await self.manager.alloc(ctx, replica)
            except InsufficientBlocksError as error:
                if patience == 49 or not error.can_ever_fit:
                    raise
                await asyncio.sleep(rng.random() / 200)

    def _forward(self, ctx: TextContext, replica: int) -> None:
        """Ask for the inputs, read what is cached, write what is active."""
        size = self.setup.page_size
        batches: list[list[TextContext]] = [[] for _ in range(self.setup.replicas)]
        batches[replica] = [ctx]
        self.manager.runtime_inputs(batches)
        pages = self.manager.get_req_blocks(ctx.request_id, replica)
        check_cached(self._slots, ctx, NAMESPACE, replica, pages, size)
        values = token_values(ctx, NAMESPACE, ctx.tokens.current_position)
        active = slots_of(pages, size, values, ctx.tokens.processed_length)
        self._slots.write(replica, active)
        if callable(launched := getattr(self.manager, "forward_launched", None)):
            launched(batches)

    def _context(self, rng: Random, name: str) -> TextContext:
        """A prompt that departs from all zeros somewhere: some share much, and some little."""
        length = rng.randrange(1, self.max_pages * self.setup.page_size + 1)
        tokens = np.zeros(length, dtype=np.int64)
        tokens[rng.randrange(length) :] = rng.randrange(4)
        salt = rng.choice((None, None, None, "tenant"))
        return TextContext(
            max_length=10_000, tokens=TokenBuffer(tokens), request_id=name, cache_salt=salt
        )
