"""How many pages fit: from bytes of device memory, GiB of host memory and GB of disk.

A size given as a float stands for the nearest whole number of bytes (SIZE-2). So what was
computed as ``pages * bytes_per_page / GB`` gives back exactly ``pages``. Rounding down would lose
one now and then: ``0.000000015 * GB`` is 14.999999999999998.
"""

import logging

import psutil

from pagedkv.reference.errors import PagedKVError
from pagedkv.reference.param_interface import (
    KVCacheParamInterface,
    KVConnectorType,
    check_params,
    check_real_number,
    whole_number,
)

GiB = 2**30
"""Unit of host sizes, in bytes (SIZE-2)."""

GB = 10**9
"""Unit of disk sizes, in bytes (SIZE-2)."""

_logger = logging.getLogger(__name__)


class InsufficientMemoryError(PagedKVError, RuntimeError, ValueError):
    """A size asks for more memory than there is, or leaves less than is needed."""

    def __init__(self, field: str, wanted_bytes: int, available_bytes: int, remedy: str) -> None:
        self.field = field
        """The setting or quantity in question."""
        self.wanted_bytes = wanted_bytes
        """What it needs."""
        self.available_bytes = available_bytes
        """What there is for it."""
        super().__init__(
            f"{field} needs {human_bytes(wanted_bytes)}, but {human_bytes(available_bytes)} are "
            f"available; {remedy}"
        )


def human_bytes(nbytes: int) -> str:
    """``nbytes`` for a message: a binary unit with two decimals from 1 KiB on, and the count."""
    for unit, size in (("TiB", 2**40), ("GiB", GiB), ("MiB", 2**20), ("KiB", 2**10)):
        if abs(nbytes) >= size:
            return f"{nbytes / size:.2f} {unit} ({nbytes:,} bytes)"
    return f"{nbytes} bytes"


def available_cache_memory(
    free_bytes: int, weights_bytes: int, device_memory_utilization: float
) -> int:
    """Bytes left for pages: the usable share of the free device memory, less the weights (SIZE-5).

    Args:
        free_bytes: Free memory over all devices, before the weights are loaded.
        weights_bytes: The model's weights over all devices.
        device_memory_utilization: Share of the free memory to use, above 0 and up to 1.

    Raises:
        ValueError: The share is out of range, or a number is none.
        InsufficientMemoryError: The weights alone do not fit.
    """
    free_bytes = whole_number("free_bytes", free_bytes, 0)
    weights_bytes = whole_number("weights_bytes", weights_bytes, 0)
    remedy = "use a fraction above 0 and up to 1"
    check_real_number("device_memory_utilization", device_memory_utilization, remedy)
    if not 0 < device_memory_utilization <= 1:
        raise ValueError(f"device_memory_utilization is {device_memory_utilization}; {remedy}")
    usable = round(free_bytes * device_memory_utilization)
    if weights_bytes > usable:
        raise InsufficientMemoryError(
            "weights_bytes",
            weights_bytes,
            usable,
            "raise device_memory_utilization, or use more devices",
        )
    return usable - weights_bytes


def spec_decode_cache_slack(params: KVCacheParamInterface) -> int:
    """Tokens past the maximum length that a speculating request may need slots for.

    They follow from the length rule: the last drafts all accepted, the ones to verify next, the
    ones written meanwhile, one slot for block drafts, and one placeholder.

    Raises:
        ValueError: ``params`` are no cache's parameters.
    """
    check_params("params", params)
    if params.speculative_method is None:
        return 0
    block = 1 if params.speculative_method == "dflash" else 0
    return 3 * params.num_draft_tokens + block + 1


def compute_num_device_blocks(
    params: KVCacheParamInterface,
    available_cache_memory: int,
    max_batch_size: int | None,
    max_seq_len: int | None,
    require_max_seq_len_fits: bool = False,
) -> int:
    """Pages per replica: what a manager takes as ``total_num_pages``.

    The null page is counted: memory for ``n + 1`` pages gives ``n`` (SIZE-1). No more pages are
    returned than ``max_batch_size`` requests of ``max_seq_len`` tokens can use, where both are
    given.

    Args:
        params: The cache or caches.
        available_cache_memory: Bytes over all devices of all replicas.
        max_batch_size: Most requests on one replica at a time, or None for no bound.
        max_seq_len: Most tokens of one request, or None for no bound.
        require_max_seq_len_fits: Whether one request of ``max_seq_len`` that does not fit is an
            error; otherwise it is a logged warning.

    Raises:
        ValueError: A bound is below 1, or an argument of the wrong type.
        InsufficientMemoryError: Not even one page fits beside the null page, or a request of
            ``max_seq_len`` does not though it was required to.
    """
    check_params("params", params)
    available_cache_memory = whole_number("available_cache_memory", available_cache_memory, 0)
    for name, bound in (("max_batch_size", max_batch_size), ("max_seq_len", max_seq_len)):
        if bound is not None:
            whole_number(name, bound, 1)
    memory_per_replica = available_cache_memory // params.data_parallel_degree
    num_blocks = memory_per_replica // params.bytes_per_block - 1
    remedy = "raise device_memory_utilization, or use more devices"
    if num_blocks < 1:
        raise InsufficientMemoryError(
            "one page and the null page", 2 * params.bytes_per_block, memory_per_replica, remedy
        )
    if max_batch_size is not None and max_batch_size > num_blocks:
        _logger.warning(
            "max_batch_size is %d, but only %d pages fit per replica: no batch can have more "
            "requests than pages",
            max_batch_size,
            num_blocks,
        )
    if max_seq_len is None:
        return num_blocks

    longest = -(-(max_seq_len + spec_decode_cache_slack(params)) // params.page_size)
    if longest > num_blocks:
        error = InsufficientMemoryError(
            f"a request of max_seq_len {max_seq_len} ({longest} pages and the null page)",
            (longest + 1) * params.bytes_per_block,
            memory_per_replica,
            f"lower max_seq_len, or {remedy}",
        )
        if require_max_seq_len_fits:
            raise error
        _logger.warning("%s", error)
    return num_blocks if max_batch_size is None else min(num_blocks, longest * max_batch_size)


def estimated_memory_size(
    params: KVCacheParamInterface,
    available_cache_memory: int,
    max_batch_size: int,
    max_seq_len: int,
) -> int:
    """Bytes that the pages of all replicas will take, null pages included.

    Raises:
        InsufficientMemoryError: Not even one page fits beside the null page.
    """
    num_blocks = compute_num_device_blocks(
        params, available_cache_memory, max_batch_size, max_seq_len
    )
    return (num_blocks + 1) * params.bytes_per_block * params.data_parallel_degree


def compute_max_seq_len_fitting_in_cache(
    params: KVCacheParamInterface, available_cache_memory: int
) -> int:
    """Most tokens that a single request on an otherwise empty replica may have.

    Raises:
        InsufficientMemoryError: Not even one token fits.
    """
    compute_num_device_blocks(
        params, available_cache_memory, 1, max_seq_len=1, require_max_seq_len_fits=True
    )
    num_blocks = compute_num_device_blocks(params, available_cache_memory, 1, max_seq_len=None)
    return num_blocks * params.page_size - spec_decode_cache_slack(params)


def compute_num_host_blocks(params: KVCacheParamInterface, total_num_host_pages: int = 0) -> int:
    """Pages of the host tier, which all replicas share; 0 without one (SIZE-3).

    Args:
        params: The cache or caches. ``local`` and ``tiered`` have a host tier; ``dkv`` has one
            only where ``total_num_host_pages`` asks for it.
        total_num_host_pages: Above 0 it decides; 0 means as many as fit
            ``host_kvcache_swap_space_gb``.

    Raises:
        ValueError: Host pages are asked for without a connector that has a host tier, or fewer
            than 0, or an argument is of the wrong type.
        InsufficientMemoryError: Not even one page fits ``host_kvcache_swap_space_gb``.
    """
    check_params("params", params)
    total_num_host_pages = whole_number("total_num_host_pages", total_num_host_pages, 0)
    if total_num_host_pages > 0:
        if params.kv_connector in (None, KVConnectorType.null):
            raise ValueError(
                f"total_num_host_pages is {total_num_host_pages}, but kv_connector is "
                f"{params.kv_connector!r}; use 'local' or 'tiered', or 0 host pages"
            )
        return total_num_host_pages
    if params.kv_connector not in (KVConnectorType.local, KVConnectorType.tiered):
        return 0
    return _pages_in("host_kvcache_swap_space_gb", params.host_kvcache_swap_space_gb, GiB, params)


def compute_num_disk_blocks(params: KVCacheParamInterface) -> int:
    """Pages of the disk tier, which all replicas share; 0 without one.

    ``tiered`` has a disk tier; ``dkv`` has one only where ``disk_offload_dir`` asks for it.

    Raises:
        ValueError: ``params`` are no cache's parameters.
        InsufficientMemoryError: Not even one page fits ``disk_offload_max_gb``.
    """
    check_params("params", params)
    config = params.kv_connector_config
    if params.kv_connector not in (KVConnectorType.tiered, KVConnectorType.dkv):
        return 0
    if config is None or not config.disk_offload_dir:
        return 0
    return _pages_in("disk_offload_max_gb", config.disk_offload_max_gb, GB, params)


def _pages_in(field: str, size: float | None, unit: int, params: KVCacheParamInterface) -> int:
    nbytes = round((size or 0) * unit)
    if nbytes < params.bytes_per_offloaded_block:
        raise InsufficientMemoryError(
            f"one page in {field}", params.bytes_per_offloaded_block, nbytes, f"raise {field}"
        )
    return nbytes // params.bytes_per_offloaded_block


def check_host_memory(field: str, wanted_bytes: int) -> None:
    """Refuse what this machine's memory cannot hold now (SIZE-4).

    Args:
        field: The setting that asks for it, for the message.
        wanted_bytes: How much it asks for.

    Raises:
        InsufficientMemoryError: Less than that is available.
    """
    available = psutil.virtual_memory().available
    if wanted_bytes > available:
        raise InsufficientMemoryError(field, wanted_bytes, available, f"lower {field}")
