"""MEM: how pages lie in memory, and what forwards and transfers see of them."""

from collections.abc import Iterator
from math import prod
from typing import Any

import torch

from pagedkv.conformance.bench import Bench
from pagedkv.conformance.check import check
from pagedkv.conformance.violation import demand, expect
from pagedkv.reference.buffers import (
    KVCacheBuffer,
    KVCacheBufferInterface,
    MultiKVCacheBuffer,
    ReplicatedKVCacheMemory,
)


def shapes(bench: Bench) -> Iterator[dict[str, Any]]:
    """Setups of every kind of cache that the implementation knows, on one shard and on two."""
    kinds = {"mha": None, "mla": "mla", "fp8": "fp8", "tree": "multi"}
    for cache, capability in kinds.items():
        if capability is None or capability in bench.implementation.capabilities:
            for shards in (1, 2):
                yield {"cache": cache, "shards": shards, "layers": 3}


def leaves(buffer: KVCacheBufferInterface) -> list[KVCacheBuffer]:
    """The memory of each cache of a model."""
    if isinstance(buffer, MultiKVCacheBuffer):
        return [leaf for child in buffer.children.values() for leaf in leaves(child)]
    assert isinstance(buffer, KVCacheBuffer)
    return [buffer]


@check("MEM-1", needs=("memory",))
def a_page_of_a_shard_is_contiguous(bench: Bench) -> None:
    """Values are ``[pages, kv, layers, page_size, heads, head_dim]``, row by row."""
    for shape in shapes(bench):
        driver = bench.driver(total_num_pages=5, **shape)
        kv = 1 if shape["cache"] == "mla" else 2
        target, *drafts = leaves(driver.manager.get_device_buffer(0))
        for leaf, layers in ((target, 3), *((draft, 1) for draft in drafts)):
            expect("MEM-1", len(leaf.values), shape["shards"], f"shards of values with {shape}")
            scales = list(leaf.scales or ())
            expect("MEM-1", len(scales), shape["shards"] * (shape["cache"] == "fp8"), "scales")
            for tensor in leaf.values:
                whole = [6, kv, layers, bench.size, 1, 2]
                expect("MEM-1", list(tensor.shape), whole, f"shape of a buffer with {shape}")
            for tensor in (*leaf.values, *scales):
                seen = list(tensor.shape[:5]), tensor.is_contiguous()
                expected = [6, kv, layers, bench.size, 1], True
                expect("MEM-1", seen, expected, f"shape of a buffer with {shape}, without gaps")


@check("MEM-1", "POOL-1", needs=("memory", "replicas"))
def replicas_and_shards_have_memory_of_their_own(bench: Bench) -> None:
    """No two buffers begin at the same address, and the null page is real memory."""
    driver = bench.driver(replicas=2, shards=2)
    buffers = [
        buffer for r in range(2) for buffer in driver.manager.get_device_buffer(r).all_buffers
    ]
    addresses = {buffer.data_ptr() for buffer in buffers}
    expect("MEM-1", len(addresses), 4, "addresses of the buffers of four shards")
    buffers[0][8].fill_(3)
    expect("MEM-1", int(buffers[0][8].sum()), 3 * buffers[0][8].numel(), "sum of the null page")


@check("MEM-2", needs=("memory",))
def units_of_transfer_are_views(bench: Bench) -> None:
    """``to_memory`` gives rows of bytes over the same memory, values first and then scales."""
    for shape in shapes(bench):
        driver = bench.driver(total_num_pages=5, **shape)
        buffer = driver.manager.get_device_buffer(0)
        rows = [row for unit in buffer.to_memory() for row in unit.all_buffers]
        tensors = [tensor for leaf in leaves(buffer) for tensor in leaf.all_buffers]
        expect("MEM-2", len(rows), len(tensors), f"buffers of the units with {shape}")
        for row, tensor in zip(rows, tensors, strict=True):
            nbytes = prod(tensor.shape[1:]) * tensor.element_size()
            seen = row.dtype, list(row.shape), row.data_ptr()
            expected = torch.uint8, [6, nbytes], tensor.data_ptr()
            expect("MEM-2", seen, expected, f"type, shape and address of a unit with {shape}")


@check("MEM-2", needs=("memory", "mla"))
def replicated_content_is_one_unit(bench: Bench) -> None:
    """Where shards replicate a latent, they are one unit of a root and its peers."""
    driver = bench.driver(cache="mla", shards=2)
    units = driver.manager.get_device_buffer(0).to_memory()
    expect("MEM-2", len(units), 1, "units of two shards with one content")
    demand("MEM-2", isinstance(units[0], ReplicatedKVCacheMemory), f"the unit is {units[0]}")
    expect("MEM-2", len(units[0].all_buffers), 2, "buffers of the unit")
    alone = bench.driver(cache="mla").manager.get_device_buffer(0).to_memory()
    expect("MEM-2", [len(unit.all_buffers) for unit in alone], [1], "buffers of a single shard")


@check("MEM-2", needs=("memory",))
def sharded_content_is_a_unit_per_shard(bench: Bench) -> None:
    """Shards with heads of their own are units of their own."""
    units = bench.driver(shards=2).manager.get_device_buffer(0).to_memory()
    expect("MEM-2", [len(unit.all_buffers) for unit in units], [1, 1], "buffers of two units")


@check("MEM-3", "POOL-1", needs=("memory",))
def buffers_count_the_null_page_and_managers_do_not(bench: Bench) -> None:
    """A buffer of a manager with N pages has N + 1, whatever its shards and caches."""
    for shape in shapes(bench):
        driver = bench.driver(total_num_pages=5, **shape)
        total = driver.manager.get_device_buffer(0).total_num_pages
        expect("MEM-3", total, 6, f"total_num_pages of a buffer with {shape}")
        for method in ("total_num_blocks", "get_num_pages"):
            if callable(getattr(driver.manager, method, None)):
                expect("MEM-3", getattr(driver.manager, method)(0), 5, method)


@check("MEM-3", needs=("replicas",))
def pages_are_counted_per_replica(bench: Bench) -> None:
    """Every replica has all its pages, and they are not added up."""
    driver = bench.driver(replicas=2, total_num_pages=5)
    driver.admit(bench.prompt(1))
    expect("MEM-3", [driver.manager.num_free_blocks(r) for r in range(2)], [3, 5], "free pages")
    for method in ("total_num_blocks", "get_num_pages"):
        if callable(getattr(driver.manager, method, None)):
            counts = [getattr(driver.manager, method)(replica) for replica in range(2)]
            expect("MEM-3", counts, [5, 5], f"{method} by replica")


@check("MEM-4", "INPUT-4", needs=("memory", "inputs", "vocabulary"))
def inputs_are_what_the_symbolic_ones_promise(bench: Bench) -> None:
    """Position by position they have the promised type and rank, and a name means one size."""
    replicas = 2 if "replicas" in bench.implementation.capabilities else 1
    for shape in shapes(bench):
        driver = bench.driver(replicas=replicas, **shape)
        requests = [driver.admit(bench.prompt(n + 1), n % replicas) for n in range(2)]
        inputs = driver.manager.runtime_inputs(driver.batches(requests)).flatten()
        promised = driver.setup.params().flattened_kv_inputs()
        expect("MEM-4", len(inputs), len(promised), f"number of inputs with {shape}")
        sizes: dict[str, int] = {}
        for place, (symbol, value) in enumerate(zip(promised, inputs, strict=True)):
            try:
                symbol.bind(value, sizes)
            except ValueError as error:
                demand("MEM-4", False, f"input {place} with {shape}: {error}")


@check("MEM-4", needs=("memory", "inputs", "vocabulary"))
def inputs_can_be_flattened_and_rebuilt(bench: Bench) -> None:
    """What was flattened comes back in its place, with the memory of the pages in it."""
    for shape in shapes(bench):
        driver = bench.driver(**shape)
        ctx = driver.admit(bench.prompt(2))
        flat = driver.manager.runtime_inputs([[ctx]]).flatten()
        again = driver.setup.params().unflatten_kv_inputs(iter(flat)).flatten()
        expect("MEM-4", [id(t) for t in again], [id(t) for t in flat], f"inputs with {shape}")
        pages = {buffer.data_ptr() for buffer in driver.manager.get_device_buffer(0).all_buffers}
        given = {tensor.data_ptr() for tensor in flat}
        demand("MEM-4", pages <= given, f"inputs with {shape} lack memory of the pages")
