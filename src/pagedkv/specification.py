"""Reference managers with one byte per token: to replay on, and to follow recorded runs with."""

import torch

from pagedkv.conformance.validation import Specification
from pagedkv.reference import (
    DeviceRef,
    InferenceSession,
    KVCacheParams,
    KVConnectorConfig,
    KVConnectorType,
    PagedKVCacheManager,
    Tracer,
)
from pagedkv.traces.events.setup import RunSetup


def reference_specification(setup: RunSetup, tracer: Tracer) -> Specification:
    """A reference manager set up as the one that was recorded, its environment in our hands."""
    return one_byte_reference(setup, tracer, auto_land=False)


def one_byte_reference(
    setup: RunSetup, tracer: Tracer | None = None, *, auto_land: bool = True
) -> PagedKVCacheManager:
    """A reference manager of these sizes and policies, on the CPU.

    Raises:
        ValueError: The sizes cannot be, or the machine does not have the memory.
    """
    if setup.store:
        connector = KVConnectorType.dkv
    elif setup.disk_pages is not None:
        connector = KVConnectorType.tiered
    else:
        connector = KVConnectorType.null if setup.host_pages is None else KVConnectorType.local
    options: dict[str, object] = {"write_policy": setup.write_policy}
    if setup.disk_pages is not None:
        options["disk_offload_dir"] = "recorded"
        options["disk_offload_max_gb"] = setup.disk_pages * setup.page_size / 1e9
    if setup.disk_writes_per_day is not None:
        nbytes = setup.disk_writes_per_day * setup.page_size
        options["disk_write_budget_gb_per_day"] = nbytes / 1e9
    if setup.store:
        options["block_store_endpoint"] = "recorded"
    devices = [DeviceRef.CPU()] * setup.replicas
    params = KVCacheParams(
        dtype=torch.int8,
        n_kv_heads=1,
        head_dim=1,
        num_layers=1,
        devices=devices,
        enable_prefix_caching=setup.enable_prefix_caching,
        kv_connector=connector,
        kv_connector_config=KVConnectorConfig.model_validate(options),
        host_kvcache_swap_space_gb=0.0,  # host_pages decides
        page_size=setup.page_size,
        is_mla=True,
        num_q_heads=1,
        data_parallel_degree=setup.replicas,
        speculative_method=setup.speculative_method,
        num_draft_tokens=setup.num_draft_tokens,
        enable_dp_cross_replica_prefix_copy=setup.enable_dp_cross_replica_prefix_copy,
        deduplication=setup.deduplication,
    )
    return PagedKVCacheManager(
        params,
        InferenceSession(devices=devices),
        setup.total_num_pages,
        setup.host_pages or 0,
        max_batch_size=setup.max_batch_size,
        tracer=tracer,
        auto_land=auto_land,
    )
