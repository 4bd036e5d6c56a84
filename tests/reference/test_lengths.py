"""How many tokens need a page, and how many of them are known, written and read."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.reference.conftest import Making

from pagedkv.reference import (
    FUTURE_TOKEN,
    KVCacheParams,
    TextContext,
    required_pages,
    required_tokens,
)
from pagedkv.reference.lengths import (
    cache_length,
    cache_valid_length,
    identifiable_tokens,
    query_length,
    written_tokens,
)


def speculative(make: Making, method: str | None, drafts: int) -> KVCacheParams:
    return make.params(speculative_method=method, num_draft_tokens=drafts)


@st.composite
def contexts(draw: st.DrawFn, placeholders: int = 3) -> TextContext:
    """A context somewhere in its life: chunked or not, prompt or decode, with placeholders."""
    ctx = Making().context(range(draw(st.integers(1, 30))))
    if ctx.active_length > 1 and draw(st.booleans()):
        ctx.chunk(draw(st.integers(1, ctx.active_length - 1)))
    for token in range(draw(st.integers(0, 4))):
        ctx.update(token)
    for _ in range(draw(st.integers(0, placeholders))):
        ctx.update_with_future_token(max_pending_futures=placeholders)
    return ctx


@pytest.mark.rule("LEN-1")
@pytest.mark.parametrize(
    ("method", "drafts", "maybe_accepted", "placeholders", "slots"),
    [
        # 10 tokens, all active; the sampled token gets its slot with the next forward.
        (None, 0, 0, 0, 10),
        ("standalone", 1, 0, 0, 12),
        ("eagle", 3, 0, 0, 16),
        ("mtp", 3, 2, 0, 18),
        ("dflash", 3, 0, 0, 17),
        ("dflash", 3, 3, 0, 20),
        ("dflash", 0, 0, 0, 11),
        # A placeholder makes it 11 tokens. The first one costs nothing more than a known token.
        (None, 0, 0, 1, 11),
        ("eagle", 3, 3, 1, 20),
        ("eagle", 3, 3, 2, 20),
    ],
)
def test_slots_for_ten_tokens(
    make: Making,
    method: str | None,
    drafts: int,
    maybe_accepted: int,
    placeholders: int,
    slots: int,
) -> None:
    ctx = make.context(range(10))
    ctx.spec_decoding_state.maybe_accepted_draft_tokens = [0] * maybe_accepted
    for _ in range(placeholders):
        ctx.update_with_future_token(max_pending_futures=2)
    params = speculative(make, method, drafts)
    assert required_tokens(ctx, params) == slots


@pytest.mark.rule("LEN-1")
@given(contexts(placeholders=1), st.integers(1, 9))
def test_without_speculation_a_request_needs_pages_up_to_the_end_of_its_window(
    ctx: TextContext, page_size: int
) -> None:
    params = Making().params(page_size=page_size)
    pages = required_pages(ctx, params)
    assert (pages - 1) * page_size < ctx.current_position <= pages * page_size


@pytest.mark.rule("LEN-1", "LEN-4")
@given(
    contexts(placeholders=1),
    st.sampled_from(["standalone", "eagle", "mtp", "dflash"]),
    st.integers(0, 4),
    st.data(),
)
def test_the_next_forward_has_a_slot_for_everything_it_writes(
    ctx: TextContext, method: str, drafts: int, data: st.DataObject
) -> None:
    drafted = st.lists(st.just(0), max_size=drafts)
    ctx.spec_decoding_state.draft_tokens_to_verify = data.draw(drafted)
    ctx.spec_decoding_state.maybe_accepted_draft_tokens = data.draw(drafted)
    params = speculative(Making(), method, drafts)
    assert cache_valid_length(ctx, params) <= required_tokens(ctx, params)


@pytest.mark.rule("LEN-2", "ID-7")
@given(contexts())
def test_neither_the_last_token_nor_a_placeholder_is_identifiable(ctx: TextContext) -> None:
    identifiable = identifiable_tokens(ctx)
    assert len(ctx) - identifiable == max(1, ctx.pending_future_count)
    assert FUTURE_TOKEN not in ctx.tokens.all[:identifiable]


@pytest.mark.rule("LEN-3")
@given(contexts())
def test_written_is_what_is_identifiable_and_before_the_window(ctx: TextContext) -> None:
    written = written_tokens(ctx)
    assert written <= ctx.processed_length
    assert written <= identifiable_tokens(ctx)
    assert written in (ctx.processed_length, identifiable_tokens(ctx))


@pytest.mark.rule("LEN-3")
def test_a_token_is_written_by_the_forward_after_the_one_that_sampled_it(make: Making) -> None:
    ctx = make.context(range(3))
    assert written_tokens(ctx) == 0
    ctx.update(3)
    assert written_tokens(ctx) == 3
    ctx.update_with_future_token(max_pending_futures=2)
    assert written_tokens(ctx) == 4
    ctx.update_with_future_token(max_pending_futures=2)
    assert written_tokens(ctx) == 4  # The token at position 4 is not known yet.
    ctx.realize_future_token(4)
    assert written_tokens(ctx) == 5


@pytest.mark.rule("LEN-4")
def test_a_forward_computes_the_window_and_the_drafts_after_what_is_cached(make: Making) -> None:
    params = speculative(make, "eagle", 3)
    ctx = make.context(range(10))
    ctx.skip_processing(4)
    assert (cache_length(ctx), query_length(ctx), cache_valid_length(ctx, params)) == (4, 6, 13)
    ctx.spec_decoding_state.draft_tokens_to_verify = [1, 2]
    ctx.spec_decoding_state.maybe_accepted_draft_tokens = [0]
    assert (cache_length(ctx), query_length(ctx), cache_valid_length(ctx, params)) == (5, 8, 16)
