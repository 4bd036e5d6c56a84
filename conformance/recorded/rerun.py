"""Making the calls of a recorded run once more, though not all of them: what then happens differs.

Transfers are named, pages are numbered and windows begin as the specification has it this time.
"""

from collections.abc import Hashable, Iterable
from dataclasses import replace

from pagedkv.conformance.recorded.player import Player
from pagedkv.conformance.recorded.specification import SpecificationFactory
from pagedkv.reference.errors import PagedKVError
from pagedkv.reference.events import (
    AllocPlanned,
    AllocRefused,
    AllocReturned,
    Claimed,
    Cleaned,
    ContextSnapshot,
    DiskOpened,
    Event,
    InputsBuilt,
    IssuedTransfer,
    Prefetched,
    Released,
    Stepped,
)
from pagedkv.traces.events.renaming import Renaming
from pagedkv.traces.events.setup import EventTraceHeader

REFUSALS = (PagedKVError, ValueError)
"""What a specification raises at a call that cannot be."""


class Rerun:
    """One go through some events of a run."""

    def __init__(self, header: EventTraceHeader, specification: SpecificationFactory) -> None:
        self.calls: list[list[Event]] = []
        """What each call has reported: a run that the specification allows."""
        self._player = Player(header.setup, specification, header.start)
        self._claimed: dict[Hashable, int] = {}
        if header.start is not None:
            self._claimed |= {r.request_id: r.replica for r in header.start.state.requests}
        self._pages: dict[tuple[int, int], int] = {}  # by replica and recorded page: now
        self._processed: dict[Hashable, tuple[int, int]] = {}  # where a window began, and does now
        self._is_open = header.start is not None

    def make_all(self, events: Iterable[Event]) -> None:
        """Make all these calls; leave out those that cannot be made any more."""
        for event in events:
            try:
                self.make(self._without_strangers(event))
            except REFUSALS:
                continue

    def make(self, event: Event) -> list[Event]:
        """Make one call, and return what it reports.

        Raises:
            PagedKVError, ValueError: It cannot be made.
        """
        if not self._is_open:
            self._is_open = True
            if not isinstance(event, DiskOpened):
                _ = self._player.manager  # opened with nothing on its disk
                self._collect()
        self._player.play(self.adapted(event))
        reported = self._collect()
        if reported:
            self._learn(event, reported[0])
        return reported

    def make_last(self, event: Event) -> Event | None:
        """Make one more call; the first that it reports, which :attr:`calls` does not get.

        ``None``: it is refused, or changes nothing.
        """
        try:
            reported = self.make(event)
        except REFUSALS:
            return None
        return self.calls.pop()[0] if reported else None

    def adapted(self, event: Event) -> Event:
        """The event as it would be recorded this time, as far as it says what a call was given."""
        match event:
            case InputsBuilt(batches, contexts) if [*map(len, batches)] == [*map(len, contexts)]:
                rows = zip(batches, contexts, strict=True)
                return replace(
                    event,
                    contexts=tuple(tuple(map(self._context, *row)) for row in rows),
                )
            case AllocPlanned() | AllocRefused() | Prefetched() | Stepped():
                return replace(event, context=self._context(event.request_id, event.context))
            case Cleaned(replica, pages):
                now = tuple(self._pages.get((replica, page), page) for page in pages)
                return replace(event, pages=now)
            case _:
                return event

    def renamed(self, event: Event) -> Event:
        """The event with the transfers called as they are this time, as far as there are any."""
        names = self._player.own_names
        return Renaming(transfer=lambda name: names.get(name, name)).apply(event)

    def _without_strangers(self, event: Event) -> Event:
        """A batch goes on without the requests that were left out."""
        if not isinstance(event, InputsBuilt):
            return event
        rows = [
            [pair for pair in zip(*row, strict=True) if pair[0] in self._claimed]
            for row in zip(event.batches, event.contexts, strict=True)
        ]
        return replace(
            event,
            batches=tuple(tuple(name for name, _ in row) for row in rows),
            contexts=tuple(tuple(context for _, context in row) for row in rows),
        )

    def _context(self, request_id: Hashable, context: ContextSnapshot) -> ContextSnapshot:
        """The window begins where the request's allocation has returned to it this time."""
        recorded, now = self._processed.get(request_id, (0, 0))
        if context.processed == recorded and now < context.position:
            return replace(context, processed=now)
        return context

    def _collect(self) -> list[Event]:
        reported = list(self._player.reported)
        self._player.reported.clear()
        if reported:
            self.calls.append(reported)
        return reported

    def _learn(self, recorded: Event, now: Event) -> None:
        """What is called otherwise from now on."""
        match recorded, now:
            case Claimed(name, replica), _:
                self._claimed[name] = replica
            case Released(name), _:
                del self._claimed[name]
                self._processed.pop(name, None)
            case AllocReturned(name, was), AllocReturned(_, processed):
                self._processed[name] = was, processed
            case ((AllocPlanned() | Stepped()), (AllocPlanned() | Stepped())):
                replica = self._claimed[recorded.request_id]
                for page, now_page in zip(recorded.pages, now.pages, strict=False):
                    self._pages[replica, page] = now_page
        coming = list(getattr(now, "issued", ()))
        for transfer in getattr(recorded, "issued", ()):
            for other in coming:
                if _way(transfer) == _way(other):
                    self._player.pair(transfer.transfer, other.transfer)
                    coming.remove(other)
                    break


def _way(transfer: IssuedTransfer) -> tuple[str, str, str]:
    return transfer.kind, transfer.source, transfer.target
