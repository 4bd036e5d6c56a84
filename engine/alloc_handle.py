"""An allocation that goes on beside its caller, for schedulers that order the device themselves."""

import asyncio
from collections.abc import Generator
from typing import Any


class AllocHandle:
    """Says when a request may be in a batch; awaiting it waits for that.

    From then on :meth:`~pagedkv.engine.PagedKVCacheManager.runtime_inputs` makes the device wait
    for those copies of its prefix that are still under way.
    """

    def __init__(self, task: asyncio.Task[None] | None) -> None:
        """Of an allocation that ``task`` completes; ``None`` if it is complete."""
        self._task = task
        if task is not None:
            # Whoever releases the request need not await this as well.
            task.add_done_callback(lambda done: done.cancelled() or done.exception())

    @property
    def ready(self) -> bool:
        """Whether awaiting it returns, or raises, at once."""
        return self._task is None or self._task.done()

    def cancel(self) -> None:
        """Undo the allocation, unless it is complete: the request stays claimed, as it was."""
        if self._task is not None:
            self._task.cancel()

    # Any: what a loop sends into the coroutines it runs.
    def __await__(self) -> "Generator[Any, Any, AllocHandle]":
        """Wait until the request may be in a batch; cancelling this cancels the allocation.

        Raises: as :meth:`~pagedkv.engine.PagedKVCacheManager.alloc`.
        """
        if self._task is not None:
            yield from self._task.__await__()
        return self

    def __repr__(self) -> str:
        return f"AllocHandle({'ready' if self.ready else 'waits'})"
