"""What ``runtime_inputs`` checks of a batch before it writes anything, and the shape it finds.

Rules INPUT-2 to INPUT-6.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from pagedkv.engine.planner.state import Request, State
from pagedkv.reference.context import Context
from pagedkv.reference.errors import BatchesError, BlocksNotAllocatedError
from pagedkv.reference.inputs import BatchCharacteristics
from pagedkv.reference.lengths import (
    cache_length,
    cache_valid_length,
    ceil_div,
    query_length,
    required_pages,
)


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
    params, size = state.params, state.page_size
    columns, longest_query, longest_cache = 1, 0, 0
    used: list[int] = []
    lengths: list[int] = []
    for ctx, request in rows:
        cached, query, held = cache_length(ctx), query_length(ctx), len(request.pages)
        lengths.append(cached)
        longest_query = max(longest_query, query)
        longest_cache = max(longest_cache, cache_valid_length(ctx, params))
        if request.dummy:
            used.append(0)
            continue
        # With several placeholders the forward writes one slot more than LEN-1 asks for.
        needed = max(required_pages(ctx, params), ceil_div(cached + query, size))
        if needed > held:
            raise BlocksNotAllocatedError(ctx.request_id, needed=needed, allocated=held)
        columns = max(columns, needed)
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
