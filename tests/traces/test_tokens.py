"""Tokens made up from identities share exactly what the identities share."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pagedkv.traces import WorkloadRequest, generated_token, tokens_of
from pagedkv.traces.workload import MAX_TOKENS

block_sizes = st.integers(1, 600)
lists_of_ids = st.lists(st.integers(0, 3), min_size=1, max_size=4)


def request(ids: list[int], block_size: int, last_block: int) -> WorkloadRequest:
    return WorkloadRequest(
        arrival_ms=0,
        input_length=(len(ids) - 1) * block_size + min(last_block, block_size),
        output_length=0,
        hash_ids=tuple(ids),
    )


@given(lists_of_ids, block_sizes, block_sizes)
def test_token_j_of_block_h_is_h_times_the_block_size_plus_j(
    ids: list[int], block_size: int, last_block: int
) -> None:
    asked = request(ids, block_size, last_block)
    tokens = tokens_of(asked, block_size)
    assert tokens.dtype == np.int64
    assert tokens.shape == (asked.input_length,)
    expected = [h * block_size + j for h in ids for j in range(block_size)]
    assert tokens.tolist() == expected[: asked.input_length]


@given(lists_of_ids, lists_of_ids, block_sizes)
def test_two_prompts_share_tokens_exactly_as_far_as_they_share_ids(
    ours: list[int], theirs: list[int], block_size: int
) -> None:
    a, b = (tokens_of(request(ids, block_size, block_size), block_size) for ids in (ours, theirs))
    shared_ids = next(
        (i for i, (x, y) in enumerate(zip(ours, theirs, strict=False)) if x != y),
        min(len(ours), len(theirs)),
    )
    shorter = min(len(a), len(b))
    differing = np.flatnonzero(a[:shorter] != b[:shorter])
    assert (differing[0] if len(differing) else shorter) == shared_ids * block_size


@given(
    st.lists(st.tuples(st.integers(0, 2**30), st.integers(0, MAX_TOKENS)), min_size=2, unique=True)
)
def test_generated_tokens_match_nothing(places: list[tuple[int, int]]) -> None:
    tokens = [generated_token(index, position) for index, position in places]
    assert len(set(tokens)) == len(tokens), "not each other"
    assert max(tokens) < -(2**32), "no prompt, which holds no negative numbers, and no placeholder"
    assert min(tokens) >= -(2**63), "and they fit 64 bits"
