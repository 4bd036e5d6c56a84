"""Feeding a recorded run to a specification, event by event, to see whether it was allowed.

Every recorded call is made again, every landing and failure is played again, and what the
specification reports must be what was recorded: pages, hits, transfers, refusals. Transfers are
told apart by what they move, so that each side may name them in its own way.
"""

from collections import deque
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol

import numpy as np

from pagedkv.reference.context import SpecDecodingState
from pagedkv.reference.errors import InsufficientBlocksError, KVLoadFailed, PagedKVError
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
    PrefixCacheReset,
    Released,
    ReplicaPoisoned,
    Stepped,
    Tracer,
    TransferFailed,
    TransferLanded,
    WriteBudgetRenewed,
)
from pagedkv.reference.identity import PageKey
from pagedkv.reference.interfaces import SyncKVCacheManager
from pagedkv.reference.tier_names import FailReason
from pagedkv.reference.tokens import TokenArray, TokenHashOverride
from pagedkv.traces.events.setup import RunSetup


class Specification(SyncKVCacheManager, Protocol):
    """A manager whose environment the caller plays: the reference, with ``auto_land=False``."""

    # Any: what these return is not looked at; the events say it.
    def begin_alloc(self, ctx: "RecordedContext", replica_idx: int) -> Any:
        """Plan an allocation."""
        ...

    def finish_alloc(self, ctx: "RecordedContext", replica_idx: int) -> Any:
        """Complete a planned allocation."""
        ...

    def cancel_alloc(self, request_id: Hashable, replica_idx: int) -> None:
        """Undo a planned allocation."""
        ...

    def clean_pages(
        self, replica_idx: int, pages: Sequence[int], sparing: Sequence[PageKey] = ()
    ) -> Any:
        """Offload dirty pages."""
        ...

    def land(self, transfer_id: str) -> None:
        """A transfer has landed."""
        ...

    def fail(
        self, transfer_id: str, reason: FailReason, keys: Iterable[PageKey] | None = None
    ) -> None:
        """A transfer has failed."""
        ...

    def poison(self, replica_idx: int, reason: str) -> None:
        """A device has failed."""
        ...

    def renew_write_budget(self) -> None:
        """A new day has begun."""
        ...


SpecificationFactory = Callable[[RunSetup, Tracer], Specification]
"""Makes the specification of a run, reporting to the tracer."""


@dataclass(frozen=True, slots=True)
class Divergence:
    """The first event of a run that the specification does not allow."""

    seq: int
    """Its number in the trace."""
    seen: Event | None
    """What was recorded; ``None`` if the trace ends too early."""
    expected: Event | None
    """What the specification reports in its place; ``None`` if it refuses the call."""
    reason: str
    """What is wrong, for people."""


class RecordedContext:
    """A request as a trace knows it: lengths and identities, no tokens."""

    def __init__(self, request_id: Hashable) -> None:
        self.request_id = request_id
        self.snapshot = ContextSnapshot(length=1, processed=0, position=1)
        self.cached_prefix_length: int | None = None
        self.cache_salt: str | None = None
        self.adapter: str | None = None
        self.hash_overrides: Sequence[TokenHashOverride] = ()
        self.external_block_metadata: object = None

    @property
    def tokens(self) -> "RecordedContext":
        """The context is its own window."""
        return self

    @property
    def given_digests(self) -> Sequence[bytes]:
        """Identities in place of hashes."""
        return self.snapshot.keys

    @property
    def pending_future_count(self) -> int:
        """Trailing placeholders."""
        return self.snapshot.placeholders

    @property
    def preempted(self) -> bool:
        """Whether this is a re-admission."""
        return self.snapshot.preempted

    @property
    def spec_decoding_state(self) -> SpecDecodingState:
        """As many drafts as were recorded; which tokens they are does not matter."""
        s = self.snapshot
        return SpecDecodingState([0] * s.drafts_to_verify, [0] * s.maybe_accepted_drafts)

    def __len__(self) -> int:
        return self.snapshot.length

    @property
    def all(self) -> TokenArray:
        """Nobody reads tokens whose identities are given."""
        return np.zeros(self.snapshot.length, dtype=np.int64)

    @property
    def prompt_length(self) -> int:
        """Not recorded, and not needed."""
        return self.snapshot.length

    @property
    def processed_length(self) -> int:
        """Start of the active window."""
        return self.snapshot.processed

    @property
    def active_length(self) -> int:
        """Tokens in the active window."""
        return self.snapshot.position - self.snapshot.processed

    @property
    def current_position(self) -> int:
        """End of the active window."""
        return self.snapshot.position

    def skip_processing(self, n: int) -> None:
        """Move the start of the window forward."""
        self.snapshot = replace(self.snapshot, processed=self.snapshot.processed + n)

    def rewind_processing(self, n: int) -> None:
        """Move the start of the window back."""
        self.skip_processing(-n)


def validate(
    setup: RunSetup, events: Iterable[Event], specification: SpecificationFactory
) -> Divergence | int:
    """The first divergence of a run, or the number of events if there is none.

    The specification starts cold, so a run that begins with blocks on its disk or in its store
    diverges, and so does one that asks further stores.
    """
    follower = _Follower(setup, specification)
    count = 0
    for seq, event in enumerate(events):
        divergence = follower.follow(seq, event)
        if divergence is not None:
            return divergence
        count += 1
    if follower.reported:
        missing = follower.reported[0]
        return Divergence(count, None, missing, f"{type(missing).__name__} is missing at the end")
    return count


class _Follower:
    """The specification on its way through a run."""

    def __init__(self, setup: RunSetup, specification: SpecificationFactory) -> None:
        self.setup = setup
        self.reported: deque[Event] = deque()
        self.manager = specification(setup, self)
        self.contexts: dict[Hashable, RecordedContext] = {}
        self.replicas: dict[Hashable, int] = {}
        self.names: dict[str, str] = {}  # of transfers: the trace's name, by the specification's
        self.own_names: dict[str, str] = {}  # and the other way round

    def emit(self, event: Event) -> None:
        """Take what the specification reports."""
        self.reported.append(event)

    def follow(self, seq: int, seen: Event) -> Divergence | None:
        """Do again what ``seen`` says was done, unless its cause was done already, and compare."""
        if not self.reported:
            try:
                self.do(seen)
            except (InsufficientBlocksError, KVLoadFailed):
                pass  # Both are reported as events.
            except (PagedKVError, ValueError, KeyError) as error:
                return Divergence(seq, seen, None, f"the specification refuses this: {error}")
        if not self.reported:
            return Divergence(seq, seen, None, "the specification has nothing to report here")
        expected = self.translate(self.reported.popleft(), seen)
        if expected == seen:
            return None
        return Divergence(seq, seen, expected, _difference(seen, expected))

    def do(self, event: Event) -> None:
        """Make the call, or play the environment's part."""
        manager = self.manager
        match event:
            case Claimed(request_id, replica, dummy):
                (manager.alloc_dummy if dummy else manager.claim)(request_id, replica)
                self.contexts[request_id] = RecordedContext(request_id)
                self.replicas[request_id] = replica
            case AllocPlanned() | AllocRefused():
                manager.begin_alloc(self.at(event.request_id, event.context), event.replica)
            case AllocReturned(request_id):
                manager.finish_alloc(self.contexts[request_id], self.replicas[request_id])
            case AllocCancelled(request_id, failed_transfers):
                if failed_transfers:
                    manager.finish_alloc(self.contexts[request_id], self.replicas[request_id])
                else:
                    manager.cancel_alloc(request_id, self.replicas[request_id])
            case InputsBuilt(batches, contexts, max_cache_length, bounds):
                manager.runtime_inputs(
                    [
                        [self.at(name, context) for name, context in zip(*batch, strict=True)]
                        for batch in zip(batches, contexts, strict=True)
                    ],
                    max_cache_length=max_cache_length,
                    batch_characteristics=bounds,
                )
            case Stepped(request_id, context):
                own: list[list[RecordedContext]] = [[] for _ in range(self.setup.replicas)]
                own[self.replicas[request_id]].append(self.at(request_id, context))
                manager.step(own)
            case Cleaned(replica, pages, sparing):
                manager.clean_pages(replica, pages, sparing)
            case Released(request_id):
                manager.release(request_id, self.replicas.pop(request_id))
                del self.contexts[request_id]
            case TransferLanded(transfer):
                manager.land(self.own_names[transfer])
            case TransferFailed(transfer, reason, keys):
                manager.fail(self.own_names[transfer], reason, keys)
            case ReplicaPoisoned(replica, reason):
                manager.poison(replica, reason)
            case PrefixCacheReset():
                manager.reset_prefix_cache()
            case MetricsReset():
                manager.reset_metrics()
            case WriteBudgetRenewed():
                manager.renew_write_budget()
            case Closed():
                manager.shutdown()
            case DiskOpened():
                pass

    def at(self, request_id: Hashable, snapshot: ContextSnapshot) -> RecordedContext:
        """The context of a request, as a call found it."""
        ctx = self.contexts[request_id]
        ctx.snapshot = snapshot
        return ctx

    def translate(self, event: Event, seen: Event) -> Event:
        """The specification's event with the trace's names of transfers.

        New transfers are named as those of ``seen`` that move the same blocks in the same way.
        """
        for own in getattr(event, "issued", ()):
            for other in getattr(seen, "issued", ()):
                if other.transfer not in self.own_names and _moves(own) == _moves(other):
                    self.names[own.transfer] = other.transfer
                    self.own_names[other.transfer] = own.transfer
                    break
        changes: dict[str, Any] = {}
        for field in fields(event):
            value = getattr(event, field.name)
            if field.name == "issued":
                changes["issued"] = tuple(replace(t, transfer=self.name(t.transfer)) for t in value)
            elif field.name == "transfer":
                changes["transfer"] = self.name(value)
            elif field.name in ("waits_for", "failed_transfers"):
                changes[field.name] = tuple(map(self.name, value))
        return replace(event, **changes)

    def name(self, own: str) -> str:
        """The trace's name of a transfer, or the specification's if the trace has none."""
        return self.names.get(own, own)


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
