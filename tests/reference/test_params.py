"""Parameters of one cache: what follows from them, and what is refused."""

import dataclasses
from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pagedkv.reference.config import KVConnectorConfig
from pagedkv.reference.device import DeviceRef, DeviceUnavailableError
from pagedkv.reference.inputs import BatchCharacteristics, KVCacheAssignments
from pagedkv.reference.params import (
    KVCacheParamInterface,
    KVCacheParams,
    KVCacheQuantizationConfig,
    KVConnectorType,
)


# Any: each test overrides other fields, of other types.
def params(**fields: Any) -> KVCacheParams:
    defaults: dict[str, Any] = {
        "dtype": torch.bfloat16,
        "n_kv_heads": 4,
        "head_dim": 16,
        "num_layers": 2,
        "devices": [DeviceRef.CPU()],
        "page_size": 8,
    }
    return KVCacheParams(**(defaults | fields))


def cpus(count: int) -> list[DeviceRef]:
    return [DeviceRef.CPU(i) for i in range(count)]


@st.composite
def any_params(draw: st.DrawFn) -> KVCacheParams:
    tensor, data = draw(st.integers(1, 3)), draw(st.integers(1, 2))
    granularity = draw(st.sampled_from([1, 4, 8]))
    return KVCacheParams(
        dtype=draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float8_e4m3fn])),
        n_kv_heads=tensor * draw(st.integers(1, 2)),
        head_dim=granularity * draw(st.integers(1, 3)),
        num_layers=draw(st.integers(1, 3)),
        devices=cpus(tensor * data),
        page_size=draw(st.integers(1, 20)),
        is_mla=draw(st.booleans()),
        num_q_heads=tensor,
        data_parallel_degree=data,
        kvcache_quant_config=draw(
            st.none() | st.just(KVCacheQuantizationConfig(torch.float32, granularity))
        ),
    )


@pytest.mark.rule("PARAM-2")
@given(any_params(), st.integers(1, 4))
def test_allocated_bytes_are_bytes_per_block_times_pages(p: KVCacheParams, pages: int) -> None:
    buffers = p.allocate_buffers(pages)
    assert len(buffers) == p.data_parallel_degree
    for buffer in buffers:
        assert buffer.total_num_pages == pages
        assert sum(b.nbytes for b in buffer.all_buffers) == pages * p.bytes_per_block
        assert not any(b.view(torch.uint8).any() for b in buffer.all_buffers)


@pytest.mark.rule("MEM-1")
@given(any_params())
def test_one_page_of_one_shard_is_one_run_of_bytes(p: KVCacheParams) -> None:
    for buffer in p.allocate_buffers(3):
        for values in buffer.values:
            assert list(values.shape) == [3, *p.shape_per_block]
        for tensor in buffer.all_buffers:
            assert tensor[1].is_contiguous()
            assert tensor.stride(0) == tensor[1].numel()


@pytest.mark.rule("TIER-3", "SIZE-3")
@given(any_params())
def test_offloaded_bytes_are_those_of_the_memory_units(p: KVCacheParams) -> None:
    (buffer, *_) = p.allocate_buffers(1)
    units = buffer.to_memory()
    assert sum(unit.bytes_per_page for unit in units) == p.bytes_per_offloaded_block
    assert {len(unit.all_buffers) for unit in units} == {
        p.tensor_parallel_degree if p.replicates_kv_across_tp else 1
    }


@pytest.mark.rule("MEM-1", "PARAM-1", "PARAM-2", "PARAM-3")
@given(any_params())
def test_shapes_follow_from_heads_and_degrees(p: KVCacheParams) -> None:
    tp = p.tensor_parallel_degree
    assert tp * p.data_parallel_degree == p.n_devices == len(p.devices)
    heads = 1 if p.is_mla else p.n_kv_heads // tp
    assert p.shape_per_block == [
        1 if p.is_mla else 2,
        p.num_layers,
        p.page_size,
        heads,
        p.head_dim,
    ]
    assert p.replicates_kv_across_tp == (p.is_mla and tp > 1)
    assert p.num_q_heads_per_device == 1
    per_shard = prod(p.shape_per_block) * p.dtype.itemsize
    if p.quantized_kv_cache:
        per_shard += prod(p.shape_per_scale_block) * p.kv_cache_scale_dtype.itemsize
    assert p.bytes_per_block == per_shard * tp


@pytest.mark.rule("PARAM-1")
def test_devices_are_grouped_replica_major() -> None:
    p = params(devices=cpus(4), data_parallel_degree=2)
    assert p.devices_per_replica == [tuple(cpus(4)[:2]), tuple(cpus(4)[2:])]


def test_one_device_may_stand_for_several_shards() -> None:
    p = params(devices=["cpu", torch.device("cpu"), DeviceRef.CPU(), "cpu:0"])
    assert p.devices == (DeviceRef.CPU(),) * 4
    assert len(p.allocate_buffers(1)[0].values) == 4


def test_absent_gpus_can_be_computed_with_but_not_allocated_on() -> None:
    absent = torch.cuda.device_count()
    p = params(devices=[DeviceRef.GPU(absent), DeviceRef.GPU(absent + 1)])
    assert p.bytes_per_block == 2 * 2 * 8 * 4 * 16 * 2
    assert p.get_symbolic_inputs().inputs[1].kv_blocks.device == DeviceRef.GPU(absent + 1)
    with pytest.raises(DeviceUnavailableError):
        p.allocate_buffers(1)


def test_positional_order_and_defaults_hold() -> None:
    p = KVCacheParams(torch.float16, 8, 128, 32, [DeviceRef.CPU()])
    assert p.enable_prefix_caching is False
    assert (p.kv_connector, p.kv_connector_config, p.host_kvcache_swap_space_gb) == (None,) * 3
    assert (p.page_size, p.is_mla, p.num_q_heads, p.data_parallel_degree) == (128, False, None, 1)
    assert (p.speculative_method, p.num_draft_tokens, p.num_draft_tokens_per_step) == (None, 0, 1)
    assert (p.kv_hash_algo, p.kv_hash_seed, p.deduplication) == ("sha256", None, "swap")
    assert p.enable_dp_cross_replica_prefix_copy is True
    assert isinstance(p, KVCacheParamInterface)
    assert hash(p) == hash(dataclasses.replace(p))


@pytest.mark.rule("PARAM-2")
@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e4m3fnuz])
def test_fp8_is_scaled_only_with_a_quantisation_config(dtype: torch.dtype) -> None:
    bare = params(dtype=dtype)
    scaled = params(dtype=dtype, kvcache_quant_config=KVCacheQuantizationConfig(torch.float16, 8))
    assert bare.is_fp8_kv_dtype and scaled.is_fp8_kv_dtype
    assert not bare.quantized_kv_cache and scaled.quantized_kv_cache
    assert scaled.kv_cache_scale_dtype == torch.float16
    assert scaled.shape_per_scale_block == [2, 2, 8, 4, 2]
    assert scaled.bytes_per_block == bare.bytes_per_block + 2 * 2 * 8 * 4 * 2 * 2
    assert bare.allocate_buffers(1)[0].scales is None


def test_a_quantisation_config_does_nothing_for_other_types() -> None:
    p = params(kvcache_quant_config=KVCacheQuantizationConfig())
    assert not p.quantized_kv_cache
    assert p.bytes_per_block == params().bytes_per_block
    assert p.shape_per_scale_block[-1] == 1
    with pytest.raises(ValueError, match="kvcache_quant_config is None"):
        _ = params().shape_per_scale_block


@pytest.mark.parametrize(
    ("dtype", "shorthand"),
    [
        (torch.bfloat16, "bf16"),
        (torch.float32, "f32"),
        (torch.float8_e4m3fn, "f8_e4m3fn"),
        (torch.int8, "int8"),
    ],
)
def test_types_have_short_names(dtype: torch.dtype, shorthand: str) -> None:
    assert params(dtype=dtype).dtype_shorthand == shorthand


def test_only_block_drafts_are_written_in_one_step() -> None:
    for method, per_step in (("standalone", 1), ("eagle", 1), ("mtp", 1), ("dflash", 5)):
        p = params(speculative_method=method, num_draft_tokens=5)
        assert p.num_draft_tokens_per_step == per_step


TIERED = {
    "enable_prefix_caching": True,
    "kv_connector": "tiered",
    "host_kvcache_swap_space_gb": 1.0,
    "kv_connector_config": KVConnectorConfig(disk_offload_dir="/ssd"),
}


def test_connectors_are_converted_from_text() -> None:
    assert params(**TIERED).kv_connector is KVConnectorType.tiered
    assert params(kv_connector="null").kv_connector is KVConnectorType.null
    store = KVConnectorConfig(block_store_endpoint="redis://store")
    dkv = params(enable_prefix_caching=True, kv_connector="dkv", kv_connector_config=store)
    assert dkv.kv_connector is KVConnectorType.dkv


@pytest.mark.rule("PARAM-5")
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"devices": []}, "devices is empty"),
        ({"n_kv_heads": 0}, "n_kv_heads is 0; use a whole number from 1"),
        ({"page_size": 0}, "page_size is 0"),
        ({"num_layers": -1}, "num_layers is -1"),
        ({"head_dim": 64.0}, r"head_dim is 64\.0"),
        ({"data_parallel_degree": 0}, "data_parallel_degree is 0"),
        ({"data_parallel_degree": 2}, r"data_parallel_degree is 2, .* the 1 device\(s\)"),
        ({"devices": cpus(3)}, "n_kv_heads is 4, which the 3 tensor-parallel devices"),
        ({"is_mla": True}, "num_q_heads is None; with is_mla give"),
        ({"is_mla": True, "num_q_heads": 3, "devices": cpus(2)}, "num_q_heads is 3, which the 2"),
        ({"num_q_heads": 0}, "num_q_heads is 0"),
        (
            {
                "dtype": torch.float8_e4m3fn,
                "kvcache_quant_config": KVCacheQuantizationConfig(quantization_granularity=5),
            },
            "quantization_granularity is 5, which does not divide head_dim 16",
        ),
        ({"kv_connector": "disk"}, "kv_connector is 'disk'; use one of null, local, tiered, dkv"),
        (TIERED | {"enable_prefix_caching": False}, "enable_prefix_caching is False"),
        (TIERED | {"host_kvcache_swap_space_gb": None}, "swap_space_gb is None, but kv_connector"),
        (TIERED | {"host_kvcache_swap_space_gb": -1.0}, r"swap_space_gb is -1\.0"),
        (TIERED | {"kv_connector_config": None}, "kv_connector_config.disk_offload_dir is not set"),
        (TIERED | {"kv_connector": "dkv"}, "kv_connector_config.block_store_endpoint is not set"),
        ({"speculative_method": "magic"}, "speculative_method is 'magic'; use one of standalone"),
        ({"num_draft_tokens": -1}, "num_draft_tokens is -1; use a whole number from 0"),
        ({"num_draft_tokens": 2}, "num_draft_tokens is 2 without a speculative_method"),
        ({"kv_hash_algo": "md5"}, "kv_hash_algo is 'md5'; use one of sha256"),
        ({"deduplication": "drop"}, "deduplication is 'drop'; use one of swap, keep"),
        ({"kv_hash_seed": b"short"}, "kv_hash_seed is bytes of length 5; give 32 bytes"),
        ({"kv_hash_seed": "0" * 32}, "kv_hash_seed is str"),
    ],
)
def test_what_cannot_be_is_refused_by_name(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        params(**fields)


NOT_WHOLE: list[Any] = [True, 1.5, "2", None, [1], torch.ones(2)]


@pytest.mark.rule("PARAM-5")
@pytest.mark.parametrize("value", NOT_WHOLE)
@pytest.mark.parametrize(
    "field",
    [
        "n_kv_heads", "head_dim", "num_layers", "page_size", "data_parallel_degree",
        "num_draft_tokens",
    ],
)  # fmt: skip
def test_what_is_no_whole_number_is_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"{field} is .*; use a whole number from [01]"):
        params(**{field: value})


def test_whole_numbers_of_numpy_become_plain_ones() -> None:
    p = params(page_size=np.int64(8), num_draft_tokens=np.int32(2), speculative_method="mtp")
    assert (type(p.page_size), type(p.num_draft_tokens)) == (int, int)
    assert p.layout_fingerprint() == params(
        num_draft_tokens=2, speculative_method="mtp"
    ).layout_fingerprint()  # fmt: skip


@pytest.mark.rule("PARAM-5")
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"dtype": "float32"}, r"dtype is 'float32'; use a torch type such as torch\.bfloat16"),
        ({"dtype": 5}, "dtype is 5; use a torch type"),
        ({"enable_prefix_caching": "no"}, "enable_prefix_caching is 'no'; use True or False"),
        ({"is_mla": 1}, "is_mla is 1; use True or False"),
        ({"enable_dp_cross_replica_prefix_copy": None}, "prefix_copy is None; use True or False"),
        ({"num_q_heads": "4"}, "num_q_heads is '4'; use a whole number from 1"),
        ({"kvcache_quant_config": {}}, "kvcache_quant_config is {}; use a KVCacheQuantization"),
        ({"devices": None}, "devices is None; give a list"),
        ({"devices": "cpu"}, "devices is 'cpu'; give a list"),
        ({"devices": DeviceRef.CPU()}, "devices is DeviceRef.*; give a list"),
        ({"kv_connector": 5}, "kv_connector is 5; use one of null, local"),
        ({"kv_connector_config": "/ssd"}, "kv_connector_config is '/ssd'; use a KVConnectorConfig"),
        ({"kv_connector_config": {"disk_offload_max_gb": -1}}, "disk_offload_max_gb"),
        ({"kv_connector_config": {"write_policy": "bogus"}}, "write_policy(.|\n)*'bogus'"),
        ({"host_kvcache_swap_space_gb": "1"}, "swap_space_gb is '1'; use a size in GiB"),
        ({"host_kvcache_swap_space_gb": True}, "swap_space_gb is True; use a size in GiB"),
        ({"kv_hash_seed": 5}, "kv_hash_seed is int; give 32 bytes, or None"),
        ({"kv_hash_algo": None}, "kv_hash_algo is None; use one of sha256"),
        ({"deduplication": []}, r"deduplication is \[\]; use one of swap"),
    ],
)
def test_a_value_of_the_wrong_type_is_refused_by_name(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        params(**fields)


def test_a_connector_config_may_be_a_mapping() -> None:
    settings = {"disk_offload_dir": "/ssd", "write_policy": "reuse"}
    config = params(**TIERED | {"kv_connector_config": settings}).kv_connector_config
    assert config == KVConnectorConfig.model_validate(settings)


def test_the_hash_seed_is_not_printed() -> None:
    seed = b"not for the log: thirty-two bytes"[:32]
    p = params(kv_hash_seed=seed)
    assert p.kv_hash_seed == seed
    assert "not for the log" not in repr(p) and seed.hex() not in repr(p)


@pytest.mark.rule("PARAM-5")
def test_scales_are_floats_of_a_positive_granularity() -> None:
    for no_float in (torch.int8, "float32"):
        with pytest.raises(ValueError, match=r"scale_dtype is .*; use a floating-point type"):
            KVCacheQuantizationConfig(scale_dtype=no_float)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="quantization_granularity is True"):
        KVCacheQuantizationConfig(quantization_granularity=True)
    with pytest.raises(ValueError, match="quantization_granularity is 0"):
        KVCacheQuantizationConfig(quantization_granularity=0)


@pytest.mark.rule("PARAM-5")
@pytest.mark.parametrize("pages", [0, 1.5, "2", True])
def test_what_is_no_number_of_pages_cannot_be_allocated(pages: Any) -> None:
    with pytest.raises(ValueError, match=r"total_num_pages is .*; use a whole number from 1"):
        params().allocate_buffers(pages)


def assignments(shards: int) -> KVCacheAssignments:
    one = torch.ones(1, dtype=torch.int32)
    return KVCacheAssignments(
        cache_lengths_by_device=[one] * shards,
        lookup_table_by_device=[one.view(1, 1)] * shards,
        max_prompt_length=one,
        max_cache_length=one,
        batch_characteristics=BatchCharacteristics(1, 1, 1),
    )


@pytest.mark.parametrize(
    ("given_assignments", "pages", "message"),
    [
        ([], 1, "assignments has 0 entries; give one for each of the 1 replica"),
        ([assignments(1)], 1, r"replica 0 has .*'lookup_table_by_device': 1.*for its 2 shard"),
    ],
)
def test_runtime_inputs_need_one_assignment_per_replica_and_shard(
    given_assignments: Sequence[KVCacheAssignments], pages: int, message: str
) -> None:
    p = params(devices=cpus(2))
    with pytest.raises(ValueError, match=message):
        p.build_runtime_inputs(given_assignments, p.allocate_buffers(pages))


DECIDE_CONTENT: list[dict[str, Any]] = [
    {"dtype": torch.float16},
    {"n_kv_heads": 8},
    {"head_dim": 32},
    {"num_layers": 3},
    {"page_size": 16},
    {"devices": cpus(2)},
    {"is_mla": True, "num_q_heads": 4, "n_kv_heads": 1},
    {"is_mla": True, "num_q_heads": 4, "n_kv_heads": 1, "devices": cpus(2)},
    {"dtype": torch.float8_e4m3fn},
    {"dtype": torch.float8_e4m3fn, "kvcache_quant_config": KVCacheQuantizationConfig(),
     "head_dim": 128},
    {"speculative_method": "eagle", "num_draft_tokens": 1},
    {"kv_hash_algo": "xxh3_128"},
    {"kv_hash_seed": bytes(32)},
]  # fmt: skip

LEAVE_CONTENT_ALONE: list[dict[str, Any]] = [
    {"devices": cpus(3), "data_parallel_degree": 3},
    {"devices": [DeviceRef.GPU(7)]},
    {"enable_prefix_caching": True},
    TIERED,
    {"num_q_heads": 4},
    {"kvcache_quant_config": KVCacheQuantizationConfig()},
    {"enable_dp_cross_replica_prefix_copy": False},
    {"deduplication": "keep"},
]


@pytest.mark.rule("NS-1")
def test_the_fingerprint_tells_layouts_apart() -> None:
    fingerprints = [params(**fields).layout_fingerprint() for fields in [{}, *DECIDE_CONTENT]]
    assert len(set(fingerprints)) == len(fingerprints)
    assert all(len(bytes.fromhex(f)) == 32 for f in fingerprints)


@pytest.mark.rule("NS-1")
@pytest.mark.parametrize("fields", LEAVE_CONTENT_ALONE)
def test_the_fingerprint_ignores_what_leaves_pages_alone(fields: dict[str, Any]) -> None:
    assert params(**fields).layout_fingerprint() == params().layout_fingerprint()


@pytest.mark.rule("NS-1")
def test_the_fingerprint_is_the_same_in_every_process() -> None:
    # A change here makes every disk tier and block store start cold: raise LAYOUT_FORMAT with it.
    assert params().layout_fingerprint() == (
        "b429dfc7a60e1a6830cf45d3e6cdec97afaf285ce8e4a1439a9ea5882da8ba33"
    )
