"""Which rows go together in one copy, and whose they are."""

from typing import Literal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pagedkv.engine.host_pool import HostPool
from pagedkv.engine.movers.host_rows import HostRows
from pagedkv.engine.movers.units import Unit, copies, units_of
from pagedkv.engine.streams.stream import Memory
from pagedkv.reference.buffers import KVCacheBuffer, MultiKVCacheBuffer
from pagedkv.traces.manager_setup import ManagerSetup

PAGE = 4096

ROWS = st.lists(st.integers(0, 40), min_size=1, max_size=30, unique=True)


@given(targets=ROWS, sources=st.permutations(range(41)), chunk=st.integers(1, 9))
def test_every_row_is_copied_once_and_no_copy_spans_two_chunks(
    targets: list[int], sources: list[int], chunk: int
) -> None:
    host = Memory("host", torch.empty(41, 1, dtype=torch.uint8), chunk)
    device = Memory("device", torch.empty(41, 1, dtype=torch.uint8))
    pairs = list(zip(sorted(targets), sources, strict=False))
    for target, source in ((host, device), (device, host)):
        moved = copies(target, [t for t, _ in pairs], source, [s for _, s in pairs])
        spans = [
            (copy.target_row + n, copy.source_row + n) for copy in moved for n in range(copy.count)
        ]
        assert spans == pairs
        for copy in moved:
            first = copy.target_row if target is host else copy.source_row
            assert first // chunk == (first + copy.count - 1) // chunk


def test_adjacent_rows_of_one_chunk_are_one_copy() -> None:
    memory = Memory("host", torch.empty(41, 1, dtype=torch.uint8), 8)
    moved = copies(memory, range(4, 20), memory, range(20, 36))
    assert [copy.count for copy in moved] == [4, 8, 4]


@pytest.mark.parametrize("cache", ["mha", "mla", "fp8", "tree"])
def test_memory_of_a_device_is_that_of_its_shard(
    cache: Literal["mha", "mla", "fp8", "tree"],
) -> None:
    setup = ManagerSetup(cache=cache, page_size=4, total_num_pages=4, shards=2, replicas=2)
    for replica, buffer in enumerate(setup.params().allocate_buffers(5)):
        units = units_of(buffer, replica, shards=2)
        found = [(n, memory.rows.data_ptr()) for unit in units for n, memory in unit.memories]
        caches = buffer.children.values() if isinstance(buffer, MultiKVCacheBuffer) else [buffer]
        expected = [
            (2 * replica + shard, tensor.data_ptr())
            for child in caches
            if isinstance(child, KVCacheBuffer)
            for tensors in (child.values, child.scales or [])
            for shard, tensor in enumerate(tensors)
        ]
        assert found == expected


def test_rows_of_the_host_pool_know_its_chunks() -> None:
    pool = HostPool(64, PAGE, pin=False, chunk_nbytes=16 * PAGE)
    (memory,) = HostRows("host", pool, [Unit([], 0, PAGE)]).memories
    assert [copy.count for copy in copies(memory, range(64), memory, range(64))] == [16] * 4
