"""Which situations a run has come through, told from its events alone.

A rule counts as tried when something has happened in which it decides, and which the checks of a
run would have noticed if it had been decided otherwise. A fault counts together with what it
struck: the transfers that were under way.
"""

from collections import Counter
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import get_args

from pagedkv.reference.events import (
    AllocCancelled,
    AllocPlanned,
    AllocRefused,
    AllocReturned,
    Claimed,
    Cleaned,
    Closed,
    ContextSnapshot,
    DiskOpened,
    Event,
    InputsBuilt,
    IssuedTransfer,
    MetricsReset,
    Prefetched,
    PrefixCacheReset,
    Released,
    ReplicaPoisoned,
    Stepped,
    StoreAnswered,
    TransferFailed,
    TransferLanded,
    WriteBudgetRenewed,
)
from pagedkv.traces.events.setup import RunSetup

SITUATIONS: dict[str, tuple[str, ...]] = {
    "claim": ("CLAIM-1", "EVENT-1"),
    "claim of a dummy": ("CLAIM-4",),
    "alloc that hits nothing": ("ALLOC-1", "POOL-3"),
    "alloc that hits the device": ("ALLOC-4", "ALLOC-7", "ID-2"),
    "alloc that hits another replica": ("ALLOC-10",),
    "alloc that hits host memory": ("ALLOC-4", "TIER-3", "TIER-4"),
    "alloc that hits the disk": ("ALLOC-4", "TIER-2", "TIER-5"),
    "alloc that hits several tiers": ("ALLOC-4",),
    "alloc that joins a load": ("ALLOC-6",),
    "alloc that takes nothing": ("ALLOC-3",),
    "alloc that does not use all it finds": ("ALLOC-15",),
    "alloc of a chunk": ("LEN-3", "ALLOC-5"),
    "alloc with drafts": ("LEN-1",),
    "alloc where drafts look ahead": ("DRAFT-1",),
    "alloc after a preemption": ("METRIC-4",),
    "alloc of a request from before a reset": ("RESET-2",),
    "alloc that is refused": ("ALLOC-2", "EVENT-4"),
    "alloc that returns at once": ("ALLOC-1", "EVENT-3", "METRIC-1"),
    "alloc that returns after loads": ("ALLOC-13", "METRIC-2"),
    "alloc that is undone after a failed load": ("ALLOC-11", "FAIL-1"),
    "alloc that is cancelled": ("ALLOC-12",),
    "inputs": ("INPUT-1", "INPUT-4"),
    "inputs for drafts": ("LEN-4",),
    "step that commits": ("STEP-2", "LEN-2"),
    "step that commits nothing": ("STEP-2",),
    "step that swaps a page": ("STEP-4",),
    "step that offers blocks": ("STEP-5", "XFER-1"),
    "step of a request from before a reset": ("STEP-3", "RESET-2"),
    "release": ("REL-1", "REL-2", "POOL-4", "POOL-5", "POOL-8"),
    "release while a transfer uses a page": ("REL-3", "POOL-7"),
    "prefetch that loads": ("TIER-11",),
    "prefetch that finds nothing to load": ("TIER-11",),
    "cleaning": ("TIER-7",),
    "cleaning that finds no slot": ("TIER-7", "TIER-9"),
    "reset": ("RESET-1", "RESET-2"),
    "reset of the counters": ("METRIC-5",),
    "landing": ("XFER-2", "XFER-3", "TIER-1"),
    "landing that issues writes": ("XFER-3", "TIER-2"),
    "landing after a reset": ("RESET-2", "RESET-3"),
    "failure": ("XFER-4", "TIER-6"),
    "failure after a reset": ("RESET-3",),
    "new write budget": ("TIER-8",),
    "device that fails": ("FAIL-2",),
    "end": ("CLOSE-1",),
    "end under load": ("CLOSE-1",),
    "restart that finds blocks after an end": ("NS-4",),
    "restart that finds blocks after a crash": ("NS-4",),
}
"""What can happen, and the rules that decide then."""

WAYS = ("device→host", "host→device", "disk→device", "peer→device", "disk→host", "host→disk")
"""The ways of transfers, as far as there is no block store."""

LOADS = ("host→device", "disk→device", "peer→device")
"""Those that an allocation may wait for."""

NOTHING = "nothing"
"""What a fault has struck that came when nothing was under way."""

STRUCK: dict[str, tuple[str, ...]] = {
    "io_error": ("disk→device", "disk→host", "host→disk"),
    "corrupt": ("disk→device", "disk→host"),
    "missing": ("disk→device", "disk→host"),
    "no_space": ("host→disk",),
    "unavailable": ("device→host", "host→device", "disk→device", "peer→device"),
    "cancelled": (*LOADS, NOTHING),
    "released": ("device→host", "host→device", "disk→device", NOTHING),
    "refused": (*WAYS, NOTHING),
    "reset": (*WAYS, NOTHING),
    "device failed": (*WAYS, NOTHING),
    "crashed": (*WAYS, NOTHING),
}
"""By fault: what may be under way when it strikes."""

EVENTS = tuple(kind.__name__ for kind in get_args(Event) if kind is not StoreAnswered)
"""Everything that a manager without a block store reports."""

OUTCOMES = (
    "landed",
    "io_error",
    "corrupt",
    "missing",
    "no_space",
    "unavailable",
    "landed after a reset",
)
"""How transfers end."""


@dataclass
class Tried:
    """What was tried, and how often. Adds up."""

    situations: Counter[str] = field(default_factory=Counter)
    """By name in :data:`SITUATIONS`."""
    struck: Counter[tuple[str, str]] = field(default_factory=Counter)
    """By fault and what it struck, see :data:`STRUCK`."""
    events: Counter[str] = field(default_factory=Counter)
    """By kind of the event."""
    ended: Counter[tuple[str, str]] = field(default_factory=Counter)
    """By way of a transfer and how it ended."""

    def add(self, other: "Tried") -> None:
        """Count what was tried elsewhere too."""
        self.situations += other.situations
        self.struck += other.struck
        self.events += other.events
        self.ended += other.ended


def tried_in(setup: RunSetup, lives: Iterable[Iterable[Event]]) -> Tried:
    """What was tried in the lives of managers that came one after the other on the same disk."""
    tried = Tried()
    before: type[Event] | None = None
    for events in lives:
        walk = _Walk(setup, tried)
        last = None
        for event in events:
            tried.events[type(event).__name__] += 1
            tried.situations.update(walk.situations_of(event))
            if isinstance(event, DiskOpened) and event.keys:
                end = "an end" if before is Closed else "a crash"
                tried.situations[f"restart that finds blocks after {end}"] += 1
            last = type(event)
        if last is not Closed:
            walk.strikes("crashed")
        before = last
    return tried


@dataclass
class _Request:
    """What is known of a claimed request."""

    replica: int
    pages: tuple[int, ...] = ()
    committed: int = 0
    plan: AllocPlanned | None = None
    fenced: bool = False


class _Walk:
    """One life, followed from event to event."""

    def __init__(self, setup: RunSetup, tried: Tried) -> None:
        self._setup = setup
        self._tried = tried
        self._requests: dict[Hashable, _Request] = {}
        self._moving: dict[str, tuple[IssuedTransfer, int | None]] = {}  # and the replica
        self._fenced: set[str] = set()
        self._looks_ahead = setup.speculative_method in ("eagle", "mtp")

    def strikes(self, fault: str, ways: Iterable[str] | None = None) -> None:
        """A fault strikes transfers, by default all that are under way."""
        if ways is None:
            ways = [_way(transfer) for transfer, _ in self._moving.values()]
        for way in set(ways) or {NOTHING}:
            self._tried.struck[fault, way] += 1

    def situations_of(self, event: Event) -> Iterator[str]:
        """The situations that an event shows; learns from it."""
        match event:
            case Claimed(name, replica, dummy):
                self._requests[name] = _Request(replica)
                yield "claim of a dummy" if dummy else "claim"
            case AllocPlanned():
                yield from self._planned(event)
            case AllocReturned(name):
                request = self._requests[name]
                if request.plan is not None:
                    waited = bool(request.plan.waits_for)
                    yield "alloc that returns " + ("after loads" if waited else "at once")
                    request.pages = request.plan.pages
                    request.committed += request.plan.hits.total_blocks
                    request.plan = None
            case AllocCancelled(name, failed):
                request = self._requests[name]
                if failed:
                    yield "alloc that is undone after a failed load"
                else:
                    yield "alloc that is cancelled"
                    self.strikes("cancelled", self._loads_of(request))
                request.plan = None
            case AllocRefused():
                yield "alloc that is refused"
                self.strikes("refused")
            case InputsBuilt(_, contexts):
                drafts = any(context.drafts_to_verify for row in contexts for context in row)
                yield "inputs for drafts" if drafts else "inputs"
            case Stepped():
                yield from self._stepped(event)
            case Released(name):
                yield from self._released(self._requests.pop(name))
            case Prefetched(_, _, issued):
                yield "prefetch that loads" if issued else "prefetch that finds nothing to load"
                self._issue(issued)
            case Cleaned(replica, pages, _, issued):
                done = sum(len(transfer.pages) for transfer in issued) == len(pages)
                yield "cleaning" if done else "cleaning that finds no slot"
                self._issue(issued, replica)
            case TransferLanded(name, issued):
                self._end(name, "landed")
                yield "landing that issues writes" if issued else "landing"
                if name in self._fenced:
                    yield "landing after a reset"
                self._issue(issued)
            case TransferFailed(name, reason):
                self.strikes(reason, self._ways([name]))
                self._end(name, reason)
                yield "failure after a reset" if name in self._fenced else "failure"
            case PrefixCacheReset():
                self.strikes("reset")
                self._fenced.update(self._moving)
                for request in self._requests.values():
                    request.fenced |= bool(request.pages) or request.plan is not None
                yield "reset"
            case ReplicaPoisoned():
                self.strikes("device failed")
                yield "device that fails"
            case MetricsReset():
                yield "reset of the counters"
            case WriteBudgetRenewed():
                yield "new write budget"
            case Closed():
                yield "end under load" if self._requests else "end"
            case _:
                pass

    def _planned(self, event: AllocPlanned) -> Iterator[str]:
        request = self._requests[event.request_id]
        hits = {
            "the device": event.hits.device_blocks,
            "another replica": event.hits.peer_blocks,
            "host memory": event.hits.host_blocks,
            "the disk": event.hits.disk_blocks,
        }
        found = [tier for tier, count in hits.items() if count]
        yield from (f"alloc that hits {tier}" for tier in found)
        if len(found) > 1:
            yield "alloc that hits several tiers"
        if event.pages == request.pages:
            yield "alloc that takes nothing"
        elif not found:
            yield "alloc that hits nothing"
        if set(event.waits_for) - {transfer.transfer for transfer in event.issued}:
            yield "alloc that joins a load"
        if event.hit_limit is not None:
            yield "alloc that does not use all it finds"
        if request.fenced:
            yield "alloc of a request from before a reset"
        yield from self._told_of(event.context)
        request.plan = event
        self._issue(event.issued, event.replica)

    def _told_of(self, context: ContextSnapshot) -> Iterator[str]:
        if context.position < context.length:
            yield "alloc of a chunk"
        if context.drafts_to_verify:
            yield "alloc with drafts"
        if self._looks_ahead and len(context.keys) > 0:
            yield "alloc where drafts look ahead"
        if context.preempted:
            yield "alloc after a preemption"

    def _stepped(self, event: Stepped) -> Iterator[str]:
        request = self._requests[event.request_id]
        committed = len(event.context.keys)
        yield "step that commits" if committed > request.committed else "step that commits nothing"
        if event.pages != request.pages:
            yield "step that swaps a page"
        if event.issued:
            yield "step that offers blocks"
        if request.fenced:
            yield "step of a request from before a reset"
        request.committed, request.pages = committed, event.pages
        self._issue(event.issued, request.replica)

    def _released(self, request: _Request) -> Iterator[str]:
        using = [
            _way(transfer)
            for transfer, replica in self._moving.values()
            if replica == request.replica and set(transfer.pages) & set(request.pages)
        ]
        self.strikes("released", using)
        yield "release"
        if using:
            yield "release while a transfer uses a page"

    def _issue(self, issued: Iterable[IssuedTransfer], replica: int | None = None) -> None:
        self._moving.update((transfer.transfer, (transfer, replica)) for transfer in issued)

    def _end(self, name: str, how: str) -> None:
        if name in self._moving:
            if how == "landed" and name in self._fenced:
                how = "landed after a reset"
            self._tried.ended[_way(self._moving.pop(name)[0]), how] += 1

    def _loads_of(self, request: _Request) -> list[str]:
        return self._ways(request.plan.waits_for if request.plan else ())

    def _ways(self, names: Iterable[str]) -> list[str]:
        return [_way(self._moving[name][0]) for name in names if name in self._moving]


def _way(transfer: IssuedTransfer) -> str:
    return f"{transfer.source}→{transfer.target}"
