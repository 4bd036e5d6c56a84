"""Modular MAX's ``PagedKVCacheManager``, whose calls have the names and the meaning of ours.

Contexts are translated: each call gets a MAX ``TextContext`` with the tokens and the window of the
caller's context, whose window and ``cached_prefix_length`` then become what MAX made of them, also
when the call has failed. MAX keeps no context beyond a call, so it cannot tell the difference.

MAX's host and disk tiers need a GPU and are not offered here. Its own configuration takes page
sizes that are multiples of 128; its manager takes any.
"""

# MAX is optional, and untyped where it is missing: whatever comes from it counts as Any.
# mypy: disable-error-code="import-not-found"
# pyright: reportMissingImports=false

from collections.abc import Hashable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from functools import cache
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import cast

from max.driver import CPU
from max.dtype import DType
from max.engine import InferenceSession
from max.graph import DeviceRef
from max.nn.kv_cache import BatchCharacteristics as MaxBatchCharacteristics
from max.nn.kv_cache import KVCacheParams as MaxParams
from max.nn.kv_cache import MHAKVCacheParams, MLAKVCacheParams
from max.nn.kv_cache.metrics import KVCacheMetrics as MaxMetrics
from max.pipelines.context import TextAndVisionContext, TokenHashOverride
from max.pipelines.context import TextContext as MaxContext
from max.pipelines.context import TokenBuffer as MaxTokenBuffer
from max.pipelines.kv_cache import InsufficientBlocksError as MaxInsufficientBlocksError
from max.pipelines.kv_cache import PagedKVCacheManager
from max.pipelines.request import RequestID
from torch.utils.dlpack import from_dlpack

from pagedkv.conformance.implementation import Implementation
from pagedkv.conformance.peers.counters import as_ours
from pagedkv.conformance.peers.supported import check_supported
from pagedkv.reference.buffers import KVCacheBuffer
from pagedkv.reference.context import Context
from pagedkv.reference.errors import InsufficientBlocksError
from pagedkv.reference.inputs import BatchCharacteristics, KVCacheInputs, KVCacheInputsPerDevice
from pagedkv.reference.interfaces import SyncKVCacheManager
from pagedkv.reference.metrics import KVCacheMetrics, PrefixCacheHits
from pagedkv.reference.params import HashAlgorithm
from pagedkv.reference.tensor_types import Buffer
from pagedkv.traces.ceil_div import ceil_div
from pagedkv.traces.manager_setup import ManagerSetup

HASH_ALGORITHMS: tuple[HashAlgorithm, ...] = ("sha256", "sha256_64")
"""Those of our hash algorithms that MAX has, by the same names."""

ANY_LENGTH = 2**40
"""A ``max_length`` that no context reaches."""


class MaxManager:
    """One ``PagedKVCacheManager`` on the CPU.

    Raises:
        ValueError: ``setup`` asks for what it does not have.
    """

    def __init__(self, setup: ManagerSetup) -> None:
        self._page_size = setup.page_size
        self._replicas = setup.replicas
        self._caching = setup.enable_prefix_caching
        self._manager = PagedKVCacheManager(
            params=_params(setup),
            session=_session(),
            total_num_pages=setup.total_num_pages,
            max_batch_size=setup.max_batch_size,
        )

    # Requests

    def claim(self, request_id: Hashable, replica_idx: int) -> None:
        """MAX's ``claim``."""
        self._manager.claim(RequestID(request_id), replica_idx)

    def alloc_dummy(self, request_id: Hashable, replica_idx: int) -> None:
        """MAX's ``alloc_dummy``."""
        self._manager.alloc_dummy(RequestID(request_id), replica_idx)

    def contains(self, request_id: Hashable, replica_idx: int) -> bool:
        """MAX's ``contains``."""
        return bool(self._manager.contains(RequestID(request_id), replica_idx))

    def alloc(self, data: Context, replica_idx: int) -> None:
        """MAX's ``alloc``.

        Raises:
            InsufficientBlocksError: In place of MAX's, with the numbers that MAX shows then.
        """
        with self._translated([[data]]) as [[context]]:
            try:
                self._manager.alloc(context, replica_idx)
            except MaxInsufficientBlocksError as error:
                raise self._refusal(data, replica_idx) from error
        self._wait_for_copies()

    @contextmanager
    def reserve(self, replica_batches: Sequence[Sequence[Context]]) -> Iterator[None]:
        """MAX's ``reserve``; what it raises is MAX's own."""
        with ExitStack() as reservation:
            with self._translated(replica_batches) as batches:
                reservation.enter_context(self._manager.reserve(batches))
            self._wait_for_copies()
            yield

    def step(self, batches: Sequence[Sequence[Context]]) -> None:
        """MAX's ``step``."""
        with self._translated(batches) as translated:
            self._manager.step(translated)

    def release(self, request_id: Hashable, replica_idx: int) -> None:
        """MAX's ``release``."""
        self._manager.release(RequestID(request_id), replica_idx)

    def get_req_blocks(self, request_id: Hashable, replica_idx: int) -> list[int]:
        """MAX's ``get_req_blocks``."""
        return list(self._manager.get_req_blocks(RequestID(request_id), replica_idx))

    def poll_transfers(self) -> None:
        """MAX's ``poll_transfers``."""
        self._manager.poll_transfers()

    def pending_transfers_exist(self, replica_idx: int = 0) -> bool:
        """MAX's ``pending_transfers_exist``."""
        return bool(self._manager.pending_transfers_exist(replica_idx))

    # What a forward gets

    def runtime_inputs(
        self,
        batches: Sequence[Sequence[Context]],
        *,
        max_cache_length: int | None = None,
        batch_characteristics: BatchCharacteristics | None = None,
    ) -> KVCacheInputs[Buffer, Buffer]:
        """MAX's ``runtime_inputs``: its own memory, as tensors; uint32, and as wide as MAX's."""
        bounds = batch_characteristics
        with self._translated(batches) as translated:
            try:
                inputs = self._manager.runtime_inputs(
                    translated,
                    max_cache_length=max_cache_length,
                    batch_characteristics=bounds and MaxBatchCharacteristics(**asdict(bounds)),
                )
            finally:
                self._wait_for_copies()
        return KVCacheInputs(
            [
                KVCacheInputsPerDevice(
                    kv_blocks=from_dlpack(device.kv_blocks),
                    cache_lengths=from_dlpack(device.cache_lengths),
                    lookup_table=from_dlpack(device.lookup_table),
                    max_prompt_length=from_dlpack(device.max_prompt_length),
                    max_cache_length=from_dlpack(device.max_cache_length),
                )
                for device in inputs.inputs
            ]
        )

    def get_device_buffer(self, replica_idx: int) -> KVCacheBuffer:
        """MAX's ``get_device_buffer``: its own memory, as tensors."""
        buffer = self._manager.get_device_buffer(replica_idx)
        return KVCacheBuffer(
            replicates_kv_across_tp=buffer.replicates_kv_across_tp,
            values=[from_dlpack(values) for values in buffer.values],
        )

    # The pool and the cache

    def num_free_blocks(self, replica_idx: int = 0) -> int:
        """MAX's ``num_free_blocks``."""
        return int(self._manager.num_free_blocks(replica_idx))

    def total_num_blocks(self, replica_idx: int = 0) -> int:
        """MAX's ``total_num_blocks``."""
        return int(self._manager.total_num_blocks(replica_idx))

    def get_num_pages(self, replica_idx: int) -> int:
        """MAX's ``get_num_pages``."""
        return int(self._manager.get_num_pages(replica_idx))

    def get_num_used_pages(self, replica_idx: int) -> int:
        """MAX's ``get_num_used_pages``."""
        return int(self._manager.get_num_used_pages(replica_idx))

    def get_prefix_cache_hit_counts(self, ctx: Context) -> list[PrefixCacheHits]:
        """MAX's ``get_prefix_cache_hit_counts``."""
        with self._translated([[ctx]]) as [[context]]:
            counts = self._manager.get_prefix_cache_hit_counts(context)
        return [PrefixCacheHits(device_blocks=hits.device_blocks) for hits in counts]

    def reset_prefix_cache(self) -> None:
        """MAX's ``reset_prefix_cache``."""
        self._manager.reset_prefix_cache()

    # There is no reset_metrics: who has it claims all counters of KVCacheMetrics.
    def get_metrics_aggregated(self) -> MaxMetrics | KVCacheMetrics:
        """MAX's own counters: fewer than ours, and not all counted as ours are."""
        return self._manager.get_metrics_aggregated()

    def shutdown(self) -> None:
        """MAX's ``shutdown``."""
        self._manager.shutdown()

    def _wait_for_copies(self) -> None:
        """Copies wait in MAX's queue for its next forward; who reads with torch is not in there."""
        for replica in range(self._replicas if self._replicas > 1 else 0):
            for values in self._manager.get_device_buffer(replica).values:
                values.device.synchronize()

    @contextmanager
    def _translated(self, batches: Sequence[Sequence[Context]]) -> Iterator[list[list[MaxContext]]]:
        """MAX's contexts for ours; in the end ours get what MAX has changed in its own."""
        translated = [[_translate(ctx, hashed=self._caching) for ctx in b] for b in batches]
        try:
            yield translated
        finally:
            for ctx, context in zip(chain(*batches), chain(*translated), strict=True):
                moved = context.tokens.processed_length - ctx.tokens.processed_length
                if moved > 0:
                    ctx.tokens.skip_processing(moved)
                else:
                    ctx.tokens.rewind_processing(-moved)
                ctx.cached_prefix_length = context.cached_prefix_length

    def _refusal(self, ctx: Context, replica_idx: int) -> InsufficientBlocksError:
        pages = ceil_div(len(ctx.tokens), self._page_size)
        total = self.total_num_blocks(replica_idx)
        return InsufficientBlocksError(
            needed=pages - len(self.get_req_blocks(ctx.request_id, replica_idx)),
            free=self.num_free_blocks(replica_idx),
            total=total,
            can_ever_fit=pages <= total,
        )


class MaxManagerWithCounters(MaxManager):
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
        """MAX's ``reset_metrics``."""
        self._manager.reset_metrics()
        self._at_step = None


@cache
def _session() -> InferenceSession:
    """The one session: the manager asks for it and leaves it alone, and each takes up to 0.1 s."""
    return InferenceSession(devices=[CPU()])


def _params(setup: ManagerSetup) -> MaxParams:
    check_supported(
        "MAX's PagedKVCacheManager",
        setup,
        fields=(
            *("page_size", "total_num_pages", "replicas", "max_batch_size", "shards", "layers"),
            *("head_dim", "cache", "enable_prefix_caching", "enable_dp_cross_replica_prefix_copy"),
            *("hash_algorithm", "hash_seed", "model_fingerprint", "deduplication"),
            *("speculative_method", "num_draft_tokens"),
        ),
        hash_algorithms=HASH_ALGORITHMS,
    )
    options = {
        "dtype": DType.int8,
        "head_dim": setup.head_dim,
        "num_layers": setup.layers,
        "devices": [DeviceRef.CPU()] * (setup.replicas * setup.shards),
        "data_parallel_degree": setup.replicas,
        "page_size": setup.page_size,
        "enable_prefix_caching": setup.enable_prefix_caching,
        "enable_dp_cross_replica_prefix_copy": setup.enable_dp_cross_replica_prefix_copy,
        "kv_hash_algo": setup.hash_algorithm,
        "kv_hash_seed": setup.hash_seed,
        "speculative_method": setup.speculative_method,
        "num_draft_tokens": setup.num_draft_tokens,
    }
    if setup.cache == "mha":
        return MHAKVCacheParams(n_kv_heads=setup.shards, **options)
    if setup.cache == "mla":
        return MLAKVCacheParams(num_q_heads=setup.shards, **options)
    raise ValueError(f"cache is {setup.cache!r}; MAX is driven with mha and mla only")


def _translate(ctx: Context, *, hashed: bool) -> MaxContext:
    """A MAX context in the state of ``ctx``, with tokens of its own; ``hashed`` if MAX caches."""
    if ctx.given_digests is not None:
        raise ValueError("given_digests: MAX hashes tokens itself; leave them out")
    tokens = MaxTokenBuffer(ctx.tokens.all.copy())
    tokens.skip_processing(ctx.tokens.processed_length)
    if ctx.tokens.active_length < tokens.active_length:
        tokens.chunk(ctx.tokens.active_length)
    options = {
        "request_id": RequestID(ctx.request_id),
        "max_length": ANY_LENGTH,
        "tokens": tokens,
        "cache_salt": ctx.cache_salt,
        "model_name": ctx.adapter or "",  # this is how MAX names adapters
        "cached_prefix_length": ctx.cached_prefix_length,
        "_pending_future_count": ctx.pending_future_count,
    }
    # MAX itself makes such an override of each image.
    overrides = [TokenHashOverride(**asdict(o)) for o in (ctx.hash_overrides if hashed else ())]
    context = (
        TextAndVisionContext(vision_token_ids=[], token_hash_overrides=overrides, **options)
        if overrides
        else MaxContext(**options)
    )
    ours, theirs = ctx.spec_decoding_state, context.spec_decoding_state
    theirs.draft_tokens_to_verify.extend(ours.draft_tokens_to_verify)
    theirs.maybe_accepted_draft_tokens.extend(ours.maybe_accepted_draft_tokens)
    return context


# Both make a part of the interface; the suite and the replay ask for no more than there is.
def _make(setup: ManagerSetup) -> SyncKVCacheManager:
    return cast("SyncKVCacheManager", MaxManager(setup))


def _make_with_counters(setup: ManagerSetup) -> SyncKVCacheManager:
    return cast("SyncKVCacheManager", MaxManagerWithCounters(setup))


implementation = Implementation(
    name="MAX",
    make=_make,
    version=version("max"),
    capabilities=frozenset({"device", "prefix", "replicas", "mla", "speculative"}),
    follows=frozenset({"POOL-3", "POOL-4", "POOL-8", "POOL-11", "REL-2", "STEP-4", "ALLOC-10"}),
    hash_algorithms=HASH_ALGORITHMS,
    page_size=128,
    deviations=Path(__file__).with_name("max_deviations.toml"),
)
"""MAX's manager, for ``--impl pagedkv.conformance.peers.max:implementation``."""

with_counters = replace(
    implementation, name="MAX with counters", make=_make_with_counters, deviations=None
)
"""The same, its counters checked after every call: for ``--rule METRIC``."""
