"""The whole state of the reference manager, as data. The operations are functions over it."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

from pagedkv.reference.buffers import KVCacheMemory
from pagedkv.reference.connector import TierConnector
from pagedkv.reference.context import Context
from pagedkv.reference.errors import (
    AllocPendingError,
    ReplicaIndexError,
    ReplicaPoisonedError,
    UnknownRequestError,
)
from pagedkv.reference.events import ContextSnapshot, Event, Tracer
from pagedkv.reference.fates import Fates, MissReason
from pagedkv.reference.identity import PageKey, page_digests, page_key
from pagedkv.reference.media import Media
from pagedkv.reference.metrics import KVCacheMetrics, PrefixCacheHits
from pagedkv.reference.params import KVCacheParamInterface
from pagedkv.reference.pool import PagePool
from pagedkv.reference.tier_names import TierName
from pagedkv.reference.tiers import Tier
from pagedkv.reference.transfer import Transfer


@dataclass(frozen=True, slots=True)
class Hit:
    """One block of a cached prefix, and where it would come from."""

    key: PageKey
    """Its identity."""
    tier: TierName
    """The fastest tier that holds it; for a joined load, the tier that is being read."""
    page: int | None = None
    """The device page that holds or receives it; ``None``: a page has to be taken."""
    joined: str | None = None
    """The load in flight that brings it, if another allocation has issued one."""
    peer: int | None = None
    """For ``peer``: the replica that holds it."""


@dataclass(frozen=True, slots=True)
class AllocPlan:
    """What ``begin_alloc`` has done for a request, so that it can be finished or undone."""

    request_id: Hashable
    """The request."""
    pages: tuple[int, ...]
    """The page table that the request gets."""
    hits: tuple[Hit, ...]
    """The blocks that were found, after those committed before."""
    added: tuple[int, ...]
    """Pages of the table that the request holds because of this plan."""
    replaced: tuple[int, ...]
    """Pages that the request held before and gives back when the allocation returns."""
    transfers: tuple[str, ...]
    """Transfers to wait for."""
    processed: int
    """Start of the active window once the allocation returns."""
    misses: tuple[tuple[PageKey, MissReason], ...] = ()
    """The blocks that were looked up for the first time and not found, and why."""
    looked_up: int = 0
    """Leading pages that the look-up has reached."""

    @property
    def hit_counts(self) -> PrefixCacheHits:
        """The hits by tier."""
        return count_hits(self.hits)


@dataclass
class Request:
    """A claimed request."""

    replica: int
    """Where it lives."""
    pages: list[int] = field(default_factory=list)
    """Its page table: the n-th page holds tokens ``[n * page_size, (n + 1) * page_size)``."""
    digests: list[bytes] = field(default_factory=list)
    """Chained digests of its leading full pages, as far as they were needed."""
    committed: int = 0
    """Leading pages whose content is identified and cached."""
    offered: int = 0
    """Leading committed pages that the tiers below have been offered."""
    counted: int = 0
    """Leading tokens that the token counters include."""
    repeated: int = 0
    """Leading tokens that it had when it was preempted: they are counted apart."""
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
    avoided: dict[tuple[str, PageKey], MissReason] = field(default_factory=dict)
    """Sources (see :func:`source_name`) that have failed this request, and how (ALLOC-11)."""
    looked_up: int = 0
    """Leading pages whose misses the counters include."""

    def count_up_to(self, position: int) -> tuple[int, int]:
        """Count the tokens before ``position`` that were not: after a preemption, and new ones."""
        start, self.counted = self.counted, max(self.counted, position)
        again = max(0, min(self.counted, self.repeated) - start)
        return again, self.counted - start - again


@dataclass
class State:
    """Everything a manager knows."""

    params: KVCacheParamInterface
    """Shapes, dtypes, parallelism, policies."""
    pools: list[PagePool]
    """By replica."""
    memories: Sequence[Sequence[KVCacheMemory]]
    """By replica: device memory units for transfers."""
    connector: TierConnector
    """The tiers below the devices, shared by all replicas."""
    media: Media
    """Where disks and stores live."""
    further_stores: dict[str, Tier] = field(default_factory=dict)
    """By endpoint: block stores besides the manager's own that requests have named (STORE-4)."""
    requests: dict[Hashable, Request] = field(default_factory=dict)
    """Claimed requests."""
    in_flight: dict[str, Transfer] = field(default_factory=dict)
    """Transfers that have neither landed nor failed, in the order of their issue."""
    issued: int = 0
    """Transfers issued so far; gives them their names."""
    fates: Fates = field(default_factory=Fates)
    """What became of blocks that are cached no more."""
    poisoned: dict[int, str] = field(default_factory=dict)
    """Replicas whose device has failed, and how (FAIL-2)."""
    metrics: KVCacheMetrics = field(default_factory=KVCacheMetrics)
    """Counters of the devices; the connector has its own."""
    tracer: Tracer | None = None
    """Receives the events."""
    closed: bool = False
    """Whether ``shutdown`` was called."""

    def emit(self, event: Event) -> None:
        """Report ``event``, at the moment it takes effect (EVENT-1)."""
        if self.tracer is not None:
            self.tracer.emit(event)

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
        self.pool(replica_idx)
        request = self.requests.get(request_id)
        if request is None or request.replica != replica_idx:
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
        if replica_idx in self.poisoned:
            raise ReplicaPoisonedError(replica_idx, self.poisoned[replica_idx])

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

    @property
    def drafts_look_ahead(self) -> bool:
        """Whether a page's last draft KV depends on the token after the page (DRAFT-1)."""
        return self.params.speculative_method in ("eagle", "mtp")

    def further_store(self, endpoint: str, own: Tier) -> Tier:
        """The block store at ``endpoint``, where blocks have the same keys as in our ``own``."""
        if endpoint not in self.further_stores:
            blocks = self.media.open_store(endpoint)
            self.further_stores[endpoint] = Tier(None, verifies=True, blocks=blocks)
        self.further_stores[endpoint].prefix = own.prefix
        return self.further_stores[endpoint]

    def digests(self, ctx: Context, request: Request, count: int) -> list[bytes]:
        """Digests of the first ``count`` pages of a request; those it knows are not redone."""
        return page_digests(
            ctx,
            count=count,
            page_size=self.params.page_size,
            algorithm=self.params.kv_hash_algo,
            seed=self.params.kv_hash_seed,
            known=request.digests,
        )

    def keys(self, digests: Sequence[bytes]) -> tuple[PageKey, ...]:
        """The keys of pages with these digests."""
        return tuple(page_key(d, self.params.kv_hash_algo) for d in digests)

    def snapshot(self, ctx: Context, digests: Sequence[bytes]) -> ContextSnapshot:
        """What an event says of a context (EVENT-2)."""
        return ContextSnapshot(
            length=len(ctx.tokens),
            processed=ctx.tokens.processed_length,
            position=ctx.tokens.current_position,
            keys=self.keys(digests),
            placeholders=ctx.pending_future_count,
            drafts_to_verify=len(ctx.spec_decoding_state.draft_tokens_to_verify),
            maybe_accepted_drafts=len(ctx.spec_decoding_state.maybe_accepted_draft_tokens),
            preempted=ctx.preempted,
        )

    def count_computed(self, request: Request, position: int) -> None:
        """Count the tokens before ``position`` as computed, unless they were counted (METRIC-1)."""
        again, new = request.count_up_to(position)
        self.count(input_tokens=new, preempted_input_tokens=again)

    def count(self, **counts: int) -> None:
        """Add to the counters."""
        self.metrics = self.metrics.plus(**counts)


def source_name(tier: TierName, peer: int | None = None) -> str:
    """A source of loads that can fail on its own: each peer by itself, all stores as one."""
    return tier if peer is None else f"{tier} {peer}"


def count_hits(hits: Sequence[Hit]) -> PrefixCacheHits:
    """``hits`` by tier."""
    by_tier = {"device": 0, "peer": 0, "host": 0, "disk": 0, "store": 0}
    for hit in hits:
        by_tier[hit.tier] += 1
    return PrefixCacheHits(**{f"{tier}_blocks": n for tier, n in by_tier.items()})
