"""What ``runtime_inputs`` checks of a batch before it writes anything, and the shape it finds.

Rules INPUT-2 to INPUT-6.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from pagedkv.engine.planner.state import Request, State
from pagedkv.reference.context import Context
from pagedkv.reference.errors import BatchesError, BlocksNotAllocatedError
from pagedkv.reference.inputs import BatchCharacteristics
from pagedkv.reference.lengths import ceil_div


@dataclass(slots=True)
class ForwardShape:
    """One replica's part of a forward."""

    used: list[int]
    """By request: how many of its pages the table lists."""
    lengths: list[int]
    """By request: tokens in the cache."""
    columns: int
    """Columns of the table."""
    characteristics: BatchCharacteristics
    """The batch's shape, or the bounds that were asked for in its place."""


def forward_shape(
    state: State,
    replica_idx: int,
    rows: Sequence[tuple[Context, Request]],
    max_batch_size: int,
    max_cache_length: int | None,
    bounds: BatchCharacteristics | None,
) -> ForwardShape:
    """Shape of the replica's batch.

    Raises:
        BatchesError: The batch or ``max_cache_length`` is too large or too small.
        BlocksNotAllocatedError: A request lacks pages (INPUT-3).
        ValueError: The batch exceeds ``bounds`` (INPUT-6).
    """
    if len(rows) > max_batch_size:
        raise BatchesError(
            f"replica {replica_idx} got a batch of {len(rows)}; max_batch_size is "
            f"{max_batch_size}: split the batch or create the manager with a larger one"
        )
    size, drafts = state.page_size, state.params.num_draft_tokens
    columns, longest_query, longest_cache = 1, 0, 0
    used: list[int] = []
    lengths: list[int] = []
    # The lengths of LEN-1 and LEN-4, worked out together: by the functions of the vocabulary this
    # loop would take three times as long, and it runs for every request of every forward.
    for ctx, request in rows:
        tokens, speculation = ctx.tokens, ctx.spec_decoding_state
        start, position = tokens.processed_length, tokens.current_position
        accepted = len(speculation.maybe_accepted_draft_tokens)
        cached = start + accepted
        written = cached + position - start + len(speculation.draft_tokens_to_verify)
        lengths.append(cached)
        if written - cached > longest_query:
            longest_query = written - cached
        if written + drafts > longest_cache:
            longest_cache = written + drafts
        if request.dummy:
            used.append(0)
            continue
        pending = ctx.pending_future_count
        required = position + accepted + state.tokens_ahead - (pending if pending > 1 else 1)
        # With several placeholders the forward writes one slot more than LEN-1 asks for.
        needed = -(-(required if required > written else written) // size)
        if needed > len(request.pages):
            held = len(request.pages)
            raise BlocksNotAllocatedError(ctx.request_id, needed=needed, allocated=held)
        if needed > columns:
            columns = needed
        used.append(needed)
    if max_cache_length is not None:
        asked, total = ceil_div(max_cache_length, size), state.pools[replica_idx].total
        if not columns <= asked <= total:
            raise BatchesError(
                f"max_cache_length is {max_cache_length}, which makes {asked} table columns; the "
                f"batch needs {columns}, the replica has {total} pages: choose between "
                f"{(columns - 1) * size + 1} and {total * size} tokens"
            )
        columns = asked
    shape = BatchCharacteristics(len(rows), longest_query, longest_cache)
    if bounds is not None:
        bounds.check_covers(shape)
    return ForwardShape(used, lengths, columns, bounds or shape)
