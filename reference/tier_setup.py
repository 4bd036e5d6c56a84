"""Which tiers lie below the devices, how large they are, and what is in them at start.

Rules TIER-10, NS-1 to NS-4.
"""

from collections.abc import Sequence

from pagedkv.reference.buffers import KVCacheMemory
from pagedkv.reference.config import KVConnectorConfig, TierOptions
from pagedkv.reference.connector import TierConnector
from pagedkv.reference.fates import Fates
from pagedkv.reference.media import Media
from pagedkv.reference.params import KVCacheParamInterface, KVConnectorType
from pagedkv.reference.sizing import (
    GB,
    check_host_memory,
    compute_num_disk_blocks,
    compute_num_host_blocks,
)
from pagedkv.reference.tier_names import LowerTier
from pagedkv.reference.tiers import Tier


def open_connector(
    params: KVCacheParamInterface,
    memories: Sequence[Sequence[KVCacheMemory]],
    total_num_pages: int,
    total_num_host_pages: int,
    media: Media,
    fates: Fates,
) -> TierConnector:
    """The connector that ``params`` ask for, with what its disk already holds (TIER-10, NS-4).

    Raises:
        ValueError: A size is missing, or more than the machine has; the message names the field.
        LayoutMismatchError: The disk directory holds blocks of another layout.
    """
    kind = params.kv_connector or KVConnectorType.null
    if kind == KVConnectorType.null and total_num_host_pages:
        raise ValueError(
            f"total_num_host_pages is {total_num_host_pages}, but there is no connector that would "
            "use them: set kv_connector to 'local' or 'tiered', or pass 0"
        )
    config = params.kv_connector_config or KVConnectorConfig()
    options = TierOptions.from_connector_config(config)
    tiers: dict[LowerTier, Tier] = {}
    if kind in (KVConnectorType.local, KVConnectorType.tiered) or (
        kind == KVConnectorType.dkv and total_num_host_pages
    ):
        tiers["host"] = Tier(_host_capacity(params, total_num_host_pages))
    if kind == KVConnectorType.dkv and config.disk_offload_dir and "host" not in tiers:
        raise ValueError(
            f"disk_offload_dir is {config.disk_offload_dir!r}, but disk needs host memory in front "
            "of it: set total_num_host_pages, or leave the directory out"
        )
    if "host" in tiers and kind != KVConnectorType.local and config.disk_offload_dir is not None:
        tiers["disk"] = _open_disk(params, config.disk_offload_dir, options, media)
        fates.note(media.disks[config.disk_offload_dir].strangers, "other_namespace")
    if kind == KVConnectorType.dkv:
        assert config.block_store_endpoint is not None, "checked by KVCacheParams"
        tiers["store"] = Tier(
            None,
            verifies=True,
            prefix=store_prefix(params, media),
            blocks=media.open_store(config.block_store_endpoint),
        )
    for tier in tiers.values():
        tier.fates = fates
    return TierConnector(
        memories,
        tiers,
        policy=options.write_policy,
        uses_limit=max(total_num_pages * len(memories), total_num_host_pages),
    )


def store_prefix(params: KVCacheParamInterface, media: Media, *, reset: bool = False) -> bytes:
    """What this manager's keys in a shared store begin with, now or after a ``reset``."""
    options = TierOptions.from_connector_config(params.kv_connector_config)
    return media.namespace(params.layout_fingerprint(), options.model_fingerprint, reset=reset)


def write_budget(params: KVCacheParamInterface, options: TierOptions) -> int | None:
    """Blocks that one day's write budget allows; ``None`` without a budget (TIER-8)."""
    if options.disk_write_budget_gb_per_day is None:
        return None
    return round(options.disk_write_budget_gb_per_day * GB) // params.bytes_per_offloaded_block


def _host_capacity(params: KVCacheParamInterface, total_num_host_pages: int) -> int:
    capacity = compute_num_host_blocks(params, total_num_host_pages)
    field = "total_num_host_pages" if total_num_host_pages else "host_kvcache_swap_space_gb"
    check_host_memory(field, capacity * params.bytes_per_offloaded_block)
    return capacity


def _open_disk(
    params: KVCacheParamInterface, directory: str, options: TierOptions, media: Media
) -> Tier:
    image = media.open_disk(directory, params.layout_fingerprint(), options.model_fingerprint)
    capacity = compute_num_disk_blocks(params)
    while len(image.blocks) > capacity:
        image.blocks.popitem(last=False)
    return Tier(
        capacity, verifies=True, blocks=image.blocks, writes_left=write_budget(params, options)
    )
