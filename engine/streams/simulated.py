"""Streams on which nothing happens until a test says so, and everything as badly as allowed.

::

    streams = SimulatedStreams(num_devices=1)
    landed = streams.copy(0, "onload", [Copy(pages, 3, slots, 7)])
    assert not landed.done
    streams.run_all()
    assert landed.done

Real copies take a while. In that while they may have read their source at once or not yet, and
their target is neither old nor new. Correct code cannot tell; ``reads`` says what it meets here.
One thread, no clock, no chance but the test's own ``random.Random``: the same calls give the same
run.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Literal, TypeAlias

import torch

from pagedkv.engine.streams.stream import (
    Access,
    Copy,
    DeviceFailedError,
    StreamEvent,
    StreamName,
    Streams,
)

Reads: TypeAlias = Literal["early", "late", "both"]
"""When copies touch memory.

``early``: all of it as soon as the order lets them start. ``late``: all of it when they are run.
``both``: the source is read at both times and has to be the same; in between the target holds
:data:`RUBBISH`, and has to hold it still.
"""

RUBBISH = 0xA5
"""The byte that fills the target of a copy that has started, but not landed."""


class UnorderedAccessError(AssertionError):
    """Something has touched the rows of a copy that may have been running: no event orders them."""

    def __init__(self, copy: Copy, stream: str, touched: Literal["source", "target"]) -> None:
        self.copy = copy
        """The copy."""
        self.stream = stream
        """What it is on: ``onload of device 0``."""
        self.touched = touched
        """Which of its two ends was written meanwhile."""
        memory, row = (
            (copy.source, copy.source_row)
            if touched == "source"
            else (copy.target, copy.target_row)
        )
        super().__init__(
            f"rows {row} to {row + copy.count - 1} of {memory.name} were written while a copy on "
            f"{stream} may have been using them as its {touched}; record an event behind the one, "
            "and let the other wait for it"
        )


@dataclass(eq=False)
class SimulatedEvent:
    """A point on a simulated stream."""

    work: "Work | None" = None
    """What has to run before it is done; None on a stream that was idle."""
    waiters: list[asyncio.Future[None]] = field(default_factory=list)
    """Tasks that want to know."""

    @property
    def done(self) -> bool:
        """Whether everything before it has been run."""
        return self.work is None or self.work.landed


@dataclass(eq=False)
class Work:
    """Something on a stream: copies, a forward, or nothing but a wait."""

    device_idx: int
    """Whose stream it is on."""
    name: StreamName
    """Which of them."""
    after: Sequence[SimulatedEvent]
    """What has to be done first, besides everything before it on its stream."""
    copies: Sequence[Copy] = ()
    """What it copies."""
    forward: Callable[[], object] | None = None
    """What it computes."""
    landed: bool = False
    """Whether it has run."""
    started: bool = False
    """Whether it may be running: nothing keeps it back any more."""
    read_early: list[torch.Tensor] = field(default_factory=list)
    """What its sources held when it started."""

    def __repr__(self) -> str:
        what = (
            f"{len(self.copies)} copies" if self.copies else "forward" if self.forward else "wait"
        )
        return f"Work({what} on {self.name} of device {self.device_idx})"


def rows_of(copy: Copy) -> tuple[torch.Tensor, torch.Tensor]:
    """The rows that it writes, and those that it reads: ``[count, nbytes]`` uint8, no copies."""
    return (
        copy.target.rows[copy.target_row : copy.target_row + copy.count],
        copy.source.rows[copy.source_row : copy.source_row + copy.count],
    )


class SimulatedStreams(Streams):
    """Streams whose progress the test decides.

    Forwards that run inline, as on any CPU, find the compute stream idle: ``wait`` on it runs at
    once what the event needs, as late as the order allows, and copies on it likewise. With
    ``queued_forwards``, the compute stream is a queue like the others; forwards come through
    :meth:`launch`, and take as long as the test likes.
    """

    def __init__(
        self, num_devices: int, *, reads: Reads = "both", queued_forwards: bool = False
    ) -> None:
        """Streams for devices 0 to ``num_devices`` - 1, all idle."""
        self.num_devices = num_devices
        """How many devices there are."""
        self.reads: Reads = reads
        """When copies touch memory."""
        self.queued_forwards = queued_forwards
        """Whether forwards wait for their turn."""
        self._queues: dict[tuple[int, StreamName], deque[Work]] = {}
        self._last: dict[tuple[int, StreamName], Work] = {}
        self._events: dict[Work, list[SimulatedEvent]] = {}
        self._paused: set[tuple[int, StreamName]] = set()
        self.failures: dict[int, str] = {}
        """Devices that have failed, and why."""
        self._changed = asyncio.Event()

    # What the engine calls

    def copy(
        self,
        device_idx: int,
        name: StreamName,
        copies: Sequence[Copy],
        after: Sequence[StreamEvent] = (),
    ) -> StreamEvent:
        """Enqueue ``copies``; the order of those of one call among themselves is left open."""
        self._enqueue(Work(device_idx, name, [own(event) for event in after], copies=copies))
        return self.record(device_idx, name)

    def record(self, device_idx: int, name: StreamName = "compute") -> StreamEvent:
        """An event behind everything that is on a stream."""
        self._check(device_idx)
        last = self._last.get((device_idx, name))
        event = SimulatedEvent(last)
        if last is not None and not last.landed:
            self._events.setdefault(last, []).append(event)
        return event

    def wait(self, device_idx: int, name: StreamName, event: StreamEvent) -> None:
        """What is enqueued from now on runs after ``event``."""
        self._enqueue(Work(device_idx, name, [own(event)]))

    def launch(self, device_idx: int, forward: Callable[[], object]) -> None:
        """Enqueue a forward on the compute stream; it runs at once unless forwards are queued."""
        self._enqueue(Work(device_idx, "compute", (), forward=forward))

    def launched(self, device_idx: int, accesses: Iterable[Access]) -> None:
        """Nothing: these streams keep no log."""

    def host_accessed(self, accesses: Iterable[Access]) -> None:
        """Nothing: these streams keep no log."""

    async def finished(self, event: StreamEvent) -> None:
        """Return once the test has run what ``event`` needs."""
        event = own(event)
        if event.done:
            return
        assert event.work is not None
        if event.work.device_idx in self.failures:
            raise DeviceFailedError(event.work.device_idx, self.failures[event.work.device_idx])
        waiter = asyncio.get_running_loop().create_future()
        event.waiters.append(waiter)
        await waiter

    async def aclose(self) -> None:
        """Run what is enqueued, paused or not; twice is harmless."""
        self._paused.clear()
        self.run_all()

    # What the test calls

    def ready(self) -> list[Work]:
        """What could happen next: of each stream that is not paused its oldest work, if nothing
        keeps it back. Sorted by device and stream."""
        keys = sorted(self._queues.keys() - self._paused)
        return [self._queues[key][0] for key in keys if self._may_start(key)]

    async def more_is_ready(self) -> None:
        """Return once there is something ready."""
        while not self.ready():
            self._changed.clear()
            await self._changed.wait()

    def run(self, n: int = 0) -> Work:
        """Let ``ready()[n]`` happen.

        Raises:
            IndexError: There is no such entry.
            UnorderedAccessError: ``reads`` is ``both``, and its rows were written meanwhile.
        """
        work = self.ready()[n]
        self._land(work)
        return work

    def run_all(self) -> None:
        """Let everything happen that can, stream by stream."""
        while self.ready():
            self.run()

    def run_random(self, rng: Random) -> None:
        """Let everything happen that can, in an order that ``rng`` picks."""
        while ready := self.ready():
            self.run(rng.randrange(len(ready)))

    def pause(self, device_idx: int, name: StreamName) -> None:
        """Delay a stream: nothing of it is ready until :meth:`resume`.

        What a wait on an idle compute stream needs runs nevertheless.
        """
        self._paused.add((device_idx, name))

    def resume(self, device_idx: int, name: StreamName) -> None:
        """End the delay of a stream."""
        self._paused.discard((device_idx, name))
        self._changed.set()

    def fail_device(self, device_idx: int, reason: str = "simulated failure") -> None:
        """Fail a device: what may be running stops in the middle, nothing after it happens.

        Each stream's copies that have started leave a torn row: half is written. Work of other
        devices that waits for this one fails its device as well.
        """
        if device_idx in self.failures:
            return
        self._check(device_idx)
        self.failures[device_idx] = reason
        dropped: list[Work] = []
        for key in [key for key in self._queues if key[0] == device_idx]:
            queue = self._queues.pop(key)
            if queue[0].started and queue[0].copies:
                target, source = rows_of(queue[0].copies[0])
                half = target.shape[1] // 2
                target[0, :half] = source[0, :half]
            dropped += queue
        for work in dropped:
            for event in self._events.pop(work, ()):
                for waiter in event.waiters:
                    if not waiter.done():
                        waiter.set_exception(DeviceFailedError(device_idx, reason))
        stranded = {
            work.device_idx
            for queue in self._queues.values()
            for work in queue
            if any(event.work in dropped for event in work.after)
        }
        for other in sorted(stranded):
            self._strand(other, device_idx)

    # Inside

    def _check(self, device_idx: int) -> None:
        if not 0 <= device_idx < self.num_devices:
            raise ValueError(
                f"device_idx is {device_idx}, but there are {self.num_devices} device(s): "
                f"use 0 to {self.num_devices - 1}"
            )
        if device_idx in self.failures:
            raise DeviceFailedError(device_idx, self.failures[device_idx])

    def _strand(self, device_idx: int, failed_idx: int) -> None:
        """Fail a device that waits for one that has failed."""
        reason = self.failures[failed_idx]
        self.fail_device(device_idx, f"it waits for an event of device {failed_idx}: {reason}")

    def _enqueue(self, work: Work) -> None:
        self._check(work.device_idx)
        for event in work.after:
            other = event.work
            if other and not other.landed and other.device_idx in self.failures:
                self._strand(work.device_idx, other.device_idx)
        self._check(work.device_idx)
        key = work.device_idx, work.name
        self._queues.setdefault(key, deque()).append(work)
        self._last[key] = work
        self._start()
        if work.name == "compute" and not self.queued_forwards:
            self._finish(work)

    def _may_start(self, key: tuple[int, StreamName]) -> bool:
        return all(event.done for event in self._queues[key][0].after)

    def _start(self) -> None:
        """Copies that nothing keeps back any more may be running from now on."""
        self._changed.set()
        for key in sorted(self._queues):
            work = self._queues[key][0]
            if work.started or not self._may_start(key):
                continue
            work.started = True
            if self.reads == "late":
                continue
            work.read_early = [rows_of(copy)[1].clone() for copy in work.copies]
            for copy, read in zip(work.copies, work.read_early, strict=True):
                target, _ = rows_of(copy)
                if self.reads == "early":
                    target.copy_(read)
                else:
                    target.fill_(RUBBISH)

    def _land(self, work: Work) -> None:
        """Let ``work``, which is at the head of its stream, happen."""
        stream = f"{work.name} of device {work.device_idx}"
        if self.reads == "both":
            for copy, read in zip(work.copies, work.read_early, strict=True):
                target, source = rows_of(copy)
                if not torch.equal(source, read):
                    raise UnorderedAccessError(copy, stream, "source")
                if not bool((target == RUBBISH).all()):
                    raise UnorderedAccessError(copy, stream, "target")
        if self.reads != "early":
            for copy in work.copies:
                target, source = rows_of(copy)
                target.copy_(source)
        if work.forward is not None:
            work.forward()
        work.landed = True
        work.after, work.read_early = (), []  # or each event would keep all of the past alive
        key = work.device_idx, work.name
        self._queues[key].popleft()
        if not self._queues[key]:
            del self._queues[key]
        for event in self._events.pop(work, ()):
            for waiter in event.waiters:
                if not waiter.done():
                    waiter.set_result(None)
        self._start()

    def _finish(self, work: Work) -> None:
        """Let ``work`` happen now, and before it no more than it needs."""
        while not work.landed:
            needed = work
            while True:
                head = self._queues[needed.device_idx, needed.name][0]
                missing = [event.work for event in head.after if not event.done]
                if not missing:
                    break
                assert missing[0] is not None
                needed = missing[0]
            self._land(head)

    def __repr__(self) -> str:
        waiting = sum(map(len, self._queues.values()))
        return f"SimulatedStreams({self.num_devices} device(s), {waiting} waiting)"


def own(event: StreamEvent) -> SimulatedEvent:
    """``event``, if it is one of these streams'.

    Raises:
        TypeError: It comes from another kind of streams.
    """
    if not isinstance(event, SimulatedEvent):
        raise TypeError(f"event is {event!r}; give one that these streams have returned")
    return event
