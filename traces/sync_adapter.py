"""The one adapter between the two kinds of managers: an asynchronous one, driven synchronously."""

import asyncio
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

from pagedkv.reference.context import Context
from pagedkv.reference.interfaces import AsyncKVCacheManager, SyncKVCacheManager


def as_sync(manager: SyncKVCacheManager | AsyncKVCacheManager) -> SyncKVCacheManager:
    """The manager itself, or an asynchronous one behind synchronous calls.

    A manager counts as asynchronous if its ``alloc`` or its ``shutdown`` is a coroutine function.
    """
    methods = (getattr(manager, name, None) for name in ("alloc", "shutdown"))
    if not any(map(inspect.iscoroutinefunction, methods)):
        return cast("SyncKVCacheManager", manager)
    return cast("SyncKVCacheManager", _OnItsOwnLoop(cast("AsyncKVCacheManager", manager)))


class _OnItsOwnLoop:
    """Runs every call on one event loop, which stands still in between; owns the loop."""

    def __init__(self, manager: AsyncKVCacheManager) -> None:
        self._manager = manager
        self._runner = asyncio.Runner()
        self._closed = False

    # Any: whatever the manager's own method takes and returns.
    def __getattr__(self, name: str) -> Any:
        found = getattr(self._manager, name)
        if not callable(found):
            return found

        waits = inspect.iscoroutinefunction(found)

        def call(*args: Any, **kwargs: Any) -> Any:
            if waits or self._closed:
                return self._run(found, *args, **kwargs)
            # What does not wait only has to find its loop; a turn of it costs more than the call.
            asyncio._set_running_loop(self._runner.get_loop())
            try:
                result = found(*args, **kwargs)
            finally:
                asyncio._set_running_loop(None)
            return self._run(lambda: result) if inspect.isawaitable(result) else result

        return call

    @contextmanager
    def reserve(self, replica_batches: Sequence[Sequence[Context]]) -> Iterator[None]:
        """Claim and allocate contexts, and release them at the end of the scope."""
        scope = self._manager.reserve(replica_batches)
        self._run(scope.__aenter__)
        try:
            yield
        except BaseException as error:
            if not self._run(scope.__aexit__, type(error), error, error.__traceback__):
                raise
        else:
            self._run(scope.__aexit__, None, None, None)

    def poll_transfers(self) -> None:
        """Let the loop run, so that transfers that have ended can say so."""
        self._run(self._manager.poll_transfers)
        self._runner.run(asyncio.sleep(0))

    def shutdown(self) -> None:
        """Write what was accepted, and close the loop; twice is harmless."""
        try:
            self._run(self._manager.shutdown)
        finally:
            self._closed = True
            self._runner.close()

    def _run(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        async def on_the_loop() -> Any:
            result = call(*args, **kwargs)
            return await result if inspect.isawaitable(result) else result

        if self._closed:  # Whatever is called now is to be refused by the manager itself.
            with asyncio.Runner() as runner:
                return runner.run(on_the_loop())
        return self._runner.run(on_the_loop())
