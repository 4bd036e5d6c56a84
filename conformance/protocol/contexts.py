"""Contexts as data, and back."""

from collections.abc import Hashable, Sequence

import numpy as np

from pagedkv.conformance.protocol.replies import Window
from pagedkv.conformance.protocol.requests import ContextData, Override
from pagedkv.reference.context import (
    Context,
    ExternalBlockMetadata,
    ImageMetadata,
    SpecDecodingState,
    TextContext,
)
from pagedkv.reference.tokens import TokenArray, TokenBuffer, TokenHashOverride


def id_text(request_id: Hashable) -> str:
    """A request id as text; one that is none stands in angle brackets, as in event traces."""
    return str(request_id) if isinstance(request_id, str) else f"<{request_id!r}>"


def as_data(ctx: Context) -> ContextData:
    """All that a manager may read of a context."""
    tokens, drafts, stores = ctx.tokens, ctx.spec_decoding_state, ctx.external_block_metadata
    if isinstance(stores, ExternalBlockMetadata):
        stores = {"endpoints": list(stores.endpoints)}
    return ContextData.model_validate(
        {
            "request_id": id_text(ctx.request_id),
            "tokens": tokens.all.tolist(),
            "prompt_length": tokens.prompt_length,
            "processed": tokens.processed_length,
            "position": tokens.current_position,
            "placeholders": ctx.pending_future_count,
            "drafts_to_verify": len(drafts.draft_tokens_to_verify),
            "maybe_accepted_drafts": len(drafts.maybe_accepted_draft_tokens),
            "cache_salt": ctx.cache_salt,
            "adapter": ctx.adapter,
            "overrides": _overrides(ctx),
            "given_digests": None if ctx.given_digests is None else list(ctx.given_digests),
            "external_block_metadata": stores,
            "preempted": ctx.preempted,
            "cached_prefix_length": ctx.cached_prefix_length,
        }
    )


def batches_as_data(batches: Sequence[Sequence[Context]]) -> list[list[ContextData]]:
    """Batches of contexts, one per replica."""
    return [[as_data(ctx) for ctx in batch] for batch in batches]


def as_context(data: ContextData) -> TextContext:
    """A context that says the same.

    Raises:
        ValueError: The fields contradict each other.
    """
    images = [ImageMetadata(o.position, o.position + 1) for o in data.overrides if o.hash is None]
    overrides = [
        TokenHashOverride(o.position, int(o.hash), o.source)
        for o in data.overrides
        if o.hash is not None
    ]
    ctx = TextContext(
        max_length=len(data.tokens),
        tokens=_tokens(data),
        request_id=data.request_id,
        cache_salt=data.cache_salt,
        adapter=data.adapter,
        external_block_metadata=data.external_block_metadata,
        images=images,
        token_hash_overrides=overrides,
        given_digests=data.given_digests,
        spec_decoding_state=SpecDecodingState(
            [0] * data.drafts_to_verify, [0] * data.maybe_accepted_drafts
        ),
        preempted=data.preempted,
        cached_prefix_length=data.cached_prefix_length,
    )
    ctx.pending_future_count = data.placeholders
    return ctx


def window_of(ctx: Context) -> Window:
    """What an allocation may have changed in a context."""
    return Window(
        processed=ctx.tokens.processed_length, cached_prefix_length=ctx.cached_prefix_length
    )


def move_window(ctx: Context, window: Window) -> None:
    """Change a context as the manager has changed its own.

    Raises:
        ValueError: The window would begin outside of the active tokens.
    """
    _begin_at(ctx, window.processed)
    ctx.cached_prefix_length = window.cached_prefix_length


def _begin_at(ctx: Context, processed: int) -> None:
    distance = processed - ctx.tokens.processed_length
    if distance < 0:
        ctx.tokens.rewind_processing(-distance)
    else:
        ctx.tokens.skip_processing(distance)


def _overrides(ctx: Context) -> list[Override]:
    """Content behind placeholders, images included; by position."""
    if isinstance(ctx, TextContext):
        # ``hash_overrides`` would refuse an image without a hash. That is an error only where
        # prefix caching is on, and so the manager's to say.
        given, images = ctx.token_hash_overrides, ctx.images
    else:
        given, images = list(ctx.hash_overrides), []
    found = [
        *(Override(position=o.token_idx, hash=str(o.token_hash), source=o.source) for o in given),
        *(Override(position=i.start_idx, hash=_text(i.image_hash), source="image") for i in images),
    ]
    return sorted(found, key=lambda o: (o.position, o.source, o.hash or ""))


def _text(number: int | None) -> str | None:
    return None if number is None else str(number)


class _SentTokens(TokenBuffer):
    """Tokens that come all at once: a long answer, one by one, took most of the time of a call."""

    def __init__(self, array: TokenArray, prompt_length: int) -> None:
        super().__init__(array)
        if not 1 <= prompt_length <= len(array):
            raise ValueError(
                f"prompt_length is {prompt_length}; there are {len(array)} tokens, and a prompt "
                "has one of them at least"
            )
        self._prompt_length = prompt_length


def _tokens(data: ContextData) -> TokenBuffer:
    """The tokens, with the prompt, the window and the chunk that they have elsewhere."""
    tokens = _SentTokens(np.array(data.tokens, dtype=np.int64), data.prompt_length)
    tokens.skip_processing(data.processed)
    if data.position < len(tokens):
        tokens.chunk(data.position - data.processed)
    return tokens
