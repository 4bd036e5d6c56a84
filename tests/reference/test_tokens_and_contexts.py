"""Tokens with their active window, and the contexts around them."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from tests.reference.conftest import Making

from pagedkv.reference import (
    FUTURE_TOKEN,
    ExternalBlockMetadata,
    ImageMetadata,
    RequestID,
    SpecDecodingState,
    TextContext,
    TokenBuffer,
    TokenHashOverride,
)

# Any throughout: what does not fit the types is refused with an error that helps.


class Windows(RuleBasedStateMachine):
    """A token buffer beside a list of tokens and the two ends of the window."""

    @initialize(length=st.integers(1, 10))
    def make_buffer(self, length: int) -> None:
        self.model = list(range(length))
        self.tokens = TokenBuffer(np.array(self.model))
        self.start, self.end, self.prompt = 0, length, length

    def attempt(self, move: Callable[..., None], *arguments: int, allowed: bool) -> bool:
        if allowed:
            move(*arguments)
        else:
            with pytest.raises(ValueError):
                move(*arguments)
        return allowed

    @rule(n=st.integers(-1, 6))
    def skip(self, n: int) -> None:
        leaves_one = 0 <= n < self.end - self.start
        if self.attempt(self.tokens.skip_processing, n, allowed=leaves_one):
            self.start += n

    @rule(n=st.integers(-1, 6))
    def rewind(self, n: int) -> None:
        if self.attempt(self.tokens.rewind_processing, n, allowed=0 <= n <= self.start):
            self.start -= n

    @rule(n=st.integers(-1, 6))
    def chunk(self, n: int) -> None:
        shortens = 0 < n < self.end - self.start
        if self.attempt(self.tokens.chunk, n, allowed=shortens):
            self.end = self.start + n

    @rule()
    def advance_chunk(self) -> None:
        if self.attempt(self.tokens.advance_chunk, allowed=self.end < len(self.model)):
            self.start, self.end = self.end, len(self.model)

    @rule(token=st.integers(0, 9))
    def add(self, token: int) -> None:
        whole = self.end == len(self.model)
        if self.attempt(self.tokens.advance_with_token, token, allowed=whole):
            self.model.append(token)
            self.start, self.end = self.end, self.end + 1

    @rule(offset=st.integers(0, 12), token=st.integers(0, 9))
    def overwrite(self, offset: int, token: int) -> None:
        exists = 1 <= offset <= len(self.model)
        overwrite = self.tokens.overwrite_token_at_offset_from_end
        if self.attempt(overwrite, offset, token, allowed=exists):
            self.model[-offset] = token

    @rule(less=st.integers(-1, 3))
    def start_over(self, less: int) -> None:
        leaves_one = 0 <= less < len(self.model)
        if self.attempt(self.tokens.reset_as_new_prompt, less, allowed=leaves_one):
            self.model = self.model[: len(self.model) - less]
            self.start, self.end, self.prompt = 0, len(self.model), len(self.model)

    @invariant()
    def the_buffer_is_as_the_model(self) -> None:
        if not hasattr(self, "model"):
            return
        tokens = self.tokens
        assert tokens.all.tolist() == tokens.array.tolist() == self.model
        assert tokens.prompt.tolist() == self.model[: self.prompt]
        assert tokens.generated.tolist() == self.model[self.prompt :]
        assert tokens.active.tolist() == self.model[self.start : self.end]
        assert tokens[1:].tolist() == self.model[1:]
        assert int(tokens[-1]) == self.model[-1]
        assert (tokens.processed_length, tokens.current_position) == (self.start, self.end)
        assert (tokens.prompt_length, tokens.generated_length) == (
            self.prompt,
            len(self.model) - self.prompt,
        )
        assert tokens.actively_chunked == (self.end < len(self.model))
        assert tokens.active_length == self.end - self.start >= 1


TestWindows = pytest.mark.rule("LEN-5")(Windows.TestCase)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((2, 2), dtype=np.int64), r"one-dimensional, got shape \(2, 2\)"),
        (np.zeros(2, dtype=np.int32), r"int64, got int32: use array.astype"),
        (np.zeros(0, dtype=np.int64), "must not be empty"),
        ([1], r"tokens is \[1\]; give a numpy array: np\.array\(\.\.\., dtype=np\.int64\)"),
        (None, "tokens is None; give a numpy array"),
    ],
)
def test_a_prompt_is_a_row_of_int64(array: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TokenBuffer(array)


def test_a_buffer_keeps_a_copy_of_the_prompt() -> None:
    prompt = np.arange(3)
    tokens = TokenBuffer(prompt)
    prompt[0] = 9
    assert tokens.all.tolist() == [0, 1, 2]


@pytest.mark.parametrize("value", [1.5, True, "1", None, np.array([1, 2])])
@pytest.mark.parametrize(
    "move",
    [
        TokenBuffer.skip_processing,
        TokenBuffer.rewind_processing,
        TokenBuffer.chunk,
        TokenBuffer.advance_with_token,
        TokenBuffer.overwrite_last_token,
        TokenBuffer.reset_as_new_prompt,
        lambda tokens, value: tokens.overwrite_token_at_offset_from_end(value, 7),
    ],
)
def test_what_is_no_whole_number_moves_nothing(
    move: Callable[[TokenBuffer, Any], None], value: Any
) -> None:
    tokens = TokenBuffer(np.arange(3))
    with pytest.raises(ValueError, match=r"is .*; use a whole number"):
        move(tokens, value)
    assert (tokens.all.tolist(), tokens.processed_length, tokens.active_length) == ([0, 1, 2], 0, 3)


@pytest.mark.parametrize("token", [2**63, -(2**63) - 1])
def test_a_token_fits_int64(token: int) -> None:
    tokens = TokenBuffer(np.arange(3))
    for take in (tokens.advance_with_token, tokens.overwrite_last_token):
        with pytest.raises(ValueError, match=f"token is {token}; token ids are int64"):
            take(token)
    assert tokens.all.tolist() == [0, 1, 2]


@pytest.mark.parametrize("token", [2**63 - 1, -(2**63)])
def test_the_largest_and_the_least_int64_are_tokens(token: int) -> None:
    tokens = TokenBuffer(np.arange(3))
    tokens.overwrite_last_token(token)
    tokens.advance_with_token(token)
    assert tokens.all.tolist() == [0, 1, token, token]


def test_numpys_whole_numbers_move_the_window() -> None:
    tokens = TokenBuffer(np.arange(3))
    tokens.skip_processing(np.int32(2))  # type: ignore[arg-type]
    tokens.advance_with_token(np.uint16(7))  # type: ignore[arg-type]
    assert tokens.all.tolist() == [0, 1, 2, 7]
    assert type(tokens.processed_length) is int


def test_a_buffer_describes_itself_in_one_line() -> None:
    tokens = TokenBuffer(np.arange(5))
    tokens.advance_with_token(5)
    assert repr(tokens) == "TokenBuffer(len=6, prompt=5, processed=5, active=1)"


@pytest.mark.rule("LEN-5")
def test_a_context_moves_its_window(make: Making) -> None:
    ctx = make.context(range(10))
    ctx.skip_processing(6)
    ctx.rewind_processing(2)
    assert (ctx.processed_length, ctx.active_length, ctx.current_position) == (4, 6, 10)
    with pytest.raises(ValueError, match="cannot skip 6 of 6 active tokens"):
        ctx.skip_processing(6)
    with pytest.raises(ValueError, match="must be between 0 and the 4 processed"):
        ctx.rewind_processing(5)
    with pytest.raises(ValueError, match="must be between 1 and 5"):
        ctx.chunk(6)
    assert (ctx.processed_length, ctx.active_length, ctx.current_position) == (4, 6, 10)


@pytest.mark.rule("LEN-5")
@pytest.mark.parametrize("take", [TextContext.update, TextContext.update_with_future_token])
def test_a_chunk_samples_no_token(make: Making, take: Callable[[TextContext, int], None]) -> None:
    ctx = make.context(range(10))
    ctx.chunk(4)
    assert (ctx.processed_length, ctx.current_position, len(ctx)) == (0, 4, 10)
    take(ctx, 9)
    assert (ctx.processed_length, ctx.current_position, len(ctx)) == (4, 10, 10)
    assert ctx.pending_future_count == 0
    ctx.update(9)
    assert (ctx.processed_length, ctx.current_position, len(ctx)) == (10, 11, 11)
    assert ctx.prompt_length == 10


# --- contexts -----------------------------------------------------------------------------------


@pytest.mark.rule("LEN-2")
def test_placeholders_become_known_oldest_first(make: Making) -> None:
    ctx = make.context(range(2))
    ctx.update_with_future_token(max_pending_futures=2)
    ctx.update_with_future_token(max_pending_futures=2)
    assert ctx.tokens.generated.tolist() == [FUTURE_TOKEN, FUTURE_TOKEN]
    with pytest.raises(ValueError, match=r"2 placeholder\(s\) wait already"):
        ctx.update_with_future_token(max_pending_futures=2)
    with pytest.raises(ValueError, match="call realize_future_token"):
        ctx.update(9)
    ctx.realize_future_token(7)
    assert ctx.tokens.generated.tolist() == [7, FUTURE_TOKEN]
    ctx.realize_future_token(8)
    assert ctx.tokens.generated.tolist() == [7, 8]
    with pytest.raises(ValueError, match="no placeholder waits"):
        ctx.realize_future_token(9)


@pytest.mark.rule("METRIC-4", "LEN-2")
def test_a_preempted_context_starts_over_with_what_it_knows(make: Making) -> None:
    ctx = make.context(range(3))
    ctx.update(3)
    ctx.update_with_future_token()
    ctx.spec_decoding_state.draft_tokens_to_verify = [5]
    ctx.reset()
    assert ctx.tokens.prompt.tolist() == ctx.tokens.active.tolist() == [0, 1, 2, 3]
    assert (ctx.processed_length, ctx.pending_future_count) == (0, 0)
    assert ctx.spec_decoding_state == SpecDecodingState()
    assert ctx.preempted


def test_a_context_is_done_at_its_maximum_length() -> None:
    ctx = TextContext(max_length=3, tokens=TokenBuffer(np.arange(2)))
    assert not ctx.is_done
    ctx.update(2)
    assert ctx.is_done


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_length": 0}, "max_length is 0; use a whole number from 1"),
        ({"max_length": "9"}, "max_length is '9'; use a whole number from 1"),
        ({"tokens": [1, 2]}, r"tokens is \[1, 2\]; wrap an int64 array: TokenBuffer"),
        ({"request_id": 5}, "request_id is 5; use text"),
        ({"cache_salt": b"salt"}, "cache_salt is b'salt'; use text, or None"),
        ({"adapter": 5}, "adapter is 5; use text, or None"),
        ({"token_hash_overrides": [(0, 7)]}, r"overrides\[0\] is \(0, 7\); use TokenHashOverride"),
        (
            {"token_hash_overrides": [TokenHashOverride(2, 7), TokenHashOverride(3, 7)]},
            r"token_hash_overrides\[1\] reaches token 3, but the prompt has 3 tokens",
        ),
        ({"images": None}, "images is None; give a list"),
        ({"token_hash_overrides": 7}, "token_hash_overrides is 7; give a list"),
        ({"images": [7]}, r"images\[0\] is 7; use ImageMetadata"),
        ({"images": [ImageMetadata(1, 4)]}, r"images\[0\] reaches token 3, but the prompt has 3"),
        ({"max_length": 2}, "the prompt has 3 tokens, max_length is 2"),
        ({"external_block_metadata": "store:1"}, "external_block_metadata must be a mapping"),
    ],
)
def test_a_malformed_context_is_refused(options: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"max_length": 9, "tokens": TokenBuffer(np.arange(3))}
    with pytest.raises(ValueError, match=message):
        TextContext(**(arguments | options))


@pytest.mark.rule("CLAIM-1")
def test_a_request_has_a_name_of_its_own_unless_it_is_given_one(make: Making) -> None:
    fresh = {make.context([1]).request_id for _ in range(3)}
    assert len(fresh) == 3
    assert make.context([1], request_id="mine").request_id == RequestID("mine") == "mine"


@pytest.mark.rule("STORE-4")
@pytest.mark.parametrize(
    ("value", "endpoints"),
    [
        (None, ()),
        ({"endpoints": []}, ()),
        ({"endpoints": ["a:1", "b:2"]}, ("a:1", "b:2")),
        ({"endpoints": ("a:1",)}, ("a:1",)),
        (ExternalBlockMetadata(("a:1",)), ("a:1",)),
    ],
)
def test_further_stores_are_named_in_the_order_to_ask(
    value: object, endpoints: tuple[str, ...]
) -> None:
    assert ExternalBlockMetadata.parse(value).endpoints == endpoints


@pytest.mark.rule("STORE-4")
@pytest.mark.parametrize(
    "value",
    ["a:1", ["a:1"], {}, {"endpoints": "a:1"}, {"endpoints": [1]}, {"endpoints": [], "port": 1}],
)
def test_any_other_metadata_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match=r'mapping \{"endpoints": \["host:port", ...\]\}, got'):
        ExternalBlockMetadata.parse(value)


@pytest.mark.rule("ID-5")
def test_overrides_and_images_have_a_place_in_the_prompt() -> None:
    with pytest.raises(ValueError, match="token_idx is -1"):
        TokenHashOverride(-1, 7)
    wrong_types: list[Callable[[], object]] = [
        lambda: TokenHashOverride(1.5, 7),  # type: ignore[arg-type]
        lambda: TokenHashOverride(1, "7"),  # type: ignore[arg-type]
        lambda: ImageMetadata("0", 2),  # type: ignore[arg-type]
        lambda: ImageMetadata(0, None),  # type: ignore[arg-type]
        lambda: ImageMetadata(0, 2, image_hash=0.5),  # type: ignore[arg-type]
    ]
    for make_wrong in wrong_types:
        with pytest.raises(ValueError, match=r"is .*; use a whole number"):
            make_wrong()
    with pytest.raises(ValueError, match="source is 5; name what the hash was taken of"):
        TokenHashOverride(1, 7, 5)  # type: ignore[arg-type]
    for start, end in ((-1, 2), (2, 2), (3, 2)):
        with pytest.raises(ValueError, match=rf"image spans \[{start}, {end}\)"):
            ImageMetadata(start, end)


def test_a_request_id_is_its_own_text() -> None:
    assert RequestID("r3").value == RequestID("r3") == "r3"
    assert RequestID().value != RequestID().value
