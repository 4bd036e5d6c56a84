"""vLLM's ``KVCacheManager``, called the way its scheduler calls it.

What the scheduler does, as published in ``vllm/v1/core/sched/scheduler.py``, and so does this:

- admission: ``get_computed_blocks``, ``allocate_slots`` with what was found, and only if that
  succeeds ``record_prefix_cache_stats``; running requests get ``allocate_slots`` alone;
- after a forward: ``append_output_token_ids``, and ``cache_blocks`` as for tokens that were
  placeholders when their slots were allocated;
- the end, or a preemption: ``free``.

What vLLM's manager does not have is the adapter's own: the table of claimed requests, which is the
scheduler's, and page ids from 0 on. (vLLM's null page is page 0; here it has the last id.)
"""

# vLLM is optional, and untyped where it is missing: whatever comes from it counts as Any.
# mypy: disable-error-code="import-not-found"
# pyright: reportMissingImports=false

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from operator import attrgetter
from pathlib import Path
from typing import cast

import torch
from vllm.lora.request import LoRARequest
from vllm.multimodal.inputs import MultiModalFeatureSpec, PlaceholderRange
from vllm.sampling_params import SamplingParams
from vllm.utils.hashing import get_hash_fn_by_name
from vllm.v1.core.kv_cache_manager import KVCacheBlocks, KVCacheManager
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
from vllm.v1.request import Request

from pagedkv.conformance.implementation import Implementation
from pagedkv.conformance.peers.counters import as_ours
from pagedkv.conformance.peers.supported import check_supported
from pagedkv.reference.context import Context
from pagedkv.reference.errors import (
    AlreadyClaimedError,
    InsufficientBlocksError,
    ReplicaIndexError,
    UnknownRequestError,
)
from pagedkv.reference.interfaces import SyncKVCacheManager
from pagedkv.reference.metrics import KVCacheMetrics, PrefixCacheHits
from pagedkv.reference.params import HashAlgorithm
from pagedkv.traces.ceil_div import ceil_div
from pagedkv.traces.manager_setup import ManagerSetup

HASH_FUNCTIONS: dict[HashAlgorithm, str] = {"sha256": "sha256", "xxh3_128": "xxhash"}
"""vLLM's names of our hash algorithms."""

ANY_LENGTH = 2**40
"""A ``max_model_len`` that never limits: vLLM gives longer requests fewer slots than they ask."""

# One root of all hashes per process; without this, vLLM has none.
init_none_hash(get_hash_fn_by_name("sha256"))


@dataclass(frozen=True)
class PrefixCacheCounters:
    """What vLLM's ``PrefixCacheStats`` counts, at admission, under our names. There is no more."""

    input_tokens: int
    """Tokens of admitted requests that were not found cached; generated ones never count."""
    cache_tokens: int
    """Tokens of admitted requests that were found cached."""
    device_blocks_served: int
    """``cache_tokens`` in pages."""
    preempted_input_tokens: int
    """The same for requests that had been preempted."""
    preempted_cache_tokens: int
    """The same for requests that had been preempted."""
    preempted_blocks_served: int
    """``preempted_cache_tokens`` in pages."""


class VllmManager:
    """One ``KVCacheManager`` for full attention, on one replica, without any device memory.

    Raises:
        ValueError: ``setup`` asks for what it does not have.
    """

    def __init__(self, setup: ManagerSetup) -> None:
        check_supported(
            "vLLM's KVCacheManager",
            setup,
            fields=(
                *("page_size", "total_num_pages", "max_batch_size", "enable_prefix_caching"),
                *("hash_algorithm", "hash_seed", "model_fingerprint", "deduplication"),
                *("enable_dp_cross_replica_prefix_copy", "shards", "layers", "head_dim"),
            ),
            hash_algorithms=HASH_FUNCTIONS,
        )
        self._total = setup.total_num_pages
        self._page_size = setup.page_size
        spec = FullAttentionSpec(
            block_size=setup.page_size, num_kv_heads=1, head_size=1, dtype=torch.int8
        )
        self._manager = KVCacheManager(
            KVCacheConfig(
                num_blocks=setup.total_num_pages + 1,
                kv_cache_tensors=[],
                kv_cache_groups=[KVCacheGroupSpec(["attention"], spec)],
            ),
            max_model_len=ANY_LENGTH,
            scheduler_block_size=setup.page_size,
            hash_block_size=setup.page_size,
            enable_caching=setup.enable_prefix_caching,
            log_stats=True,
        )
        hash_function = get_hash_fn_by_name(HASH_FUNCTIONS[setup.hash_algorithm])
        self._hash_tokens: Callable[[Request], list[bytes]] = get_request_block_hasher(
            setup.page_size, hash_function
        )
        self._sampling = SamplingParams()
        self._requests: dict[Hashable, Request | None] = {}  # None: claimed, not seen yet

    # Requests

    def claim(self, request_id: Hashable, replica_idx: int = 0) -> None:
        """Note that the request exists; vLLM hears of it when it is allocated."""
        self._check_replica(replica_idx)
        if request_id in self._requests:
            raise AlreadyClaimedError(request_id, replica_idx, lives_on=0)
        self._requests[request_id] = None

    def contains(self, request_id: Hashable, replica_idx: int = 0) -> bool:
        """Whether the request is claimed."""
        self._check_replica(replica_idx)
        return request_id in self._requests

    def alloc(self, data: Context, replica_idx: int = 0) -> None:
        """Give the request slots for its active window; look its prefix up if it has no page yet.

        Raises:
            InsufficientBlocksError: ``allocate_slots`` has returned ``None``.
        """
        request = self._request(data, replica_idx)
        window = data.tokens
        first = window.processed_length == 0 and not self._pages(data.request_id)
        found: KVCacheBlocks | None = None
        tokens_found = 0
        if first:
            # One token of the window stays to be computed: also if it is a chunk of the prompt.
            most = window.current_position - 1
            found, tokens_found, _ = self._manager.get_computed_blocks(request, most)
        allocated = self._manager.allocate_slots(
            request, window.active_length - tokens_found, tokens_found, found
        )
        if allocated is None:
            raise self._refusal(data, found)
        if first:
            self._manager.record_prefix_cache_stats(request, tokens_found)
            window.skip_processing(tokens_found)
            if data.cached_prefix_length is None:
                data.cached_prefix_length = tokens_found

    def step(self, batches: Sequence[Sequence[Context]]) -> None:
        """Tell vLLM of the tokens that were sampled, and of those that are computed."""
        (batch,) = batches
        for ctx in batch:
            self._check_claimed(ctx.request_id, 0)
        for ctx in batch:
            request = self._request(ctx)
            self._manager.cache_blocks(request, request.num_computed_tokens)

    def release(self, request_id: Hashable, replica_idx: int = 0) -> None:
        """Free the request's pages."""
        self._check_claimed(request_id, replica_idx)
        request = self._requests.pop(request_id)
        if request is not None:
            self._manager.free(request)

    def get_req_blocks(self, request_id: Hashable, replica_idx: int = 0) -> list[int]:
        """The request's pages."""
        self._check_claimed(request_id, replica_idx)
        return [page - 1 for page in self._pages(request_id)]

    # Transfers: there are none

    def poll_transfers(self) -> None:
        """Nothing: without a connector vLLM moves nothing."""

    def pending_transfers_exist(self, replica_idx: int = 0) -> bool:
        """False: without a connector vLLM moves nothing."""
        self._check_replica(replica_idx)
        return False

    # The pool and the cache

    def num_free_blocks(self, replica_idx: int = 0) -> int:
        """Pages that may be taken."""
        self._check_replica(replica_idx)
        return int(self._manager.block_pool.get_num_free_blocks())

    def total_num_blocks(self, replica_idx: int = 0) -> int:
        """Pages, without the null page."""
        self._check_replica(replica_idx)
        return self._total

    def get_num_pages(self, replica_idx: int) -> int:
        """Pages, without the null page."""
        return self.total_num_blocks(replica_idx)

    def get_num_used_pages(self, replica_idx: int) -> int:
        """Pages that requests hold."""
        return self._total - self.num_free_blocks(replica_idx)

    def get_prefix_cache_hit_counts(self, ctx: Context) -> list[PrefixCacheHits]:
        """What a new request with these tokens would find."""
        _, tokens_found, _ = self._manager.get_computed_blocks(self._new_request(ctx))
        return [PrefixCacheHits(device_blocks=tokens_found // self._page_size)]

    def reset_prefix_cache(self) -> None:
        """Ask vLLM to forget what is cached; while a request holds a page, it does nothing."""
        self._manager.reset_prefix_cache()

    # There is no reset_metrics: who has it claims all counters of KVCacheMetrics.
    def get_metrics_aggregated(self) -> PrefixCacheCounters | KVCacheMetrics:
        """vLLM's own counters."""
        stats = self._manager.prefix_cache_stats
        return PrefixCacheCounters(
            input_tokens=stats.queries - stats.hits,
            cache_tokens=stats.hits,
            device_blocks_served=stats.hits // self._page_size,
            preempted_input_tokens=stats.preempted_queries - stats.preempted_hits,
            preempted_cache_tokens=stats.preempted_hits,
            preempted_blocks_served=stats.preempted_hits // self._page_size,
        )

    def shutdown(self) -> None:
        """Nothing: vLLM's manager has no end."""

    # Translation

    def _request(self, ctx: Context, replica_idx: int = 0) -> Request:
        """vLLM's request for a claimed context, with the tokens and the progress it has now."""
        self._check_claimed(ctx.request_id, replica_idx)
        request = self._requests[ctx.request_id]
        if request is None:
            request = self._requests[ctx.request_id] = self._new_request(ctx)
        known = len(ctx.tokens) - ctx.pending_future_count
        if known > request.num_tokens:
            request.append_output_token_ids(ctx.tokens.all[request.num_tokens : known].tolist())
        request.num_computed_tokens = ctx.tokens.processed_length
        return request

    def _new_request(self, ctx: Context) -> Request:
        known = len(ctx.tokens) - ctx.pending_future_count
        adapter, caching = ctx.adapter, self._manager.enable_caching
        request = Request(
            request_id=ctx.request_id,  # a key to vLLM, whatever it is
            prompt_token_ids=ctx.tokens.all[:known].tolist(),
            sampling_params=self._sampling,
            pooling_params=None,
            mm_features=_features(ctx) if caching else None,
            # A path must not be empty; a name may be.
            lora_request=None if adapter is None else LoRARequest(adapter, 1, f"/{adapter}"),
            cache_salt=ctx.cache_salt,
            block_hasher=self._hasher(ctx) if caching else None,
        )
        request.num_preemptions = int(ctx.preempted)
        return request

    def _hasher(self, ctx: Context) -> Callable[[Request], list[bytes]]:
        digests = ctx.given_digests
        if digests is None:
            return self._hash_tokens

        def rest_of_digests(request: Request) -> list[bytes]:
            full_pages = request.num_tokens // self._page_size
            return list(digests[len(request.block_hashes) : full_pages])

        return rest_of_digests

    def _refusal(self, ctx: Context, found: KVCacheBlocks | None) -> InsufficientBlocksError:
        pages = ceil_div(ctx.tokens.current_position, self._page_size)
        hits = found.blocks[0] if found is not None else ()
        return InsufficientBlocksError(
            needed=pages - len(hits) - len(self._pages(ctx.request_id)),
            free=self.num_free_blocks() - sum(block.ref_cnt == 0 for block in hits),
            total=self._total,
            can_ever_fit=pages <= self._total,
        )

    def _pages(self, request_id: Hashable) -> list[int]:
        """The request's pages, by vLLM's ids."""
        (pages,) = self._manager.get_block_ids(request_id)
        return list(pages)

    def _check_replica(self, replica_idx: int) -> None:
        if replica_idx != 0:
            raise ReplicaIndexError(replica_idx, num_replicas=1)

    def _check_claimed(self, request_id: Hashable, replica_idx: int) -> None:
        self._check_replica(replica_idx)
        if request_id not in self._requests:
            raise UnknownRequestError(request_id, replica_idx)


class VllmManagerWithCounters(VllmManager):
    """Its counters as if they were ours, and claimed to be."""

    def __init__(self, setup: ManagerSetup) -> None:
        super().__init__(setup)
        self._at_step: object = None

    def step(self, batches: Sequence[Sequence[Context]]) -> None:
        """What was computed counts from here on."""
        super().step(batches)
        self._at_step = super().get_metrics_aggregated()

    def get_metrics_aggregated(self) -> KVCacheMetrics:
        """See :func:`~pagedkv.conformance.peers.counters.as_ours`."""
        return as_ours(super().get_metrics_aggregated(), self._at_step)

    def reset_metrics(self) -> None:
        """vLLM's ``make_prefix_cache_stats``, which starts from 0 again."""
        self._manager.make_prefix_cache_stats()
        self._at_step = None


def _features(ctx: Context) -> list[MultiModalFeatureSpec]:
    """What stands behind placeholder tokens, in the order of ID-5; vLLM takes any by position."""
    overrides = ctx.hash_overrides
    return [
        MultiModalFeatureSpec(
            data=None,
            modality=override.source,
            identifier=f"{override.source}:{override.token_hash}",
            mm_position=PlaceholderRange(offset=override.token_idx, length=1),
        )
        for override in sorted(overrides, key=attrgetter("token_idx", "source", "token_hash"))
    ]


# Both make a part of the interface; the suite and the replay ask for no more than there is.
def _make(setup: ManagerSetup) -> SyncKVCacheManager:
    return cast("SyncKVCacheManager", VllmManager(setup))


def _make_with_counters(setup: ManagerSetup) -> SyncKVCacheManager:
    return cast("SyncKVCacheManager", VllmManagerWithCounters(setup))


implementation = Implementation(
    name="vLLM",
    make=_make,
    version=version("vllm"),
    capabilities=frozenset({"device", "prefix"}),
    follows=frozenset({"POOL-3", "POOL-4", "POOL-8", "POOL-11", "REL-2"}),
    hash_algorithms=tuple(HASH_FUNCTIONS),
    page_size=16,
    deviations=Path(__file__).with_name("vllm_deviations.toml"),
)
"""vLLM's manager, for ``--impl pagedkv.conformance.peers.vllm:implementation``."""

with_counters = replace(
    implementation, name="vLLM with counters", make=_make_with_counters, deviations=None
)
"""The same, its counters checked after every call: for ``--rule METRIC``."""
