"""What a forward gets from the cache: page tables and lengths, in memory that does not move.

Rules INPUT-1 to INPUT-7.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from pagedkv.reference.batches import check_batches
from pagedkv.reference.context import Context
from pagedkv.reference.errors import BatchesError, BlocksNotAllocatedError
from pagedkv.reference.events import InputsBuilt
from pagedkv.reference.inputs import BatchCharacteristics, KVCacheAssignments
from pagedkv.reference.lengths import (
    cache_length,
    cache_valid_length,
    ceil_div,
    query_length,
    required_pages,
)
from pagedkv.reference.state import Request, State


@dataclass(frozen=True)
class InputBuffers:
    """Where one replica's tables and lengths are written: always the same addresses (INPUT-7)."""

    tables: Sequence[torch.Tensor]
    """By shard: storage of the lookup table, ``[max_batch_size * max_columns]`` int32."""
    lengths: Sequence[torch.Tensor]
    """By shard: storage of the cache lengths, ``[max_batch_size]`` int32."""

    @classmethod
    def allocate(
        cls, devices: Sequence[torch.device], max_batch_size: int, max_columns: int
    ) -> "InputBuffers":
        """Storage on each shard's device."""
        return cls(
            [
                torch.zeros(max_batch_size * max_columns, dtype=torch.int32, device=d)
                for d in devices
            ],
            [torch.zeros(max_batch_size, dtype=torch.int32, device=d) for d in devices],
        )


def assignments(
    state: State,
    buffers: Sequence[InputBuffers],
    batches: Sequence[Sequence[Context]],
    max_cache_length: int | None,
    bounds: BatchCharacteristics | None,
) -> list[KVCacheAssignments]:
    """By replica: the lookup table and lengths of its batch. Writes only what has been checked.

    Raises:
        BatchesError: The batches do not fit the manager, or ``max_cache_length`` is too small or
            too large.
        BlocksNotAllocatedError: A request lacks pages (INPUT-3).
        ValueError: A batch exceeds ``bounds`` (INPUT-6).
    """
    # CHECK
    by_replica: list[list[tuple[Context, Request]]] = [[] for _ in state.pools]
    for replica, ctx, request in check_batches(state, batches, "runtime_inputs"):
        by_replica[replica].append((ctx, request))
    plans = [
        _check(state, replica, rows, len(buffers[replica].lengths[0]), max_cache_length, bounds)
        for replica, rows in enumerate(by_replica)
    ]

    # MOVE
    result = [
        _fill(state, replica, rows, buffers[replica], columns, shape)
        for replica, (rows, (columns, shape)) in enumerate(zip(by_replica, plans, strict=True))
    ]

    # RECORD
    ids = tuple(tuple(ctx.request_id for ctx in batch) for batch in batches)
    contexts = tuple(tuple(state.snapshot(ctx, ()) for ctx in batch) for batch in batches)
    state.emit(InputsBuilt(ids, contexts, max_cache_length, bounds))
    return result


def _check(
    state: State,
    replica: int,
    rows: Sequence[tuple[Context, Request]],
    max_batch_size: int,
    max_cache_length: int | None,
    bounds: BatchCharacteristics | None,
) -> tuple[int, BatchCharacteristics]:
    """Columns of the replica's table (INPUT-4), and the shape of its forward (INPUT-6)."""
    if len(rows) > max_batch_size:
        raise BatchesError(
            f"replica {replica} got a batch of {len(rows)}; max_batch_size is {max_batch_size}: "
            "split the batch or create the manager with a larger max_batch_size"
        )
    params = state.params
    columns = 1
    for ctx, request in rows:
        if not request.dummy:
            needed = _needed_pages(state, ctx)
            columns = max(columns, needed)
            if needed > len(request.pages):
                raise BlocksNotAllocatedError(
                    ctx.request_id, needed=needed, allocated=len(request.pages)
                )
    if max_cache_length is not None:
        asked, total = ceil_div(max_cache_length, params.page_size), state.pools[replica].total
        if not columns <= asked <= total:
            raise BatchesError(
                f"max_cache_length is {max_cache_length}, which makes {asked} table columns; the "
                f"batch needs {columns}, the replica has {total} pages: choose between "
                f"{(columns - 1) * params.page_size + 1} and {total * params.page_size} tokens"
            )
        columns = asked
    shape = BatchCharacteristics(
        batch_size=len(rows),
        max_prompt_length=max((query_length(ctx) for ctx, _ in rows), default=0),
        max_cache_valid_length=max((cache_valid_length(ctx, params) for ctx, _ in rows), default=0),
    )
    if bounds is None:
        return columns, shape
    bounds.check_covers(shape)
    return columns, bounds


def _needed_pages(state: State, ctx: Context) -> int:
    """Pages for LEN-1 and for every slot that the next forward writes (INPUT-3)."""
    # With several placeholders the forward writes a slot more than LEN-1 asks for.
    written = ceil_div(cache_length(ctx) + query_length(ctx), state.params.page_size)
    return max(required_pages(ctx, state.params), written)


def _fill(
    state: State,
    replica: int,
    rows: Sequence[tuple[Context, Request]],
    buffers: InputBuffers,
    columns: int,
    shape: BatchCharacteristics,
) -> KVCacheAssignments:
    """Write the table (INPUT-4) and the lengths (INPUT-5) of one replica's batch."""
    null_page = state.pools[replica].null_page
    table = torch.full((len(rows), columns), null_page, dtype=torch.int32)
    lengths = torch.zeros(len(rows), dtype=torch.int32)
    for row, (ctx, request) in enumerate(rows):
        if not request.dummy:
            shown = request.pages[: _needed_pages(state, ctx)]
            table[row, : len(shown)] = torch.tensor(shown, dtype=torch.int32)
        lengths[row] = cache_length(ctx)
    tables = [storage[: table.numel()].view(len(rows), columns) for storage in buffers.tables]
    lengths_by_device = [storage[: len(rows)] for storage in buffers.lengths]
    for destination in tables:
        destination.copy_(table)
    for destination in lengths_by_device:
        destination.copy_(lengths)
    return KVCacheAssignments(
        cache_lengths_by_device=lengths_by_device,
        lookup_table_by_device=tables,
        max_prompt_length=torch.tensor([shape.max_prompt_length], dtype=torch.int32),
        max_cache_length=torch.tensor([shape.max_cache_valid_length], dtype=torch.int32),
        batch_characteristics=shape,
    )
