"""Cutting a recorded run: the state before any of its events, and a part that begins with it."""

from collections.abc import Iterable, Iterator
from itertools import islice

from pagedkv.conformance.recorded.specification import SpecificationFactory
from pagedkv.conformance.validation import Divergence, Follower
from pagedkv.reference.events import Event
from pagedkv.traces.events.setup import EventTraceHeader
from pagedkv.traces.events.start import RunStart


class RunDivergesError(ValueError):
    """A run was to be followed further than the specification allows it."""

    def __init__(self, divergence: Divergence) -> None:
        self.divergence = divergence
        """Where it ends to be allowed, and why."""
        super().__init__(
            f"nothing is known of the run from event {divergence.seq} on, where it diverges: "
            f"{divergence.reason}"
        )


def start_at(
    header: EventTraceHeader,
    events: Iterable[Event],
    seq: int | None,
    specification: SpecificationFactory,
) -> RunStart:
    """Where a run stands before event ``seq``, or at its end.

    A call that reports several events, such as those of a failing device, cannot be cut: if
    ``seq`` is one of them, this is where the run stands before the first.

    Args:
        header: Of the trace.
        events: All its events; gone through twice if ``seq`` is within a call.
        seq: Number of an event, or of the one that would come next; ``None``: the end.
        specification: Makes the specification.

    Raises:
        RunDivergesError: The specification does not allow the run up to there.
        ValueError: There is no such event.
    """
    follower = Follower(header.setup, specification, header.start)
    call = follower.seq
    for event in events:
        if follower.between_calls:
            call = follower.seq
        if follower.seq == seq:
            break
        divergence = follower.follow(event)
        if divergence is not None:
            raise RunDivergesError(divergence)
    if seq is not None and follower.seq != seq:
        raise ValueError(f"there is no event {seq}; they go from {header.first_seq} to {call}")
    if not follower.between_calls:
        return start_at(header, events, call, specification)
    return follower.start()


def cut(
    header: EventTraceHeader,
    events: Iterable[Event],
    first: int,
    last: int | None,
    specification: SpecificationFactory,
) -> tuple[EventTraceHeader, Iterator[Event]]:
    """The events from ``first`` to ``last``, or to the end, and the rest of their calls, as a run.

    What comes before is gone through to know where the part begins; the part itself need not be
    allowed. See :func:`start_at` for arguments and errors.
    """
    skipped = 0
    if first > header.first_seq:
        start = start_at(header, events, first, specification)
        skipped = start.seq - header.first_seq
        header = header.model_copy(update={"start": start})
    return header, _up_to(last, header, islice(events, skipped, None), specification)


def _up_to(
    last: int | None,
    header: EventTraceHeader,
    events: Iterable[Event],
    specification: SpecificationFactory,
) -> Iterator[Event]:
    follower = Follower(header.setup, specification, header.start)
    allowed = True
    for seq, event in enumerate(events, header.first_seq):
        if last is not None and seq > last and (follower.between_calls or not allowed):
            return
        allowed = allowed and follower.follow(event) is None
        yield event
