"""What is checked before a manager takes any memory (SIZE-4, PARAM-5)."""

from pagedkv.reference.param_interface import KVCacheParamInterface, whole_number
from pagedkv.reference.sizing import check_host_memory

BOOKKEEPING_NBYTES = 250
"""About what the bookkeeping of a page takes at least, once it caches something: measured by
``benchmarks/growth.py``, see docs/benchmarks.md."""

TABLE_ENTRY_NBYTES = 4
"""A page id in a lookup table: int32."""


def check_sizes(
    params: KVCacheParamInterface,
    total_num_pages: int,
    total_num_host_pages: int,
    max_batch_size: int,
) -> None:
    """Refuse sizes that cannot be, or that the machine does not have.

    Device memory is checked where the device is a CPU; on a GPU the allocation itself says so.

    Raises:
        ValueError: A size is no whole number, or too small.
        InsufficientMemoryError: The machine has less memory than a size asks for.
    """
    whole_number("total_num_pages", total_num_pages, 1)
    whole_number("total_num_host_pages", total_num_host_pages, 0)
    whole_number("max_batch_size", max_batch_size, 1)
    on_cpu = all(device.is_cpu() for device in params.devices)
    page_nbytes = BOOKKEEPING_NBYTES + (params.bytes_per_block if on_cpu else 0)
    pages = (total_num_pages + 1) * params.data_parallel_degree
    check_host_memory("total_num_pages", pages * page_nbytes)
    if on_cpu:
        entries = max_batch_size * total_num_pages * params.n_devices
        check_host_memory("max_batch_size", entries * TABLE_ENTRY_NBYTES)
