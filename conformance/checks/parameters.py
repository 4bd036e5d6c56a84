"""PARAM: what a cache is made of."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch

from pagedkv.conformance.bench import Bench
from pagedkv.conformance.check import check
from pagedkv.conformance.violation import demand, expect
from pagedkv.reference.config import KVConnectorConfig
from pagedkv.reference.device import DeviceRef
from pagedkv.reference.multi_params import MultiKVCacheParams
from pagedkv.reference.param_interface import KVCacheParamInterface
from pagedkv.reference.params import KVCacheParams, KVCacheQuantizationConfig, KVConnectorType


# Any: fields of KVCacheParams, whose constructor checks them.
def params(**options: Any) -> KVCacheParams:
    """Four devices, two heads on each."""
    defaults: dict[str, Any] = {
        "dtype": torch.bfloat16,
        "n_kv_heads": 8,
        "head_dim": 4,
        "num_layers": 3,
        "devices": [DeviceRef.CPU(n) for n in range(4)],
        "page_size": 16,
        "enable_prefix_caching": True,
    }
    return KVCacheParams(**(defaults | options))


def latent(**options: Any) -> KVCacheParams:
    """The same with one latent per token."""
    return params(is_mla=True, num_q_heads=8, **options)


def tree(**caches: KVCacheParamInterface) -> MultiKVCacheParams:
    """Caches that page the same sequences."""
    return MultiKVCacheParams.from_params(**caches)


def refused(rule: str, field: str, value: object, **others: Any) -> None:
    """Demand that parameters with that value are refused by the field's name."""
    try:
        params(**{field: value}, **others)
    except ValueError as error:
        helps = field in str(error) and (str(value) in str(error) or repr(value) in str(error))
        demand(rule, helps, f"{field} is {value!r}, and it says: {error}")
    else:
        demand(rule, False, f"{field} is {value!r}, and nobody says anything")


# --- PARAM-1: devices -----------------------------------------------------------------------------


@check("PARAM-1", needs=("vocabulary",))
def devices_are_grouped_by_replica(bench: Bench) -> None:
    """The first shards are those of the first replica, in the order given."""
    for replicas, groups in ((1, [[0, 1, 2, 3]]), (2, [[0, 1], [2, 3]]), (4, [[0], [1], [2], [3]])):
        for given in (
            params(data_parallel_degree=replicas),
            tree(a=params(data_parallel_degree=replicas)),
        ):
            ids = [[device.id for device in group] for group in given.devices_per_replica]
            expect("PARAM-1", ids, groups, f"devices of {replicas} replicas")
            degree = given.tensor_parallel_degree
            expect("PARAM-1", degree, 4 // replicas, f"shards of each of {replicas} replicas")


@check("PARAM-1", needs=("vocabulary",))
def replicas_have_equally_many_devices(bench: Bench) -> None:
    """A ``data_parallel_degree`` that does not divide the number of devices is refused."""
    for replicas in (3, 5, 8, 0, -1):
        refused("PARAM-1", "data_parallel_degree", replicas)


# --- PARAM-2: bytes -------------------------------------------------------------------------------


def every_kind() -> Iterator[tuple[str, KVCacheParamInterface]]:
    """Parameters of every kind of cache."""
    scaled = {
        "dtype": torch.float8_e4m3fn,
        "kvcache_quant_config": KVCacheQuantizationConfig(quantization_granularity=2),
    }
    yield "one replica", params()
    yield "two replicas", params(data_parallel_degree=2)
    yield "latent", latent()
    yield "latent, alone on its devices", latent(data_parallel_degree=4)
    yield "scaled", params(**scaled)
    yield "scaled latent", latent(**scaled)
    yield "unscaled FP8", params(dtype=torch.float8_e4m3fn)
    yield "tree", tree(target=latent(), draft=params(num_layers=1))


@check("PARAM-2", needs=("vocabulary",))
def a_block_has_the_bytes_that_its_page_takes(bench: Bench) -> None:
    """``bytes_per_block`` is what one more page takes on all shards of a replica, with scales."""
    for name, given in every_kind():
        for buffer in given.allocate_buffers(2):
            nbytes = sum(tensor[0].nbytes for tensor in buffer.all_buffers)
            expect("PARAM-2", given.bytes_per_block, nbytes, f"bytes_per_block, {name}")


@check("PARAM-2", needs=("vocabulary",))
def a_tree_takes_what_its_caches_take(bench: Bench) -> None:
    """The bytes of a tree are the sum over its caches, also of a tree of trees."""
    one, two = params(), latent(num_layers=7)
    expected = one.bytes_per_block + two.bytes_per_block
    expect("PARAM-2", tree(a=one, b=two).bytes_per_block, expected, "bytes of a tree")
    nested = tree(inner=tree(a=one, b=two), c=one)
    expected += one.bytes_per_block
    expect("PARAM-2", nested.bytes_per_block, expected, "bytes of a tree of trees")


# --- PARAM-3: replication -------------------------------------------------------------------------


@check("PARAM-3", needs=("vocabulary",))
def a_latent_is_replicated_on_several_shards(bench: Bench) -> None:
    """Only MLA, and only with more than one shard per replica, holds the same on all of them."""
    cases = [
        (latent(), True),
        (latent(data_parallel_degree=2), True),
        (latent(data_parallel_degree=4), False),
        (params(), False),
    ]
    for given, expected in cases:
        expect("PARAM-3", given.replicates_kv_across_tp, expected, f"replication of {given}")


@check("PARAM-3", needs=("vocabulary",))
def a_tree_is_replicated_if_all_its_caches_are(bench: Bench) -> None:
    """One sharded cache is enough for the shards to differ."""
    cases = [
        (tree(a=latent(), b=latent()), True),
        (tree(a=latent(), b=params()), False),
        (tree(a=params(), b=latent()), False),
    ]
    for given, expected in cases:
        expect("PARAM-3", given.replicates_kv_across_tp, expected, "replication of a tree")


@check("PARAM-3", "SIZE-3", needs=("vocabulary",))
def replicated_content_is_stored_once(bench: Bench) -> None:
    """Below the device a replicated block takes one shard's bytes, any other those of all."""
    for name, given in every_kind():
        units = [unit for unit in given.allocate_buffers(1)[0].to_memory()]
        once = sum(unit.buffer.shape[1] for unit in units)
        expect("PARAM-3", given.bytes_per_offloaded_block, once, f"bytes of a stored block, {name}")


# --- PARAM-4: trees -------------------------------------------------------------------------------


@check("PARAM-4", needs=("vocabulary",))
def the_caches_of_a_tree_agree(bench: Bench) -> None:
    """A cache that differs from the others in what they share is refused by the field's name."""
    drafting = {"speculative_method": "eagle", "num_draft_tokens": 2}
    local = {"kv_connector": "local", "host_kvcache_swap_space_gb": 1.0}
    cases: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
        ("page_size", {}, {"page_size": 32}),
        ("data_parallel_degree", {}, {"data_parallel_degree": 2}),
        ("devices", {}, {"devices": [DeviceRef.CPU(n) for n in (0, 1, 2, 4)]}),
        ("enable_prefix_caching", {}, {"enable_prefix_caching": False}),
        ("kv_connector", local, {}),
        ("host_kvcache_swap_space_gb", local, local | {"host_kvcache_swap_space_gb": 2.0}),
        ("speculative_method", drafting, drafting | {"speculative_method": "mtp"}),
        ("num_draft_tokens", drafting, drafting | {"num_draft_tokens": 1}),
        ("kv_hash_algo", {}, {"kv_hash_algo": "xxh3_128"}),
        ("kv_hash_seed", {}, {"kv_hash_seed": bytes(32)}),
    ]
    for field, one, other in cases:
        for first, second in ((one, other), (other, one)):
            try:
                tree(a=params(**first), b=params(**first), c=params(**second))
            except ValueError as error:
                demand("PARAM-4", field in str(error), f"{field} differs, and it says: {error}")
            else:
                demand("PARAM-4", False, f"caches with different {field} make a tree")


@check("PARAM-4", needs=("vocabulary",))
def the_caches_of_a_tree_may_differ_in_shape(bench: Bench) -> None:
    """Layers, heads, dimensions and types are each cache's own."""
    draft = latent(num_layers=1, head_dim=8, dtype=torch.float32)
    given = tree(target=params(), draft=draft)
    expect("PARAM-4", (given.page_size, given.n_devices), (16, 4), "what the caches share")
    sizes = [buffer.total_num_pages for buffer in given.allocate_buffers(3)]
    expect("PARAM-4", sizes, [3], "pages of a tree of different caches")


# --- PARAM-5: what cannot be ----------------------------------------------------------------------


@check("PARAM-5", needs=("vocabulary",))
def impossible_parameters_are_refused_by_name(bench: Bench) -> None:
    """Each error names the field and the value that was given for it."""
    cases: list[tuple[str, object]] = [
        (field, value)
        for field in ("n_kv_heads", "head_dim", "num_layers", "page_size")
        for value in (0, -1, 1.5, "two", True)
    ]
    cases += [
        ("n_kv_heads", 6),
        ("num_q_heads", 6),
        ("num_draft_tokens", -1),
        ("num_draft_tokens", 2),
        ("speculative_method", "guessing"),
        ("kv_hash_algo", "md5"),
        ("deduplication", "sometimes"),
        ("kv_connector", "tape"),
        ("host_kvcache_swap_space_gb", -1),
        ("host_kvcache_swap_space_gb", float("inf")),
    ]
    for field, value in cases:
        refused("PARAM-5", field, value, is_mla=field == "num_q_heads")


@check("PARAM-5", needs=("vocabulary",))
def parameters_that_need_each_other_are_refused_alone(bench: Bench) -> None:
    """What is missing is named, where one field asks for another."""
    cases: list[tuple[str, dict[str, Any]]] = [
        ("num_q_heads", {"is_mla": True}),
        ("host_kvcache_swap_space_gb", {"kv_connector": "local"}),
        ("enable_prefix_caching", {"kv_connector": "local", "enable_prefix_caching": False}),
        (
            "disk_offload_dir",
            {"kv_connector": "tiered", "host_kvcache_swap_space_gb": 1.0},
        ),
        ("block_store_endpoint", {"kv_connector": "dkv"}),
        ("devices", {"devices": []}),
        ("kv_hash_seed", {"kv_hash_seed": b"short"}),
    ]
    for field, options in cases:
        try:
            params(**options)
        except ValueError as error:
            demand("PARAM-5", field in str(error), f"{options} lacks {field}, it says: {error}")
        else:
            demand("PARAM-5", False, f"{options} are accepted without {field}")


@check("PARAM-5", needs=("vocabulary",))
def a_manager_of_impossible_sizes_is_refused(bench: Bench) -> None:
    """Sizes below what makes sense are refused by name when a manager is built."""
    for field, value in (("total_num_pages", 0), ("total_num_pages", -3), ("max_batch_size", 0)):
        setup = bench.setup().model_copy(update={field: value})
        try:
            bench.implementation.make(setup)
        except ValueError as error:
            demand("PARAM-5", field in str(error), f"{field} is {value}, and it says: {error}")
        else:
            demand("PARAM-5", False, f"a manager with {field} {value} is built")


@check("PARAM-5", "PARAM-4", needs=("vocabulary",))
def replaced_parameters_are_checked_anew(bench: Bench) -> None:
    """Changing one field of good parameters does not get around the checks."""
    config = KVConnectorConfig(disk_offload_dir="/ssd")
    good = params(
        kv_connector=KVConnectorType.tiered,
        host_kvcache_swap_space_gb=1.0,
        kv_connector_config=config,
    )
    changes: list[tuple[str, Any]] = [("page_size", 0), ("enable_prefix_caching", False)]
    for field, value in changes:
        try:
            replace(good, **{field: value})
        except ValueError as error:
            demand("PARAM-5", field in str(error), f"{field} is {value}, and it says: {error}")
        else:
            demand("PARAM-5", False, f"{field} can be replaced by {value}")
