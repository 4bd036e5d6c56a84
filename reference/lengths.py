"""How many tokens a request needs room for, and how many of them may be identified.

Rules LEN-1 to LEN-4.
"""

from pagedkv.reference.context import Context
from pagedkv.reference.params import KVCacheParamInterface


def ceil_div(a: int, b: int) -> int:
    """``a / b``, rounded up."""
    return -(-a // b)


def required_tokens(ctx: Context, params: KVCacheParamInterface) -> int:
    """Tokens that need a slot once the next forward has run (LEN-1)."""
    drafts = params.num_draft_tokens
    return (
        ctx.tokens.current_position
        + len(ctx.spec_decoding_state.maybe_accepted_draft_tokens)
        # Drafts to verify in the next forward, and drafts written while it runs.
        + 2 * drafts
        # A block draft also writes the position after its last draft.
        + (1 if params.speculative_method == "dflash" else 0)
        # One sampled token; but the last known one, or each placeholder, has no KV yet.
        + 1
        - max(1, ctx.pending_future_count)
    )


def required_pages(ctx: Context, params: KVCacheParamInterface) -> int:
    """Pages for :func:`required_tokens` (LEN-1)."""
    return ceil_div(required_tokens(ctx, params), params.page_size)


def identifiable_tokens(ctx: Context) -> int:
    """Tokens whose content is known for good: not the last one, no placeholder (LEN-2, ID-7)."""
    return len(ctx.tokens) - max(1, ctx.pending_future_count)


def written_tokens(ctx: Context) -> int:
    """Identifiable tokens whose KV a forward has written (LEN-3)."""
    return min(ctx.tokens.processed_length, identifiable_tokens(ctx))


def query_length(ctx: Context) -> int:
    """Tokens that the next forward computes: the active ones and the drafts to verify (LEN-4).

    At least one is active (LEN-5).
    """
    return ctx.tokens.active_length + len(ctx.spec_decoding_state.draft_tokens_to_verify)


def cache_length(ctx: Context) -> int:
    """Tokens before the window whose KV the next forward reads (LEN-4)."""
    return ctx.tokens.processed_length + len(ctx.spec_decoding_state.maybe_accepted_draft_tokens)


def cache_valid_length(ctx: Context, params: KVCacheParamInterface) -> int:
    """Length up to which the cache holds or receives KV in the next forward (LEN-4)."""
    return cache_length(ctx) + query_length(ctx) + params.num_draft_tokens
