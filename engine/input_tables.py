"""Lookup tables and cache lengths on the devices, written without waiting for a copy.

Rules INPUT-4, INPUT-5 and INPUT-7.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from pagedkv.engine.planner.state import PageTable
from pagedkv.engine.streams.stream import Access, Copy, Memory, StreamEvent, Streams
from pagedkv.reference.tensor_types import Buffer

ENTRY_NBYTES = 4
"""Everything here is int32."""


@dataclass(eq=False, slots=True)
class _Staging:
    """Host memory from which one call's tables are copied."""

    name: str
    """What the log calls it."""
    storage: Buffer
    """int32, pinned where there is a GPU."""
    view: npt.NDArray[np.int32]
    """The same for numpy."""
    entries: memoryview
    """The same once more: an array is copied into it ten times as fast as into numpy's."""
    source: Memory
    """The part of it that the last call filled, as one row of bytes."""
    used_until: list[StreamEvent]
    """Events behind the copies that read it: it may be written again when they are done."""


@dataclass(eq=False, slots=True)
class _Shape:
    """Views of the device memory for batches of one shape.

    Decoding has the same one many times in a row, and torch takes 2 µs to make a view.
    """

    batch: int
    """Rows of the table."""
    columns: int
    """Its columns."""
    tables: list[Buffer]
    """By device: the table."""
    lengths: list[Buffer]
    """By device: the lengths."""
    targets: list[Memory]
    """By device: both, as one row of bytes."""


class InputTables:
    """Where one replica's tables and lengths are: always the same addresses.

    Args:
        streams: Where copies go: onto each device's compute stream, behind the forward that reads
            the tables of the call before.
        first_device_idx: The replica's first device.
        devices: Its devices.
        max_batch_size: Most rows of a table.
        max_columns: Most columns.
    """

    def __init__(
        self,
        streams: Streams,
        first_device_idx: int,
        devices: Sequence[torch.device],
        max_batch_size: int,
        max_columns: int,
    ) -> None:
        self.max_batch_size = max_batch_size
        """Most rows of a table."""
        self._streams = streams
        self._first_device_idx = first_device_idx
        # The lengths stand in front, so that one copy takes both.
        num_entries = max_batch_size * (1 + max_columns)
        self._storages = [torch.zeros(num_entries, dtype=torch.int32, device=d) for d in devices]
        self._pin = any(device.type == "cuda" for device in devices)
        self._shape = self._shape_of(0, 0)
        self._staging: list[_Staging] = []
        self._num_stagings = 0

    def write(
        self,
        rows: Iterable[tuple[PageTable, int]],
        lengths: Sequence[int],
        columns: int,
        null_page: int,
    ) -> tuple[list[Buffer], list[Buffer]]:
        """Fill tables and lengths for a batch; the copies run in stream order.

        Args:
            rows: By request: its pages, and how many of them the table lists.
            lengths: By request: tokens in the cache.
            columns: Columns of the table.
            null_page: What unused entries are.

        Returns:
            By device: the table, ``[batch, columns]`` int32, and the lengths, ``[batch]`` int32.
        """
        batch, start = len(lengths), self.max_batch_size
        end = start + batch * columns
        shape = self._shape
        if (shape.batch, shape.columns) != (batch, columns):
            shape = self._shape = self._shape_of(batch, columns)
        found = list(shape.tables), list(shape.lengths)
        if not batch:
            return found  # a replica whose device has failed does not hold up the others
        staging = self._unused_staging(end)
        self._streams.host_accessed((Access(staging.name, 0, writes=True),))
        entries, table = staging.entries, staging.view[start:end].reshape(batch, columns)
        staging.view[:batch] = lengths
        for n, (pages, used) in enumerate(rows):
            row = start + n * columns
            entries[row : row + used] = pages if len(pages) == used else pages[:used]
            if used < columns:
                table[n, used:] = null_page
        for device_idx, target in enumerate(shape.targets, self._first_device_idx):
            copies = [Copy(target, 0, staging.source, 0)]
            staging.used_until.append(self._streams.copy(device_idx, "compute", copies))
        return found

    def _shape_of(self, batch: int, columns: int) -> _Shape:
        start = self.max_batch_size
        end = start + batch * columns
        return _Shape(
            batch,
            columns,
            [storage[start:end].view(batch, columns) for storage in self._storages],
            [storage[:batch] for storage in self._storages],
            [
                Memory(f"device {device_idx} inputs", _as_row(storage[:end]))
                for device_idx, storage in enumerate(self._storages, self._first_device_idx)
            ],
        )

    def _unused_staging(self, num_entries: int) -> _Staging:
        """Staging that no pending copy reads; rather more of it than a wait."""
        for staging in self._staging:
            if all(event.done for event in staging.used_until):
                if staging.storage.numel() < num_entries:
                    self._staging.remove(staging)
                    break
                staging.used_until.clear()
                if staging.source.rows.numel() != num_entries * ENTRY_NBYTES:
                    staging.source = Memory(staging.name, _as_row(staging.storage[:num_entries]))
                return staging
        storage = torch.empty(num_entries, dtype=torch.int32, pin_memory=self._pin)
        self._num_stagings += 1
        name = f"inputs of device {self._first_device_idx}, staging {self._num_stagings}"
        view = storage.numpy()
        source = Memory(name, _as_row(storage))
        self._staging.append(_Staging(name, storage, view, view.data, source, []))
        return self._staging[-1]


def _as_row(entries: Buffer) -> Buffer:
    """One row of bytes over the same memory."""
    return entries.view(torch.uint8).view(1, -1)
