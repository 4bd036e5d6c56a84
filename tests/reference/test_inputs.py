"""Inputs of a forward: flattening, and the agreement of symbolic and runtime inputs."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pagedkv.reference.device import DeviceRef
from pagedkv.reference.inputs import (
    INT32_MAX,
    BatchCharacteristics,
    KVCacheAssignments,
    KVCacheInputs,
    KVCacheInputsInterface,
    KVCacheInputsPerDevice,
    MultiKVCacheInputs,
)
from pagedkv.reference.multi_params import MultiKVCacheParams
from pagedkv.reference.params import (
    KVCacheParamInterface,
    KVCacheParams,
    KVCacheQuantizationConfig,
)
from pagedkv.reference.tensor_types import Buffer, BufferType, SymbolicType, TensorType


def leaf(tensor: int, data: int, *, is_mla: bool, dtype: torch.dtype) -> KVCacheParams:
    return KVCacheParams(
        dtype=dtype,
        n_kv_heads=tensor,
        head_dim=4,
        num_layers=1,
        devices=[DeviceRef.CPU(i) for i in range(tensor * data)],
        page_size=2,
        is_mla=is_mla,
        num_q_heads=tensor,
        data_parallel_degree=data,
        kvcache_quant_config=KVCacheQuantizationConfig(quantization_granularity=2),
    )


@st.composite
def trees(draw: st.DrawFn) -> KVCacheParamInterface:
    """Leaves and trees of depth one and two, over the same devices."""
    tensor, data = draw(st.integers(1, 3)), draw(st.integers(1, 2))
    leaves = st.builds(
        leaf,
        st.just(tensor),
        st.just(data),
        is_mla=st.booleans(),
        dtype=st.sampled_from([torch.float16, torch.float8_e4m3fn]),
    )
    target, draft, other = draw(leaves), draw(leaves), draw(leaves)
    return draw(
        st.sampled_from(
            [
                target,
                MultiKVCacheParams.from_params(target, draft),
                MultiKVCacheParams.from_params(
                    draft, target=MultiKVCacheParams.from_params(a=target, b=other)
                ),
            ]
        )
    )


def assignment(batch: int, columns: int, shards: int) -> KVCacheAssignments:
    return KVCacheAssignments(
        cache_lengths_by_device=[torch.zeros(batch, dtype=torch.int32) for _ in range(shards)],
        lookup_table_by_device=[
            torch.zeros(batch, columns, dtype=torch.int32) for _ in range(shards)
        ],
        max_prompt_length=torch.ones(1, dtype=torch.int32),
        max_cache_length=torch.ones(1, dtype=torch.int32),
        batch_characteristics=BatchCharacteristics(batch, 1, 1),
    )


def runtime_inputs(
    params: KVCacheParamInterface, shapes: list[tuple[int, int]]
) -> KVCacheInputsInterface[Buffer, Buffer]:
    shards = params.tensor_parallel_degree
    return params.build_runtime_inputs(
        [assignment(*shapes[i], shards) for i in range(params.data_parallel_degree)],
        params.allocate_buffers(3),
    )


two_shapes = st.lists(
    st.tuples(st.integers(0, 3), st.integers(1, 4)), min_size=2, max_size=2
)  # fmt: skip


@pytest.mark.rule("MEM-4")
@given(trees(), two_shapes)
def test_runtime_inputs_match_the_symbolic_ones_position_by_position(
    params: KVCacheParamInterface, shapes: list[tuple[int, int]]
) -> None:
    symbols, values = params.flattened_kv_inputs(), runtime_inputs(params, shapes).flatten()
    sizes: dict[str, int] = {}
    for symbol, value in zip(symbols, values, strict=True):
        symbol.bind(value, sizes)
    expected = {"total_num_pages": 3}
    for replica_idx, (batch, columns) in enumerate(shapes):
        expected[f"replica_{replica_idx}_batch_size"] = batch
        expected[f"replica_{replica_idx}_max_num_pages"] = columns
    for name, size in sizes.items():
        assert size == expected[name.rpartition(".")[2]]


@pytest.mark.rule("MEM-4")
@given(trees(), two_shapes)
def test_unflatten_undoes_flatten(
    params: KVCacheParamInterface, shapes: list[tuple[int, int]]
) -> None:
    flat = runtime_inputs(params, shapes).flatten()
    rest = torch.zeros(1)
    it = iter([*flat, rest])
    rebuilt = params.unflatten_kv_inputs(it).flatten()
    assert len(rebuilt) == len(flat)
    assert all(a is b for a, b in zip(rebuilt, flat, strict=True))
    assert next(it) is rest


@given(trees(), st.data())
def test_inputs_that_end_early_are_refused(
    params: KVCacheParamInterface, data: st.DataObject
) -> None:
    flat = runtime_inputs(params, [(1, 1), (1, 1)]).flatten()
    kept = data.draw(st.integers(0, len(flat) - 1))
    with pytest.raises(ValueError, match="the inputs end before "):
        params.unflatten_kv_inputs(iter(flat[:kept]))


def leaves_of(
    inputs: KVCacheInputsInterface[TensorType, BufferType],
) -> list[KVCacheInputs[TensorType, BufferType]]:
    if isinstance(inputs, KVCacheInputs):
        return [inputs]
    assert isinstance(inputs, MultiKVCacheInputs)
    return [leaf for child in inputs.children.values() for leaf in leaves_of(child)]


@pytest.mark.rule("MEM-4")
@given(trees())
def test_no_two_caches_share_the_name_of_a_dimension(params: KVCacheParamInterface) -> None:
    names = [
        {dim for symbol in leaf.flatten() for dim in symbol.shape if isinstance(dim, str)}
        for leaf in leaves_of(params.get_symbolic_inputs())
    ]
    assert sum(map(len, names)) == len(set[str]().union(*names))


@pytest.mark.rule("MEM-4", "PARAM-1")
def test_a_leaf_lists_its_devices_replica_major() -> None:
    inputs = leaf(2, 2, is_mla=False, dtype=torch.float16).get_symbolic_inputs("x.").inputs
    assert [device.kv_blocks.device.id for device in inputs] == [0, 1, 2, 3]
    assert [device.cache_lengths.shape[0] for device in inputs] == [
        "x.replica_0_batch_size",
        "x.replica_0_batch_size",
        "x.replica_1_batch_size",
        "x.replica_1_batch_size",
    ]
    assert {device.max_prompt_length.device for device in inputs} == {DeviceRef.CPU()}


def test_trees_and_leaves_offer_the_interface() -> None:
    params = leaf(1, 1, is_mla=False, dtype=torch.float16)
    tree = MultiKVCacheParams.from_params(target=params).get_symbolic_inputs()
    assert isinstance(tree, MultiKVCacheInputs) and isinstance(tree, KVCacheInputsInterface)
    child = tree.children["target"]
    assert isinstance(child, KVCacheInputs) and isinstance(child, KVCacheInputsInterface)


@pytest.mark.rule("MEM-4")
def test_scales_are_flattened_last_and_only_if_there() -> None:
    flat = [torch.zeros(1) for _ in range(6)]
    assert KVCacheInputsPerDevice(*flat[:5]).flatten() == flat[:5]
    assert KVCacheInputsPerDevice(*flat).flatten()[-1] is flat[5]


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (torch.zeros(2, 3), r"dtype is torch.float32, but should be torch.int32"),
        (torch.zeros(2, dtype=torch.int32), r"shape is \[2\], but should be \['batch', 3\]"),
        (torch.zeros(2, 4, dtype=torch.int32), r"shape is \[2, 4\], .* with 3 = 3"),
        (torch.zeros(5, 3, dtype=torch.int32), r"shape is \[5, 3\], .* with batch = 2"),
        (torch.zeros(2, 3, dtype=torch.int32, device="cpu"), r""),
    ],
)
def test_a_symbolic_type_says_what_does_not_match(tensor: torch.Tensor, message: str) -> None:
    symbol, sizes = TensorType(torch.int32, ["batch", 3], DeviceRef.CPU(1)), {"batch": 2}
    if not message:
        symbol.bind(tensor, sizes)
        return
    with pytest.raises(ValueError, match=message):
        symbol.bind(tensor, sizes)
    with pytest.raises(ValueError, match="device is cpu:0, but should be gpu:0"):
        TensorType(tensor.dtype, tensor.shape, DeviceRef.GPU()).bind(tensor, {})


def test_symbolic_types_of_reads_and_writes_differ() -> None:
    def symbol(kind: type[SymbolicType]) -> SymbolicType:
        return kind(torch.int32, [1], DeviceRef.CPU())

    assert symbol(TensorType) == symbol(TensorType)
    assert hash(symbol(TensorType)) == hash(symbol(TensorType))
    assert symbol(TensorType) != symbol(BufferType)


bounds = st.builds(
    BatchCharacteristics, st.integers(0, 9), st.integers(0, 9), st.integers(0, 9)
)  # fmt: skip


@pytest.mark.rule("INPUT-6")
@given(bounds, bounds)
def test_bounds_cover_exactly_what_exceeds_none_of_them(
    bound: BatchCharacteristics, actual: BatchCharacteristics
) -> None:
    if (
        actual.batch_size <= bound.batch_size
        and actual.max_prompt_length <= bound.max_prompt_length
        and actual.max_cache_valid_length <= bound.max_cache_valid_length
    ):
        bound.check_covers(actual)
    else:
        with pytest.raises(ValueError, match=r"batch_characteristics\.\w+ is \d, but the batch"):
            bound.check_covers(actual)


@pytest.mark.rule("INPUT-6", "PARAM-5")
@pytest.mark.parametrize("bound", [-1, INT32_MAX + 1, True, 1.5, "2", None])
def test_a_bound_is_a_whole_number_of_int32(bound: Any) -> None:
    for bounds in ((bound, 1, 1), (1, bound, 1), (1, 1, bound)):
        with pytest.raises(ValueError, match=r"is .*; use a whole number from 0 to 2,147,483,647"):
            BatchCharacteristics(*bounds)
    assert BatchCharacteristics(INT32_MAX, 0, 1).batch_size == torch.iinfo(torch.int32).max


def test_inputs_describe_themselves_by_dtypes_and_shapes() -> None:
    params = leaf(1, 1, is_mla=False, dtype=torch.float16)
    tree = MultiKVCacheParams.from_params(target=params)
    expected = (
        "MultiKVCacheInputs(children={'target': KVCacheInputs(inputs=[KVCacheInputsPerDevice("
        "kv_blocks=float16[3, 2, 1, 2, 1, 4], cache_lengths=int32[2], lookup_table=int32[2, 5], "
        "max_prompt_length=int32[1], max_cache_length=int32[1], kv_scales=None)])})"
    )
    assert repr(runtime_inputs(tree, [(2, 5)])) == expected
    (symbols,) = params.get_symbolic_inputs().inputs
    assert "lookup_table=int32['replica_0_batch_size', 'replica_0_max_num_pages']" in repr(symbols)
    assert repr(assignment(2, 5, shards=2)) == (
        "KVCacheAssignments(cache_lengths_by_device=[int32[2], int32[2]], "
        "lookup_table_by_device=[int32[2, 5], int32[2, 5]], max_prompt_length=int32[1], "
        "max_cache_length=int32[1], batch_characteristics=BatchCharacteristics(batch_size=2, "
        "max_prompt_length=1, max_cache_valid_length=1))"
    )
