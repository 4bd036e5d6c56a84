"""Clients that use an asynchronous manager all at once, check every byte, and change their minds.

What one request may rely on does not depend on the others: whatever its pages are said to hold is
read back before each of its forwards. What the manager did in what order is for
:mod:`~pagedkv.conformance.validation` to judge, from the events it reports.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from random import Random
from typing import Any

import numpy as np

from pagedkv.conformance.forward_inputs import inputs_per_device
from pagedkv.conformance.slots import BufferSlots, slots_of, token_values
from pagedkv.conformance.violation import demand, expect
from pagedkv.reference.context import TextContext
from pagedkv.reference.errors import (
    InsufficientBlocksError,
    ManagerClosedError,
    ReplicaPoisonedError,
)
from pagedkv.reference.interfaces import AsyncKVCacheManager
from pagedkv.reference.tokens import TokenBuffer
from pagedkv.traces.manager_setup import ManagerSetup

NAMESPACE = "one model"
"""One for all, resets included: whether old content comes back is seen in the events."""

Launch = Callable[[int, Callable[[], None]], object]
"""Runs a forward on the devices of a replica, now or later."""


@dataclass
class Clients:
    """A number of clients with requests that share prefixes.

    A client whose manager is closed under it goes home.

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
    num_prompts: int | None = None
    """So many different prompts come again and again; ``None``: each is a new one."""
    cancel_share: float = 0.2
    """Share of the requests that are cancelled somewhere on their way."""
    cancel_after_s: tuple[float, ...] = (0, 0, 0.0005, 0.002)
    """How long after their start: one of these."""
    reset_share: float = 0.0
    """Share of the requests after which the prefix cache is reset."""
    prefetch: Callable[[TextContext], object] | None = None
    """Called for some requests before they are claimed."""
    patient_alloc: Callable[[TextContext, int], Awaitable[None]] | None = None
    """An ``alloc`` that waits for pages; otherwise clients try again and again."""
    launch: Launch | None = None
    """How forwards are launched; by default they run at once."""
    finished: int = 0
    """Requests that went their whole way."""
    cancelled: int = 0
    """Requests that were cancelled."""
    refused: int = 0
    """Requests for which there were no pages in time."""
    poisoned: int = 0
    """Requests whose device had failed."""

    async def run(self, clients: int, requests: int) -> None:
        """Let ``clients`` send ``requests`` each, one after the other."""
        buffers = [self.manager.get_device_buffer(n) for n in range(self.setup.replicas)]
        self._slots = BufferSlots(buffers)
        async with asyncio.TaskGroup() as group:
            for n in range(clients):
                group.create_task(self._client(Random(f"{self.seed} {n}"), f"client {n}", requests))

    async def _client(self, rng: Random, name: str, requests: int) -> None:
        with suppress(ManagerClosedError):
            await self._requests(rng, name, requests)

    async def _requests(self, rng: Random, name: str, requests: int) -> None:
        for n in range(requests):
            served = asyncio.ensure_future(self._request(rng, f"{name} request {n}"))
            if rng.random() < self.cancel_share:
                await asyncio.sleep(rng.choice(self.cancel_after_s))
                served.cancel()
            try:
                await served
                self.finished += 1
            except asyncio.CancelledError:
                self.cancelled += 1
            except InsufficientBlocksError:
                self.refused += 1
            except ReplicaPoisonedError:
                self.poisoned += 1
            if rng.random() < self.reset_share:
                self.manager.reset_prefix_cache()

    async def _request(self, rng: Random, name: str) -> None:
        manager, replica = self.manager, rng.randrange(self.setup.replicas)
        ctx = self._context(rng, name)
        if self.prefetch is not None and rng.random() < 0.3:
            self.prefetch(ctx)
            await asyncio.sleep(rng.random() / 200)
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
                manager.step(self._batches(ctx, replica))
        finally:
            manager.release(name, replica)

    async def _alloc(self, rng: Random, ctx: TextContext, replica: int) -> None:
        alloc: Callable[[TextContext, int], Awaitable[None]] = self.manager.alloc
        if self.patient_alloc is not None and rng.random() < 0.5:
            alloc = self.patient_alloc
        for patience in range(50):
            try:
                return await alloc(ctx, replica)
            except InsufficientBlocksError as error:
                if patience == 49 or not error.can_ever_fit:
                    raise
                await asyncio.sleep(rng.random() / 200)

    def _forward(self, ctx: TextContext, replica: int) -> None:
        """Ask for the inputs, and launch a forward that reads what is cached, writes the rest."""
        size, processed = self.setup.page_size, ctx.tokens.processed_length
        name, batches = ctx.request_id, self._batches(ctx, replica)
        inputs = self.manager.runtime_inputs(batches)
        pages = self.manager.get_req_blocks(name, replica)
        values = token_values(ctx, NAMESPACE, ctx.tokens.current_position)
        cached = slots_of(pages, size, values[:processed])
        active = slots_of(pages, size, values, processed)
        slots = self._slots

        def forward() -> None:
            self._check_tables(inputs, replica, pages)
            for ((page, offset), _), held in zip(cached, slots.hold(replica, cached), strict=True):
                demand(
                    "TIER-3",
                    held,
                    f"request {name!r} would read wrong bytes: slot {offset} of page {page} is "
                    "called cached, but does not hold its KV",
                )
            slots.write(replica, active)

        if self.launch is None:
            forward()
        else:
            self.launch(replica, forward)
        if callable(launched := getattr(self.manager, "forward_launched", None)):
            launched(batches)

    # Any: inputs of whatever class the manager has.
    def _check_tables(self, inputs: Any, replica: int, pages: list[int]) -> None:
        for number, device in enumerate(inputs_per_device(inputs)):
            if number // self.setup.shards % self.setup.replicas == replica:
                (row,) = device.lookup_table.tolist()
                expect("INPUT-4", row, pages[: len(row)], "the table that a forward finds")

    def _batches(self, ctx: TextContext, replica: int) -> list[list[TextContext]]:
        batches: list[list[TextContext]] = [[] for _ in range(self.setup.replicas)]
        batches[replica] = [ctx]
        return batches

    def _context(self, rng: Random, name: str) -> TextContext:
        """A prompt that departs from all zeros somewhere: some share much, and some little."""
        if self.num_prompts is not None:
            rng = Random(f"{self.seed} prompt {rng.randrange(self.num_prompts)}")
        length = rng.randrange(1, self.max_pages * self.setup.page_size + 1)
        tokens = np.zeros(length, dtype=np.int64)
        tokens[rng.randrange(length) :] = rng.randrange(4)
        salt = rng.choice((None, None, None, "tenant"))
        return TextContext(
            max_length=10_000, tokens=TokenBuffer(tokens), request_id=name, cache_salt=salt
        )
