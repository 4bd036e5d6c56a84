"""What a manager reports of itself, as it acts: calls and environment events.

A run is the sequence of these events. Calls carry a snapshot of the context they were given and
their results; environment events say when a transfer landed or failed. Nothing in them depends
on threads, clocks or streams, so the reference can be fed any recorded run (EVENT-1 to EVENT-5).

Events are not changed once they are made. They are not frozen only because a frozen one takes five
times as long to make (0.72 instead of 0.15 µs), and a server may make a million a minute.
"""

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Protocol

from pagedkv.reference.identity import PageKey
from pagedkv.reference.inputs import BatchCharacteristics
from pagedkv.reference.metrics import PrefixCacheHits
from pagedkv.reference.tier_names import FailReason, TierName, TransferKind


@dataclass(slots=True, unsafe_hash=True)
class ContextSnapshot:
    """All that a call reads of the context it was given; identities stand in for tokens."""

    length: int
    """Tokens, placeholders included."""
    processed: int
    """Start of the active window."""
    position: int
    """End of the active window."""
    keys: tuple[PageKey, ...] = ()
    """Identities of the pages that the call looked at, root first."""
    placeholders: int = 0
    """Trailing tokens that are not known yet."""
    drafts_to_verify: int = 0
    """Draft tokens that the next forward verifies."""
    maybe_accepted_drafts: int = 0
    """Draft tokens that a forward in flight verifies."""
    preempted: bool = False
    """Whether this is a re-admission after a preemption."""
    stores: tuple[str, ...] = ()
    """Endpoints of the further block stores that an allocation may ask (STORE-4)."""


@dataclass(slots=True, unsafe_hash=True)
class IssuedTransfer:
    """A transfer that is in flight from now on."""

    transfer: str
    """Its name."""
    kind: TransferKind
    """Its direction."""
    source: TierName
    """The tier that is read."""
    target: TierName
    """The tier that is written."""
    keys: tuple[PageKey, ...]
    """The blocks, root first."""
    pages: tuple[int, ...]
    """The device pages that take part; empty for a write between lower tiers."""


@dataclass(slots=True, unsafe_hash=True)
class Claimed:
    """``claim`` or ``alloc_dummy`` succeeded."""

    request_id: Hashable
    """The request."""
    replica: int
    """Where it lives from now on."""
    dummy: bool = False
    """Whether it is mapped to the null page."""


@dataclass(slots=True, unsafe_hash=True)
class AllocPlanned:
    """Pages were matched and taken, loads were issued: one indivisible step."""

    request_id: Hashable
    """The request."""
    replica: int
    """Its replica."""
    context: ContextSnapshot
    """The context as the call found it."""
    pages: tuple[int, ...]
    """The page table that the request gets when the allocation returns."""
    hits: PrefixCacheHits
    """The blocks of its prefix that were found, by tier."""
    issued: tuple[IssuedTransfer, ...]
    """The loads of what is not on the replica yet."""
    waits_for: tuple[str, ...]
    """Transfers that the allocation waits for: those, and the ones it has joined."""
    hit_limit: int | None = None
    """Most blocks of its hit that it would use, because it does not wait for slower ones."""


@dataclass(slots=True, unsafe_hash=True)
class AllocReturned:
    """The allocation is complete; the only event that advances a context."""

    request_id: Hashable
    """The request."""
    processed: int
    """Start of the active window from now on."""


@dataclass(slots=True, unsafe_hash=True)
class AllocCancelled:
    """A planned allocation was undone."""

    request_id: Hashable
    """The request."""
    failed_transfers: tuple[str, ...] = ()
    """The failed loads that caused it; empty: the caller did."""


@dataclass(slots=True, unsafe_hash=True)
class AllocRefused:
    """An allocation did not fit; nothing was changed."""

    request_id: Hashable
    """The request."""
    replica: int
    """Its replica."""
    context: ContextSnapshot
    """The context as the call found it."""
    needed: int
    """Pages it would have taken."""
    free: int
    """Pages that were free."""
    hit_limit: int | None = None
    """Most blocks of its hit that it would have used, because it does not wait for slower ones."""


@dataclass(slots=True, unsafe_hash=True)
class Prefetched:
    """``prefetch``: what a request could hit is being loaded into host memory."""

    request_id: Hashable
    """The request; it need not be claimed."""
    context: ContextSnapshot
    """The context as the call found it."""
    issued: tuple[IssuedTransfer, ...]
    """The loads."""


@dataclass(slots=True, unsafe_hash=True)
class InputsBuilt:
    """``runtime_inputs`` succeeded."""

    batches: tuple[tuple[Hashable, ...], ...]
    """Request ids by replica."""
    contexts: tuple[tuple[ContextSnapshot, ...], ...]
    """Their contexts, as the call found them."""
    max_cache_length: int | None
    """The argument of that name."""
    batch_characteristics: BatchCharacteristics | None = None
    """The argument of that name."""


@dataclass(slots=True, unsafe_hash=True)
class Stepped:
    """``step`` committed pages of one request."""

    request_id: Hashable
    """The request."""
    context: ContextSnapshot
    """The context as the call found it, with the identities of all its committed pages."""
    pages: tuple[int, ...]
    """The page table afterwards: deduplication may have swapped pages."""
    issued: tuple[IssuedTransfer, ...]
    """Offloads and writes of what the tiers below lack."""


@dataclass(slots=True, unsafe_hash=True)
class Cleaned:
    """Dirty pages are being offloaded so that they may be evicted."""

    replica: int
    """Whose pages."""
    pages: tuple[int, ...]
    """The pages, oldest first."""
    sparing: tuple[PageKey, ...]
    """Blocks that were not given up for them: an allocation is about to hit them."""
    issued: tuple[IssuedTransfer, ...]
    """The offloads; a page without one found no slot."""


@dataclass(slots=True, unsafe_hash=True)
class Released:
    """``release`` succeeded; the id is forgotten."""

    request_id: Hashable
    """The request."""


@dataclass(slots=True, unsafe_hash=True)
class PrefixCacheReset:
    """``reset_prefix_cache``: nothing cached before can be hit after."""


@dataclass(slots=True, unsafe_hash=True)
class MetricsReset:
    """``reset_metrics``: all counters are zero."""


@dataclass(slots=True, unsafe_hash=True)
class DiskOpened:
    """The disk tier was opened with these blocks."""

    keys: tuple[PageKey, ...]
    """Blocks that survived, oldest first."""


@dataclass(slots=True, unsafe_hash=True)
class StoreAnswered:
    """Environment: a block store was asked, and what it holds does not follow from what was
    reported before (EVENT-5)."""

    found: tuple[PageKey, ...]
    """Blocks that it holds."""
    missing: tuple[PageKey, ...] = ()
    """Blocks that it does not hold, or did not tell of in time."""
    endpoint: str | None = None
    """Which of the further stores that a request has named; ``None``: the manager's own."""


@dataclass(slots=True, unsafe_hash=True)
class TransferSubmitted:
    """What can fail of a load has been done: an allocation that waits for it may return."""

    transfer: str
    """Its name."""


@dataclass(slots=True, unsafe_hash=True)
class TransferLanded:
    """Environment: all bytes of a transfer have arrived."""

    transfer: str
    """Its name."""
    issued: tuple[IssuedTransfer, ...] = ()
    """Writes further down that follow from it."""


@dataclass(slots=True, unsafe_hash=True)
class TransferFailed:
    """Environment: a transfer has failed and moved nothing."""

    transfer: str
    """Its name."""
    reason: FailReason
    """Why."""
    keys: tuple[PageKey, ...]
    """The blocks at fault."""


@dataclass(slots=True, unsafe_hash=True)
class ReplicaPoisoned:
    """Environment: the device of a replica has failed."""

    replica: int
    """Which one."""
    reason: str
    """What happened."""


@dataclass(slots=True, unsafe_hash=True)
class WriteBudgetRenewed:
    """Environment: a new day has begun for the disk's write budget."""


@dataclass(slots=True, unsafe_hash=True)
class Closed:
    """``shutdown``: everything accepted has been written."""


Event = (
    Claimed
    | AllocPlanned
    | AllocReturned
    | AllocCancelled
    | AllocRefused
    | InputsBuilt
    | Stepped
    | Prefetched
    | Cleaned
    | Released
    | PrefixCacheReset
    | MetricsReset
    | DiskOpened
    | StoreAnswered
    | TransferSubmitted
    | TransferLanded
    | TransferFailed
    | ReplicaPoisoned
    | WriteBudgetRenewed
    | Closed
)
"""Anything that a manager reports."""


class Tracer(Protocol):
    """Receives every event at the moment the manager acts on it. Must not call the manager."""

    def emit(self, event: Event) -> None:
        """Take one event."""
        ...
