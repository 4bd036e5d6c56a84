"""Feeding a recorded run to a specification, event by event, to see whether it was allowed.

Every recorded call is made again, every landing and failure is played again, and what the
specification reports must be what was recorded: pages, hits, transfers, refusals. Transfers are
told apart by what they move, so that each side may name them in its own way.
"""

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol

from pagedkv.conformance.recorded.player import Player
from pagedkv.conformance.recorded.specification import SpecificationFactory
from pagedkv.reference.errors import PagedKVError
from pagedkv.reference.events import Event, IssuedTransfer
from pagedkv.traces.events.setup import RunSetup
from pagedkv.traces.events.start import RunStart


@dataclass(frozen=True, slots=True)
class Divergence:
    """The first event of a run that the specification does not allow."""

    seq: int
    """Its number in the trace."""
    seen: Event | None
    """What was recorded; ``None`` if the trace ends too early."""
    expected: Event | None
    """What the specification reports in its place; ``None`` if it refuses or ignores the call."""
    reason: str
    """What is wrong, for people."""
    refusal: type[Exception] | None = None
    """The error with which the specification refuses the call."""

    @property
    def differing(self) -> tuple[str, ...]:
        """The fields that differ, if an event of the same kind was expected."""
        if self.seen is None or type(self.seen) is not type(self.expected):
            return ()
        names = (field.name for field in fields(self.seen))
        return tuple(n for n in names if getattr(self.seen, n) != getattr(self.expected, n))


def validate(
    setup: RunSetup,
    events: Iterable[Event],
    specification: SpecificationFactory,
    start: RunStart | None = None,
) -> Divergence | int:
    """The first divergence of a run, or the number of events if there is none.

    Args:
        setup: How the recorded manager was set up.
        events: What it has reported.
        specification: Makes the specification.
        start: Where the run stood before the first of ``events``; ``None``: it begins with them.

    Raises:
        TraceError: The start does not fit, or ``events`` come from a file that is damaged.
        ValueError: The setup cannot be.
    """
    follower = Follower(setup, specification, start)
    for event in events:
        divergence = follower.follow(event)
        if divergence is not None:
            return divergence
    return follower.unfinished() or follower.count


class Names(Protocol):
    """Names of pages in a run that are not those of the specification."""

    def pair(self, seen: Event, expected: Event) -> None:
        """Learn from an event and from what the specification reports in its place."""
        ...

    def own(self, event: Event) -> Event:
        """An event of the run with the specification's names."""
        ...


class Follower:
    """The specification on its way through a run.

    The arguments are those of :func:`validate`, and the names of pages if they are other ones.
    """

    def __init__(
        self,
        setup: RunSetup,
        specification: SpecificationFactory,
        start: RunStart | None = None,
        names: Names | None = None,
    ) -> None:
        self._names = names
        self.player = Player(setup, specification, start)
        """Plays the events."""
        self.count = 0
        """Events followed so far."""
        self._first = 0 if start is None else start.seq

    @property
    def seq(self) -> int:
        """Number of the next event."""
        return self._first + self.count

    @property
    def between_calls(self) -> bool:
        """Whether everything that the latest call reports has been followed."""
        return not self.player.reported

    def follow(self, seen: Event) -> Divergence | None:
        """Do again what ``seen`` says was done, unless its cause was done already, and compare."""
        reported = self.player.reported
        if not reported:
            try:
                self.player.play(seen if self._names is None else self._names.own(seen))
            except (PagedKVError, ValueError) as error:
                reason = f"the specification refuses this: {error}"
                return Divergence(self.seq, seen, None, reason, type(error))
        if not reported:
            reason = "the specification has nothing to report here"
            return Divergence(self.seq, seen, None, reason)
        event = reported.popleft()
        if self._names is not None:
            self._names.pair(seen, event)
            seen = self._names.own(seen)
        expected = self._translate(event, seen)
        if expected != seen:
            return Divergence(self.seq, seen, expected, _difference(seen, expected))
        self.count += 1
        return None

    def unfinished(self) -> Divergence | None:
        """What is wrong if the run ends here: its latest call has more to report."""
        if self.between_calls:
            return None
        missing = self.player.reported[0]
        reason = f"{type(missing).__name__} is missing at the end"
        return Divergence(self.seq, None, missing, reason)

    def start(self) -> RunStart:
        """Where the run stands: another one may begin here. Only :attr:`between_calls`."""
        return self.player.start(self.seq)

    def _translate(self, event: Event, seen: Event) -> Event:
        """The specification's event with the trace's names of transfers.

        New transfers are named as those of ``seen`` that move the same blocks in the same way.
        """
        player = self.player
        for own in getattr(event, "issued", ()):
            for other in getattr(seen, "issued", ()):
                if other.transfer not in player.own_names and _moves(own) == _moves(other):
                    player.pair(other.transfer, own.transfer)
                    break
        changes: dict[str, Any] = {}
        for field in fields(event):
            value = getattr(event, field.name)
            if field.name == "issued":
                changes["issued"] = tuple(
                    replace(t, transfer=player.name(t.transfer)) for t in value
                )
            elif field.name == "transfer":
                changes["transfer"] = player.name(value)
            elif field.name in ("waits_for", "failed_transfers"):
                changes[field.name] = tuple(map(player.name, value))
        return replace(event, **changes)


def _moves(transfer: IssuedTransfer) -> tuple[object, ...]:
    """What a transfer does, without its name."""
    return tuple(getattr(transfer, f.name) for f in fields(transfer) if f.name != "transfer")


def _difference(seen: Event, expected: Event) -> str:
    """The fields in which two events differ, for people."""
    if type(seen) is not type(expected):
        return f"expected {type(expected).__name__}, seen {type(seen).__name__}"
    values = ((f.name, getattr(expected, f.name), getattr(seen, f.name)) for f in fields(seen))
    return f"{type(seen).__name__}: " + "; ".join(
        f"{name}: expected {wanted!r}, seen {found!r}"
        for name, wanted, found in values
        if wanted != found
    )
