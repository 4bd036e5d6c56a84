"""Device memory of pages, and its views as rows of bytes."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.reference.conftest import Making

from pagedkv.reference.buffers import (
    KVCacheBuffer,
    KVCacheBufferInterface,
    KVCacheMemory,
    MultiKVCacheBuffer,
    ReplicatedKVCacheMemory,
)
from pagedkv.reference.multi_params import MultiKVCacheParams

DTYPES = [torch.float32, torch.bfloat16, torch.float8_e4m3fn, torch.int8]


def cache_buffer(
    pages: int = 3,
    shards: int = 2,
    *,
    replicated: bool = False,
    scaled: bool = False,
    dtype: torch.dtype = torch.bfloat16,
) -> KVCacheBuffer:
    return KVCacheBuffer(
        replicates_kv_across_tp=replicated,
        values=[torch.zeros(pages, 2, 3, 4, 1, 8, dtype=dtype) for _ in range(shards)],
        scales=[torch.zeros(pages, 2, 3, 4, 1, 2) for _ in range(shards)] if scaled else None,
    )


@st.composite
def cache_buffers(draw: st.DrawFn) -> KVCacheBuffer:
    shards = draw(st.integers(1, 3))
    return cache_buffer(
        draw(st.integers(1, 4)),
        shards,
        replicated=shards > 1 and draw(st.booleans()),
        scaled=draw(st.booleans()),
        dtype=draw(st.sampled_from(DTYPES)),
    )


def pointers(buffers: list[torch.Tensor]) -> list[int]:
    return [buffer.data_ptr() for buffer in buffers]


@pytest.mark.rule("MEM-2", "MEM-3")
@given(cache_buffers())
def test_memory_units_are_views_of_values_then_scales(buffer: KVCacheBuffer) -> None:
    units = buffer.to_memory()
    viewed = [view for unit in units for view in unit.all_buffers]
    assert pointers(viewed) == pointers(buffer.all_buffers)
    assert [view.numel() for view in viewed] == [b.nbytes for b in buffer.all_buffers]
    assert pointers(buffer.all_buffers) == pointers([*buffer.values, *(buffer.scales or [])])
    assert {unit.total_num_pages for unit in units} == {buffer.total_num_pages}


@pytest.mark.rule("MEM-2")
@given(cache_buffers())
def test_a_kind_is_one_replicated_unit_or_one_unit_per_shard(buffer: KVCacheBuffer) -> None:
    kinds = 1 if buffer.scales is None else 2
    units = buffer.to_memory()
    if buffer.replicates_kv_across_tp:
        assert [type(unit) for unit in units] == [ReplicatedKVCacheMemory] * kinds
    else:
        assert [type(unit) for unit in units] == [KVCacheMemory] * kinds * len(buffer.values)


@pytest.mark.rule("MEM-1", "MEM-2")
@given(cache_buffers(), st.data())
def test_row_i_is_page_i_and_no_other(buffer: KVCacheBuffer, data: st.DataObject) -> None:
    page = data.draw(st.integers(0, buffer.total_num_pages - 1))
    for unit in buffer.to_memory():
        for view in unit.all_buffers:
            view[page] = 1
    for tensor in buffer.all_buffers:
        rows = tensor.view(torch.uint8).flatten(1)
        assert torch.equal(rows.any(dim=1), torch.arange(len(rows)) == page)


@pytest.mark.rule("TIER-3")
@given(cache_buffers(), st.data())
def test_a_copied_block_arrives_on_every_shard_and_nowhere_else(
    buffer: KVCacheBuffer, data: st.DataObject
) -> None:
    pages = buffer.total_num_pages
    src, dst = data.draw(st.integers(0, pages - 1)), data.draw(st.integers(0, pages - 1))
    for unit in buffer.to_memory():
        root, *peers = (torch.zeros_like(view) for view in unit.all_buffers)
        target = ReplicatedKVCacheMemory(root, peers) if peers else KVCacheMemory(root)
        for shard, view in enumerate(unit.all_buffers):
            view.fill_(shard + 1)
        unit.copy_block_to(target, dst, src)
        for shard, view in enumerate(target.all_buffers):
            expected = torch.zeros_like(view)
            expected[dst] = shard + 1
            assert torch.equal(view, expected)


@pytest.mark.parametrize(("dst", "src", "field"), [(3, 0, "dst"), (0, -1, "src"), (-1, 0, "dst")])
def test_a_block_that_does_not_exist_is_not_copied(dst: int, src: int, field: str) -> None:
    unit = cache_buffer(3).to_memory()[0]
    with pytest.raises(ValueError, match=f"{field}_block_id is (3|-1); use 0 to 2"):
        unit.copy_block_to(unit, dst, src)


def test_blocks_are_copied_between_equal_layouts_only() -> None:
    sharded = cache_buffer().to_memory()[0]
    replicated = cache_buffer(replicated=True).to_memory()[0]
    wider = cache_buffer(dtype=torch.float32).to_memory()[0]
    for other in (replicated, wider):
        with pytest.raises(ValueError, match="their layouts differ"):
            sharded.copy_block_to(other, 0, 0)


def test_both_buffers_offer_the_interface() -> None:
    tree = MultiKVCacheBuffer({"target": cache_buffer(scaled=True), "draft": cache_buffer()})
    assert isinstance(tree, KVCacheBufferInterface)
    assert isinstance(tree.children["target"], KVCacheBufferInterface)


@pytest.mark.rule("MEM-2", "MEM-3")
def test_a_tree_lists_its_children_in_order() -> None:
    target, draft = cache_buffer(replicated=True, scaled=True), cache_buffer(shards=1)
    tree = MultiKVCacheBuffer({"target": target, "draft": draft})
    assert tree.total_num_pages == 3
    assert pointers(tree.all_buffers) == pointers([*target.all_buffers, *draft.all_buffers])
    assert [unit.bytes_per_page for unit in tree.to_memory()] == [
        unit.bytes_per_page for child in (target, draft) for unit in child.to_memory()
    ]


@pytest.mark.rule("MEM-3")
def test_a_tree_needs_children_with_one_page_count() -> None:
    with pytest.raises(ValueError, match="children is empty"):
        MultiKVCacheBuffer({})
    with pytest.raises(ValueError, match=r"children have \{'a': 3, 'b': 4\} pages"):
        MultiKVCacheBuffer({"a": cache_buffer(3), "b": cache_buffer(4)})


@pytest.mark.rule("MEM-3", "SIZE-1", "POOL-1")
@pytest.mark.parametrize("tree", [False, True])
def test_a_manager_counts_its_pages_without_the_null_page(make: Making, tree: bool) -> None:
    leaf = make.params(replicas=2, shards=2)
    params = MultiKVCacheParams.from_params(leaf, leaf) if tree else leaf
    manager = make.manager(params, pages=5)
    for replica in range(2):
        buffer = manager.get_device_buffer(replica)
        assert manager.total_num_blocks(replica) == manager.get_num_pages(replica) == 5
        assert buffer.total_num_pages == 6
        assert sum(b.nbytes for b in buffer.all_buffers) == 6 * params.bytes_per_block


def test_replication_needs_a_second_shard() -> None:
    with pytest.raises(ValueError, match="replicates_kv_across_tp is True with a single shard"):
        cache_buffer(shards=1, replicated=True)
    with pytest.raises(ValueError, match="peers is empty"):
        ReplicatedKVCacheMemory(torch.zeros(1, 8, dtype=torch.uint8), [])


@pytest.mark.rule("MEM-1", "PARAM-5")
@pytest.mark.parametrize(
    ("values", "scales", "message"),
    [
        ([], None, "values is empty"),
        ([torch.zeros(2, 8), torch.zeros(2, 9)], None, r"values\[1\] is .* all shards must be"),
        ([torch.zeros(2, 8), torch.zeros(2, 8).half()], None, r"values\[1\] is torch.float16"),
        ([torch.zeros(8, 2).T], None, r"values\[0\] .* is not contiguous"),
        ([torch.zeros(())], None, r"values\[0\] .* is not contiguous"),
        ([torch.zeros(2, 8)], [], "scales has 0 buffers and values 1"),
        ([torch.zeros(2, 8)], [torch.zeros(3, 1)], "shard 0 has 2 pages of values"),
    ],
)
def test_buffers_that_do_not_fit_together_are_refused(
    values: list[torch.Tensor], scales: list[torch.Tensor] | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        KVCacheBuffer(False, values, scales)


@pytest.mark.parametrize("buffer", [torch.zeros(2, 8), torch.zeros(16, dtype=torch.uint8)])
def test_a_memory_unit_is_rows_of_bytes(buffer: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"should be torch.uint8 \[num_pages, bytes_per_page\]"):
        KVCacheMemory(buffer)


def test_a_memory_unit_equals_itself_alone() -> None:
    root, peer = torch.zeros(2, 8, dtype=torch.uint8), torch.zeros(2, 8, dtype=torch.uint8)
    a, b = (ReplicatedKVCacheMemory(root, [peer]) for _ in range(2))
    assert len({a, b}) == 2
    assert a != b


def test_a_buffer_describes_itself_in_one_line() -> None:
    assert repr(cache_buffer(scaled=True)) == (
        "KVCacheBuffer(3 pages of [2, 3, 4, 1, 8] torch.bfloat16 with scales, 2 sharded on cpu)"
    )
    assert repr(cache_buffer(shards=1).to_memory()[0]) == (
        "KVCacheMemory(3 pages of 384 bytes on cpu)"
    )
