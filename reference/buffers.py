"""Device memory of the pages, and its uniform view as rows of bytes for transfers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Protocol, runtime_checkable

import torch

from pagedkv.reference.tensor_types import Buffer


@dataclass(frozen=True, eq=False, repr=False)
class KVCacheMemory:
    """One unit of transfer: a shard's pages as rows of bytes.

    It is a view. The memory belongs to the :class:`KVCacheBuffer` it was made from.
    """

    buffer: Buffer
    """``[num_pages, bytes_per_page]`` uint8, contiguous; row ``i`` is page ``i``."""

    def __post_init__(self) -> None:
        """Raises ``ValueError`` unless every buffer is two-dimensional uint8 of the same shape."""
        for buffer in self.all_buffers:
            if buffer.dtype != torch.uint8 or buffer.ndim != 2:
                raise ValueError(
                    f"buffer is {buffer.dtype} {list(buffer.shape)}, but should be torch.uint8 "
                    "[num_pages, bytes_per_page]; make memory units with to_memory()"
                )
        _check_uniform("buffer and peers", self.all_buffers)

    @property
    def total_num_pages(self) -> int:
        """Pages in this unit, the null page included."""
        return self.buffer.shape[0]

    @property
    def bytes_per_page(self) -> int:
        """Bytes that one page takes in a lower tier: a replicated page counts once."""
        return self.buffer.shape[1]

    @property
    def all_buffers(self) -> list[Buffer]:
        """Every shard that holds the content, the one to read first."""
        return [self.buffer]

    def copy_block_to(self, dst: KVCacheMemory, dst_block_id: int, src_block_id: int) -> None:
        """Copy one page to the same unit of another replica, shard by shard.

        On GPUs the copies are enqueued on torch's current stream.

        Args:
            dst: Unit with the same number of shards and bytes per page; it may be this one.
            dst_block_id: Page that is overwritten.
            src_block_id: Page that is read.

        Raises:
            ValueError: The layouts differ, or a page does not exist. Nothing was copied.
        """
        if (len(self.all_buffers), self.bytes_per_page) != (
            len(dst.all_buffers),
            dst.bytes_per_page,
        ):
            raise ValueError(f"cannot copy a page of {self!r} to {dst!r}: their layouts differ")
        for name, block_id, memory in (
            ("dst_block_id", dst_block_id, dst),
            ("src_block_id", src_block_id, self),
        ):
            if not 0 <= block_id < memory.total_num_pages:
                raise ValueError(
                    f"{name} is {block_id}; use 0 to {memory.total_num_pages - 1}, "
                    f"the pages of {memory!r}"
                )
        for target, source in zip(dst.all_buffers, self.all_buffers, strict=True):
            target[dst_block_id].copy_(source[src_block_id], non_blocking=True)

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({self.total_num_pages} pages of {self.bytes_per_page} bytes "
            f"on {', '.join(str(buffer.device) for buffer in self.all_buffers)})"
        )


@dataclass(frozen=True, eq=False, repr=False)
class ReplicatedKVCacheMemory(KVCacheMemory):
    """Pages that every tensor-parallel shard holds in full (MLA).

    Offloads read ``buffer`` alone; onloads write it and every peer.
    """

    peers: Sequence[Buffer]
    """The other shards: shaped like ``buffer``, at least one."""

    def __post_init__(self) -> None:
        """Raises ``ValueError`` without peers, or where a peer is shaped differently."""
        if not self.peers:
            raise ValueError("peers is empty; one shard alone is a KVCacheMemory")
        super().__post_init__()

    @property
    def all_buffers(self) -> list[Buffer]:
        """The root, then its peers."""
        return [self.buffer, *self.peers]


@runtime_checkable
class KVCacheBufferInterface(Protocol):
    """Device memory of one replica: a :class:`KVCacheBuffer`, or a tree of them."""

    @property
    def total_num_pages(self) -> int:
        """First dimension that all buffers share: the pages, the null page included."""
        ...

    @property
    def all_buffers(self) -> list[Buffer]:
        """Every buffer in one flat list, values before scales."""
        ...

    def to_memory(self) -> list[KVCacheMemory]:
        """The units of transfer, as views."""
        ...


@dataclass(frozen=True, eq=False, repr=False)
class KVCacheBuffer:
    """Device memory of one cache on one data-parallel replica. It owns its tensors.

    Each list has one buffer per tensor-parallel shard.
    """

    replicates_kv_across_tp: bool
    """Whether the shards hold the same content (MLA), rather than heads of their own."""
    values: list[Buffer]
    """``[num_pages, kv, layers, page_size, heads, head_dim]`` each, contiguous (MEM-1)."""
    scales: list[Buffer] | None = None
    """``[num_pages, kv, layers, page_size, heads, groups]`` each: one scale per group of elements
    of a head, for FP8 values. None when the cache is not quantised."""

    def __post_init__(self) -> None:
        """Raises ``ValueError`` where the buffers do not fit together."""
        if not self.values:
            raise ValueError("values is empty; give one buffer per tensor-parallel shard")
        if self.replicates_kv_across_tp and len(self.values) == 1:
            raise ValueError(
                "replicates_kv_across_tp is True with a single shard; set it to False, or give "
                "every shard's buffer in values"
            )
        _check_uniform("values", self.values)
        if self.scales is not None:
            if len(self.scales) != len(self.values):
                raise ValueError(
                    f"scales has {len(self.scales)} buffers and values {len(self.values)}; "
                    "give one of each per shard"
                )
            _check_uniform("scales", self.scales)
            for shard, (value, scale) in enumerate(zip(self.values, self.scales, strict=True)):
                if (value.shape[0], value.device) != (scale.shape[0], scale.device):
                    raise ValueError(
                        f"shard {shard} has {value.shape[0]} pages of values on {value.device}, "
                        f"but {scale.shape[0]} pages of scales on {scale.device}; they must agree"
                    )

    @property
    def total_num_pages(self) -> int:
        """First dimension of values and scales: the pages, the null page included (MEM-3)."""
        return self.values[0].shape[0]

    @property
    def all_buffers(self) -> list[Buffer]:
        """Every value buffer, then every scale buffer."""
        return [*self.values, *(self.scales or ())]

    def to_memory(self) -> list[KVCacheMemory]:
        """The units of transfer, values first, then scales; views, never copies (MEM-2).

        Shards with heads of their own are a :class:`KVCacheMemory` each; replicated ones make a
        single :class:`ReplicatedKVCacheMemory`.
        """
        units: list[KVCacheMemory] = []
        for shards in (self.values, self.scales):
            if shards is None:
                continue
            root, *peers = views = [_as_rows_of_bytes(buffer) for buffer in shards]
            if self.replicates_kv_across_tp:
                units.append(ReplicatedKVCacheMemory(root, peers))
            else:
                units += [KVCacheMemory(view) for view in views]
        return units

    def __repr__(self) -> str:
        value = self.values[0]
        return (
            f"KVCacheBuffer({self.total_num_pages} pages of {list(value.shape[1:])} {value.dtype}"
            f"{'' if self.scales is None else ' with scales'}, {len(self.values)} "
            f"{'replicated' if self.replicates_kv_across_tp else 'sharded'} on {value.device})"
        )


@dataclass(frozen=True, eq=False)
class MultiKVCacheBuffer:
    """Device memory of several caches that page the same sequences, on one replica."""

    children: dict[str, KVCacheBufferInterface]
    """Memory by cache name, in the order of the parameters. Page ``i`` of each belongs together."""

    def __post_init__(self) -> None:
        """Raises ``ValueError`` without children, or where their page counts differ."""
        if not self.children:
            raise ValueError("children is empty; give at least one cache's buffer")
        pages = {name: child.total_num_pages for name, child in self.children.items()}
        if len(set(pages.values())) > 1:
            raise ValueError(f"children have {pages} pages; allocate all of them with one count")

    @property
    def total_num_pages(self) -> int:
        """First dimension that all children share: the pages, the null page included (MEM-3)."""
        return next(iter(self.children.values())).total_num_pages

    @property
    def all_buffers(self) -> list[Buffer]:
        """Every child's buffers, child by child."""
        return [buffer for child in self.children.values() for buffer in child.all_buffers]

    def to_memory(self) -> list[KVCacheMemory]:
        """Every child's units of transfer, child by child."""
        return [unit for child in self.children.values() for unit in child.to_memory()]


def _check_uniform(name: str, buffers: Sequence[Buffer]) -> None:
    """Raise ``ValueError`` unless all have one dtype and shape, and a page is one run of bytes."""
    first = buffers[0]
    for shard, buffer in enumerate(buffers):
        if (buffer.dtype, buffer.shape) != (first.dtype, first.shape):
            raise ValueError(
                f"{name}[{shard}] is {buffer.dtype} {list(buffer.shape)}, but [0] is {first.dtype} "
                f"{list(first.shape)}; all shards must be alike"
            )
        if buffer.ndim == 0 or not buffer.is_contiguous():
            raise ValueError(
                f"{name}[{shard}] with shape {list(buffer.shape)} and strides "
                f"{list(buffer.stride())} is not contiguous; pages must be rows of one tensor"
            )


def _as_rows_of_bytes(buffer: Buffer) -> Buffer:
    """``[num_pages, bytes_per_page]`` uint8 over the same memory."""
    num_pages, *page_shape = buffer.shape
    return buffer.view(torch.uint8).view(num_pages, prod(page_shape) * buffer.itemsize)
