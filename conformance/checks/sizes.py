"""SIZE: how many pages there are, from bytes, GiB and GB."""

from typing import Any

import torch

from pagedkv.conformance.bench import Bench
from pagedkv.conformance.check import check
from pagedkv.conformance.violation import demand, expect
from pagedkv.reference.config import KVConnectorConfig
from pagedkv.reference.device import DeviceRef
from pagedkv.reference.params import KVCacheParams
from pagedkv.reference.sizing import (
    InsufficientMemoryError,
    available_cache_memory,
    compute_max_seq_len_fitting_in_cache,
    compute_num_device_blocks,
    compute_num_disk_blocks,
    compute_num_host_blocks,
    estimated_memory_size,
)

GIB, GB = 2**30, 10**9


# Any: fields of KVCacheParams, whose constructor checks them.
def params(**options: Any) -> KVCacheParams:
    """One device, 48 bytes a page."""
    defaults: dict[str, Any] = {
        "dtype": torch.int8,
        "n_kv_heads": 1,
        "head_dim": 1,
        "num_layers": 3,
        "devices": [DeviceRef.CPU()],
        "page_size": 8,
        "enable_prefix_caching": True,
    }
    return KVCacheParams(**(defaults | options))


def tiered(*, host_gb: float = 1.0, disk_gb: float = 1.0, **options: Any) -> KVCacheParams:
    """The same with host memory and disk."""
    config = KVConnectorConfig(disk_offload_dir="/ssd", disk_offload_max_gb=disk_gb)
    return params(
        kv_connector="tiered",
        host_kvcache_swap_space_gb=host_gb,
        kv_connector_config=config,
        **options,
    )


# --- SIZE-1: the null page ------------------------------------------------------------------------


@check("SIZE-1", needs=("vocabulary",))
def memory_for_one_page_more_gives_one_page_less(bench: Bench) -> None:
    """Of N + 1 pages that fit, on every replica, N can be used; two are the least."""
    for replicas in (1, 2):
        given = params(
            devices=[DeviceRef.CPU()] * 2 * replicas, n_kv_heads=2, data_parallel_degree=replicas
        )
        page = given.bytes_per_block * replicas
        for pages in (1, 2, 7, 1000):
            for memory in ((pages + 1) * page, (pages + 2) * page - 1):
                found = compute_num_device_blocks(given, memory, None, None)
                expect("SIZE-1", found, pages, f"pages in {memory} bytes on {replicas} replicas")
        try:
            compute_num_device_blocks(given, 2 * page - 1, None, None)
        except InsufficientMemoryError:
            continue
        demand("SIZE-1", False, "a page fits without the null page")


@check("SIZE-1", needs=("vocabulary",))
def what_is_taken_is_what_was_estimated(bench: Bench) -> None:
    """The estimate counts the null pages of all replicas, and stays within what there is."""
    given = params(devices=[DeviceRef.CPU()] * 2, data_parallel_degree=2)
    for memory in (8 * given.bytes_per_block, 1000, 5000):
        pages = compute_num_device_blocks(given, memory, 2, 20)
        nbytes = estimated_memory_size(given, memory, 2, 20)
        expected = 2 * (pages + 1) * given.bytes_per_block
        expect("SIZE-1", nbytes, expected, f"bytes of {pages} pages on two replicas")
        demand("SIZE-1", nbytes <= memory, f"{nbytes} bytes are estimated where {memory} are")


@check("SIZE-1", "LEN-1", needs=("vocabulary",))
def the_longest_request_that_fits_fits(bench: Bench) -> None:
    """A request of the longest length that is promised has room for its drafts as well."""
    for method, drafts in ((None, 0), ("eagle", 2), ("dflash", 3)):
        given = params(speculative_method=method, num_draft_tokens=drafts)
        memory = 9 * given.bytes_per_block
        longest = compute_max_seq_len_fitting_in_cache(given, memory)
        needed = longest + 3 * drafts + (method == "dflash")
        demand("SIZE-1", needed <= 8 * 8, f"with {method}, {longest} tokens need {needed} slots")
        compute_num_device_blocks(given, memory, 1, longest, require_max_seq_len_fits=True)
        try:
            compute_num_device_blocks(given, memory, 1, longest + 1, require_max_seq_len_fits=True)
        except InsufficientMemoryError:
            continue
        demand("SIZE-1", False, f"with {method}, {longest + 1} tokens fit where {longest} should")


@check("SIZE-1", "POOL-1", needs=("memory",))
def a_manager_has_memory_for_the_null_page(bench: Bench) -> None:
    """A manager of N pages has buffers of N + 1, and hands out N."""
    driver = bench.driver(total_num_pages=3)
    expect("SIZE-1", driver.manager.get_device_buffer(0).total_num_pages, 4, "pages of the buffer")
    driver.admit(bench.prompt(3, more=0))
    demand("SIZE-1", not driver.fits(driver.claim(driver.request([1]))), "a fourth page was taken")


# --- SIZE-2: units --------------------------------------------------------------------------------


@check("SIZE-2", needs=("vocabulary",))
def an_exact_number_of_pages_gives_that_number(bench: Bench) -> None:
    """Sizes in GiB and GB that were computed from pages give back those pages, never one less."""
    for layers in (1, 3, 7, 61):
        page = tiered(num_layers=layers).bytes_per_offloaded_block
        for pages in (1, 2, 3, 7, 15, 99, 1000, 12345):
            given = tiered(num_layers=layers, host_gb=pages * page / GIB, disk_gb=pages * page / GB)
            expect("SIZE-2", compute_num_host_blocks(given), pages, f"host pages of {page} bytes")
            expect("SIZE-2", compute_num_disk_blocks(given), pages, f"disk pages of {page} bytes")


@check("SIZE-2", needs=("vocabulary",))
def host_sizes_are_binary_and_disk_sizes_decimal(bench: Bench) -> None:
    """One GiB is 2^30 bytes and one GB 10^9; what is left of a page is lost."""
    given = tiered()
    page = given.bytes_per_offloaded_block
    expect("SIZE-2", compute_num_host_blocks(given), GIB // page, "host pages in 1 GiB")
    expect("SIZE-2", compute_num_disk_blocks(given), GB // page, "disk pages in 1 GB")
    less = tiered(host_gb=(3 * page - 1) / GIB, disk_gb=(3 * page - 1) / GB)
    found = compute_num_host_blocks(less), compute_num_disk_blocks(less)
    expect("SIZE-2", found, (2, 2), "pages in one byte less than three")


@check("SIZE-2", "TIER-10", needs=("disk",))
def a_disk_of_an_exact_number_of_pages_has_them(bench: Bench) -> None:
    """A manager whose disk has room for N blocks has N disk pages, whatever their shape."""
    shapes: list[dict[str, Any]] = [{}, {"shards": 2}, {"layers": 7}]
    if "mla" in bench.implementation.capabilities:
        shapes.append({"cache": "mla", "shards": 2})
    for shape in shapes:
        for pages in (1, 3, 7, 57):
            driver = bench.driver(host_pages=4, disk_pages=pages, **shape)
            found = driver.manager.get_num_disk_pages(0)
            expect("SIZE-2", found, pages, f"disk pages with {shape}")


# --- SIZE-3: the host tier ------------------------------------------------------------------------


@check("SIZE-3", needs=("vocabulary",))
def host_pages_go_before_gigabytes(bench: Bench) -> None:
    """A number of pages decides; without one the size in GiB does."""
    given = tiered(host_gb=7 * tiered().bytes_per_offloaded_block / GIB)
    expect("SIZE-3", compute_num_host_blocks(given, 5), 5, "host pages where 5 were asked for")
    expect("SIZE-3", compute_num_host_blocks(given, 0), 7, "host pages in the room for 7")
    expect("SIZE-3", compute_num_host_blocks(given), 7, "host pages in the room for 7")


@check("SIZE-3", "TIER-10", needs=("vocabulary",))
def a_block_store_has_host_memory_only_where_it_is_asked_for(bench: Bench) -> None:
    """For ``dkv``, 0 host pages mean none, whatever the size in GiB says."""
    config = KVConnectorConfig(block_store_endpoint="store:1")
    given = params(kv_connector="dkv", kv_connector_config=config, host_kvcache_swap_space_gb=1.0)
    expect("SIZE-3", compute_num_host_blocks(given), 0, "host pages before a store")
    expect("SIZE-3", compute_num_host_blocks(given, 6), 6, "host pages that were asked for")
    expect("SIZE-3", compute_num_disk_blocks(given), 0, "disk pages without a directory")
    expect("SIZE-3", compute_num_host_blocks(params()), 0, "host pages without a connector")


@check("SIZE-3", needs=("vocabulary",))
def replicated_content_takes_one_shards_bytes(bench: Bench) -> None:
    """A latent on four shards takes as much room below as on one."""
    shards: dict[str, Any] = {"devices": [DeviceRef.CPU()] * 4, "is_mla": True, "num_q_heads": 4}
    alone: dict[str, Any] = {"is_mla": True, "num_q_heads": 4}
    for count in (compute_num_host_blocks, compute_num_disk_blocks):
        expected = count(tiered(**alone))
        expect("SIZE-3", count(tiered(**shards)), expected, "pages for a replicated latent")


@check("SIZE-3", needs=("host",))
def a_manager_has_the_host_pages_that_it_was_given(bench: Bench) -> None:
    """Host memory of N pages holds N blocks, and not one more."""
    for pages in (1, 2, 5):
        driver = bench.driver(host_pages=pages, total_num_pages=12)
        expect("SIZE-3", driver.manager.get_num_host_pages(0), pages, "host pages")
        driver.serve(bench.prompt(7))
        driver.evict_all()
        expect("SIZE-3", driver.used("host"), pages, "host pages in use by a chain of seven")


# --- SIZE-4: what the machine does not have -------------------------------------------------------


@check("SIZE-4", needs=("vocabulary", "memory"))
def more_device_pages_than_the_machine_holds_are_refused(bench: Bench) -> None:
    """The error names the field, what it needs and what there is."""
    is_refused(bench, "total_num_pages", 10**15)


@check("SIZE-4", needs=("vocabulary", "memory", "host"))
def more_host_pages_than_the_machine_holds_are_refused(bench: Bench) -> None:
    """The same for host memory."""
    is_refused(bench, "host_pages", 10**15)


def is_refused(bench: Bench, field: str, value: int) -> None:
    """Demand that a manager of that size is not built, and that the error says why."""
    setup = bench.setup(**{field: value})
    try:
        bench.implementation.make(setup)
    except (ValueError, RuntimeError, MemoryError) as error:
        demand("SIZE-4", field in str(error), f"{field} is {value}, and it says: {error}")
        demand("SIZE-4", "available" in str(error), f"it does not say what there is: {error}")
    else:
        demand("SIZE-4", False, f"a manager with {field} {value} is built")


@check("SIZE-4", needs=("vocabulary",))
def room_for_less_than_a_page_is_refused(bench: Bench) -> None:
    """A tier that cannot hold one page is an error that names its field and both numbers."""
    small = 1e-9
    for field, count, given in (
        ("host_kvcache_swap_space_gb", compute_num_host_blocks, tiered(host_gb=small)),
        ("disk_offload_max_gb", compute_num_disk_blocks, tiered(disk_gb=small)),
    ):
        try:
            count(given)
        except InsufficientMemoryError as error:
            demand("SIZE-4", field in str(error), f"{field} is too small, and it says: {error}")
            numbers = error.wanted_bytes, error.available_bytes
            expect("SIZE-4", numbers, (48, 1), f"what {field} needs and has, in bytes")
        else:
            demand("SIZE-4", False, f"{field} of one byte has pages")


# --- SIZE-5: device memory ------------------------------------------------------------------------


@check("SIZE-5", needs=("vocabulary",))
def the_share_is_one_of_free_memory_less_the_weights(bench: Bench) -> None:
    """Utilisation applies before the weights are taken away, and never to more than there is."""
    for free, weights, share, left in (
        (1000, 0, 0.9, 900),
        (1000, 300, 0.9, 600),
        (1000, 900, 0.9, 0),
        (1000, 300, 1.0, 700),
        (100, 9, 0.29, 20),
    ):
        found = available_cache_memory(free, weights, share)
        expect("SIZE-5", found, left, f"bytes left of {free} at {share}, less {weights}")


@check("SIZE-5", "SIZE-4", needs=("vocabulary",))
def weights_that_do_not_fit_are_refused(bench: Bench) -> None:
    """Weights above the share, and shares that are none, are errors."""
    for free, weights, share in ((1000, 901, 0.9), (1000, 0, 0.0), (1000, 0, 1.5), (1000, 0, -1.0)):
        try:
            available_cache_memory(free, weights, share)
        except ValueError:
            continue
        demand("SIZE-5", False, f"{weights} bytes of weights fit {share} of {free}")
