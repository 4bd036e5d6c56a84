"""Blocking disk calls on threads of their own: reads before writes, never too many at once."""

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Literal, TypeAlias, TypeVar

from aiofiles.base import wrap

Result = TypeVar("Result")

Kind: TypeAlias = Literal["read", "write"]
"""What a call does; reads are what requests wait for."""

_Settle: TypeAlias = Callable[[], None]


class IoQueue:
    """Runs calls in the order of their coming, but a read before every write that waits.

    A thread that has done one call takes the next without asking the event loop, and tells it of
    several at once, so that a busy loop does not leave the disk idle. The queue belongs to the one
    loop that runs it.

    Args:
        depth: Most calls that run at the same time, each on a thread.
    """

    def __init__(self, depth: int) -> None:
        self._depth = depth
        self._lock = threading.Lock()
        self._waiting: dict[Kind, deque[Callable[[], _Settle]]] = {
            "read": deque(),
            "write": deque(),
        }
        self._ended: list[_Settle] = []
        self._num_working = 0
        self._workers: set[asyncio.Future[None]] = set()
        self._executor = ThreadPoolExecutor(depth, thread_name_prefix="pagedkv-disk")

    async def run(self, kind: Kind, call: Callable[[], Result]) -> Result:
        """What ``call`` returns or raises.

        Cancelled while it waits, it is never run. Cancelled later, this returns only when the call
        is over: until then it uses the caller's memory.
        """
        loop = asyncio.get_running_loop()
        end: asyncio.Future[Result] = loop.create_future()

        def job() -> _Settle:
            try:
                return partial(end.set_result, call())
            except BaseException as error:  # it is raised where the call was asked for
                return partial(end.set_exception, error)

        with self._lock:
            self._waiting[kind].append(job)
            needs_worker = self._num_working < self._depth
            self._num_working += needs_worker
        if needs_worker:
            worker = asyncio.ensure_future(wrap(self._work)(loop, executor=self._executor))
            self._workers.add(worker)
            worker.add_done_callback(self._workers.discard)
        try:
            return await asyncio.shield(end)
        except asyncio.CancelledError:
            with self._lock, contextlib.suppress(ValueError):
                self._waiting[kind].remove(job)
                end.cancel()
            await waited_for(end)
            raise

    def close(self) -> None:
        """Wait for the calls that run, and end the threads."""
        self._executor.shutdown()

    def _work(self, loop: asyncio.AbstractEventLoop) -> None:
        while (job := self._next()) is not None:
            settle = job()
            with self._lock:
                self._ended.append(settle)
                is_first = len(self._ended) == 1
            if is_first:
                loop.call_soon_threadsafe(self._settle)

    def _next(self) -> Callable[[], _Settle] | None:
        with self._lock:
            for queue in self._waiting.values():  # reads come first
                if queue:
                    return queue.popleft()
            self._num_working -= 1
            return None

    def _settle(self) -> None:
        with self._lock:
            ended, self._ended = self._ended, []
        for settle in ended:
            settle()


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
