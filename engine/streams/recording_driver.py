"""A CUDA driver without a GPU: it does what it is told in host memory, and remembers each call.

::

    driver = RecordingDriver(held=True)
    streams = CudaStreams(InferenceSession([DeviceRef.CPU()]), driver)
    landed = streams.copy(0, "onload", [Copy(pages, 3, slots, 7)])
    assert not landed.done
    driver.run()
    assert landed.done
"""

import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from pagedkv.engine.streams.stream import Copy


@dataclass(eq=False)
class Step:
    """Something on a stream."""

    action: Callable[[], object]
    """What it does."""
    after: "Step | None" = None
    """What has to have happened first, on another stream."""
    happened: bool = False
    """Whether it has."""


@dataclass(eq=False)
class RecordedStream:
    """A stream."""

    name: str
    """``compute 0``, or in the order in which they were made ``stream 0.1``."""
    device_idx: int
    """Its device."""
    steps: deque[Step] = field(default_factory=deque, repr=False)
    """What is still to happen on it."""


@dataclass(eq=False)
class RecordedEvent:
    """An event. As in CUDA it can be recorded again; who waited before that waits as before."""

    number: int
    """Which one, in the order in which they were made."""
    device_idx: int
    """Its device."""
    recorded: Step | None = field(default=None, repr=False)
    """The point that it means now."""


@dataclass(frozen=True)
class DriverCall:
    """One call."""

    call: Literal["copy", "record", "wait", "query", "synchronize"]
    """Which."""
    stream: str | None
    """The stream's name, where one is given."""
    event: int | None = None
    """The event's number, where one is given."""
    copies: tuple[Copy, ...] = ()
    """What is copied."""


class RecordingDriver:
    """Implements :class:`~pagedkv.engine.streams.cuda_driver.CudaDriver`; safe among threads."""

    def __init__(self, *, held: bool = False) -> None:
        """With ``held``, nothing happens until :meth:`run`; else all that can, at once."""
        self.held = held
        """Whether things wait for :meth:`run`."""
        self.calls: list[DriverCall] = []
        """All calls, in their order; those that make streams and events are left out."""
        self.streams: list[RecordedStream] = []
        """All streams."""
        self._num_events = 0
        self._failures: dict[int, str] = {}
        self._changed = threading.Condition()

    def compute_stream(self, device_idx: int) -> RecordedStream:
        """The device's compute stream."""
        name = f"compute {device_idx}"
        for stream in self.streams:
            if stream.name == name:
                return stream
        return self._add(RecordedStream(name, device_idx))

    def new_stream(self, device_idx: int) -> RecordedStream:
        """Another stream."""
        number = sum(stream.device_idx == device_idx for stream in self.streams)
        return self._add(RecordedStream(f"stream {device_idx}.{number}", device_idx))

    def new_event(self, device_idx: int) -> RecordedEvent:
        """An event that means nothing yet, and counts as done."""
        self._num_events += 1
        return RecordedEvent(self._num_events, device_idx)

    def launch(self, device_idx: int, forward: Callable[[], object]) -> None:
        """Enqueue a forward on the compute stream."""
        self._enqueue(self.compute_stream(device_idx), Step(forward))

    def copy(self, stream: RecordedStream, copies: Sequence[Copy]) -> None:
        """Enqueue ``copies``."""

        def move() -> None:
            for copy in copies:
                target = copy.target.rows[copy.target_row : copy.target_row + copy.count]
                target.copy_(copy.source.rows[copy.source_row : copy.source_row + copy.count])

        self._note(DriverCall("copy", stream.name, copies=tuple(copies)), stream.device_idx)
        self._enqueue(stream, Step(move))

    def record(self, event: RecordedEvent, stream: RecordedStream) -> None:
        """Let ``event`` mean the point behind what is on ``stream``, of its own device."""
        # As in CUDA; streams may wait for events of any device.
        assert event.device_idx == stream.device_idx, f"{event} cannot be recorded on {stream}"
        self._note(DriverCall("record", stream.name, event.number), stream.device_idx)
        event.recorded = Step(lambda: None)
        self._enqueue(stream, event.recorded)

    def wait(self, stream: RecordedStream, event: RecordedEvent) -> None:
        """Let ``stream`` wait for what ``event`` means now."""
        self._note(DriverCall("wait", stream.name, event.number), stream.device_idx)
        self._enqueue(stream, Step(lambda: None, after=event.recorded))

    def query(self, event: RecordedEvent) -> bool:
        """Whether ``event`` has happened."""
        self._note(DriverCall("query", None, event.number), event.device_idx)
        return event.recorded is None or event.recorded.happened

    def synchronize(self, event: RecordedEvent) -> None:
        """Block until ``event`` has happened or its device has failed."""
        self._note(DriverCall("synchronize", None, event.number), event.device_idx)
        step = event.recorded
        with self._changed:
            self._changed.wait_for(
                lambda: step is None or step.happened or event.device_idx in self._failures
            )
            self._raise_failure(event.device_idx)

    def run(self) -> None:
        """Let everything happen that can."""
        with self._changed:
            while self._progress():
                pass
            self._changed.notify_all()

    def release(self) -> None:
        """Let everything happen that can, from now on at once; closing streams needs it."""
        self.held = False
        self.run()

    def fail(self, device_idx: int, reason: str) -> None:
        """From now on every call for a device raises ``RuntimeError(reason)``."""
        with self._changed:
            self._failures[device_idx] = reason
            self._changed.notify_all()

    def _progress(self) -> bool:
        """Let the head of each stream happen that can; whether there was one."""
        progress = False
        for stream in self.streams:
            if stream.device_idx in self._failures or not stream.steps:
                continue
            step = stream.steps[0]
            if step.after is None or step.after.happened:
                stream.steps.popleft().action()
                step.happened = progress = True
        return progress

    def _add(self, stream: RecordedStream) -> RecordedStream:
        self.streams.append(stream)
        return stream

    def _enqueue(self, stream: RecordedStream, step: Step) -> None:
        with self._changed:
            stream.steps.append(step)
        if not self.held:
            self.run()

    def _note(self, call: DriverCall, device_idx: int) -> None:
        with self._changed:
            self._raise_failure(device_idx)
            self.calls.append(call)

    def _raise_failure(self, device_idx: int) -> None:
        if device_idx in self._failures:
            raise RuntimeError(self._failures[device_idx])
