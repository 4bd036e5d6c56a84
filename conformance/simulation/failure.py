"""What can be wrong with a run, in words for people and in a kind by which to know it again."""

import re
import traceback
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import PurePath

from pagedkv.conformance.simulation.event_text import event_text
from pagedkv.conformance.stream_order import Race
from pagedkv.conformance.validation import Divergence
from pagedkv.conformance.violation import Violation
from pagedkv.reference.events import Event

MOST_EVENTS = 12
"""Events of the requests concerned that are shown."""


@dataclass(frozen=True)
class Failure:
    """The first thing that was wrong with a run."""

    kind: str
    """What it has in common with failures that have the same cause, as far as one can tell."""
    told: str
    """What is wrong."""
    life: int
    """In which life, counted from 0."""
    expected: str | None = None
    """What should have been, if there is such a thing."""
    seen: str | None = None
    """What was there in its place."""
    seq: int | None = None
    """The number of the event that is not allowed."""
    about: tuple[str, ...] = ()
    """The requests and transfers that it names."""
    details: str = ""
    """The last lines of the traceback."""

    def as_data(self) -> dict[str, object]:
        """All of it, for programs."""
        return asdict(self)

    def last_events(self, events: Sequence[Event]) -> list[tuple[int, Event]]:
        """The latest events of the requests and transfers that it names, with their numbers.

        Transfers that those requests wait for are among them; if it names none, all are.
        """
        until = len(events) if self.seq is None else self.seq + 1
        about = set(self.about)
        chosen: list[tuple[int, Event]] = []
        for seq, event in enumerate(events[:until]):
            names = {str(getattr(event, "request_id", "")), getattr(event, "transfer", "")}
            issued = {transfer.transfer for transfer in getattr(event, "issued", ())}
            if not self.about or names & about or issued & about or seq == self.seq:
                chosen.append((seq, event))
                about.update(getattr(event, "waits_for", ()))
        return chosen[-MOST_EVENTS:]


class WrongRunError(AssertionError):
    """A check of a finished life has found something wrong."""

    def __init__(self, kind: str, told: str) -> None:
        self.kind = kind
        """See :class:`Failure`."""
        super().__init__(told)


def from_divergence(divergence: Divergence, life: int) -> Failure:
    """A run that the specification does not allow."""
    names = [
        type(event).__name__ if event is not None else "nothing"
        for event in (divergence.seen, divergence.expected)
    ]
    kind = f"divergence: {names[0]} where {names[1]} was expected"
    if divergence.differing:
        kind = f"divergence: {names[0]} with another {', '.join(divergence.differing)}"
    elif divergence.refusal is not None:
        kind = f"divergence: {names[0]} is refused with {divergence.refusal.__name__}"
    both = (divergence.seen, divergence.expected)
    seen, expected = (
        None if event is None else event_text(event, divergence.differing) for event in both
    )
    return Failure(
        kind=kind,
        told=f"event {divergence.seq}: {divergence.reason}",
        life=life,
        expected=expected,
        seen=seen,
        seq=divergence.seq,
        about=tuple(sorted({name for event in both for name in _names_in(event)})),
    )


def _names_in(event: Event | None) -> Iterable[str]:
    """The request or transfer that an event is about."""
    for field in ("request_id", "transfer"):
        if (name := getattr(event, field, None)) is not None:
            yield str(name)


def from_races(races: Sequence[Race], life: int) -> Failure:
    """Two uses of the same memory that nothing orders."""
    first = races[0]
    sides = " and ".join(
        f"{side.kind} that {'writes' if side.writes else 'reads'}"
        for side in (first.earlier, first.later)
    )
    memory = re.sub(r"\d+", "", first.memory).strip()
    told = "\n".join(map(str, races[:3]))
    return Failure(kind=f"race on {memory}: {sides}", told=told, life=life)


def from_error(error: BaseException, life: int) -> Failure:
    """Something that was raised; of a group, the first."""
    cause = _first(error)
    details = "".join(traceback.format_exception(cause, limit=-6, chain=False))
    if isinstance(cause, WrongRunError):
        return Failure(cause.kind, str(cause), life, about=_requests_in(cause))
    if isinstance(cause, Violation):
        expected, seen = (
            None if side is None else str(side) for side in (cause.expected, cause.seen)
        )
        return Failure(
            kind=f"violation of {cause.rule}",
            told=str(cause),
            life=life,
            expected=expected,
            seen=seen,
            about=_requests_in(cause),
            details=details,
        )
    name = type(cause).__name__
    told = f"{name}: {cause}".rstrip(": ")
    kind = f"{name} in {_place(cause)}"
    return Failure(kind, told, life, about=_requests_in(cause), details=details)


def _first(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _requests_in(error: BaseException) -> tuple[str, ...]:
    """The requests that a message names."""
    return tuple(sorted(set(re.findall(r"request '([^']*)'", str(error)))))


def _place(error: BaseException) -> str:
    """Where it was raised: module and function, without lines, which change too easily."""
    frames = traceback.extract_tb(error.__traceback__)
    if not frames:
        return "nowhere"
    last = frames[-1]
    return f"{PurePath(last.filename).stem}.{last.name}"
