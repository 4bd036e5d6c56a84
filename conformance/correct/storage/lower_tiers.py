"""Host memory and disk below one device, and the transfers between them.

Deciding and moving bytes are apart: :meth:`LowerTiers.copy` only moves bytes, in whatever thread,
and everything else happens in one.
"""

from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import dataclass
from itertools import count
from math import inf
from typing import NamedTuple, TypeVar

from pagedkv.conformance.correct.storage.block_bytes import read_page, write_page
from pagedkv.conformance.correct.storage.block_files import BlockFiles
from pagedkv.conformance.correct.storage.page_pool import PagePool
from pagedkv.conformance.correct.storage.tier import Slot, Tier
from pagedkv.reference.buffers import KVCacheMemory
from pagedkv.reference.errors import UnknownTransferError
from pagedkv.reference.identity import PageKey, page_key
from pagedkv.reference.metrics import KVCacheMetrics
from pagedkv.reference.tier_names import (
    BLOCK_IS_LOST,
    FailReason,
    TierName,
    TransferKind,
)
from pagedkv.traces.manager_setup import ManagerSetup


@dataclass(eq=False)
class Transfer:
    """Blocks on their way from one tier to another."""

    id: str
    """Its name."""
    kind: TransferKind
    """Its direction."""
    source: TierName
    """The tier that is read."""
    target: TierName
    """The tier that is written."""
    keys: list[PageKey]
    """The blocks, root first, by the keys of ID-1."""
    pages: list[int]
    """Their device pages, if the device takes part."""
    read: Sequence[Slot]
    """Their slots in the source, if that is not the device."""
    written: Sequence[Slot]
    """Their slots in the target, if that is not the device."""
    replica: int | None
    """The only replica; ``None`` between lower tiers."""
    fenced: bool = False
    """Whether the cache was reset since it was issued (RESET-2)."""
    source_replica: int | None = None
    """Nothing is copied between replicas."""
    source_pages: Sequence[int] = ()
    """Nothing is copied between replicas."""


Source = TypeVar("Source", int, Slot)
"""Where a block is copied from: a device page, or a slot."""


class Fault(NamedTuple):
    """What went wrong with a transfer."""

    reason: FailReason
    """Why."""
    keys: list[PageKey]
    """The blocks at fault."""


class LowerTiers:
    """Everything below the device.

    Args:
        setup: Sizes, and the folder of the disk tier.
        layout: Fingerprint of the layout.
        memory: The device's memory.
        pool: Its pages.
        on_issue: Called with each transfer that is issued.
    """

    def __init__(
        self,
        setup: ManagerSetup,
        layout: str,
        memory: Sequence[KVCacheMemory],
        pool: PagePool,
        on_issue: Callable[[Transfer], None],
    ) -> None:
        self.setup, self.memory, self.pool, self.on_issue = setup, memory, pool, on_issue
        self.host = Tier(setup.host_pages or 0)
        self.disk = Tier(0)
        self.transfers: dict[str, Transfer] = {}
        """In flight, in the order of their issue."""
        self.loading: dict[bytes, tuple[int, Transfer]] = {}
        """The page that a block is being loaded into, and by what (ALLOC-6)."""
        self.copies = KVCacheMetrics()
        """Counters of copies and evictions."""
        self._numbers = count()
        if setup.disk_pages and setup.disk_dir is not None:
            unit_sizes = [unit.bytes_per_page for unit in memory]
            self.files = BlockFiles(setup.disk_dir, layout, setup.model_fingerprint, unit_sizes)
            writes_left = setup.disk_writes_per_day or inf
            self.disk = Tier(setup.disk_pages, writes_left, self.files.remove)
            for slot in self.files.slots():
                self._make_room(self.disk)
                self.disk.add(slot)

    # What is decided

    def load(self, blocks: Sequence[tuple[int, Slot]]) -> Transfer:
        """Bring blocks of one tier to the device, each to a page."""
        pages, slots = [page for page, _ in blocks], [slot for _, slot in blocks]
        transfer = self._issue("onload", slots[0].tier, "device", pages, read=slots)
        for page, slot in blocks:
            self._tier(slot.tier).use(slot)
            self.loading[slot.block] = page, transfer
        return transfer

    def offer(self, chain: Sequence[bytes], pages: Sequence[int]) -> None:
        """Copy what the tiers lack of a committed chain, root first (STEP-5)."""
        missing = [
            (page, Slot("host", block, parent))
            for page, block, parent in zip(pages, chain, [None, *chain], strict=False)
            if block not in self.host.slots
        ]
        if taken := self._reserve(self.host, missing, sparing=chain):
            sources = [page for page, _ in taken]
            self._issue("offload", "device", "host", sources, written=[slot for _, slot in taken])
        self._write([slot for block in chain if (slot := self.host.visible(block))])

    def _write(self, slots: Sequence[Slot]) -> None:
        """Copy what the disk lacks of some blocks in host memory, parents before children."""
        missing = [
            (slot, Slot("disk", slot.block, slot.parent))
            for slot in slots
            if slot.block not in self.disk.slots
        ]
        chain = {block for slot in slots for block in (slot.block, slot.parent)}
        if taken := self._reserve(self.disk, missing, sparing=chain):
            for _, target in taken:
                target.path = self.files.new_path()
            sources = [slot for slot, _ in taken]
            self._issue("write", "host", "disk", [], sources, [slot for _, slot in taken])

    def _reserve(
        self, tier: Tier, missing: Iterable[tuple[Source, Slot]], sparing: Container[bytes | None]
    ) -> list[tuple[Source, Slot]]:
        """Those of the blocks for which the tier has room; the others are dropped (TIER-9)."""
        taken = []
        for source, slot in missing if tier.capacity else ():
            wanted = self._follows(slot, tier) and tier.writes_left > 0
            if wanted and self._make_room(tier, sparing):
                tier.add(slot)
                tier.writes_left -= 1
                slot.pins += 1  # now, so that the next block does not push it out
                taken.append((source, slot))
            else:
                self.copies = self.copies.plus(offload_blocks_dropped=1)
        return taken

    @staticmethod
    def _follows(slot: Slot, tier: Tier) -> bool:
        """Whether the tier has the block before this one, or is getting it."""
        return slot.parent is None or slot.parent in tier.slots

    def _make_room(self, tier: Tier, sparing: Container[bytes | None] = ()) -> bool:
        if tier.used < tier.capacity:
            return True
        victim = tier.victim(sparing)
        if victim is None:
            return False
        tier.give_up(victim)
        name = "disk_blocks_evicted" if tier is self.disk else "host_blocks_evicted"
        self.copies = self.copies.plus(**{name: 1})
        return True

    def _issue(
        self,
        kind: TransferKind,
        source: TierName,
        target: TierName,
        pages: list[int],
        read: Sequence[Slot] = (),
        written: Sequence[Slot] = (),
    ) -> Transfer:
        """A transfer is in flight from now on, and what it uses is pinned (XFER-1)."""
        keys = [page_key(slot.block, self.setup.hash_algorithm) for slot in read or written]
        name, replica = f"{kind}-{next(self._numbers)}", 0 if pages else None
        transfer = Transfer(name, kind, source, target, keys, pages, read, written, replica)
        for page in pages:
            self.pool.pin(page)
        for slot in read:
            slot.pins += 1
        self.transfers[name] = transfer
        self.on_issue(transfer)
        return transfer

    # What is moved

    def copy(self, transfer: Transfer) -> Fault | None:
        """Move the bytes of a transfer, and say what is wrong with them, if anything is."""
        if transfer.kind == "offload":
            for page, slot in zip(transfer.pages, transfer.written, strict=True):
                slot.content = read_page(self.memory, page)
        elif transfer.kind == "write":
            try:
                for source, slot in zip(transfer.read, transfer.written, strict=True):
                    self.files.write(slot, source.content or [])
            except OSError:
                return Fault("io_error", transfer.keys)
        else:
            damaged = []
            for key, page, slot in zip(transfer.keys, transfer.pages, transfer.read, strict=True):
                content = self.files.read(slot) if transfer.source == "disk" else slot.content
                if content is None:
                    damaged.append(key)
                else:
                    write_page(self.memory, page, content)
            if damaged:
                return Fault("corrupt", damaged)
        return None

    # What follows

    def landed(self, transfer: Transfer) -> None:
        """All bytes of a transfer have arrived (XFER-3)."""
        self._settle(transfer)
        n = len(transfer.keys)
        match transfer.kind:
            case "onload":
                read = n if transfer.source == "disk" else 0
                self.copies = self.copies.plus(h2d_blocks_copied=n, disk_blocks_read=read)
                if not transfer.fenced:
                    for page, slot in zip(transfer.pages, transfer.read, strict=True):
                        self.pool.cache(page, slot.block)
            case "offload":
                self.copies = self.copies.plus(d2h_blocks_copied=n)
                self._write([slot for slot in transfer.written if self.host.has(slot)])
            case "write":
                self.copies = self.copies.plus(disk_blocks_written=n)

    def failed(self, transfer: Transfer, fault: Fault) -> None:
        """A transfer has moved nothing (XFER-4); its source may have lost blocks (TIER-6)."""
        self._settle(transfer, visible=False)
        if transfer.kind != "onload":
            return
        self.copies = self.copies.plus(load_blocks_failed=len(fault.keys))
        for key, slot in zip(transfer.keys, transfer.read, strict=True):
            if key in fault.keys and fault.reason in BLOCK_IS_LOST:
                self._tier(transfer.source).give_up(slot)

    def _settle(self, transfer: Transfer, *, visible: bool = True) -> None:
        """A transfer is in flight no more, and pins nothing."""
        del self.transfers[transfer.id]
        for page in transfer.pages:
            self.pool.unpin(page)
        for slot in transfer.read:
            self._tier(transfer.source).unpin(slot)
            if self.loading.get(slot.block, (0, None))[1] is transfer:
                del self.loading[slot.block]
        tier = self._tier(transfer.target)
        for slot in transfer.written:
            slot.visible = visible and self._follows(slot, tier)
            tier.unpin(slot)
            if not slot.visible:
                tier.give_up(slot)
                self.copies = self.copies.plus(offload_blocks_dropped=1)

    def in_flight(self, transfer_id: str) -> Transfer:
        """The transfer of that name.

        Raises:
            UnknownTransferError: There is none, or it has settled.
        """
        if transfer_id not in self.transfers:
            raise UnknownTransferError(transfer_id)
        return self.transfers[transfer_id]

    def reset(self) -> None:
        """Forget everything, and fence what is in flight (RESET-1 to RESET-3)."""
        for transfer in self.transfers.values():
            transfer.fenced = True
        self.loading.clear()
        for tier in (self.host, self.disk):
            for slot in list(tier.slots.values()):
                tier.give_up(slot)

    def _tier(self, name: TierName) -> Tier:
        return self.disk if name == "disk" else self.host
