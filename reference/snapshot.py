"""The whole state of a manager as plain data, without the bytes of its pages.

A snapshot can be written down, and a run can go on from it on another manager: what a run that
begins in the middle is validated from. It says nothing twice: who holds and pins a page, and how
many slots are in use, follows from the requests and the transfers in flight (POOL-9).
"""

from collections.abc import Hashable
from dataclasses import dataclass, field

from pagedkv.reference.fates import MissReason
from pagedkv.reference.identity import PageKey
from pagedkv.reference.metrics import KVCacheMetrics
from pagedkv.reference.state import AllocPlan
from pagedkv.reference.tier_names import LowerTier, TierName, TransferKind


@dataclass(frozen=True, slots=True)
class PoolSnapshot:
    """The device pages of one replica."""

    idle: tuple[int, ...]
    """Pages that no request holds, the next one to take first."""
    cached: tuple[tuple[int, PageKey], ...] = ()
    """Committed content that can be hit: page and identity."""
    dirty: tuple[int, ...] = ()
    """Cached pages that must be offloaded before they may be taken."""
    evictions: int = 0
    """Pages whose committed content was given up to make room."""


@dataclass(frozen=True, slots=True)
class BlockSnapshot:
    """One block, or reserved slot, of one tier."""

    key: PageKey
    """Identity of the page."""
    parent: PageKey | None = None
    """Identity of the page before it, as far as the tier knows it."""
    landed: bool = True
    """Whether all its bytes are there."""
    used_by: tuple[str, ...] = ()
    """Transfers in flight that read or write it."""


@dataclass(frozen=True, slots=True)
class TierSnapshot:
    """One tier below the devices; of a store, what this manager knows of it."""

    blocks: tuple[BlockSnapshot, ...] = ()
    """Landed blocks and reserved slots, the next victim first."""
    leaving: tuple[BlockSnapshot, ...] = ()
    """Blocks that can no longer be found, but are still in use."""
    evictions: int = 0
    """Landed blocks given up to make room."""
    writes_left: int | None = None
    """Blocks that the write budget still allows; ``None``: no budget."""


@dataclass(frozen=True, slots=True)
class TransferSnapshot:
    """One transfer in flight; the slots that it uses name it."""

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
    replica: int | None = None
    """The replica whose pages take part; ``None`` for ``write``."""
    pages: tuple[int, ...] = ()
    """Its pages, one per block."""
    source_replica: int | None = None
    """For ``peer``: the replica that is read."""
    source_pages: tuple[int, ...] = ()
    """For ``peer``: its pages, one per block."""
    chain: tuple[PageKey, ...] = ()
    """The chain of the request that caused it, root first."""
    fenced: bool = False
    """Whether the prefix cache was reset meanwhile."""
    submitted: bool = False
    """Whether who has hit it may go on before it lands."""


@dataclass(frozen=True, slots=True)
class RequestSnapshot:
    """A claimed request. The fields are those of :class:`~pagedkv.reference.state.Request`."""

    request_id: Hashable
    """Its name."""
    replica: int
    """Where it lives."""
    pages: tuple[int, ...] = ()
    """Its page table."""
    digests: tuple[bytes, ...] = ()
    """Chained digests of its leading full pages, as far as they were needed."""
    committed: int = 0
    """Leading pages whose content is identified and cached."""
    offered: int = 0
    """Leading committed pages that the tiers below have been offered."""
    counted: int = 0
    """Leading tokens that the token counters include."""
    repeated: int = 0
    """Leading tokens that it had when it was preempted."""
    admitted: bool = False
    """Whether an allocation has returned."""
    dummy: bool = False
    """Whether it is mapped to the null page."""
    fenced: bool = False
    """Whether the cache was reset since it got its pages."""
    plan: AllocPlan | None = None
    """Its allocation that waits for transfers."""
    failed: tuple[str, ...] = ()
    """Transfers of the plan that have failed."""
    avoided: tuple[tuple[str, PageKey, MissReason], ...] = ()
    """Sources that have failed this request, the block in question, and how."""
    looked_up: int = 0
    """Leading pages whose misses the counters include."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything that a manager knows, between two calls."""

    pools: tuple[PoolSnapshot, ...]
    """By replica."""
    tiers: dict[LowerTier, TierSnapshot] = field(default_factory=dict)
    """The tiers below the devices that there are."""
    further_stores: dict[str, TierSnapshot] = field(default_factory=dict)
    """By endpoint: the block stores besides the manager's own that requests have named."""
    requests: tuple[RequestSnapshot, ...] = ()
    """Claimed requests, in the order of their claims."""
    in_flight: tuple[TransferSnapshot, ...] = ()
    """Transfers in the order of their issue."""
    issued: int = 0
    """Transfers issued so far."""
    uses: tuple[tuple[PageKey, int], ...] = ()
    """Under ``reuse``: how often recent blocks were used, the longest unused first."""
    fates: tuple[tuple[PageKey, MissReason], ...] = ()
    """Why blocks are cached no more, the longest unchanged first."""
    poisoned: dict[int, str] = field(default_factory=dict)
    """Replicas whose device has failed, and how."""
    served: KVCacheMetrics = field(default_factory=KVCacheMetrics)
    """Counters of the devices."""
    copied: KVCacheMetrics = field(default_factory=KVCacheMetrics)
    """Counters of the tiers below."""
    closed: bool = False
    """Whether ``shutdown`` was called."""
