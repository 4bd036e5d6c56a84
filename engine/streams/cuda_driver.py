"""The few calls that copies need of a CUDA driver, and torch's way to make them."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Any, Protocol

import torch

from pagedkv.engine.streams.batch_copies import BatchCopies
from pagedkv.engine.streams.stream import Copy
from pagedkv.reference.device import InferenceSession


class CudaDriver(Protocol):
    """Streams and events of GPUs. What goes wrong on a device is a ``RuntimeError``.

    Any: streams and events are handles, which mean something to their driver alone.
    """

    def compute_stream(self, device_idx: int) -> Any:
        """The stream that forwards are launched on."""
        ...

    def new_stream(self, device_idx: int) -> Any:
        """A stream of its own, beside all others."""
        ...

    def new_event(self, device_idx: int) -> Any:
        """An event that is not recorded yet."""
        ...

    def copy(self, stream: Any, copies: Sequence[Copy]) -> None:
        """Enqueue ``copies``, in any order among themselves, to read their sources in stream
        order."""
        ...

    def record(self, event: Any, stream: Any) -> None:
        """``event`` means, from now on, the point behind what is on ``stream``."""
        ...

    def wait(self, stream: Any, event: Any) -> None:
        """What is enqueued on ``stream`` from now on runs after what ``event`` means now."""
        ...

    def query(self, event: Any) -> bool:
        """Whether ``event`` has happened."""
        ...

    def synchronize(self, event: Any) -> None:
        """Block the thread, without spinning and without the GIL, until ``event`` has happened."""
        ...


class TorchCudaDriver:
    """The GPUs of a session, through torch.

    Torch copies row by row where rows are not adjacent in memory, at some µs each on the host; the
    driver's own batch call, where there is one (CUDA 12.8), takes all rows of a call at once.
    """

    def __init__(self, session: InferenceSession) -> None:
        """Make nothing yet.

        Raises:
            ValueError: One of the session's devices is a CPU.
        """
        for idx, device in enumerate(session.devices):
            if device.is_cpu():
                raise ValueError(f"devices[{idx}] is {device}; use ThreadStreams for a CPU")
        self._session = session
        self._batch_copies = BatchCopies.load()
        # Torch runs a copy between GPUs on the current streams of both.
        self._peer_sources: dict[torch.device, torch.cuda.Stream] = {}

    def compute_stream(self, device_idx: int) -> torch.cuda.Stream:
        """The session's stream."""
        stream = self._session.stream(device_idx)
        assert stream is not None, "only CPUs have none"
        return stream

    def new_stream(self, device_idx: int) -> torch.cuda.Stream:
        """A stream that does not wait for torch's default stream."""
        return stream_on(self._session.devices[device_idx].to_device())

    def new_event(self, device_idx: int) -> torch.cuda.Event:
        """An event on which threads sleep instead of spinning."""
        # torch declares no types for this constructor.
        return torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]

    def copy(self, stream: torch.cuda.Stream, copies: Sequence[Copy]) -> None:
        """Enqueue ``copies``; host memory has to be pinned, or the caller waits."""
        spans = [span for copy in copies for span in spans_of(copy)]
        with ExitStack() as current:
            peers = {copy.source.rows.device for copy in copies} - {stream.device}
            for peer in peers:
                if peer.type == "cuda":
                    if peer not in self._peer_sources:
                        self._peer_sources[peer] = stream_on(peer)
                    current.enter_context(torch.cuda.stream(self._peer_sources[peer]))
            current.enter_context(torch.cuda.stream(stream))
            between_gpus = any(peer.type == "cuda" for peer in peers)
            if self._batch_copies is not None and len(spans) > 1 and not between_gpus:
                self._batch_copies.enqueue(stream.cuda_stream, spans)
            else:
                for target, source in spans:
                    target.copy_(source, non_blocking=True)

    def record(self, event: torch.cuda.Event, stream: torch.cuda.Stream) -> None:
        """Record behind what is on ``stream``."""
        event.record(stream)

    def wait(self, stream: torch.cuda.Stream, event: torch.cuda.Event) -> None:
        """Let ``stream`` wait on the device; the host goes on."""
        stream.wait_event(event)

    def query(self, event: torch.cuda.Event) -> bool:
        """Whether ``event`` has happened."""
        # torch declares no types for this method.
        return bool(event.query())  # type: ignore[no-untyped-call]

    def synchronize(self, event: torch.cuda.Event) -> None:
        """Sleep until ``event`` has happened."""
        event.synchronize()


def stream_on(device: torch.device) -> torch.cuda.Stream:
    """A new stream on a GPU."""
    # torch declares no types for this constructor.
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def spans_of(copy: Copy) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """The contiguous pieces of a copy, as target and source: one, unless rows have gaps between."""
    target = copy.target.rows[copy.target_row : copy.target_row + copy.count]
    source = copy.source.rows[copy.source_row : copy.source_row + copy.count]
    if target.is_contiguous() and source.is_contiguous():
        yield target, source
    else:
        yield from zip(target, source, strict=True)
