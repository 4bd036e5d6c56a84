"""One forward for all requests that are ready, as the scheduler of a server makes it."""

import asyncio
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import suppress
from functools import partial
from random import Random
from typing import TypeVar

import numpy as np

from pagedkv.conformance.forwards import Forwards, Row
from pagedkv.reference.context import TextContext
from pagedkv.reference.errors import ManagerClosedError, ReplicaPoisonedError
from pagedkv.reference.tokens import TokenBuffer

Result = TypeVar("Result")

Turn = tuple[Row, "asyncio.Future[None]"]
"""A request that takes part, and what it waits for."""


class Batching:
    """Serves requests together; who is cancelled or withdrawn meanwhile falls out of its batch.

    Args:
        forwards: Makes the forwards.
        rng: Decides on the order of what may be done in several.
        steps_first: Share of the forwards that are launched after their step.
        pads: Whether a replica without requests gets a dummy, as where all devices take part in
            every forward.
    """

    def __init__(self, forwards: Forwards, rng: Random, *, steps_first: float, pads: bool) -> None:
        self._forwards = forwards
        self._rng = rng
        self._steps_first = steps_first
        self._pads = pads
        self._ready: list[Turn] = []
        self._serving: asyncio.Task[None] | None = None

    async def take_part(self, row: Row) -> None:
        """Return when the request has gone through a forward and a step."""
        done = asyncio.get_running_loop().create_future()
        self._ready.append((row, done))
        if self._serving is None:
            self._serving = asyncio.create_task(self._serve())
        await done

    def close(self) -> None:
        """Serve nobody any more."""
        if self._serving is not None:
            self._serving.cancel()

    async def _serve(self) -> None:
        try:
            while self._ready:
                await asyncio.sleep(0)  # Who gets ready in the same round comes along.
                turns = self._taken()
                try:
                    await self._serve_batch(turns)
                    error = None
                except Exception as raised:
                    error = raised
                for _, done in turns:
                    _end(done, error)
        finally:
            self._serving = None

    def _taken(self) -> list[Turn]:
        """Who takes part in the next forward: the first of each replica."""
        rooms = [self._forwards.setup.max_batch_size] * self._forwards.setup.replicas
        taken: list[Turn] = []
        waiting: list[Turn] = []
        for turn in self._ready:
            replica = turn[0].replica
            (taken if rooms[replica] else waiting).append(turn)
            rooms[replica] -= rooms[replica] > 0
        self._ready = waiting
        return taken

    async def _serve_batch(self, turns: list[Turn]) -> None:
        turns += self._dummies({row.replica for row, _ in turns})
        try:
            forward = self._of_present(turns, self._forwards.prepare)
            if self._rng.random() < self._steps_first:
                self._of_present(turns, _advance)
                for part in (turns[::2], turns[1::2]):  # as schedulers do that step by group
                    self._of_present(part, partial(self._forwards.step, launched=False))
                await self._perhaps_others()
                forward.launch()
            else:
                forward.launch()
                self._of_present(turns, _advance)
                await self._perhaps_others()
                self._of_present(turns, self._forwards.step)
        finally:
            with suppress(ManagerClosedError):
                for row, _ in turns:
                    if row.dummy:
                        self._forwards.manager.release(row.ctx.request_id, row.replica)

    async def _perhaps_others(self) -> None:
        """Somebody else may act in the middle of it."""
        if self._rng.random() < 0.5:
            await asyncio.sleep(0)

    def _of_present(self, turns: Sequence[Turn], do: Callable[[list[Row]], Result]) -> Result:
        """Do something with those who are still there, and whose device has not failed."""
        manager = self._forwards.manager
        while True:
            rows = [
                row
                for row, done in turns
                if not done.done() and manager.contains(row.ctx.request_id, row.replica)
            ]
            try:
                return do(rows)
            except ReplicaPoisonedError as error:
                if not any(row.replica == error.replica_idx for row in rows):
                    raise
                for row, done in turns:
                    if row.replica == error.replica_idx:
                        _end(done, None if row.dummy else error)

    def _dummies(self, served: Collection[int]) -> list[Turn]:
        """One for each replica that has nothing to do."""
        dummies: list[Turn] = []
        for replica in range(self._forwards.setup.replicas) if self._pads else ():
            name = f"dummy on {replica}"
            if replica not in served:
                with suppress(ReplicaPoisonedError):
                    self._forwards.manager.alloc_dummy(name, replica)
                    tokens = TokenBuffer(np.zeros(1, dtype=np.int64))
                    ctx = TextContext(max_length=1, tokens=tokens, request_id=name)
                    row = Row(ctx, replica, dummy=True)
                    dummies.append((row, asyncio.get_running_loop().create_future()))
        return dummies


def _advance(rows: Iterable[Row]) -> None:
    for row in rows:
        row.advance()


def _end(done: "asyncio.Future[None]", error: Exception | None) -> None:
    if done.done():
        return  # who waited was cancelled
    if error is None:
        done.set_result(None)
    else:
        done.set_exception(error)
