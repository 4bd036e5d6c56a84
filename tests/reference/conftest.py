"""Small managers and contexts for the tests of the reference."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import pytest
import torch

from pagedkv.reference import (
    AllocPlan,
    DeviceRef,
    InferenceSession,
    KVCacheParamInterface,
    KVCacheParams,
    KVConnectorConfig,
    Media,
    PagedKVCacheManager,
    PrefixCacheHits,
    TextContext,
    TokenBuffer,
)
from pagedkv.reference.events import Event, IssuedTransfer

E = TypeVar("E", bound=Event)

DISK = "/reference/disk"
STORE = "store:1"


def prompt(pages: int, start: int = 0) -> range:
    """Tokens for ``pages`` full pages, and the one more that every request has to compute."""
    return range(start, start + 4 * pages + 1)


@dataclass
class Recorder:
    """A tracer that keeps what it is given."""

    events: list[Event] = field(default_factory=list)

    def emit(self, event: Event) -> None:
        self.events.append(event)

    @property
    def issued(self) -> list[IssuedTransfer]:
        """Transfers of all events, in the order of their issue."""
        return [t for event in self.events for t in getattr(event, "issued", ())]

    def of_kind(self, kind: type[E]) -> list[E]:
        return [event for event in self.events if isinstance(event, kind)]


class Making:
    """Makes what a test needs, with small defaults: pages of 4 tokens and 16 bytes a token."""

    # The options of two constructors are passed through: their types are those constructors'.
    def params(self, *, replicas: int = 1, shards: int = 1, **options: Any) -> KVCacheParams:
        settings: dict[str, Any] = {
            "dtype": torch.float32,
            "n_kv_heads": shards,
            "head_dim": 2,
            "num_layers": 1,
            "devices": [DeviceRef.CPU()] * (replicas * shards),
            "data_parallel_degree": replicas,
            "page_size": 4,
            "enable_prefix_caching": True,
        }
        if options.get("is_mla"):
            settings["num_q_heads"] = shards
        return KVCacheParams(**(settings | options))

    def tiered_params(
        self,
        *,
        disk_pages: int | None = None,
        store: str | None = None,
        disk: str = DISK,
        extras: dict[str, Any] | None = None,
        **options: Any,
    ) -> KVCacheParams:
        """Host memory, with a disk of ``disk_pages`` and a ``store`` if they are given."""
        kind = "dkv" if store else ("local" if disk_pages is None else "tiered")
        config: dict[str, Any] = dict(extras or {})
        if disk_pages is not None:
            bytes_per_page = self.params(**options).bytes_per_offloaded_block
            config |= {
                "disk_offload_dir": disk,
                "disk_offload_max_gb": disk_pages * bytes_per_page / 10**9,
            }
        if store:
            config["block_store_endpoint"] = store
        return self.params(
            kv_connector=kind,
            kv_connector_config=KVConnectorConfig(**config),
            host_kvcache_swap_space_gb=0.001,
            **options,
        )

    def isolated_params(self, **options: Any) -> KVCacheParams:
        """Tiered parameters of three replicas that have nothing in common but the tiers below."""
        options = {"replicas": 3, "enable_dp_cross_replica_prefix_copy": False} | options
        return self.tiered_params(**options)

    def manager(
        self,
        params: KVCacheParamInterface | None = None,
        *,
        pages: int = 8,
        host_pages: int = 0,
        max_batch_size: int = 4,
        tracer: Recorder | None = None,
        media: Media | None = None,
        auto_land: bool = True,
    ) -> PagedKVCacheManager:
        params = params or self.params()
        return PagedKVCacheManager(
            params,
            InferenceSession(devices=params.devices),
            pages,
            host_pages,
            True,
            max_batch_size=max_batch_size,
            tracer=tracer,
            media=media,
            auto_land=auto_land,
        )

    def context(self, tokens: Iterable[int], **options: Any) -> TextContext:
        array = np.fromiter(tokens, dtype=np.int64)
        return TextContext(max_length=10_000, tokens=TokenBuffer(array), **options)

    def admit(
        self,
        manager: PagedKVCacheManager,
        tokens: Iterable[int],
        replica: int = 0,
        **options: Any,
    ) -> TextContext:
        """Claim and allocate a fresh request."""
        ctx = self.context(tokens, **options)
        manager.claim(ctx.request_id, replica)
        manager.alloc(ctx, replica)
        return ctx

    def begin(
        self, manager: PagedKVCacheManager, tokens: Iterable[int], replica: int = 0, **options: Any
    ) -> tuple[TextContext, AllocPlan]:
        """Claim a fresh request and plan its allocation."""
        ctx = self.context(tokens, **options)
        manager.claim(ctx.request_id, replica)
        return ctx, manager.begin_alloc(ctx, replica)

    def forward(
        self, manager: PagedKVCacheManager, ctx: TextContext, replica: int = 0, token: int = 0
    ) -> None:
        """One forward over the active window, its sampled token, and the step after it."""
        ctx.update(token)
        batches: list[list[TextContext]] = [[] for _ in range(manager.params.data_parallel_degree)]
        batches[replica].append(ctx)
        manager.step(batches)

    def serve(
        self,
        manager: PagedKVCacheManager,
        tokens: Iterable[int],
        replica: int = 0,
        **options: Any,
    ) -> TextContext:
        """A whole request: claim, alloc, one forward, step, release."""
        ctx = self.admit(manager, tokens, replica, **options)
        self.forward(manager, ctx, replica)
        manager.release(ctx.request_id, replica)
        return ctx

    def hits(
        self,
        manager: PagedKVCacheManager,
        tokens: Iterable[int],
        replica: int = 0,
        **options: Any,
    ) -> PrefixCacheHits:
        """What a fresh request would find cached; changes nothing."""
        return manager.get_prefix_cache_hit_counts(self.context(tokens, **options))[replica]

    def hits_below(
        self, manager: PagedKVCacheManager, tokens: Iterable[int], **options: Any
    ) -> PrefixCacheHits:
        """What the tiers below hold of a prefix: the last of :meth:`isolated_params`' replicas
        sees nothing else, as long as nothing is served there."""
        return self.hits(manager, tokens, replica=-1, **options)

    def land_all(self, manager: PagedKVCacheManager) -> None:
        """Land what is in flight and what follows from it, in the order of issue."""
        while transfers := manager.in_flight():
            manager.land(transfers[0].id)


@pytest.fixture
def make() -> Making:
    return Making()


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()
