"""All that the engine knows of requests, pages, tiers and transfers, as data.

The operations are functions over it, in the modules beside this one. None of them does I/O or
waits: each leaves the transfers that it issues in :attr:`State.issued`, for the movers.
"""

from array import array
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from pagedkv.engine.identity import PageHasher
from pagedkv.engine.planner.counters import Counters
from pagedkv.engine.planner.fates import Fates, MissReason
from pagedkv.engine.planner.lower_tiers import LowerTiers
from pagedkv.engine.planner.pages import PagePool
from pagedkv.engine.planner.transfer import Transfer
from pagedkv.reference.context import Context
from pagedkv.reference.errors import (
    AllocPendingError,
    ReplicaIndexError,
    ReplicaPoisonedError,
    UnknownRequestError,
)
from pagedkv.reference.events import ContextSnapshot, IssuedTransfer, Tracer
from pagedkv.reference.identity import PageKey
from pagedkv.reference.metrics import PrefixCacheHits
from pagedkv.reference.params import KVCacheParamInterface
from pagedkv.reference.tier_names import LowerTier, TierName

PageTable: TypeAlias = "array[int]"
"""Page ids in token order, int32: an array, so that a lookup table takes it as it is."""


@dataclass(frozen=True, slots=True)
class Load:
    """A block of a cached prefix that is not on the device yet."""

    key: PageKey
    """Its identity."""
    tier: TierName
    """The fastest tier that holds it; for a joined load, the tier that is being read."""
    page: int | None = None
    """The device page that receives it, if it is on its way already."""
    joined: Transfer | None = None
    """The load in flight that brings it, if another allocation has issued one."""
    peer: int | None = None
    """For ``peer``: the replica that holds it."""


@dataclass(eq=False, slots=True)
class AllocPlan:
    """What an allocation has taken and issued, so that it can be finished or undone."""

    pages: PageTable
    """The page table that the request gets."""
    hits: PrefixCacheHits
    """The blocks that were found, by tier, after those committed before."""
    added: list[int]
    """Pages of the table that the request holds because of this plan, in their order there."""
    replaced: PageTable
    """Pages that the request held before and gives back when the allocation returns."""
    transfers: list[str]
    """Transfers to wait for."""
    processed: int
    """Start of the active window once the allocation returns."""
    looked_up: int
    """Leading pages that the look-up has reached."""
    misses: dict[MissReason, int] = field(default_factory=dict)
    """Why the blocks that were looked up for the first time and not found are nowhere."""
    found: Sequence["int | Load"] = ()
    """The hits one by one: the device page that holds a block, or where it comes from."""


@dataclass(eq=False, slots=True)
class Request:
    """A claimed request."""

    replica: int
    """Where it lives."""
    pages: PageTable = field(default_factory=lambda: array("i"))
    """Its page table: the n-th page holds tokens ``[n * page_size, (n + 1) * page_size)``."""
    digests: list[bytes] = field(default_factory=list)
    """Chained digests of its leading full pages, as far as they were needed."""
    keys: list[PageKey] = field(default_factory=list)
    """The keys of these pages."""
    committed: int = 0
    """Leading pages whose content is identified and cached."""
    offered: int = 0
    """Leading committed pages that the tiers below have been offered."""
    counted: int = 0
    """Leading tokens that the token counters include."""
    repeated: int = 0
    """Leading tokens that it had when it was preempted: they are counted apart."""
    looked_up: int = 0
    """Leading pages whose misses the counters include."""
    admitted: bool = False
    """Whether an allocation has returned."""
    dummy: bool = False
    """Whether it is mapped to the null page."""
    fenced: bool = False
    """Whether the cache was reset since: it neither hits nor commits any more (RESET-2)."""
    plan: AllocPlan | None = None
    """Its allocation that waits for transfers."""
    failed: set[str] = field(default_factory=set)
    """Transfers of the plan that have failed."""
    window: tuple[int, int] = (0, 0)
    """The last inputs built for it: cached tokens, and pages that its forward may touch."""
    arriving: list[str] = field(default_factory=list)
    """Submitted loads into its pages which the next forward has to wait for (XFER-8)."""
    avoided: dict[tuple[str, PageKey], MissReason] = field(default_factory=dict)
    """Sources (see :func:`source_name`) that have failed this request, and how (ALLOC-11)."""

    def count_up_to(self, position: int) -> tuple[int, int]:
        """Count the tokens before ``position`` that were not: after a preemption, and new ones."""
        start, self.counted = self.counted, max(self.counted, position)
        again = max(0, min(self.counted, self.repeated) - start)
        return again, self.counted - start - again


@dataclass(eq=False)
class State:
    """Everything the planner knows."""

    params: KVCacheParamInterface
    """Shapes, dtypes, parallelism, policies."""
    pools: list[PagePool]
    """By replica."""
    lower: LowerTiers
    """The tiers below the devices, shared by all replicas."""
    hasher: PageHasher
    """Identifies pages."""
    counters: Counters
    """Tokens, hits, misses and copies."""
    fates: Fates
    """What became of blocks that are cached no more."""
    page_nbytes: int
    """Bytes of a page over all its shards: what a copy between replicas moves."""
    requests: dict[Hashable, Request] = field(default_factory=dict)
    """Claimed requests."""
    in_flight: dict[str, Transfer] = field(default_factory=dict)
    """Transfers that have neither landed nor failed, in the order of their issue."""
    num_issued: int = 0
    """Transfers issued so far; gives them their names."""
    issued: list[Transfer] = field(default_factory=list)
    """Transfers that nobody has begun to move yet."""
    poisoned: dict[int, str] = field(default_factory=dict)
    """Replicas whose device has failed, and how (FAIL-2)."""
    failing: dict[int, str] = field(default_factory=dict)
    """Replicas that will be poisoned as soon as the last copy to or from them has ended."""
    tracer: Tracer | None = None
    """Receives the events. Without one, none is made."""

    def __post_init__(self) -> None:
        self.page_size = self.params.page_size
        """Tokens per page."""
        self.caching = self.params.enable_prefix_caching
        """Whether requests reuse the pages of a common prefix."""
        drafts, is_block = self.params.num_draft_tokens, self.params.speculative_method == "dflash"
        self.tokens_ahead = 2 * drafts + is_block + 1
        """Tokens after its window that a request needs room for, see LEN-1."""
        self.is_alone = len(self.pools) == 1 and not self.lower.tiers
        """Whether content can be nowhere but on the one device."""
        self.copies_from_peers = self.params.enable_dp_cross_replica_prefix_copy
        """Whether a block on another replica is copied from there (ALLOC-10)."""
        self.drafts_look_ahead = self.params.speculative_method in ("eagle", "mtp")
        """Whether a page's last draft KV depends on the token after the page (DRAFT-1)."""
        self.swaps = self.params.deduplication == "swap" and not self.drafts_look_ahead
        """Whether a page whose content is cached gives way to the one that is there (STEP-4)."""

    def pool(self, replica_idx: int) -> PagePool:
        """The pages of a replica.

        Raises:
            ReplicaIndexError: There is no such replica (CLAIM-3).
        """
        if not 0 <= replica_idx < len(self.pools):
            raise ReplicaIndexError(replica_idx, len(self.pools))
        return self.pools[replica_idx]

    def request(self, request_id: Hashable, replica_idx: int) -> Request:
        """A claimed request.

        Raises:
            UnknownRequestError: It is not claimed on that replica (CLAIM-2).
            ReplicaIndexError: There is no such replica (CLAIM-3).
        """
        request = self.requests.get(request_id)
        if request is None or request.replica != replica_idx:
            self.pool(replica_idx)
            lives_on = None if request is None else request.replica
            raise UnknownRequestError(request_id, replica_idx, lives_on)
        return request

    def check_works(self, replica_idx: int) -> None:
        """Refuse work on a replica whose device has failed.

        Raises:
            ReplicaPoisonedError: It has (FAIL-2).
            ReplicaIndexError: There is no such replica (CLAIM-3).
        """
        self.pool(replica_idx)
        reason = self.poisoned.get(replica_idx) or self.failing.get(replica_idx)
        if reason is not None:
            raise ReplicaPoisonedError(replica_idx, reason)

    def settled_request(self, request_id: Hashable, replica_idx: int, call: str) -> Request:
        """A claimed request without a planned allocation.

        Raises:
            AllocPendingError: Its allocation still waits for transfers (ALLOC-13).
            ReplicaPoisonedError: The replica's device has failed (FAIL-2).
        """
        self.check_works(replica_idx)
        request = self.request(request_id, replica_idx)
        if request.plan is not None:
            raise AllocPendingError(request_id, call)
        return request

    def identify(self, ctx: Context, request: Request, count: int) -> None:
        """Know the identities of at least the first ``count`` pages of a request.

        Raises:
            ValueError: The context brings too few digests (ID-9).
        """
        known = len(request.digests)
        if known < count:
            self.hasher.extend(ctx, request.digests, count)
            request.keys += self.hasher.keys(request.digests[known:])

    def issue(self, transfer: Transfer) -> IssuedTransfer:
        """Put ``transfer`` in flight: name it and pin the pages it uses (XFER-1, POOL-7)."""
        self.num_issued += 1
        transfer.id = f"{transfer.kind}-{self.num_issued}"
        self.in_flight[transfer.id] = transfer
        self.issued.append(transfer)
        if transfer.replica is not None:
            pool = self.pools[transfer.replica]
            pool.pin(transfer.pages)
            if transfer.kind == "onload":
                for page, key in zip(transfer.pages, transfer.keys, strict=True):
                    pool.begin_load(page, key, transfer)
        if transfer.source_replica is not None:
            self.pools[transfer.source_replica].pin(transfer.source_pages)
        return IssuedTransfer(
            transfer.id,
            transfer.kind,
            transfer.source,
            transfer.target,
            transfer.keys,
            transfer.pages,
        )

    def take_issued(self) -> list[Transfer]:
        """The transfers that were issued since somebody last asked, to be moved now."""
        issued, self.issued = self.issued, []
        return issued

    def snapshot(self, ctx: Context, keys: Sequence[PageKey]) -> ContextSnapshot:
        """What an event says of a context (EVENT-2)."""
        return ContextSnapshot(
            length=len(ctx.tokens),
            processed=ctx.tokens.processed_length,
            position=ctx.tokens.current_position,
            keys=tuple(keys),
            placeholders=ctx.pending_future_count,
            drafts_to_verify=len(ctx.spec_decoding_state.draft_tokens_to_verify),
            maybe_accepted_drafts=len(ctx.spec_decoding_state.maybe_accepted_draft_tokens),
            preempted=ctx.preempted,
        )

    def count_computed(self, request: Request, position: int) -> None:
        """Count the tokens before ``position`` as computed, unless they were counted (METRIC-1)."""
        again, new = request.count_up_to(position)
        self.counters.input_tokens += new
        self.counters.preempted_input_tokens += again


def source_name(tier: TierName, peer: int | None = None) -> str:
    """A source of loads that can fail on its own: each peer by itself."""
    return tier if peer is None else f"{tier} {peer}"


LOWER_TIERS: tuple[LowerTier, ...] = ("host", "disk")
"""The tiers below the devices, fastest first."""
