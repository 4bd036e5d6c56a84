"""Clients that use an asynchronous manager all at once, check every byte, and change their minds.

What one request may rely on does not depend on the others: whatever its pages are said to hold is
read back before each of its forwards. What the manager did in what order is for
:mod:`~pagedkv.conformance.validation` to judge, from the events it reports.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from random import Random

import numpy as np

from pagedkv.conformance.batching import Batching
from pagedkv.conformance.forwards import Forwards, Launch, Row
from pagedkv.conformance.violation import expect
from pagedkv.reference.context import TextContext
from pagedkv.reference.errors import (
    InsufficientBlocksError,
    ManagerClosedError,
    ReplicaPoisonedError,
    UnknownRequestError,
)
from pagedkv.reference.interfaces import AsyncKVCacheManager
from pagedkv.reference.lengths import required_pages
from pagedkv.reference.tokens import TokenBuffer
from pagedkv.traces.manager_setup import ManagerSetup

Alloc = Callable[[TextContext, int], Awaitable[None]]
"""Gives a request its pages."""


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
    withdraw_share: float = 0.0
    """Share of the other requests that somebody else releases, after as long a time."""
    reset_share: float = 0.0
    """Share of the requests after which the prefix cache is reset."""
    prefetch: Callable[[TextContext], object] | None = None
    """Called for some requests before they are claimed."""
    prefetch_share: float = 0.3
    """How many they are."""
    chunk_share: float = 0.3
    """Share of the requests whose prompt is computed in chunks."""
    preempt_share: float = 0.0
    """Share of the requests that are preempted once, and admitted again."""
    patient_alloc: Alloc | None = None
    """An ``alloc`` that waits for pages; otherwise clients try again and again."""
    patient_share: float = 0.5
    """Share of the allocations that are made with it."""
    again_share: float = 0.0
    """Share of the allocations that are made twice, and the second time find everything there."""
    interrupt_share: float = 0.0
    """Share of the allocations that are cancelled, and made again: nothing may have changed."""
    nap_share: float = 0.0
    """Share of the steps before and after which a request sleeps a while, holding its pages."""
    launch: Launch | None = None
    """How forwards are launched; by default they run at once."""
    batches: bool = False
    """Whether a forward is made for all requests that are ready, or one for each."""
    steps_first_share: float = 0.0
    """Share of those for all that are launched after their step."""
    pads: bool = False
    """Whether in those for all a replica without requests gets a dummy."""
    claimed: dict[str, tuple[TextContext, int]] = field(default_factory=dict)
    """Requests that are being served, and on which replica."""
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
        await self.send([range(requests)] * clients)

    async def send(self, requests: Sequence[Sequence[int]]) -> None:
        """Let each client send the requests of these numbers, one after the other.

        What a request is and does follows from its number, and its client's, whatever others are.
        """
        self._params = self.setup.params()
        self._forwards = Forwards(self.manager, self.setup, self.launch)
        self._batching = Batching(
            self._forwards,
            Random(f"{self.seed} batches"),
            steps_first=self.steps_first_share,
            pads=self.pads,
        )
        clients = [
            asyncio.create_task(self._client(f"client {n}", numbers))
            for n, numbers in enumerate(requests)
        ]
        try:
            await asyncio.gather(*clients)
        finally:
            # In their order, which a task group does not keep: a run can be had again.
            for client in clients:
                client.cancel()
            self._batching.close()

    async def _client(self, name: str, numbers: Sequence[int]) -> None:
        with suppress(ManagerClosedError):
            await self._requests(f"{name} request {n}" for n in numbers)

    async def _requests(self, names: Iterable[str]) -> None:
        for name in names:
            served = asyncio.ensure_future(self._request(Random(f"{self.seed} {name}"), name))
            rng = Random(f"{self.seed} {name} is cancelled")
            withdrawn = False
            if rng.random() < self.cancel_share:
                await asyncio.sleep(rng.choice(self.cancel_after_s))
                served.cancel()
            elif rng.random() < self.withdraw_share:
                await asyncio.sleep(rng.choice(self.cancel_after_s))
                with suppress(ManagerClosedError):
                    withdrawn = self._withdraw(name)
            try:
                await served
                self.finished += 1
            except asyncio.CancelledError:
                if is_cancelled():  # this client, not only its request
                    raise
                self.cancelled += 1
            except UnknownRequestError:
                if not withdrawn:
                    raise
                self.cancelled += 1
            except InsufficientBlocksError:
                self.refused += 1
            except ReplicaPoisonedError:
                self.poisoned += 1
            if rng.random() < self.reset_share:
                self.manager.reset_prefix_cache()

    def _withdraw(self, name: str) -> bool:
        """Release a request whatever it is doing; whether it was claimed."""
        for replica in range(self.setup.replicas):
            if self.manager.contains(name, replica):
                self.manager.release(name, replica)
                return True
        return False

    async def _request(self, rng: Random, name: str) -> None:
        replica = rng.randrange(self.setup.replicas)
        ctx = self.context(rng, name)
        if self.prefetch is not None and rng.random() < self.prefetch_share:
            self.prefetch(ctx)
            await asyncio.sleep(rng.random() / 200)
        if rng.random() < self.preempt_share:
            await self._serve(rng, ctx, replica)
            ctx.reset()
            await asyncio.sleep(rng.random() / 200)
        await self._serve(rng, ctx, replica)

    async def _serve(self, rng: Random, ctx: TextContext, replica: int) -> None:
        """From the claim of a request to its release: some forwards."""
        manager = self.manager
        manager.claim(ctx.request_id, replica)
        self.claimed[str(ctx.request_id)] = ctx, replica
        try:
            if rng.random() < self.chunk_share and ctx.tokens.active_length > 1:
                ctx.chunk(rng.randrange(1, ctx.tokens.active_length))
            for _ in range(rng.randrange(1, 4)):
                row = self._row(rng, ctx, replica)
                await self._alloc(rng, ctx, replica)
                if rng.random() < self.again_share:
                    await self._alloc(rng, ctx, replica)
                if self.batches:
                    await self._batching.take_part(row)
                    await self._perhaps_nap(rng)
                    continue
                self._forwards.prepare([row]).launch()
                row.advance()
                await self._perhaps_nap(rng)
                self._forwards.step([row])
                await self._perhaps_nap(rng)
        finally:
            del self.claimed[str(ctx.request_id)]
            manager.release(ctx.request_id, replica)

    async def _perhaps_nap(self, rng: Random) -> None:
        """Let others act, or everybody sleep."""
        if rng.random() < self.nap_share:
            await asyncio.sleep(rng.random() / 50)
        elif rng.random() < 0.5:
            await asyncio.sleep(0)

    def _row(self, rng: Random, ctx: TextContext, replica: int) -> Row:
        """The next forward of a request, with drafts to verify under speculative decoding."""
        drafts: list[int] = []
        if self.setup.num_draft_tokens and not ctx.tokens.actively_chunked:
            drafts = [rng.randrange(3) for _ in range(self.setup.num_draft_tokens)]
        ctx.spec_decoding_state.draft_tokens_to_verify = drafts
        accepted = drafts[: rng.randrange(len(drafts) + 1)]
        return Row(ctx, replica, drafts, [*accepted, rng.randrange(3)])

    async def _alloc(self, rng: Random, ctx: TextContext, replica: int) -> None:
        alloc: Alloc = self.manager.alloc
        if self.patient_alloc is not None and rng.random() < self.patient_share:
            alloc = self.patient_alloc
        if rng.random() < self.interrupt_share:
            await self._interrupted(rng, alloc, ctx, replica)
        cached_prefix = ctx.cached_prefix_length
        for patience in range(50):
            try:
                await alloc(ctx, replica)
                break
            except InsufficientBlocksError as error:
                fits = required_pages(ctx, self._params) <= self.setup.total_num_pages
                expect("ALLOC-2", error.can_ever_fit, fits, "whether it can ever fit")
                if patience == 49 or not fits:
                    raise
                await asyncio.sleep(rng.random() / 200)
        if cached_prefix is not None:
            expect("ALLOC-9", ctx.cached_prefix_length, cached_prefix, "cached prefix, noted again")

    async def _interrupted(self, rng: Random, alloc: Alloc, ctx: TextContext, replica: int) -> None:
        """Cancel an allocation: all of it is there, or the request is as it was."""
        pages = self.manager.get_req_blocks(ctx.request_id, replica)
        going_on = asyncio.ensure_future(alloc(ctx, replica))
        try:
            await asyncio.sleep(rng.choice(self.cancel_after_s))
        finally:
            going_on.cancel()
            try:
                await going_on
            except InsufficientBlocksError:
                pass
            except asyncio.CancelledError:
                if is_cancelled():
                    raise
                left = self.manager.get_req_blocks(ctx.request_id, replica)
                if len(left) < required_pages(ctx, self._params):
                    told = f"pages of {ctx.request_id!r}, whose allocation was cancelled"
                    expect("ALLOC-12", left, pages, told)

    def context(self, rng: Random, name: str) -> TextContext:
        """A prompt that departs from all zeros somewhere: some share much, and some little."""
        if self.num_prompts is not None:
            rng = Random(f"{self.seed} prompt {rng.randrange(self.num_prompts)}")
        length = rng.randrange(1, self.max_pages * self.setup.page_size + 1)
        tokens = np.zeros(length, dtype=np.int64)
        tokens[rng.randrange(length) :] = rng.randrange(4)
        return TextContext(
            max_length=10_000,
            tokens=TokenBuffer(tokens),
            request_id=name,
            cache_salt=rng.choice((None, None, None, None, "", "tenant")),
            adapter=rng.choice((None, None, None, "adapter")),
        )


def is_cancelled() -> bool:
    """Whether the task that runs this is to end, and not only something that it waits for."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
