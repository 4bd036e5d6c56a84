"""The bytes of single tokens in device memory, for managers that are asked for them."""

from collections.abc import Sequence

import torch

from pagedkv.conformance.slots import tensors_of
from pagedkv.reference.buffers import KVCacheBufferInterface


class SlotBytes:
    """One run of bytes per token: all layers, shards, caches and scales, one after the other.

    Content that is equal on all shards is in it once.
    """

    def __init__(self, buffers: Sequence[KVCacheBufferInterface]) -> None:
        self._contents = [_by_content(buffer) for buffer in buffers]
        self.nbytes = sum(copies[0][0, :, :, 0].numel() for copies in self._contents[0])
        """Length of a run."""

    def read(self, replica: int, page: int, offset: int) -> bytes:
        """The bytes of one slot.

        Raises:
            ValueError: Shards that should hold the same do not.
        """
        found = b""
        for copies in self._contents[replica]:
            first, *others = (bytes(t[page, :, :, offset].flatten().tolist()) for t in copies)
            if any(other != first for other in others):
                raise ValueError(f"the shards differ in slot {offset} of page {page}")
            found += first
        return found

    def write(self, replica: int, page: int, offset: int, data: bytes) -> None:
        """Overwrite one slot.

        Raises:
            ValueError: ``data`` has another length.
        """
        if len(data) != self.nbytes:
            raise ValueError(f"a slot has {self.nbytes} bytes, not {len(data)}")
        rest = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        for copies in self._contents[replica]:
            shape = copies[0][page, :, :, offset].shape
            part, rest = rest[: shape.numel()], rest[shape.numel() :]
            for tensor in copies:
                tensor[page, :, :, offset] = part.view(shape)


def _by_content(buffer: KVCacheBufferInterface) -> list[list[torch.Tensor]]:
    """The tensors that hold each content: several, if shards replicate it."""
    contents: dict[str, list[torch.Tensor]] = {}
    for tensor, name in tensors_of(buffer):
        contents.setdefault(name, []).append(tensor)
    return list(contents.values())
