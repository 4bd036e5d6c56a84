"""Sizes that cannot be, or that the machine does not have, are refused before memory is taken."""

import pytest
import torch

from pagedkv.engine.start_checks import BOOKKEEPING_NBYTES, TABLE_ENTRY_NBYTES, check_sizes
from pagedkv.reference.device import DeviceRef
from pagedkv.reference.params import KVCacheParams
from pagedkv.reference.sizing import InsufficientMemoryError

ABSURD = 10**15


def params(*devices: DeviceRef, replicas: int = 1) -> KVCacheParams:
    return KVCacheParams(
        dtype=torch.float16,
        n_kv_heads=2,
        head_dim=8,
        num_layers=2,
        devices=list(devices),
        page_size=4,
        data_parallel_degree=replicas,
    )


CPUS = params(DeviceRef.CPU(0), DeviceRef.CPU(1), replicas=2)
GPU = params(DeviceRef.GPU(0))
MIXED = params(DeviceRef.CPU(0), DeviceRef.GPU(0), replicas=2)


def test_sizes_that_the_machine_has_pass() -> None:
    check_sizes(CPUS, 1, 0, 1)


@pytest.mark.parametrize(
    ("field", "sizes"),
    [
        ("total_num_pages", (0, 0, 1)),
        ("total_num_host_pages", (1, -1, 1)),
        ("max_batch_size", (1, 0, 0)),
    ],
)
def test_less_than_the_least_is_refused(field: str, sizes: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match=field):
        check_sizes(CPUS, *sizes)


def test_pages_of_all_replicas_count_with_their_bytes_and_the_null_page() -> None:
    with pytest.raises(InsufficientMemoryError) as refusal:
        check_sizes(CPUS, ABSURD, 0, 1)
    page_nbytes = CPUS.bytes_per_block + BOOKKEEPING_NBYTES
    assert refusal.value.field == "total_num_pages"
    assert refusal.value.wanted_bytes == (ABSURD + 1) * 2 * page_nbytes


def test_on_a_gpu_only_the_bookkeeping_of_pages_is_in_this_memory() -> None:
    for some, replicas in ((GPU, 1), (MIXED, 2)):
        with pytest.raises(InsufficientMemoryError) as refusal:
            check_sizes(some, ABSURD, 0, 1)
        assert refusal.value.wanted_bytes == (ABSURD + 1) * replicas * BOOKKEEPING_NBYTES


def test_the_lookup_tables_of_all_devices_count() -> None:
    with pytest.raises(InsufficientMemoryError) as refusal:
        check_sizes(CPUS, 10, 0, ABSURD)
    assert refusal.value.field == "max_batch_size"
    assert refusal.value.wanted_bytes == ABSURD * 10 * 2 * TABLE_ENTRY_NBYTES


def test_the_lookup_tables_of_a_gpu_are_not_in_this_memory() -> None:
    check_sizes(GPU, 1, 0, ABSURD)
