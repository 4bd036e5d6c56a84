"""Which tiers lie below the devices, how large they are, and where their bytes are.

Rules TIER-10 and NS-1 to NS-4.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pagedkv.engine.disk.directory import BlockDirectory
from pagedkv.engine.disk.files import REAL_FILES, Files
from pagedkv.engine.host_pool import HostPool
from pagedkv.engine.movers.mover import BlockFile
from pagedkv.reference.config import KVConnectorConfig, TierOptions
from pagedkv.reference.identity import PageKey
from pagedkv.reference.params import KVCacheParamInterface, KVConnectorType
from pagedkv.reference.sizing import GB, compute_num_disk_blocks, compute_num_host_blocks

PASSING_SLOTS = 16
"""Host rows for blocks that come from disk when the host tier has no slot for them: as many as the
disk reads at once."""


class DiskBlocks(BlockFile, Protocol):
    """What a disk tier is made of: a :class:`BlockDirectory`, or a fake of one."""

    survivors: list[tuple[int, PageKey]]
    """Slots and blocks that were there at the start, oldest first (NS-4)."""
    strangers: list[PageKey]
    """Blocks that were there under another model, and were dropped (NS-3)."""

    def forget(self, slot: int) -> None:
        """The slot holds nothing any more."""
        ...

    def forget_all(self) -> None:
        """No slot holds anything any more (RESET-1)."""
        ...

    async def flush(self) -> None:
        """Return once what was written so far would survive a crash."""
        ...

    async def aclose(self, oldest_first: Sequence[int] = ()) -> None:
        """Store everything, in the order of its last use."""
        ...

    async def crash(self) -> None:
        """End as a killed process would."""
        ...


@dataclass(eq=False)
class Tiers:
    """The storage of the tiers below the devices; the planner keeps their books."""

    host: HostPool | None = None
    """The host tier's slots."""
    disk: DiskBlocks | None = None
    """The disk tier's blocks."""
    passing: HostPool | None = None
    """Rows through which blocks pass on their way from disk."""

    async def crash(self) -> None:
        """Give everything back and write nothing."""
        if self.disk is not None:
            await self.disk.crash()
        self._unmap()

    async def aclose(self, disk_slots_oldest_first: list[int]) -> None:
        """Write what is to be written, and give files, locks and memory back."""
        if self.disk is not None:
            await self.disk.aclose(disk_slots_oldest_first)
        self._unmap()

    def _unmap(self) -> None:
        for pool in (self.host, self.passing):
            if pool is not None:
                pool.close()


def open_tiers(
    params: KVCacheParamInterface,
    total_num_host_pages: int,
    files: Files = REAL_FILES,
    disk: DiskBlocks | None = None,
) -> Tiers:
    """Open what ``params`` ask for. May take a while: not for an event loop.

    Where they ask for a disk tier, it is ``disk``, if that is given.

    Raises:
        ValueError: A size is missing, or more than the machine has; the message names the field.
        LayoutMismatchError: The disk directory holds blocks of another layout.
    """
    kind = params.kv_connector or KVConnectorType.null
    config = params.kv_connector_config or KVConnectorConfig()
    if kind == KVConnectorType.dkv:
        raise ValueError(
            "kv_connector is 'dkv', but the engine has no block store yet: use 'tiered', 'local' "
            "or 'null', or the reference manager"
        )
    if kind == KVConnectorType.null:
        if total_num_host_pages:
            raise ValueError(
                f"total_num_host_pages is {total_num_host_pages}, but there is no connector that "
                "would use them: set kv_connector to 'local' or 'tiered', or pass 0"
            )
        return Tiers()
    nbytes = params.bytes_per_offloaded_block
    pin = any(not device.is_cpu() for device in params.devices)
    field = "total_num_host_pages" if total_num_host_pages else "host_kvcache_swap_space_gb"
    capacity = compute_num_host_blocks(params, total_num_host_pages)
    host = HostPool(capacity, nbytes, pin=pin, field=field)
    if kind == KVConnectorType.local or config.disk_offload_dir is None:
        return Tiers(host)
    try:
        options = TierOptions.from_connector_config(config)
        disk = disk or BlockDirectory.open(
            Path(config.disk_offload_dir),
            layout=params.layout_fingerprint(),
            model=options.model_fingerprint,
            capacity=compute_num_disk_blocks(params),
            block_nbytes=nbytes,
            direct_io=config.disk_offload_direct_io,
            files=files,
        )
    except BaseException:
        host.close()
        raise
    return Tiers(host, disk, HostPool(PASSING_SLOTS, nbytes, pin=pin, field=field))


def write_budget(params: KVCacheParamInterface) -> int | None:
    """Blocks that one day's write budget allows; ``None`` without a budget (TIER-8)."""
    options = TierOptions.from_connector_config(params.kv_connector_config)
    if options.disk_write_budget_gb_per_day is None:
        return None
    return round(options.disk_write_budget_gb_per_day * GB) // params.bytes_per_offloaded_block
