"""What every token slot of device memory must hold, and where to look for it.

A forward writes into each slot a value made of the whole prefix up to that token, the namespace,
the layer and the shard. Whatever a manager shares, copies or loads, a request that reads a slot
as cached must find the value of its own prefix there.
"""

import hashlib
from collections.abc import Iterator, Sequence
from typing import Protocol

import torch

from pagedkv.conformance.violation import demand
from pagedkv.reference.buffers import (
    KVCacheBuffer,
    KVCacheBufferInterface,
    MultiKVCacheBuffer,
)
from pagedkv.reference.context import Context


class Slots(Protocol):
    """Device memory as the driver sees it: one slot per page and offset."""

    def write(self, replica: int, page: int, offset: int, value: bytes) -> None:
        """Write the KV of one token; ``value`` says which."""
        ...

    def holds(self, replica: int, page: int, offset: int, value: bytes) -> bool:
        """Whether the slot has exactly that KV, in every layer, shard, cache and scale."""
        ...


class OwnSlots:
    """Memory that the driver keeps itself, for managers that only keep books."""

    def __init__(self) -> None:
        self._values: dict[tuple[int, int, int], bytes] = {}

    def write(self, replica: int, page: int, offset: int, value: bytes) -> None:
        """See :class:`Slots`."""
        self._values[replica, page, offset] = value

    def holds(self, replica: int, page: int, offset: int, value: bytes) -> bool:
        """See :class:`Slots`."""
        return self._values.get((replica, page, offset)) == value


class BufferSlots:
    """The memory that the manager gives to forwards: ``get_device_buffer`` of each replica."""

    def __init__(self, buffers: Sequence[KVCacheBufferInterface]) -> None:
        self._tensors = [list(_tensors(buffer)) for buffer in buffers]

    def write(self, replica: int, page: int, offset: int, value: bytes) -> None:
        """See :class:`Slots`."""
        for tensor, name in self._tensors[replica]:
            slot = tensor[page, :, :, offset]
            slot.copy_(_bytes_of(value, name, slot.numel()).view(slot.shape))

    def holds(self, replica: int, page: int, offset: int, value: bytes) -> bool:
        """See :class:`Slots`."""
        return all(
            torch.equal(slot.reshape(-1).cpu(), _bytes_of(value, name, slot.numel()))
            for tensor, name in self._tensors[replica]
            for slot in (tensor[page, :, :, offset],)
        )


def _tensors(buffer: KVCacheBufferInterface) -> Iterator[tuple[torch.Tensor, str]]:
    """Every tensor as bytes, with the name of its content: replicated shards hold the same."""
    if isinstance(buffer, MultiKVCacheBuffer):
        for name, child in buffer.children.items():
            yield from ((tensor, f"{name} {kind}") for tensor, kind in _tensors(child))
        return
    assert isinstance(buffer, KVCacheBuffer)
    for kind, shards in (("values", buffer.values), ("scales", buffer.scales or ())):
        for shard, tensor in enumerate(shards):
            content = 0 if buffer.replicates_kv_across_tp else shard
            yield tensor.view(torch.uint8), f"{kind} {content}"


def _bytes_of(value: bytes, name: str, nbytes: int) -> torch.Tensor:
    data = hashlib.shake_128(value + name.encode()).digest(nbytes)
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


def token_values(ctx: Context, namespace: object, count: int) -> list[bytes]:
    """What the slots of the first ``count`` tokens of a request must hold."""
    overrides: dict[int, list[str]] = {}
    for override in ctx.hash_overrides:
        overrides.setdefault(override.token_idx, []).append(repr(override))
    value = hashlib.sha256(repr((namespace, ctx.cache_salt, ctx.adapter)).encode()).digest()
    values = []
    for position, token in enumerate(ctx.tokens.all[:count].tolist()):
        content = f"{token} {sorted(overrides.get(position, ()))}"
        value = hashlib.sha256(value + content.encode()).digest()
        values.append(value)
    return values


def check_cached(
    slots: Slots, ctx: Context, namespace: object, replica: int, pages: Sequence[int], size: int
) -> None:
    """Read back every slot before the window: a forward is about to rely on them.

    Raises:
        Violation: One of them holds something else.
    """
    values = token_values(ctx, namespace, ctx.tokens.processed_length)
    for position, value in enumerate(values):
        page, offset = pages[position // size], position % size
        demand(
            "TIER-3",
            slots.holds(replica, page, offset, value),
            f"request {ctx.request_id!r} would read wrong bytes: token {position} is called "
            f"cached, but slot {offset} of page {page} does not hold its KV",
        )
