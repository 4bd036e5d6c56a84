"""How many pages fit: device, host and disk."""

import dataclasses
import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.reference.conftest import Making

from pagedkv.reference.config import KVConnectorConfig
from pagedkv.reference.device import DeviceRef
from pagedkv.reference.multi_params import MultiKVCacheParams
from pagedkv.reference.params import KVCacheParams
from pagedkv.reference.sizing import (
    GB,
    GiB,
    InsufficientMemoryError,
    available_cache_memory,
    check_host_memory,
    compute_max_seq_len_fitting_in_cache,
    compute_num_device_blocks,
    compute_num_disk_blocks,
    compute_num_host_blocks,
    estimated_memory_size,
    human_bytes,
    spec_decode_cache_slack,
)


# Any: each test overrides other fields, of other types.
def params(**fields: Any) -> KVCacheParams:
    """One token takes one byte, unless the test says otherwise."""
    defaults: dict[str, Any] = {
        "dtype": torch.uint8,
        "n_kv_heads": 1,
        "head_dim": 1,
        "num_layers": 1,
        "devices": [DeviceRef.CPU()],
        "page_size": 16,
        "is_mla": True,
        "num_q_heads": 4,
    }
    return KVCacheParams(**(defaults | fields))


def tiered(*, host_gb: float = 1.0, disk_gb: float = 1.0, **fields: Any) -> KVCacheParams:
    return params(
        enable_prefix_caching=True,
        kv_connector="tiered",
        host_kvcache_swap_space_gb=host_gb,
        kv_connector_config=KVConnectorConfig(
            disk_offload_dir="/ssd", disk_offload_max_gb=disk_gb
        ),
        **fields,
    )  # fmt: skip


speculations = st.sampled_from(
    [{}]
    + [
        {"speculative_method": method, "num_draft_tokens": drafts}
        for method in ("standalone", "eagle", "mtp", "dflash")
        for drafts in (0, 1, 5)
    ]
)


@pytest.mark.rule("SIZE-1")
@given(st.integers(0, 10_000), st.integers(1, 40), st.integers(1, 3))
def test_the_null_page_is_paid_for(memory: int, page_size: int, replicas: int) -> None:
    p = params(
        page_size=page_size, devices=[DeviceRef.CPU()] * replicas, data_parallel_degree=replicas
    )
    affordable = memory // replicas // page_size
    if affordable < 2:
        with pytest.raises(InsufficientMemoryError, match="one page and the null page needs"):
            compute_num_device_blocks(p, memory, None, None)
    else:
        assert compute_num_device_blocks(p, memory, None, None) == affordable - 1


@pytest.mark.rule("SIZE-1")
@given(speculations, st.integers(1, 200), st.integers(1, 8), st.integers(200, 4000))
def test_no_more_pages_are_taken_than_the_batch_can_use(
    speculation: dict[str, Any], max_seq_len: int, max_batch_size: int, memory: int
) -> None:
    p = params(**speculation)
    pages = compute_num_device_blocks(p, memory, max_batch_size, max_seq_len)
    longest = max_seq_len + spec_decode_cache_slack(p)
    needed = max_batch_size * -(-longest // p.page_size)
    assert pages == min(needed, memory // p.bytes_per_block - 1)
    size = estimated_memory_size(p, memory, max_batch_size, max_seq_len)
    assert size == (pages + 1) * p.bytes_per_block <= memory


@pytest.mark.rule("SIZE-1", "LEN-1")
@given(speculations, st.integers(32, 1000))
def test_the_longest_fitting_request_fits_and_a_longer_one_does_not(
    speculation: dict[str, Any], memory: int
) -> None:
    p = params(**speculation)
    try:
        longest = compute_max_seq_len_fitting_in_cache(p, memory)
    except InsufficientMemoryError:
        longest = 0
    else:
        compute_num_device_blocks(p, memory, 1, longest, require_max_seq_len_fits=True)
    with pytest.raises(InsufficientMemoryError, match=f"max_seq_len {longest + 1} "):
        compute_num_device_blocks(p, memory, 1, longest + 1, require_max_seq_len_fits=True)


@pytest.mark.parametrize(
    ("method", "drafts", "slack"),
    [(None, 0, 0), ("eagle", 1, 4), ("mtp", 3, 10), ("standalone", 2, 7), ("dflash", 4, 14)],
)
def test_slack_covers_drafts_a_placeholder_and_the_block_slot(
    method: Any, drafts: int, slack: int
) -> None:
    p = params(speculative_method=method, num_draft_tokens=drafts)
    assert spec_decode_cache_slack(p) == slack


def test_bounds_that_do_not_fit_are_warned_about(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert compute_num_device_blocks(params(), 5 * 16, 9, 100) == 4
    batch, length = (record.getMessage() for record in caplog.records)
    assert "max_batch_size is 9, but only 4 pages fit" in batch
    assert "max_seq_len 100 (7 pages and the null page) needs 128 bytes, but 80 bytes" in length


@pytest.mark.rule("PARAM-5")
@pytest.mark.parametrize(("batch", "length"), [(0, 1), (1, 0)])
def test_a_bound_below_one_is_refused(batch: int, length: int) -> None:
    with pytest.raises(ValueError, match=r"max_(batch_size|seq_len) is 0"):
        compute_num_device_blocks(params(), 1000, batch, length)


@pytest.mark.rule("PARAM-5")
@pytest.mark.parametrize("value", ["1", True, 1.5, [1]])
def test_a_size_of_the_wrong_type_is_refused_by_name(value: Any) -> None:
    sizes: dict[str, Callable[[], object]] = {
        "available_cache_memory": lambda: compute_num_device_blocks(params(), value, None, None),
        "max_batch_size": lambda: compute_num_device_blocks(params(), 1000, value, None),
        "max_seq_len": lambda: compute_num_device_blocks(params(), 1000, None, value),
        "total_num_host_pages": lambda: compute_num_host_blocks(tiered(), value),
        "free_bytes": lambda: available_cache_memory(value, 0, 0.5),
        "weights_bytes": lambda: available_cache_memory(100, value, 0.5),
        "device_memory_utilization": lambda: available_cache_memory(100, 0, value),
    }
    for field, compute in sizes.items():
        with pytest.raises(ValueError, match=f"{field} is .*; use a (whole number|fraction)"):
            compute()


@pytest.mark.rule("PARAM-5")
@pytest.mark.parametrize(
    "compute",
    [
        lambda given: compute_num_device_blocks(given, 1000, None, None),
        lambda given: estimated_memory_size(given, 1000, 1, 1),
        lambda given: compute_max_seq_len_fitting_in_cache(given, 1000),
        compute_num_host_blocks,
        compute_num_disk_blocks,
        spec_decode_cache_slack,
    ],
)
def test_sizes_of_what_is_no_caches_parameters_are_refused(compute: Callable[[Any], int]) -> None:
    for given_params in (None, "tiered", [params()]):
        with pytest.raises(ValueError, match=r"params is .*; pass KVCacheParams"):
            compute(given_params)


@pytest.mark.rule("SIZE-2")
@given(st.integers(1, 10**6), st.integers(1, 10**6))
def test_a_size_of_whole_pages_gives_back_the_pages(pages: int, page_size: int) -> None:
    nbytes = pages * page_size
    p = tiered(host_gb=nbytes / GiB, disk_gb=nbytes / GB, page_size=page_size)
    assert compute_num_host_blocks(p) == pages
    assert compute_num_disk_blocks(p) == pages


@pytest.mark.rule("SIZE-2")
@given(st.floats(1e-6, 1e4), st.integers(1, 1000))
def test_pages_never_exceed_the_size(size_gb: float, page_size: int) -> None:
    p = tiered(host_gb=size_gb, disk_gb=size_gb, page_size=page_size)
    # Half a byte is what rounding to whole bytes may add.
    assert compute_num_host_blocks(p) * page_size <= size_gb * GiB + 0.5
    assert compute_num_disk_blocks(p) * page_size <= size_gb * GB + 0.5


@pytest.mark.rule("SIZE-2")
def test_host_and_disk_units_differ() -> None:
    p = tiered(host_gb=1, disk_gb=1, page_size=1)
    assert (compute_num_host_blocks(p), compute_num_disk_blocks(p)) == (2**30, 10**9)


@pytest.mark.rule("SIZE-3")
def test_replicated_content_is_stored_once_in_each_child() -> None:
    two = [DeviceRef.CPU(0), DeviceRef.CPU(1)]
    replicated = tiered(devices=two)
    sharded = tiered(devices=two, is_mla=False, n_kv_heads=2)
    assert compute_num_host_blocks(replicated) == GiB // 16
    assert compute_num_host_blocks(sharded) == GiB // 64
    tree = MultiKVCacheParams.from_params(replicated, sharded)
    assert compute_num_host_blocks(tree) == GiB // (16 + 64)
    assert compute_num_disk_blocks(tree) == GB // (16 + 64)


@pytest.mark.rule("SIZE-3", "TIER-10")
def test_replicas_share_one_host_tier() -> None:
    p = tiered(devices=[DeviceRef.CPU()] * 2, data_parallel_degree=2)
    assert compute_num_host_blocks(p) == compute_num_host_blocks(tiered())


@pytest.mark.rule("SIZE-3")
def test_an_explicit_page_count_decides() -> None:
    assert compute_num_host_blocks(tiered(), total_num_host_pages=7) == 7
    with pytest.raises(ValueError, match="total_num_host_pages is -1"):
        compute_num_host_blocks(tiered(), total_num_host_pages=-1)


@pytest.mark.rule("TIER-10")
def test_without_a_connector_there_are_no_lower_tiers() -> None:
    for p in (params(), params(kv_connector="null", host_kvcache_swap_space_gb=1.0)):
        assert compute_num_host_blocks(p) == compute_num_disk_blocks(p) == 0
        with pytest.raises(ValueError, match="total_num_host_pages is 7, but kv_connector is"):
            compute_num_host_blocks(p, total_num_host_pages=7)


@pytest.mark.rule("TIER-10")
def test_a_block_store_has_host_and_disk_pages_only_when_asked() -> None:
    def dkv(disk_offload_dir: str | None) -> KVCacheParams:
        config = KVConnectorConfig(
            block_store_endpoint="redis://store",
            disk_offload_dir=disk_offload_dir,
            disk_offload_max_gb=160 / GB,
        )
        return params(enable_prefix_caching=True, kv_connector="dkv", kv_connector_config=config)

    assert compute_num_host_blocks(dkv(None)) == compute_num_disk_blocks(dkv(None)) == 0
    assert compute_num_host_blocks(dkv(None), total_num_host_pages=7) == 7
    assert compute_num_disk_blocks(dkv("/ssd")) == 10


@pytest.mark.rule("SIZE-4")
def test_a_tier_too_small_for_a_page_is_refused() -> None:
    p = tiered(host_gb=0, disk_gb=15 / GB)
    with pytest.raises(InsufficientMemoryError, match="host_kvcache_swap_space_gb needs 16 bytes"):
        compute_num_host_blocks(p)
    with pytest.raises(InsufficientMemoryError, match="disk_offload_max_gb needs 16 b") as refusal:
        compute_num_disk_blocks(p)
    assert (refusal.value.wanted_bytes, refusal.value.available_bytes) == (16, 15)


@pytest.mark.rule("SIZE-5")
def test_weights_are_taken_from_the_usable_share() -> None:
    assert available_cache_memory(100, 9, 0.29) == 20
    assert available_cache_memory(100, 100, 1) == 0
    with pytest.raises(InsufficientMemoryError, match="weights_bytes needs 30 bytes, but 29 bytes"):
        available_cache_memory(100, 30, 0.29)
    for share in (0, 1.01, -0.5, float("nan")):
        with pytest.raises(ValueError, match="device_memory_utilization is"):
            available_cache_memory(100, 0, share)


@pytest.mark.rule("SIZE-4")
def test_memory_that_the_machine_lacks_is_refused_with_the_numbers() -> None:
    check_host_memory("host_kvcache_swap_space_gb", 1)
    with pytest.raises(InsufficientMemoryError, match="lower host_kvcache_swap_space_gb") as error:
        check_host_memory("host_kvcache_swap_space_gb", 2**60)
    assert error.value.field == "host_kvcache_swap_space_gb"
    assert error.value.wanted_bytes == 2**60 > error.value.available_bytes > 0


@pytest.mark.rule("SIZE-4")
def test_a_manager_is_not_made_larger_than_the_machine(make: Making) -> None:
    local = make.tiered_params()
    huge = dataclasses.replace(local, host_kvcache_swap_space_gb=1e9)
    refused: dict[str, Callable[[], object]] = {
        "total_num_pages": lambda: make.manager(pages=10**15),
        "total_num_host_pages": lambda: make.manager(local, host_pages=10**15),
        "host_kvcache_swap_space_gb": lambda: make.manager(huge),
    }
    for field, make_manager in refused.items():
        with pytest.raises(InsufficientMemoryError, match=f"lower {field}") as refusal:
            make_manager()
        error = refusal.value
        assert error.field == field
        assert error.wanted_bytes > 10**15 > error.available_bytes


@pytest.mark.rule("SIZE-3")
def test_a_managers_host_tier_is_as_large_as_the_pages_or_else_the_gigabytes(make: Making) -> None:
    params = make.tiered_params()
    params = dataclasses.replace(
        params, host_kvcache_swap_space_gb=7 * params.bytes_per_offloaded_block / GiB
    )
    assert make.manager(params, host_pages=5).get_num_host_pages(0) == 5
    assert make.manager(params).get_num_host_pages(0) == 7


@pytest.mark.rule("PARAM-5")
@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"pages": 0}, "total_num_pages is 0; it must be a whole number from 1"),
        ({"host_pages": -1}, "total_num_host_pages is -1; it must be a whole number from 0"),
        ({"max_batch_size": 0}, "max_batch_size is 0; it must be a whole number from 1"),
    ],
)
def test_a_managers_impossible_sizes_are_refused_by_name(
    make: Making, sizes: dict[str, int], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make.manager(**sizes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [(-5, "-5 bytes"), (1023, "1023 bytes"), (3 * GiB // 2, "1.50 GiB (1,610,612,736 bytes)")],
)
def test_bytes_are_written_for_people(nbytes: int, text: str) -> None:
    assert human_bytes(nbytes) == text


def test_a_replaced_page_size_changes_the_page_count() -> None:
    p = tiered(page_size=1)
    assert compute_num_disk_blocks(dataclasses.replace(p, page_size=10)) == GB // 10
