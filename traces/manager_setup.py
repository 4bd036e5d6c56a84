"""What an implementation is asked to build: a manager of given sizes, policies and shape."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, Self

import torch
from pydantic import ConfigDict, Field, SkipValidation, model_validator

from pagedkv.reference.config import KVConnectorConfig
from pagedkv.reference.device import DeviceRef, InferenceSession
from pagedkv.reference.events import Tracer
from pagedkv.reference.interfaces import AsyncKVCacheManager, SyncKVCacheManager
from pagedkv.reference.media import Media
from pagedkv.reference.multi_params import MultiKVCacheParams
from pagedkv.reference.param_interface import KVCacheParamInterface
from pagedkv.reference.params import (
    KVCacheParams,
    KVCacheQuantizationConfig,
    KVConnectorType,
)
from pagedkv.traces.events.setup import RunSetup


class ManagerSetup(RunSetup):
    """Everything that a factory is told. What it does not know, it may ignore or refuse.

    Raises:
        ValueError: A size is out of range, or two of them contradict each other.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)

    disk_dir: Path | None = Field(default=None, exclude=True)
    """Folder of the disk tier. It belongs to the caller, who removes it in the end; two managers
    that get the same one after another see a restart."""
    store_endpoint: str = Field(default="simulated", exclude=True)
    """Where the block store is, if there is one; a simulated one is known by this name."""
    tracer: SkipValidation[Tracer | None] = Field(default=None, exclude=True, repr=False)
    """Receives the manager's events, if the implementation reports any; ``None``: not wanted."""
    media: SkipValidation[Media] = Field(default_factory=Media, exclude=True, repr=False)
    """Simulated disks and stores, for implementations that have no real ones."""

    use_debug_tiered_mode: bool = Field(default=False, exclude=True)
    """Whether transfers are moved one at a time, while the caller stands still."""
    slow_tier_policy: Literal["wait", "timeout", "best_effort"] = Field(
        default="wait", exclude=True
    )
    """What an allocation does about blocks below host memory (ALLOC-15)."""
    slow_tier_timeout_s: float = Field(default=1.0, exclude=True)
    """How long it waits for them under ``timeout``."""
    auto_land: bool = Field(default=True, exclude=True)
    """Whether transfers land by themselves, or when the caller says so: see
    :class:`~pagedkv.conformance.implementation.ControlledManager`."""

    @model_validator(mode="after")
    def _tiers_have_a_place(self) -> Self:
        if self.disk_pages and self.disk_dir is None:
            raise ValueError("disk_pages need a folder: give disk_dir")
        return self

    def run_setup(self) -> RunSetup:
        """The part of it that goes into the header of an event trace."""
        return RunSetup.model_validate(self.model_dump())

    def session(self) -> InferenceSession:
        """A session on the CPU with as many devices as the manager needs."""
        return InferenceSession(devices=self._devices())

    def params(self) -> KVCacheParamInterface:
        """The parameters of such a cache, on the CPU, with one byte per value."""
        without_tiers = self._build({})
        return self._build(self._tier_options(without_tiers.bytes_per_offloaded_block))

    def _devices(self) -> list[DeviceRef]:
        return [DeviceRef.CPU()] * (self.replicas * self.shards)

    # Any: the options of one constructor are passed on; their types are that constructor's.
    def _build(self, tier_options: dict[str, Any]) -> KVCacheParamInterface:
        target = self._build_one(self.layers, tier_options)
        if self.cache != "tree":
            return target
        return MultiKVCacheParams.from_params(target=target, draft=self._build_one(1, tier_options))

    def _build_one(self, layers: int, tier_options: dict[str, Any]) -> KVCacheParams:
        options: dict[str, Any] = {
            "dtype": torch.int8,
            "n_kv_heads": self.shards,
            "head_dim": self.head_dim,
            "num_layers": layers,
            "devices": self._devices(),
            "data_parallel_degree": self.replicas,
            "page_size": self.page_size,
            "enable_prefix_caching": self.enable_prefix_caching,
            "enable_dp_cross_replica_prefix_copy": self.enable_dp_cross_replica_prefix_copy,
            "deduplication": self.deduplication,
            "speculative_method": self.speculative_method,
            "num_draft_tokens": self.num_draft_tokens,
            "kv_hash_algo": self.hash_algorithm,
            "kv_hash_seed": self.hash_seed,
        }
        if self.cache == "mla":
            options |= {"is_mla": True, "num_q_heads": self.shards}
        elif self.cache == "fp8":
            options |= {
                "dtype": torch.float8_e4m3fn,
                "kvcache_quant_config": KVCacheQuantizationConfig(quantization_granularity=1),
            }
        return KVCacheParams(**(options | tier_options))

    def _tier_options(self, bytes_per_block: int) -> dict[str, Any]:
        if self.store:
            connector = KVConnectorType.dkv
        elif self.disk_pages is not None:
            connector = KVConnectorType.tiered
        else:
            connector = KVConnectorType.null if self.host_pages is None else KVConnectorType.local
        config: dict[str, object] = {
            "write_policy": self.write_policy,
            "model_fingerprint": self.model_fingerprint,
            "use_debug_tiered_mode": self.use_debug_tiered_mode,
            "slow_tier_policy": self.slow_tier_policy,
            "slow_tier_timeout_s": self.slow_tier_timeout_s,
        }
        if self.disk_pages is not None:
            config["disk_offload_dir"] = str(self.disk_dir)
            config["disk_offload_max_gb"] = self.disk_pages * bytes_per_block / 1e9
        if self.disk_writes_per_day is not None:
            nbytes = self.disk_writes_per_day * bytes_per_block
            config["disk_write_budget_gb_per_day"] = nbytes / 1e9
        if self.store:
            config["block_store_endpoint"] = self.store_endpoint
        return {
            "kv_connector": connector,
            "kv_connector_config": KVConnectorConfig.model_validate(config),
            "host_kvcache_swap_space_gb": 0.0,  # host_pages decides
        }


ManagerFactory = Callable[[ManagerSetup], SyncKVCacheManager | AsyncKVCacheManager]
"""Builds a fresh manager; whoever asked for it shuts it down."""
