"""Recording what a running engine does, so that it can be validated later."""

from pathlib import Path

from pagedkv.engine.tiers import write_budget
from pagedkv.reference import KVCacheParams
from pagedkv.reference.config import TierOptions
from pagedkv.reference.param_interface import KVCacheParamInterface
from pagedkv.reference.sizing import compute_num_disk_blocks, compute_num_host_blocks
from pagedkv.traces.events.recorder import FlightRecorder, record_to
from pagedkv.traces.events.setup import EventTraceHeader, RunSetup


def run_setup_of(
    params: KVCacheParamInterface,
    total_num_pages: int,
    total_num_host_pages: int = 0,
    *,
    max_batch_size: int,
) -> RunSetup:
    """What has to be known of an engine with these arguments to follow a run of it."""
    options = TierOptions.from_connector_config(params.kv_connector_config)
    cache = "tree"
    if isinstance(params, KVCacheParams):
        cache = "mla" if params.is_mla else "fp8" if params.quantized_kv_cache else "mha"
    return RunSetup.model_validate(
        {
            "page_size": params.page_size,
            "total_num_pages": total_num_pages,
            "replicas": params.data_parallel_degree,
            "max_batch_size": max_batch_size,
            "host_pages": compute_num_host_blocks(params, total_num_host_pages) or None,
            "disk_pages": compute_num_disk_blocks(params) or None,
            "enable_prefix_caching": params.enable_prefix_caching,
            "enable_dp_cross_replica_prefix_copy": params.enable_dp_cross_replica_prefix_copy,
            "write_policy": options.write_policy,
            "disk_writes_per_day": write_budget(params),
            "deduplication": params.deduplication,
            "speculative_method": params.speculative_method,
            "num_draft_tokens": params.num_draft_tokens,
            "cache": cache,
            "shards": params.tensor_parallel_degree,
            "hash_algorithm": params.kv_hash_algo,
            "hash_seed": None if params.kv_hash_seed is None else params.kv_hash_seed.hex(),
            "model_fingerprint": options.model_fingerprint,
        }
    )


def write_run(path: Path | str, setup: RunSetup, recorder: FlightRecorder) -> None:
    """Write what a flight recorder has kept since its manager was made, for ``trace check``.

    Raises:
        ValueError: The beginning is gone, and a run can only be followed from there.
        OSError: The file cannot be written; what was there before stays.
    """
    if recorder.first_seq:
        raise ValueError(
            f"the recorder has lost the first {recorder.first_seq:,} events: give it a larger "
            "capacity, or write the events to a file as they happen, with record_to"
        )
    with record_to(path, EventTraceHeader(setup=setup, implementation="engine")) as file:
        for event in recorder.events:
            file.emit(event)
