"""Tensors and their symbolic types: dtype, shape with named dimensions, device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from pagedkv.reference.device import DeviceRef

DType = torch.dtype
"""Element type of a cache or an input."""

Buffer = torch.Tensor
"""Memory on one device. What MAX calls a buffer is a torch tensor here."""

Dim = int | str
"""A dimension: a fixed size, or a name that stands for the same size wherever it occurs."""


@dataclass(frozen=True)
class SymbolicType:
    """What a tensor will look like, before there is one."""

    dtype: DType
    """Element type."""
    shape: Sequence[Dim]
    """Dimensions, outermost first; kept as a tuple."""
    device: DeviceRef
    """Where the tensor lives."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(self.shape))

    @property
    def rank(self) -> int:
        """Number of dimensions."""
        return len(self.shape)

    def bind(self, tensor: Buffer, sizes: dict[str, int]) -> None:
        """Check ``tensor`` against this type.

        Args:
            tensor: The real tensor.
            sizes: Sizes of the names met so far; new ones are added. Use one dictionary for all
                inputs of a forward, so that a name means one size throughout.

        Raises:
            ValueError: Dtype, rank, device, a fixed size or an already known name differs.
        """
        if tensor.dtype != self.dtype:
            raise ValueError(f"dtype is {tensor.dtype}, but should be {self.dtype}")
        device = DeviceRef.of(tensor.device)
        if device != self.device and not (device.is_cpu() and self.device.is_cpu()):
            raise ValueError(f"device is {device}, but should be {self.device}")
        if tensor.ndim != self.rank:
            raise ValueError(f"shape is {list(tensor.shape)}, but should be {list(self.shape)}")
        for dim, size in zip(self.shape, tensor.shape, strict=True):
            expected = sizes.setdefault(dim, size) if isinstance(dim, str) else dim
            if size != expected:
                raise ValueError(
                    f"shape is {list(tensor.shape)}, but should be {list(self.shape)} "
                    f"with {dim} = {expected}"
                )


@dataclass(frozen=True)
class TensorType(SymbolicType):
    """A tensor that a forward only reads."""


@dataclass(frozen=True)
class BufferType(SymbolicType):
    """A tensor that a forward writes in place: pages and their scales."""
