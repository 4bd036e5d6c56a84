"""What a forward is given: page tables and lengths, in memory that does not move."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from pagedkv.reference.context import Context
from pagedkv.reference.errors import BlocksNotAllocatedError
from pagedkv.reference.inputs import BatchCharacteristics, KVCacheAssignments
from pagedkv.reference.lengths import (
    cache_length,
    cache_valid_length,
    ceil_div,
    query_length,
    required_pages,
)
from pagedkv.reference.param_interface import KVCacheParamInterface, whole_number
from pagedkv.reference.tensor_types import Buffer


@dataclass(frozen=True)
class Row:
    """One request of a batch."""

    ctx: Context
    """Its lengths."""
    pages: Sequence[int]
    """The pages it holds."""
    dummy: bool
    """Whether it stands for nothing but a row."""


class LookupTables:
    """Tables and lengths of every device, allocated once (INPUT-7). Rules INPUT-3 to INPUT-7.

    Args:
        params: Page size and devices.
        total_num_pages: Pages per replica, and the id of the null page.
        max_batch_size: Most rows.
    """

    def __init__(
        self, params: KVCacheParamInterface, total_num_pages: int, max_batch_size: int
    ) -> None:
        self.params = params
        self.total_num_pages = total_num_pages

        def room(entries: int) -> list[list[Buffer]]:
            return [
                [torch.empty(entries, dtype=torch.int32, device=d.to_device()) for d in devices]
                for devices in params.devices_per_replica
            ]

        self._tables = room(max_batch_size * total_num_pages)
        self._lengths = room(max_batch_size)

    def fill(
        self,
        batches: Sequence[Sequence[Row]],
        max_cache_length: int | None,
        bounds: BatchCharacteristics | None,
    ) -> list[KVCacheAssignments]:
        """The assignments of one forward, one per replica; all is checked before any is written.

        Raises:
            BlocksNotAllocatedError: A request lacks pages.
            ValueError: ``max_cache_length`` or one of ``bounds`` is too small for a batch.
        """
        shapes = [self._shape(rows) for rows in batches]
        columns = [self._columns(rows, max_cache_length) for rows in batches]
        if bounds is not None:
            for shape in shapes:
                bounds.check_covers(shape)
        return [
            self._write(replica, rows, columns[replica], bounds or shapes[replica])
            for replica, rows in enumerate(batches)
        ]

    def _shape(self, rows: Sequence[Row]) -> BatchCharacteristics:
        return BatchCharacteristics(
            batch_size=len(rows),
            max_prompt_length=max((query_length(row.ctx) for row in rows), default=0),
            max_cache_valid_length=max(
                (cache_valid_length(row.ctx, self.params) for row in rows), default=0
            ),
        )

    def _needed(self, row: Row) -> int:
        """Pages that the row shows: for LEN-1, and for every slot that is written (INPUT-3)."""
        written = cache_length(row.ctx) + query_length(row.ctx)
        return max(required_pages(row.ctx, self.params), ceil_div(written, self.params.page_size))

    def _columns(self, rows: Sequence[Row], max_cache_length: int | None) -> int:
        size = self.params.page_size
        columns = 1
        for row in rows:
            if row.dummy:
                continue
            needed = self._needed(row)
            if needed > len(row.pages):
                raise BlocksNotAllocatedError(
                    row.ctx.request_id, needed=needed, allocated=len(row.pages)
                )
            columns = max(columns, needed)
        if max_cache_length is None:
            return columns
        asked = max(1, ceil_div(whole_number("max_cache_length", max_cache_length, 0), size))
        if not columns <= asked <= self.total_num_pages:
            raise ValueError(
                f"max_cache_length is {max_cache_length}; the batch needs at least "
                f"{(columns - 1) * size + 1}, and {self.total_num_pages * size} is the most that "
                "the replica's pages hold"
            )
        return asked

    def _write(
        self, replica: int, rows: Sequence[Row], columns: int, shape: BatchCharacteristics
    ) -> KVCacheAssignments:
        table = torch.full((len(rows), columns), self.total_num_pages, dtype=torch.int32)
        for row, entries in zip(rows, table, strict=True):
            if not row.dummy:
                used = row.pages[: self._needed(row)]
                entries[: len(used)] = torch.tensor(used, dtype=torch.int32)
        lengths = torch.tensor([cache_length(row.ctx) for row in rows], dtype=torch.int32)
        return KVCacheAssignments(
            cache_lengths_by_device=[
                own[: len(rows)].copy_(lengths) for own in self._lengths[replica]
            ],
            lookup_table_by_device=[
                own[: table.numel()].view(table.shape).copy_(table) for own in self._tables[replica]
            ],
            max_prompt_length=torch.tensor([shape.max_prompt_length], dtype=torch.int32),
            max_cache_length=torch.tensor([shape.max_cache_valid_length], dtype=torch.int32),
            batch_characteristics=shape,
        )
