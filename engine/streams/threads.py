"""Streams for devices that are host memory: one worker thread per stream, in FIFO order."""

import threading
from collections.abc import Iterable, Sequence
from queue import SimpleQueue
from typing import TypeAlias

import numpy as np

from pagedkv.engine.streams.stream import (
    Access,
    Copy,
    DeviceFailedError,
    StreamEvent,
    StreamName,
    Streams,
)
from pagedkv.engine.streams.thread_event import ThreadEvent

Work: TypeAlias = tuple[Sequence[Copy], Sequence[ThreadEvent], ThreadEvent]
"""Copies, the events they run after, and the event behind them."""


def copy_rows(copies: Iterable[Copy]) -> None:
    """Copy now; other Python threads run meanwhile.

    With numpy, on one thread: torch shares a copy among as many threads as there are cores, and on
    a busy machine each waits for the slowest (half a MiB took 6 ms instead of 0.01 ms).
    """
    for copy in copies:
        target = copy.target.rows.numpy()[copy.target_row : copy.target_row + copy.count]
        source = copy.source.rows.numpy()
        np.copyto(target, source[copy.source_row : copy.source_row + copy.count])


def own(event: StreamEvent) -> ThreadEvent:
    """``event``, if it is one of these streams'.

    Raises:
        TypeError: It comes from another kind of streams.
    """
    if not isinstance(event, ThreadEvent):
        raise TypeError(f"event is {event!r}; give one that these streams have returned")
    return event


class ThreadStreams(Streams):
    """Copies within host memory, beside the program that computes.

    ``onload``, ``offload`` and ``peer`` of each device are a thread each, started when first
    used. ``compute`` is program order: forwards on a CPU run inline, so what was launched is over,
    a ``record`` there is done at once, and ``wait`` and ``copy`` there block their caller.
    """

    def __init__(self, num_devices: int) -> None:
        """Streams for devices 0 to ``num_devices`` - 1; starts nothing yet."""
        self.num_devices = num_devices
        """How many devices there are."""
        self._workers: dict[tuple[int, StreamName], Worker] = {}
        self._failures: dict[int, str] = {}
        self._closed = False

    def copy(
        self,
        device_idx: int,
        name: StreamName,
        copies: Sequence[Copy],
        after: Sequence[StreamEvent] = (),
    ) -> StreamEvent:
        """Enqueue ``copies`` on a stream; on ``compute`` they are done when this returns."""
        return self._enqueue(device_idx, name, copies, after)

    def record(self, device_idx: int, name: StreamName = "compute") -> StreamEvent:
        """An event behind everything that is on a stream; on ``compute`` it is done."""
        return self._enqueue(device_idx, name, (), ())

    def wait(self, device_idx: int, name: StreamName, event: StreamEvent) -> None:
        """What is enqueued from now on runs after ``event``; on ``compute`` the caller waits."""
        if not event.done:
            self._enqueue(device_idx, name, (), (event,))

    def launched(self, device_idx: int, accesses: Iterable[Access]) -> None:
        """Nothing: these streams keep no log."""

    def host_accessed(self, accesses: Iterable[Access]) -> None:
        """Nothing: these streams keep no log."""

    async def finished(self, event: StreamEvent) -> None:
        """Return once ``event`` is done; its thread wakes the event loop."""
        await own(event).finished()

    async def aclose(self) -> None:
        """Wait for what is enqueued, and end the threads; twice is harmless."""
        self._closed = True
        for worker in self._workers.values():
            await worker.aclose()

    def _enqueue(
        self,
        device_idx: int,
        name: StreamName,
        copies: Sequence[Copy],
        after: Sequence[StreamEvent],
    ) -> ThreadEvent:
        if self._closed:
            raise RuntimeError("these streams are closed; make new ones with ThreadStreams(...)")
        if not 0 <= device_idx < self.num_devices:
            raise ValueError(
                f"device_idx is {device_idx}, but there are {self.num_devices} device(s): "
                f"use 0 to {self.num_devices - 1}"
            )
        if device_idx in self._failures:
            raise DeviceFailedError(device_idx, self._failures[device_idx])
        event, awaited = ThreadEvent(), [own(earlier) for earlier in after]
        if name == "compute":
            self._run(device_idx, copies, awaited, event)
            event.block()
        else:
            key = device_idx, name
            if key not in self._workers:
                self._workers[key] = Worker(self, device_idx, name)
            self._workers[key].queue.put((copies, awaited, event))
        return event

    def _run(
        self,
        device_idx: int,
        copies: Sequence[Copy],
        after: Sequence[ThreadEvent],
        event: ThreadEvent,
    ) -> None:
        """Do one piece of work in the thread that calls; what goes wrong fails the device."""
        try:
            for earlier in after:
                earlier.block()
            if device_idx not in self._failures:
                copy_rows(copies)
        except Exception as error:
            self._failures.setdefault(device_idx, str(error))
        if device_idx in self._failures:
            event.fail(DeviceFailedError(device_idx, self._failures[device_idx]))
        else:
            event.land()

    def __repr__(self) -> str:
        return f"ThreadStreams({self.num_devices} device(s), {len(self._workers)} thread(s))"


class Worker:
    """The thread of one stream. It ends with the process, or when it is closed."""

    def __init__(self, streams: ThreadStreams, device_idx: int, name: StreamName) -> None:
        """Start the thread."""
        self.queue: SimpleQueue[Work | None] = SimpleQueue()
        """What is on the stream, oldest first; None ends the thread."""
        self._run = streams._run
        self._device_idx = device_idx
        self._ended = ThreadEvent()
        label = f"pagedkv-{name}-{device_idx}"
        threading.Thread(target=self._work, name=label, daemon=True).start()

    def _work(self) -> None:
        while (work := self.queue.get()) is not None:
            self._run(self._device_idx, *work)
        self._ended.land()

    async def aclose(self) -> None:
        """Return when all work is done and the thread is ending."""
        self.queue.put(None)
        await self._ended.finished()
