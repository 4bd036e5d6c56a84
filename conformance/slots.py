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

Slot = tuple[int, int]
"""Where the KV of one token is: a page, and an offset in it."""


class Slots(Protocol):
    """Device memory as the driver sees it: slots with values, which say what KV is in them."""

    def write(self, replica: int, values: Sequence[tuple[Slot, bytes]]) -> None:
        """Write the KV of tokens."""
        ...

    def hold(self, replica: int, values: Sequence[tuple[Slot, bytes]]) -> list[bool]:
        """Whether each slot has exactly that KV, in every layer, shard, cache and scale."""
        ...

    def pattern(self, value: bytes) -> bytes:
        """Bytes that follow each other wherever a page with that token is kept; may be none."""
        ...


class OwnSlots:
    """Memory that the driver keeps itself, for managers that only keep books.

    Args:
        sees_all: Whether forwards alone write it. Where pages are also loaded or copied, nobody
            can say what such a manager would have put there, and every slot counts as right.
    """

    def __init__(self, *, sees_all: bool) -> None:
        self._sees_all = sees_all
        self._values: dict[tuple[int, Slot], bytes] = {}

    def write(self, replica: int, values: Sequence[tuple[Slot, bytes]]) -> None:
        """See :class:`Slots`."""
        self._values.update({(replica, slot): value for slot, value in values})

    def hold(self, replica: int, values: Sequence[tuple[Slot, bytes]]) -> list[bool]:
        """See :class:`Slots`."""
        return [
            not self._sees_all or self._values.get((replica, slot)) == value
            for slot, value in values
        ]

    def pattern(self, value: bytes) -> bytes:
        """See :class:`Slots`."""
        return b""


class BufferSlots:
    """The memory that the manager gives to forwards: ``get_device_buffer`` of each replica."""

    def __init__(self, buffers: Sequence[KVCacheBufferInterface]) -> None:
        self._tensors = [list(tensors_of(buffer)) for buffer in buffers]

    def write(self, replica: int, values: Sequence[tuple[Slot, bytes]]) -> None:
        """See :class:`Slots`."""
        for (page, offset), value in values:
            for tensor, name in self._tensors[replica]:
                slot = tensor[page, :, :, offset]
                slot.copy_(_bytes_of(value, name, slot.numel()).view(slot.shape))

    def hold(self, replica: int, values: Sequence[tuple[Slot, bytes]]) -> list[bool]:
        """See :class:`Slots`."""
        return [
            all(
                torch.equal(slot.reshape(-1).cpu(), _bytes_of(value, name, slot.numel()))
                for tensor, name in self._tensors[replica]
                for slot in (tensor[page, :, :, offset],)
            )
            for (page, offset), value in values
        ]

    def pattern(self, value: bytes) -> bytes:
        """See :class:`Slots`: the first layer of the first tensor."""
        tensor, name = self._tensors[0][0]
        slot = tensor[0, :, :, 0]
        return bytes(_bytes_of(value, name, slot.numel())[: slot[0, 0].numel()].tolist())


class SlotAccess(Protocol):
    """A manager whose memory is elsewhere, and can be asked for."""

    @property
    def slot_nbytes(self) -> int:
        """Bytes of one slot: all layers, shards, caches and scales."""
        ...

    def write_slots(self, replica_idx: int, slots: list[tuple[int, int, bytes]]) -> None:
        """Overwrite slots: page, offset and bytes of each."""
        ...

    def read_slots(self, replica_idx: int, slots: list[Slot]) -> list[bytes]:
        """The bytes of slots."""
        ...


class RemoteSlots:
    """The memory of a manager in another process."""

    def __init__(self, manager: SlotAccess) -> None:
        self._manager = manager

    def write(self, replica: int, values: Sequence[tuple[Slot, bytes]]) -> None:
        """See :class:`Slots`."""
        slots = [(page, offset, self._data(value)) for (page, offset), value in values]
        self._manager.write_slots(replica, slots)

    def hold(self, replica: int, values: Sequence[tuple[Slot, bytes]]) -> list[bool]:
        """See :class:`Slots`."""
        found = self._manager.read_slots(replica, [slot for slot, _ in values])
        return [data == self._data(value) for data, (_, value) in zip(found, values, strict=True)]

    def pattern(self, value: bytes) -> bytes:
        """See :class:`Slots`: where the layers of a slot begin is not known here."""
        return b""

    def _data(self, value: bytes) -> bytes:
        return hashlib.shake_128(value).digest(self._manager.slot_nbytes)


def tensors_of(buffer: KVCacheBufferInterface) -> Iterator[tuple[torch.Tensor, str]]:
    """Every tensor as bytes, with the name of its content: replicated shards hold the same."""
    if isinstance(buffer, MultiKVCacheBuffer):
        for name, child in buffer.children.items():
            yield from ((tensor, f"{name} {kind}") for tensor, kind in tensors_of(child))
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
    # Images may lack the hash where nothing is cached, and then nothing is read.
    for override in ctx.hash_overrides if count else ():
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
    expected = slots_of(pages, size, values)
    for position, held in enumerate(slots.hold(replica, expected)):
        page, offset = expected[position][0]
        demand(
            "TIER-3",
            held,
            f"request {ctx.request_id!r} would read wrong bytes: token {position} is called "
            f"cached, but slot {offset} of page {page} does not hold its KV",
        )


def slots_of(
    pages: Sequence[int], size: int, values: Sequence[bytes], start: int = 0
) -> list[tuple[Slot, bytes]]:
    """Where the tokens from ``start`` on are, with what must be there."""
    return [
        ((pages[position // size], position % size), values[position])
        for position in range(start, len(values))
    ]
