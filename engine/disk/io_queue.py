"""Blocking disk calls on threads of their own: reads before writes, never too many at once."""

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Generic, Literal, TypeAlias, TypeVar

from aiofiles.base import wrap

Result = TypeVar("Result")

Kind: TypeAlias = Literal["read", "write"]
"""What a call does; reads are what requests wait for."""

LINGER_S = 0.1
"""How long a thread waits for more to do. Each that ends or begins wakes the event loop."""


class IoQueue:
    """Runs batches of calls in the order of their coming, but reads before every write that waits.

    The calls of a batch are shared among the threads, which ask each other for more and not the
    event loop; that hears of the whole batch once, when its last call is over. The queue belongs
    to the one loop that runs it.

    Args:
        depth: Most calls that run at the same time, each on a thread.
    """

    def __init__(self, depth: int) -> None:
        self._depth = depth
        self._changed = threading.Condition()
        # Any: each batch has results of its own type.
        self._waiting: dict[Kind, deque[_Batch[Any]]] = {"read": deque(), "write": deque()}
        self._closing = False
        self._num_workers = 0
        self._workers: set[asyncio.Future[None]] = set()
        self._executor = ThreadPoolExecutor(depth, thread_name_prefix="pagedkv-disk")

    async def run(self, kind: Kind, calls: Sequence[Callable[[], Result]]) -> list[Result]:
        """What ``calls`` return, in the order of their ends.

        Cancelled, this runs none that has not begun, and returns only when those that have are
        over: until then they use the caller's memory.

        Raises:
            Exception: What the first that failed has raised; all are over then.
        """
        if not calls:
            return []
        batch = _Batch(calls)
        with self._changed:
            self._waiting[kind].append(batch)
            self._changed.notify(len(calls))
            missing = min(len(calls), self._depth - self._num_workers)
            self._num_workers += missing
        for _ in range(missing):
            worker = asyncio.ensure_future(wrap(self._work)(executor=self._executor))
            self._workers.add(worker)
            worker.add_done_callback(self._workers.discard)
        try:
            await asyncio.shield(batch.end)
        except asyncio.CancelledError:
            with self._changed, contextlib.suppress(ValueError):
                self._waiting[kind].remove(batch)
                batch.drop_waiting()
            await waited_for(batch.end)
            raise
        if batch.errors:
            raise batch.errors[0]
        return batch.results

    def close(self) -> None:
        """Wait for the calls that run, and end the threads."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._executor.shutdown()

    def _work(self) -> None:
        while (job := self._next()) is not None:
            batch, call = job
            try:
                batch.results.append(call())
            except BaseException as error:  # it is raised where the call was asked for
                batch.errors.append(error)
            with self._changed:
                batch.num_open -= 1
                is_over = not batch.num_open
            if is_over:
                batch.end.get_loop().call_soon_threadsafe(batch.end.set_result, None)

    def _next(self) -> "tuple[_Batch[Any], Callable[[], Any]] | None":
        with self._changed:
            self._changed.wait_for(lambda: self._closing or any(self._waiting.values()), LINGER_S)
            for batches in self._waiting.values():  # reads come first
                if batches:
                    batch, call = batches[0], batches[0].waiting.popleft()
                    if not batch.waiting:
                        batches.popleft()
                    return batch, call
            self._num_workers -= 1
            return None


class _Batch(Generic[Result]):
    """Calls that somebody waits for together."""

    def __init__(self, calls: Sequence[Callable[[], Result]]) -> None:
        self.waiting = deque(calls)
        self.num_open = len(calls)  # that wait or run
        self.results: list[Result] = []
        self.errors: list[BaseException] = []
        self.end: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def drop_waiting(self) -> None:
        self.num_open -= len(self.waiting)
        self.waiting.clear()
        if not self.num_open:
            self.end.set_result(None)


async def to_the_end(job: "asyncio.Future[Result]") -> Result:
    """The result of ``job``, which goes on if this is cancelled, and is waited for even then."""
    try:
        return await asyncio.shield(job)
    except asyncio.CancelledError:
        await waited_for(job)
        raise


async def waited_for(job: "asyncio.Future[Result]") -> None:
    """Return once ``job`` is over, whatever comes of it, however often this is cancelled."""
    while not job.done():
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait([job])
    if not job.cancelled():
        job.exception()  # nobody is left to be told
