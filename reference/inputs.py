"""Inputs that a forward takes from the cache, real or symbolic, flattened in one fixed order.

A leaf lists one :class:`KVCacheInputsPerDevice` per device, replica-major; models with several
caches have a tree of leaves. The metadata with which MAX's attention kernels choose their launch
shapes is no part of it: it is those kernels' own business.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import islice
from typing import Generic, Protocol, TypeVar, runtime_checkable

import numpy as np
import torch

from pagedkv.reference.tensor_types import Buffer, BufferType, SymbolicType, TensorType

INT32_MAX = 2**31 - 1
"""Most that a length or a page id may be: forwards take them as int32."""

TensorT = TypeVar("TensorT", TensorType, torch.Tensor)
BufferT = TypeVar("BufferT", BufferType, torch.Tensor)


@dataclass(frozen=True)
class BatchCharacteristics:
    """Upper bounds of a batch's shape: what a captured graph was prepared for. They fit int32."""

    batch_size: int
    """Requests in the batch."""
    max_prompt_length: int
    """Most tokens that one request computes in this forward."""
    max_cache_valid_length: int
    """Most tokens of one request that are in the cache once the forward has run."""

    def __post_init__(self) -> None:
        """Raises ``ValueError`` for a bound that is no whole number of int32, or negative."""
        for field in fields(self):
            bound = getattr(self, field.name)
            whole = isinstance(bound, int | np.integer) and not isinstance(bound, bool)
            if not whole or not 0 <= bound <= INT32_MAX:
                raise ValueError(
                    f"{field.name} is {bound!r}; use a whole number from 0 to {INT32_MAX:,}"
                )

    def check_covers(self, actual: BatchCharacteristics) -> None:
        """Raise ``ValueError``, naming the bound, where ``actual`` exceeds one of these."""
        for field in fields(self):
            bound, value = getattr(self, field.name), getattr(actual, field.name)
            if value > bound:
                raise ValueError(
                    f"batch_characteristics.{field.name} is {bound}, but the batch has {value}; "
                    "raise the bound or split the batch"
                )


@dataclass(frozen=True, eq=False)
class KVCacheAssignments:
    """Which pages one replica's batch uses: what the manager fills in before a forward."""

    cache_lengths_by_device: Sequence[Buffer]
    """Tokens already in the cache, ``[batch]`` int32 per shard."""
    lookup_table_by_device: Sequence[Buffer]
    """Page ids, ``[batch, columns]`` int32 per shard; unused entries are the null page's id."""
    max_prompt_length: Buffer
    """Most tokens that one request computes, ``[1]`` int32 on the CPU."""
    max_cache_length: Buffer
    """Most tokens of one request that are in the cache, ``[1]`` int32 on the CPU."""
    batch_characteristics: BatchCharacteristics
    """The batch's shape, or the bounds that were asked for in its place."""

    def __repr__(self) -> str:
        return f"KVCacheAssignments({_brief_fields(self)})"


@dataclass(frozen=True, eq=False)
class KVCacheInputsPerDevice(Generic[TensorT, BufferT]):
    """What the forward on one device takes from the cache, in flattening order (MEM-4)."""

    kv_blocks: BufferT
    """All pages, ``[num_pages, kv, layers, page_size, heads, head_dim]``; written in place."""
    cache_lengths: TensorT
    """Tokens already in the cache, ``[batch]`` int32."""
    lookup_table: TensorT
    """Page ids, ``[batch, columns]`` int32; unused entries are the null page's id."""
    max_prompt_length: TensorT
    """Most tokens that one request computes, ``[1]`` int32 on the CPU."""
    max_cache_length: TensorT
    """Most tokens of one request that are in the cache, ``[1]`` int32 on the CPU."""
    kv_scales: BufferT | None = None
    """All scales, ``[num_pages, kv, layers, page_size, heads, groups]``; None if not quantised."""

    def flatten(self) -> list[TensorT | BufferT]:
        """The fields that are there, in order."""
        return [getattr(self, name) for name in self._present()]

    def unflatten(self, it: Iterator[torch.Tensor]) -> KVCacheInputsPerDevice[Buffer, Buffer]:
        """Take from ``it`` what :meth:`flatten` would give, and rebuild.

        Raises:
            ValueError: ``it`` ends too early.
        """
        names = self._present()
        values = list(islice(it, len(names)))
        if len(values) < len(names):
            raise ValueError(
                f"the inputs end before {names[len(values)]}; pass all that flatten() gave"
            )
        return KVCacheInputsPerDevice(**dict(zip(names, values, strict=True)))

    def _present(self) -> list[str]:
        return [field.name for field in fields(self) if getattr(self, field.name) is not None]

    def __repr__(self) -> str:
        return f"KVCacheInputsPerDevice({_brief_fields(self)})"


@runtime_checkable
class KVCacheInputsInterface(Protocol[TensorT, BufferT]):
    """Inputs of one cache, or of a tree of caches."""

    def flatten(self) -> list[TensorT | BufferT]:
        """Every input in one flat list."""
        ...

    def unflatten(self, it: Iterator[torch.Tensor]) -> KVCacheInputsInterface[Buffer, Buffer]:
        """Take from ``it`` what :meth:`flatten` would give, and rebuild."""
        ...


@dataclass(frozen=True, eq=False)
class KVCacheInputs(KVCacheInputsInterface[TensorT, BufferT]):
    """Inputs of one cache on all devices."""

    inputs: Sequence[KVCacheInputsPerDevice[TensorT, BufferT]]
    """One per device: the shards of replica 0, then of replica 1, ..."""

    def flatten(self) -> list[TensorT | BufferT]:
        """Every device's inputs, device by device."""
        return [value for device in self.inputs for value in device.flatten()]

    def unflatten(self, it: Iterator[torch.Tensor]) -> KVCacheInputs[Buffer, Buffer]:
        """Take from ``it`` what :meth:`flatten` would give, and rebuild."""
        return KVCacheInputs([device.unflatten(it) for device in self.inputs])


@dataclass(frozen=True, eq=False)
class MultiKVCacheInputs(KVCacheInputsInterface[TensorT, BufferT]):
    """Inputs of several caches that page the same sequences."""

    children: dict[str, KVCacheInputsInterface[TensorT, BufferT]]
    """Inputs by cache name, in the order of the parameters."""

    def flatten(self) -> list[TensorT | BufferT]:
        """Every child's inputs, child by child."""
        return [value for child in self.children.values() for value in child.flatten()]

    def unflatten(self, it: Iterator[torch.Tensor]) -> MultiKVCacheInputs[Buffer, Buffer]:
        """Take from ``it`` what :meth:`flatten` would give, and rebuild."""
        return MultiKVCacheInputs(
            {name: child.unflatten(it) for name, child in self.children.items()}
        )


def _brief_fields(inputs: KVCacheAssignments | KVCacheInputsPerDevice[TensorT, BufferT]) -> str:
    """Every field by name; of tensors, only what is in one line."""
    return ", ".join(f"{f.name}={_brief(getattr(inputs, f.name))}" for f in fields(inputs))


def _brief(value: object) -> str:
    """Dtype and shape of a tensor, real or symbolic, or of each one in a list."""
    match value:
        case torch.Tensor() | SymbolicType():
            return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
        case list() | tuple():
            return f"[{', '.join(map(_brief, value))}]"
        case _:
            return repr(value)
