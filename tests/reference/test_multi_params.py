"""Parameters of several caches under one page table."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pagedkv.reference.buffers import KVCacheBuffer, ReplicatedKVCacheMemory
from pagedkv.reference.config import KVConnectorConfig
from pagedkv.reference.device import DeviceRef
from pagedkv.reference.multi_params import MultiKVCacheParams
from pagedkv.reference.params import KVCacheParamInterface, KVCacheParams, KVConnectorType

LOCAL = {
    "kv_connector": "local",
    "enable_prefix_caching": True,
    "host_kvcache_swap_space_gb": 1.0,
}
TWO_CPUS = [DeviceRef.CPU(0), DeviceRef.CPU(1)]


# Any: each test overrides other fields, of other types.
def leaf(**fields: Any) -> KVCacheParams:
    defaults: dict[str, Any] = {
        "dtype": torch.float16,
        "n_kv_heads": 2,
        "head_dim": 8,
        "num_layers": 2,
        "devices": TWO_CPUS,
        "page_size": 4,
    }
    return KVCacheParams(**(defaults | fields))


def mla(**fields: Any) -> KVCacheParams:
    return leaf(is_mla=True, num_q_heads=2, **fields)


leaves = st.builds(
    lambda is_mla, layers: (mla if is_mla else leaf)(num_layers=layers),
    st.booleans(),
    st.integers(1, 3),
)
forests = st.lists(
    leaves | st.lists(leaves, min_size=1, max_size=2).map(
        lambda children: MultiKVCacheParams.from_params(*children)
    ),
    min_size=1,
    max_size=3,
)  # fmt: skip


@pytest.mark.rule("PARAM-2")
@given(forests)
def test_sizes_add_up_over_the_children(children: list[KVCacheParamInterface]) -> None:
    tree = MultiKVCacheParams.from_params(*children)
    assert tree.bytes_per_block == sum(child.bytes_per_block for child in children)
    (buffer,) = tree.allocate_buffers(3)
    assert buffer.total_num_pages == 3
    assert sum(b.nbytes for b in buffer.all_buffers) == 3 * tree.bytes_per_block
    stored = sum(unit.bytes_per_page for unit in buffer.to_memory())
    assert stored == tree.bytes_per_offloaded_block


@pytest.mark.rule("PARAM-3")
@given(forests)
def test_state_is_identical_on_every_device_only_if_it_is_in_every_child(
    children: list[KVCacheParamInterface],
) -> None:
    tree = MultiKVCacheParams.from_params(*children)
    (buffer,) = tree.allocate_buffers(1)
    assert tree.replicates_kv_across_tp == all(
        isinstance(unit, ReplicatedKVCacheMemory) for unit in buffer.to_memory()
    )


@pytest.mark.rule("PARAM-3", "SIZE-3")
def test_a_mixed_tree_stores_its_replicated_child_once() -> None:
    tree = MultiKVCacheParams.from_params(target=mla(), draft=leaf())
    assert not tree.replicates_kv_across_tp
    assert tree.bytes_per_offloaded_block == mla().bytes_per_block // 2 + leaf().bytes_per_block


def test_unnamed_children_are_numbered_before_named_ones() -> None:
    tree = MultiKVCacheParams.from_params(leaf(), mla(), draft=leaf(num_layers=1))
    assert list(tree.children) == ["cache_0", "cache_1", "draft"]
    assert tree.params == (leaf(), mla(), leaf(num_layers=1))
    assert list(tree.allocate_buffers(1)[0].children) == ["cache_0", "cache_1", "draft"]
    assert list(tree.get_symbolic_inputs().children) == ["cache_0", "cache_1", "draft"]


@pytest.mark.rule("PARAM-4")
def test_shared_fields_are_those_of_the_children() -> None:
    shared: dict[str, Any] = {
        "devices": [DeviceRef.CPU(i) for i in range(4)],
        "data_parallel_degree": 2,
        "enable_prefix_caching": True,
        "kv_connector": KVConnectorType.tiered,
        "kv_connector_config": KVConnectorConfig(disk_offload_dir="/ssd"),
        "host_kvcache_swap_space_gb": 3.0,
        "speculative_method": "dflash",
        "num_draft_tokens": 4,
        "enable_dp_cross_replica_prefix_copy": False,
        "kv_hash_algo": "xxh3_128",
        "kv_hash_seed": bytes(range(32)),
        "deduplication": "keep",
    }
    child = leaf(**shared)
    tree = MultiKVCacheParams.from_params(child, child)
    for name in (*shared, "page_size", "n_devices"):
        assert getattr(tree, name) == getattr(child, name), name
    assert (tree.tensor_parallel_degree, tree.num_draft_tokens_per_step) == (2, 4)
    assert tree.devices_per_replica == child.devices_per_replica
    assert isinstance(tree, KVCacheParamInterface)
    assert KVCacheParamInterface in MultiKVCacheParams.__bases__


@pytest.mark.rule("PARAM-4")
@pytest.mark.parametrize(
    ("field", "other"),
    [
        ("page_size", {"page_size": 16}),
        ("data_parallel_degree", {"data_parallel_degree": 2}),
        ("n_devices", {"devices": [DeviceRef.CPU()]}),
        ("devices", {"devices": TWO_CPUS[::-1]}),
        ("kv_connector", LOCAL),
        ("host_kvcache_swap_space_gb", {"host_kvcache_swap_space_gb": 2.0}),
        ("speculative_method", {"speculative_method": "eagle"}),
        ("enable_prefix_caching", {"enable_prefix_caching": True}),
        ("kv_connector_config", {"kv_connector_config": KVConnectorConfig()}),
        ("enable_dp_cross_replica_prefix_copy", {"enable_dp_cross_replica_prefix_copy": False}),
        ("kv_hash_algo", {"kv_hash_algo": "sha256_64"}),
        ("kv_hash_seed", {"kv_hash_seed": bytes(32)}),
        ("deduplication", {"deduplication": "keep"}),
    ],
)
def test_unequal_children_are_refused_with_field_and_values(
    field: str, other: dict[str, Any]
) -> None:
    with pytest.raises(ValueError, match=f"{field} must be .* but target has .*, draft has"):
        MultiKVCacheParams.from_params(target=leaf(), draft=leaf(**other))


@pytest.mark.rule("PARAM-4")
def test_a_declared_field_that_contradicts_the_children_is_refused() -> None:
    with pytest.raises(ValueError, match=r"page_size must be 64 .* cache_0 has 4"):
        MultiKVCacheParams([leaf()], 64, 1, 2, None, None)
    direct = MultiKVCacheParams([leaf()], 4, 1, 2, None, None)
    assert direct == MultiKVCacheParams.from_params(leaf())
    assert (direct.speculative_method, direct.num_draft_tokens) == (None, 0)


@pytest.mark.rule("PARAM-4")
def test_no_connector_and_the_null_connector_are_the_same() -> None:
    none, null = leaf(), leaf(kv_connector="null")
    assert MultiKVCacheParams.from_params(none, null).kv_connector is None
    assert MultiKVCacheParams.from_params(null, none).kv_connector is KVConnectorType.null
    assert MultiKVCacheParams([none], 4, 1, 2, KVConnectorType.null, None).params == (none,)


@pytest.mark.rule("PARAM-4")
def test_unequal_hash_seeds_are_refused_without_printing_them() -> None:
    seed = b"not for the log: thirty-two bytes"[:32]
    with pytest.raises(ValueError, match=r"kv_hash_seed must be a secret .* draft has None") as e:
        MultiKVCacheParams.from_params(target=leaf(kv_hash_seed=seed), draft=leaf())
    assert "not for the log" not in str(e.value)
    assert "not for the log" not in repr(MultiKVCacheParams.from_params(leaf(kv_hash_seed=seed)))


@pytest.mark.rule("PARAM-5")
@pytest.mark.parametrize("child", [None, "cpu", [leaf()], KVCacheParams])
def test_what_is_no_caches_parameters_is_refused(child: Any) -> None:
    message = r"params\[0\] is .*; pass KVCacheParams or MultiKVCacheParams"
    with pytest.raises(ValueError, match=message):
        MultiKVCacheParams.from_params(child)
    with pytest.raises(ValueError, match=message):
        MultiKVCacheParams([child], 4, 1, 2, None, None)
    with pytest.raises(ValueError, match=r"params is KVCacheParams.*; give a list"):
        MultiKVCacheParams(leaf(), 4, 1, 2, None, None)  # type: ignore[arg-type]


@pytest.mark.rule("PARAM-5")
def test_no_children_are_refused() -> None:
    with pytest.raises(ValueError, match="params is empty"):
        MultiKVCacheParams.from_params()
    with pytest.raises(ValueError, match="params is empty"):
        MultiKVCacheParams([], 4, 1, 2, None, None)


@pytest.mark.rule("PARAM-5")
def test_names_are_unique_and_without_dots() -> None:
    with pytest.raises(ValueError, match=r"names is \['cache_0', 'cache_0'\] for 2 cache"):
        MultiKVCacheParams.from_params(leaf(), cache_0=leaf())
    with pytest.raises(ValueError, match="without dots"):
        MultiKVCacheParams.from_params(**{"a.b": leaf()})
    with pytest.raises(ValueError, match="names is 'ab'; give a list of texts"):
        MultiKVCacheParams([leaf(), leaf()], 4, 1, 2, None, None, names="ab")
    with pytest.raises(ValueError, match="names is 1; give every cache a text"):
        MultiKVCacheParams([leaf()], 4, 1, 2, None, None, names=[1])  # type: ignore[list-item]


def test_runtime_inputs_take_the_trees_own_buffers() -> None:
    tree = MultiKVCacheParams.from_params(target=leaf(), draft=leaf())
    for buffer in (leaf().allocate_buffers(1), MultiKVCacheParams.from_params(leaf())):
        buffers = buffer if isinstance(buffer, list) else buffer.allocate_buffers(1)
        with pytest.raises(ValueError, match=r"pass what allocate_buffers\(\) gave"):
            tree.build_runtime_inputs([], buffers)
    with pytest.raises(ValueError, match=r"pass what allocate_buffers\(\) gave"):
        leaf().build_runtime_inputs([None], tree.allocate_buffers(1))  # type: ignore[list-item]
    assert isinstance(tree.allocate_buffers(1)[0].children["draft"], KVCacheBuffer)


@pytest.mark.rule("NS-1")
def test_the_fingerprint_depends_on_names_order_and_children() -> None:
    trees = [
        MultiKVCacheParams.from_params(a=leaf(), b=mla()),
        MultiKVCacheParams.from_params(b=mla(), a=leaf()),
        MultiKVCacheParams.from_params(a=leaf(), c=mla()),
        MultiKVCacheParams.from_params(a=leaf(), b=mla(num_layers=3)),
        MultiKVCacheParams.from_params(a=leaf()),
        MultiKVCacheParams.from_params(a=MultiKVCacheParams.from_params(a=leaf())),
    ]
    fingerprints = {tree.layout_fingerprint() for tree in trees} | {leaf().layout_fingerprint()}
    assert len(fingerprints) == len(trees) + 1
