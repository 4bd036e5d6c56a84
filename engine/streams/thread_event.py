"""An event that happens in a thread and wakes the tasks that wait for it; nobody polls."""

import asyncio
from concurrent.futures import Future

from pagedkv.engine.streams.stream import DeviceFailedError


class ThreadEvent:
    """An event that one thread lands, once, and any tasks and threads wait for."""

    __slots__ = ("_future",)

    def __init__(self) -> None:
        self._future = Future[None]()
        # A running future cannot be cancelled: a task that stops waiting takes nobody else along.
        self._future.set_running_or_notify_cancel()

    @property
    def done(self) -> bool:
        """Whether everything before it has happened; never, once its device has failed."""
        return self._future.done() and self._future.exception() is None

    def land(self) -> None:
        """Everything before it has happened."""
        self._future.set_result(None)

    def fail(self, error: DeviceFailedError) -> None:
        """What it stands for will never happen."""
        self._future.set_exception(error)

    def block(self) -> None:
        """Wait in a thread until it is done, or raise :class:`DeviceFailedError`."""
        self._future.result()

    async def finished(self) -> None:
        """Wait in a task until it is done, or raise :class:`DeviceFailedError`."""
        if not self.done:
            await asyncio.wrap_future(self._future)
