"""Streams of GPUs: copies beside forwards, ordered by CUDA events."""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, suppress
from queue import SimpleQueue
from typing import Any

from pagedkv.engine.streams.capture_gate import CaptureGate
from pagedkv.engine.streams.cuda_driver import CudaDriver, TorchCudaDriver
from pagedkv.engine.streams.stream import (
    Access,
    Copy,
    DeviceFailedError,
    StreamEvent,
    StreamName,
    Streams,
)
from pagedkv.engine.streams.thread_event import ThreadEvent
from pagedkv.reference.device import InferenceSession


class CudaEvent:
    """A point on a stream. The driver's event behind it is used again once this one is gone."""

    def __init__(self, streams: "CudaStreams", device_idx: int) -> None:
        self.device_idx = device_idx
        """Whose stream it is on."""
        # Any: see CudaDriver.
        self.handle: Any = None
        """The driver's event; None while a graph is captured and it could not be recorded yet."""
        self.landed = False
        """Whether it is known to have happened."""
        self._streams = streams

    @property
    def done(self) -> bool:
        """Whether everything before it has happened, as far as one can know now: while a graph is
        captured, nobody asks the driver."""
        return self.landed or self._streams.has_landed(self)

    def __del__(self) -> None:
        if self.handle is not None:
            self._streams.give_back(self)


class CudaStreams(Streams):
    """Three streams for copies on each GPU, beside the session's compute stream.

    While an :meth:`capturing` is open, nothing is enqueued and nothing is asked.
    """

    def __init__(self, session: InferenceSession, driver: CudaDriver | None = None) -> None:
        """Streams for the session's devices, made when they are first used.

        Args:
            session: Whose compute streams forwards run on.
            driver: Other than the session's GPUs: a
                :class:`~pagedkv.engine.streams.recording_driver.RecordingDriver`.

        Raises:
            ValueError: One of the session's devices is a CPU, and there is no ``driver``.
        """
        self.num_devices = len(session.devices)
        """How many devices there are."""
        self._driver = TorchCudaDriver(session) if driver is None else driver
        self._gate = CaptureGate()
        # Any: see CudaDriver.
        self._streams: dict[tuple[int, StreamName], Any] = {}
        self._idle_events: list[deque[Any]] = [deque() for _ in session.devices]
        self._watchers: dict[int, Watcher] = {}
        self._failures: dict[int, str] = {}
        self._closed = False

    def capturing(self) -> AbstractContextManager[None]:
        """While a graph is captured: ``with streams.capturing(), torch.cuda.graph(graph): ...``

        Blocks at first until threads have left the driver, which takes at most as long as the
        copies that are running. What is enqueued meanwhile is kept back, and enqueued in order at
        the end, so launch no forward inside that depends on it. May be nested.
        """
        return self._gate.capturing()

    def copy(
        self,
        device_idx: int,
        name: StreamName,
        copies: Sequence[Copy],
        after: Sequence[StreamEvent] = (),
    ) -> StreamEvent:
        """Enqueue ``copies``, in any order among themselves. Pinned host memory does not wait."""
        awaited = [own(earlier) for earlier in after]
        event = CudaEvent(self, device_idx)

        def enqueue() -> None:
            stream = self._stream(device_idx, name)
            self._wait(stream, awaited)
            self._driver.copy(stream, copies)
            self._record(event, stream)

        self._do(device_idx, enqueue)
        return event

    def record(self, device_idx: int, name: StreamName = "compute") -> StreamEvent:
        """An event behind everything that is on a stream."""
        event = CudaEvent(self, device_idx)
        self._do(device_idx, lambda: self._record(event, self._stream(device_idx, name)))
        return event

    def wait(self, device_idx: int, name: StreamName, event: StreamEvent) -> None:
        """What is enqueued on the stream from now on runs after ``event``; the host goes on."""
        awaited = [own(event)]
        self._do(device_idx, lambda: self._wait(self._stream(device_idx, name), awaited))

    def launched(self, device_idx: int, accesses: Iterable[Access]) -> None:
        """Nothing: these streams keep no log."""

    def host_accessed(self, accesses: Iterable[Access]) -> None:
        """Nothing: these streams keep no log."""

    async def finished(self, event: StreamEvent) -> None:
        """Return once ``event`` is done. Events of a device are looked at in the order asked."""
        event = own(event)
        if event.done:
            return
        self._check(event.device_idx)
        if event.device_idx not in self._watchers:
            self._watchers[event.device_idx] = Watcher(self, event.device_idx)
        landed = ThreadEvent()
        self._watchers[event.device_idx].queue.put((event, landed))
        await landed.finished()

    async def aclose(self) -> None:
        """Wait for what is enqueued, and end the threads; twice is harmless."""
        if not self._closed:
            for device_idx, name in list(self._streams):
                if name != "compute":
                    # A device that has failed has nothing left to wait for.
                    with suppress(DeviceFailedError):
                        await self.finished(self.record(device_idx, name))
        self._closed = True
        for watcher in self._watchers.values():
            await watcher.aclose()

    def has_landed(self, event: CudaEvent) -> bool:
        """Ask the driver, unless a graph is being captured or the device has failed."""

        def ask() -> None:
            try:
                event.landed = self._driver.query(event.handle)
            except RuntimeError as error:
                self._fail(event.device_idx, error)

        if event.handle is not None and event.device_idx not in self._failures:
            self._gate.do(ask, keep=False)
        return event.landed

    def block(self, event: CudaEvent) -> None:
        """In a thread: wait until ``event`` has happened.

        Raises:
            DeviceFailedError: Its device has failed.
        """
        with self._gate.passing():
            try:
                if event.handle is not None:
                    self._driver.synchronize(event.handle)
            except RuntimeError as error:
                self._fail(event.device_idx, error)
        if event.device_idx in self._failures:
            raise DeviceFailedError(event.device_idx, self._failures[event.device_idx])
        event.landed = True

    def give_back(self, event: CudaEvent) -> None:
        """Nobody has ``event`` any more. Streams that wait for it remember what it meant."""
        self._idle_events[event.device_idx].append(event.handle)

    def _check(self, device_idx: int) -> None:
        if self._closed:
            raise RuntimeError("these streams are closed; make new ones with CudaStreams(session)")
        if not 0 <= device_idx < self.num_devices:
            raise ValueError(
                f"device_idx is {device_idx}, but there are {self.num_devices} device(s): "
                f"use 0 to {self.num_devices - 1}"
            )
        if device_idx in self._failures:
            raise DeviceFailedError(device_idx, self._failures[device_idx])

    def _do(self, device_idx: int, enqueue: Callable[[], None]) -> None:
        """Make driver calls, now or when the gate opens; what goes wrong fails the device."""
        self._check(device_idx)

        def guarded() -> None:
            if device_idx in self._failures:
                return
            try:
                enqueue()
            except RuntimeError as error:
                self._fail(device_idx, error)

        self._gate.do(guarded)
        if device_idx in self._failures:
            raise DeviceFailedError(device_idx, self._failures[device_idx])

    def _fail(self, device_idx: int, error: RuntimeError) -> None:
        self._failures.setdefault(device_idx, str(error))

    # Any: see CudaDriver.
    def _stream(self, device_idx: int, name: StreamName) -> Any:
        key = device_idx, name
        if key not in self._streams:
            make = self._driver.compute_stream if name == "compute" else self._driver.new_stream
            self._streams[key] = make(device_idx)
        return self._streams[key]

    def _wait(self, stream: Any, events: Iterable[CudaEvent]) -> None:
        for event in events:
            if event.landed:
                continue
            if event.device_idx in self._failures:
                raise DeviceFailedError(event.device_idx, self._failures[event.device_idx])
            self._driver.wait(stream, event.handle)

    def _record(self, event: CudaEvent, stream: Any) -> None:
        idle = self._idle_events[event.device_idx]
        event.handle = idle.pop() if idle else self._driver.new_event(event.device_idx)
        self._driver.record(event.handle, stream)

    def __repr__(self) -> str:
        return f"CudaStreams({self.num_devices} device(s), {len(self._streams)} stream(s))"


class Watcher:
    """The thread that waits for a device's events, one after the other."""

    def __init__(self, streams: CudaStreams, device_idx: int) -> None:
        """Start the thread."""
        self.queue: SimpleQueue[tuple[CudaEvent, ThreadEvent] | None] = SimpleQueue()
        """What to wait for, and whom to tell; None ends the thread."""
        self._block = streams.block
        self._ended = ThreadEvent()
        name = f"pagedkv-events-{device_idx}"
        threading.Thread(target=self._work, name=name, daemon=True).start()

    def _work(self) -> None:
        while (item := self.queue.get()) is not None:
            event, landed = item
            try:
                self._block(event)
            except DeviceFailedError as error:
                landed.fail(error)
            else:
                landed.land()
            del item, event, landed  # or the driver's event stays in use until the next one
        self._ended.land()

    async def aclose(self) -> None:
        """Return when all events have been waited for and the thread is ending."""
        self.queue.put(None)
        await self._ended.finished()


def own(event: StreamEvent) -> CudaEvent:
    """``event``, if it is one of these streams'.

    Raises:
        TypeError: It comes from another kind of streams.
    """
    if not isinstance(event, CudaEvent):
        raise TypeError(f"event is {event!r}; give one that these streams have returned")
    return event
