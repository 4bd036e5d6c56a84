"""Page tables and lengths of a forward: rules INPUT-1 to INPUT-7."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.reference.conftest import Making, prompt

from pagedkv.reference import (
    BatchCharacteristics,
    BatchesError,
    BlocksNotAllocatedError,
    KVCacheInputsPerDevice,
    MultiKVCacheParams,
    PagedKVCacheManager,
    SpecDecodingState,
    TextContext,
    UnknownRequestError,
)

Batches = list[list[TextContext]]
DeviceInputs = KVCacheInputsPerDevice[torch.Tensor, torch.Tensor]


def device_inputs(
    manager: PagedKVCacheManager, batches: Batches, max_cache_length: int | None = None
) -> DeviceInputs:
    """The inputs of the first device."""
    return manager.runtime_inputs_for_leaf(batches, max_cache_length=max_cache_length).inputs[0]


@pytest.mark.rule("INPUT-1")
@pytest.mark.parametrize(("replicas", "batches"), [(1, 0), (1, 2), (2, 1)])
def test_there_is_one_batch_per_replica(make: Making, replicas: int, batches: int) -> None:
    manager = make.manager(make.params(replicas=replicas))
    message = rf"{batches} batch\(es\) for {replicas} replica"
    with pytest.raises(BatchesError, match=message):
        manager.runtime_inputs([[] for _ in range(batches)])


@pytest.mark.rule("INPUT-2")
def test_a_request_appears_once_on_its_own_replica(make: Making) -> None:
    manager = make.manager(make.params(replicas=2))
    ctx = make.admit(manager, prompt(1))
    manager.runtime_inputs([[ctx], []])
    with pytest.raises(BatchesError, match="twice"):
        manager.runtime_inputs([[ctx, ctx], []])
    with pytest.raises(UnknownRequestError):
        manager.runtime_inputs([[], [ctx]])


@pytest.mark.rule("INPUT-2")
def test_a_batch_has_at_most_max_batch_size_requests(make: Making) -> None:
    manager = make.manager(max_batch_size=2)
    batch = [make.admit(manager, range(3)) for _ in range(3)]
    manager.runtime_inputs([batch[:2]])
    with pytest.raises(BatchesError, match="batch of 3; max_batch_size is 2"):
        manager.runtime_inputs([batch])


@pytest.mark.rule("INPUT-3")
def test_a_request_that_lacks_pages_is_named_with_its_numbers(make: Making) -> None:
    manager = make.manager()
    ctx = make.admit(manager, range(8))
    ctx.update(8)
    with pytest.raises(BlocksNotAllocatedError) as refusal:
        manager.runtime_inputs([[ctx]])
    error = refusal.value
    assert (error.request_id, error.needed, error.allocated) == (ctx.request_id, 3, 2)
    assert isinstance(error, RuntimeError)


@pytest.mark.rule("INPUT-3", "INPUT-7")
def test_a_refused_batch_overwrites_nothing(make: Making) -> None:
    manager = make.manager(make.params(replicas=2))
    first, second = make.admit(manager, prompt(1)), make.admit(manager, prompt(2))
    starved = make.context(prompt(1))
    manager.claim(starved.request_id, 1)
    inputs = device_inputs(manager, [[first], []])
    before = inputs.lookup_table.clone(), inputs.cache_lengths.clone()
    for batches in ([[second], [starved]], [[second, second], []]):
        with pytest.raises((BlocksNotAllocatedError, BatchesError)):
            manager.runtime_inputs(batches)
    assert torch.equal(inputs.lookup_table, before[0])
    assert torch.equal(inputs.cache_lengths, before[1])


@pytest.mark.rule("INPUT-4", "POOL-1")
@given(
    lengths=st.lists(st.integers(1, 12), min_size=0, max_size=3),
    max_cache_length=st.none() | st.integers(1, 40),
)
def test_a_row_lists_the_pages_of_a_request_and_then_the_null_page(
    lengths: list[int], max_cache_length: int | None
) -> None:
    make = Making()
    manager = make.manager(pages=10)
    batch = [make.admit(manager, range(n * 100, n * 100 + n)) for n in lengths]
    needed = max([-(-n // 4) for n in lengths], default=1)
    asked = needed if max_cache_length is None else -(-max_cache_length // 4)
    if not needed <= asked <= manager.get_num_pages(0):
        remedy = f"choose between {4 * needed - 3} and 40 tokens"
        with pytest.raises(
            BatchesError, match=f"max_cache_length is {max_cache_length}, .*{remedy}"
        ):
            manager.runtime_inputs([batch], max_cache_length=max_cache_length)
        return
    table = device_inputs(manager, [batch], max_cache_length).lookup_table
    assert (table.dtype, list(table.shape)) == (torch.int32, [len(batch), asked])
    null_page = manager.total_num_blocks()
    for ctx, row in zip(batch, table.tolist(), strict=True):
        pages = manager.get_req_blocks(ctx.request_id, 0)
        assert row == pages + [null_page] * (asked - len(pages))


@pytest.mark.rule("INPUT-4")
def test_pages_beyond_the_next_forward_are_not_shown(make: Making) -> None:
    manager = make.manager()
    ctx = make.admit(manager, range(12))
    pages = manager.get_req_blocks(ctx.request_id, 0)
    ctx.chunk(4)
    assert device_inputs(manager, [[ctx]]).lookup_table.tolist() == [pages[:1]]
    wide = device_inputs(manager, [[ctx]], max_cache_length=12)
    null_page = manager.total_num_blocks()
    assert wide.lookup_table.tolist() == [[pages[0], null_page, null_page]]


@pytest.mark.rule("INPUT-4", "CLAIM-4")
def test_the_row_of_a_dummy_request_is_the_null_page(make: Making) -> None:
    manager = make.manager()
    ctx, dummy = make.admit(manager, range(8)), make.context([0])
    manager.alloc_dummy(dummy.request_id, 0)
    null_page = manager.total_num_blocks()
    table = device_inputs(manager, [[ctx, dummy]]).lookup_table
    assert table[1].tolist() == [null_page, null_page]


@pytest.mark.rule("INPUT-5")
def test_lengths_are_those_of_the_windows(make: Making) -> None:
    manager = make.manager()
    make.serve(manager, prompt(2))
    cached, fresh = make.admit(manager, prompt(2)), make.admit(manager, range(50, 56))
    inputs = device_inputs(manager, [[cached, fresh]])
    assert inputs.cache_lengths.tolist() == [8, 0]
    assert inputs.max_prompt_length.tolist() == [6]
    assert inputs.max_cache_length.tolist() == [9]
    assert inputs.cache_lengths.dtype == torch.int32
    for number in (inputs.max_prompt_length, inputs.max_cache_length):
        assert (number.dtype, number.device.type) == (torch.int32, "cpu")


@pytest.mark.rule("INPUT-5", "LEN-4")
def test_lengths_include_drafts(make: Making) -> None:
    manager = make.manager(make.params(speculative_method="standalone", num_draft_tokens=3))
    ctx = make.admit(
        manager,
        range(6),
        spec_decoding_state=SpecDecodingState(
            draft_tokens_to_verify=[1, 2], maybe_accepted_draft_tokens=[3]
        ),
    )
    inputs = device_inputs(manager, [[ctx]])
    assert inputs.cache_lengths.tolist() == [1]  # processed 0 + maybe accepted 1
    assert inputs.max_prompt_length.tolist() == [8]  # active 6 + to verify 2
    assert inputs.max_cache_length.tolist() == [12]  # 1 + 8 + the 3 drafts of one iteration


@pytest.mark.rule("INPUT-5", "INPUT-1")
def test_an_empty_batch_has_an_empty_table_and_no_length(make: Making) -> None:
    inputs = device_inputs(make.manager(), [[]])
    assert list(inputs.lookup_table.shape) == [0, 1]
    assert inputs.max_prompt_length.tolist() == inputs.max_cache_length.tolist() == [0]


@pytest.mark.rule("INPUT-6")
def test_bounds_stand_in_for_the_shape_of_every_replica(make: Making) -> None:
    manager = make.manager(make.params(replicas=2))
    ctx = make.admit(manager, prompt(1))
    bounds = BatchCharacteristics(4, 16, 32)
    for inputs in manager.runtime_inputs_for_leaf([[ctx], []], batch_characteristics=bounds).inputs:
        assert inputs.max_prompt_length.tolist() == [16]
        assert inputs.max_cache_length.tolist() == [32]


@pytest.mark.rule("INPUT-6")
@pytest.mark.parametrize(
    ("bounds", "field"),
    [((0, 5, 5), "batch_size"), ((1, 4, 5), "max_prompt"), ((1, 5, 4), "max_cache_valid")],
)
def test_a_batch_that_exceeds_a_bound_is_refused(
    make: Making, bounds: tuple[int, int, int], field: str
) -> None:
    manager = make.manager()
    ctx = make.admit(manager, prompt(1))
    manager.runtime_inputs([[ctx]], batch_characteristics=BatchCharacteristics(1, 5, 5))
    with pytest.raises(ValueError, match=rf"batch_characteristics\.{field}"):
        manager.runtime_inputs([[ctx]], batch_characteristics=BatchCharacteristics(*bounds))


@pytest.mark.rule("INPUT-7")
def test_addresses_are_the_same_at_every_call(make: Making) -> None:
    manager = make.manager(make.params(replicas=2, shards=2), pages=16)
    a, b, c, d = (make.admit(manager, range(n), replica=n % 2) for n in (2, 3, 6, 13))

    def addresses(*batches: list[TextContext]) -> list[tuple[int, int]]:
        inputs = manager.runtime_inputs_for_leaf(batches).inputs
        return [(i.lookup_table.data_ptr(), i.cache_lengths.data_ptr()) for i in inputs]

    first = addresses([a], [b])
    assert len(set(first)) == 4, "every shard has a table and lengths of its own"
    assert addresses([c, a], [d]) == addresses([c], [b, d]) == first


@pytest.mark.rule("MEM-4", "INPUT-4", "INPUT-5")
@pytest.mark.parametrize("tree", [False, True])
def test_a_managers_inputs_are_what_the_symbolic_ones_promise(make: Making, tree: bool) -> None:
    leaf = make.params(replicas=2, shards=2)
    params = MultiKVCacheParams.from_params(target=leaf, draft=leaf) if tree else leaf
    manager = make.manager(params)
    inputs = manager.runtime_inputs([[], [make.admit(manager, prompt(2), replica=1)]])
    sizes: dict[str, int] = {}
    for symbol, value in zip(params.flattened_kv_inputs(), inputs.flatten(), strict=True):
        symbol.bind(value, sizes)
    assert {n for name, n in sizes.items() if name.endswith("total_num_pages")} == {9}


def test_inputs_for_a_leaf_are_refused_for_a_tree(make: Making) -> None:
    params = MultiKVCacheParams.from_params(target=make.params(), draft=make.params())
    with pytest.raises(AssertionError, match="use runtime_inputs"):
        make.manager(params).runtime_inputs_for_leaf([[]])


@pytest.mark.rule("INPUT-3", "LEN-1")
def test_a_forward_never_writes_past_its_pages_however_many_placeholders(make: Making) -> None:
    manager = make.manager()
    ctx = make.admit(manager, range(7))
    for _ in range(2):
        ctx.update_with_future_token(2)
        manager.alloc(ctx, 0)
    with pytest.raises(BlocksNotAllocatedError):
        manager.runtime_inputs([[ctx]])


@pytest.mark.rule("INPUT-4", "INPUT-3")
def test_a_page_that_the_forward_writes_past_what_len_1_asks_for_is_shown(make: Making) -> None:
    manager = make.manager()
    ctx = make.context(range(7))
    manager.claim(ctx.request_id, 0)
    ctx.spec_decoding_state.maybe_accepted_draft_tokens = [1, 2]
    manager.alloc(ctx, 0)
    ctx.spec_decoding_state.maybe_accepted_draft_tokens = []
    for _ in range(2):
        ctx.update_with_future_token(max_pending_futures=2)
    assert device_inputs(manager, [[ctx]]).lookup_table.tolist() == [[0, 1, 2]]
