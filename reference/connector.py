"""The tiers below the devices, as one thing that the manager loads from and offloads to.

Rules TIER-1 to TIER-11. All replicas share one connector; content is the same for all of them.
"""

from collections import OrderedDict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Literal

from pagedkv.reference.buffers import KVCacheMemory
from pagedkv.reference.errors import KVLoadRefused
from pagedkv.reference.identity import PageKey
from pagedkv.reference.metrics import KVCacheMetrics
from pagedkv.reference.page_bytes import PageBytes, read_page, write_page
from pagedkv.reference.tier_names import BLOCK_IS_LOST, FailReason, LowerTier, TierName
from pagedkv.reference.tiers import Block, Tier
from pagedkv.reference.transfer import Transfer

WritePolicy = Literal["through", "write_back", "reuse"]
"""When committed pages are offloaded: at once, before they are evicted, at their second use."""

LOCAL: tuple[LowerTier, ...] = ("host", "disk")
"""Lower tiers whose recency this process keeps."""


@dataclass
class TierConnector:
    """Host memory, disk and block store below the devices; any of them may be missing.

    With no tier at all it is the ``null`` connector: every look-up misses, every offload is empty.
    """

    memories: Sequence[Sequence[KVCacheMemory]]
    """By replica: the device memory units that transfers read and write."""
    tiers: dict[LowerTier, Tier] = field(default_factory=dict)
    """The tiers that exist, fastest first."""
    policy: WritePolicy = "through"
    """When committed pages are offloaded."""
    uses: "OrderedDict[PageKey, int]" = field(default_factory=OrderedDict)
    """For ``reuse``: how often recent blocks were used, the longest unused first."""
    uses_limit: int = 0
    """For ``reuse``: how many blocks :attr:`uses` remembers."""
    copied: KVCacheMetrics = field(default_factory=KVCacheMetrics)
    """Copy counters of this connector."""

    @property
    def first(self) -> LowerTier | None:
        """The tier that offloads go to."""
        return next(iter(self.tiers), None)

    def lookup(
        self,
        keys: Sequence[PageKey],
        avoided: Collection[tuple[str, PageKey]] = (),
        further: Sequence[Tier] = (),
    ) -> list[LowerTier | None]:
        """By block: the fastest tier that holds it, or ``None``. Changes nothing (ALLOC-4).

        Pairs of tier and block in ``avoided`` do not count (ALLOC-11).
        """
        return [self._fastest(key, avoided, further) for key in keys]

    def touch(self, chain: Sequence[PageKey]) -> None:
        """A hit: refresh the blocks of ``chain``, root first, in all local tiers (TIER-4)."""
        for name in LOCAL:
            if name in self.tiers:
                self.tiers[name].refresh(chain)

    def load(
        self,
        source: LowerTier,
        keys: Sequence[PageKey],
        pages: Sequence[int],
        replica: int,
        chain: Sequence[PageKey],
        further: Sequence[Tier] = (),
    ) -> Transfer:
        """Issue the load of ``keys`` from ``source`` into device ``pages``.

        What comes from below host memory also gets a host slot, as far as there are any (TIER-2).
        """
        found = [place for key in keys if (place := self._find(key, source, further)) is not None]
        if len(found) < len(keys):
            raise KVLoadRefused(f"{source} does not have all of the {len(keys)} blocks")
        blocks = [block for _, block in found]
        for block in blocks:
            block.pins += 1
        promoted = self._promote(blocks, chain) if source != "host" else []
        return Transfer(
            kind="onload",
            source=source,
            target="device",
            keys=tuple(keys),
            replica=replica,
            pages=tuple(pages),
            source_blocks=tuple(blocks),
            source_tiers=tuple(tier for tier, _ in found),
            promoted_blocks=tuple(promoted),
            chain=tuple(chain),
        )

    def prefetch(
        self,
        places: Sequence[tuple[PageKey, LowerTier]],
        chain: Sequence[PageKey],
        further: Sequence[Tier] = (),
    ) -> list[Transfer]:
        """Issue loads of blocks of ``chain``, root first and with their tiers, into host slots.

        One per tier, for the blocks that host memory lacks, as far as there are slots (TIER-11).
        """
        if "host" not in self.tiers:
            return []
        found = [
            (source, tier, block)
            for key, source in places
            if not self.tiers["host"].holds(key)
            for tier, block in filter(None, [self._find(key, source, further)])
        ]
        slots = self._promote([block for _, _, block in found], chain)
        transfers: list[Transfer] = []
        for name in self.tiers:
            taken = [(*f, slot) for f, slot in zip(found, slots, strict=False) if f[0] == name]
            if not taken:
                continue
            for _, _, block, _ in taken:
                block.pins += 1
            transfers.append(
                Transfer(
                    kind="onload",
                    source=name,
                    target="host",
                    keys=tuple(slot.key for *_, slot in taken),
                    source_blocks=tuple(block for _, _, block, _ in taken),
                    source_tiers=tuple(tier for _, tier, _, _ in taken),
                    target_blocks=tuple(slot for *_, slot in taken),
                    chain=tuple(chain),
                )
            )
        return transfers

    def offload(
        self,
        chain: Sequence[PageKey],
        pages: Sequence[int],
        replica: int,
        *,
        new: int,
        arriving: Collection[int] = (),
    ) -> list[Transfer]:
        """Offer a request's committed chain, root first; the last ``new`` blocks are new to it.

        The first tier takes what it lacks, the tiers below it what they lack of the rest; recency
        of the whole chain is renewed (STEP-5, TIER-4). Pages in ``arriving`` are no source yet:
        nothing is copied from the first of them on that the first tier lacks.
        """
        if self.first is None:
            return []
        wanted = self._wanted(chain, new)
        run = [i for i in range(wanted) if not self.tiers[self.first].holds(chain[i])]
        run = list(takewhile(lambda i: pages[i] not in arriving, run))
        transfers = self._reserve_offload(chain, pages, replica, run)
        transfers += self._write_down(chain[:wanted], chain)
        self.touch(chain)
        return transfers

    def unsaved(self, keys: Sequence[PageKey]) -> list[PageKey]:
        """Those of ``keys`` whose pages are dirty once they are committed (TIER-7)."""
        if self.first is None or self.policy != "write_back":
            return []
        return [key for key in keys if not self.tiers[self.first].holds(key)]

    def clean(
        self,
        keys: Sequence[PageKey],
        pages: Sequence[int],
        replica: int,
        sparing: Sequence[PageKey] = (),
    ) -> list[Transfer]:
        """Offload dirty ``pages``, wherever their parents are, so that they may go (TIER-7).

        Blocks in ``sparing`` are not given up for them.
        """
        if self.first is None:
            return []
        tier, protected = self.tiers[self.first], frozenset((*keys, *sparing))
        lacking = [place for place in zip(keys, pages, strict=True) if not tier.holds(place[0])]
        slots = [
            (key, page, slot)
            for key, page in lacking
            if (slot := tier.reserve(key, None, protected)) is not None
        ]
        self._count(offload_blocks_dropped=len(lacking) - len(slots))
        if not slots:
            return []
        return [self._offload_transfer(slots, replica, (*sparing, *keys))]

    def land(self, transfer: Transfer) -> list[Transfer]:
        """All bytes have arrived: make them visible, and return the writes that follow."""
        if transfer.kind == "onload":
            return self._land_onload(transfer)
        source_bytes = (
            [b.content for b in transfer.source_blocks]
            if transfer.kind == "write"
            else [read_page(self.memories[_of(transfer)], p) for p in transfer.pages]
        )
        tier = self.tiers[_lower(transfer.target)]
        landed: list[PageKey] = []
        for block, content in zip(transfer.target_blocks, source_bytes, strict=True):
            tier.unpin(block)
            if transfer.fenced or not self._has_parent(tier, block.parent):
                tier.drop(block)
            elif content is not None:
                tier.fill(block, content)
                landed.append(block.key)
        for source, block in zip(transfer.source_tiers, transfer.source_blocks, strict=True):
            source.unpin(block)
        self._count(offload_blocks_dropped=len(transfer.keys) - len(landed))
        if transfer.target == "host":
            self._count(d2h_blocks_copied=len(landed))
            return self._write_down(landed, transfer.chain)
        if transfer.target == "disk":
            self._count(disk_blocks_written=len(landed))
        else:
            self._count(store_blocks_written=len(landed))
        return []

    def submit(self, transfer: Transfer) -> None:
        """The bytes of a load are verified, and on the device for whoever comes next (XFER-8)."""
        transfer.arrived = {
            block.key: tuple(row.clone() for row in block.content)
            for block in transfer.source_blocks
            if block.content is not None
        }
        self._write_pages(transfer, transfer.arrived)

    def damaged(self, transfer: Transfer) -> list[PageKey]:
        """Blocks of a transfer whose bytes are not those that were written (TIER-5)."""
        return [b.key for b in transfer.source_blocks if not b.is_intact()]

    def fail(self, transfer: Transfer, reason: FailReason, keys: Sequence[PageKey]) -> None:
        """The transfer moved nothing, through the fault of ``keys`` (TIER-6)."""
        for tier, block in zip(transfer.source_tiers, transfer.source_blocks, strict=True):
            tier.unpin(block)
            if gives_up(transfer, reason) and block.key in keys:
                tier.drop(block)
        for block in transfer.promoted_blocks:
            self._abandon("host", block)
        for block in transfer.target_blocks:
            self._abandon(_lower(transfer.target), block)
        if transfer.kind == "onload":
            self._count(load_blocks_failed=len(keys))
        else:
            self._count(offload_blocks_dropped=len(transfer.keys))

    def reset_prefix_cache(self, new_store_prefix: bytes) -> None:
        """Forget everything local; on a shared store, look elsewhere and delete nothing.

        Rules RESET-1, RESET-4 and STORE-3.
        """
        for name, tier in self.tiers.items():
            if name == "store":
                tier.prefix = new_store_prefix
            else:
                tier.reset()
        self.uses.clear()

    def shutdown(self) -> None:
        """The manager makes no further call; plain data needs no closing."""

    def reset_metrics(self) -> None:
        """Set the copy counters to zero."""
        self.copied = KVCacheMetrics()
        for tier in self.tiers.values():
            tier.evictions = 0

    @property
    def metrics(self) -> KVCacheMetrics:
        """Copy and eviction counters of all tiers below the devices."""
        return self.copied.plus(
            host_blocks_evicted=self.tiers["host"].evictions if "host" in self.tiers else 0,
            disk_blocks_evicted=self.tiers["disk"].evictions if "disk" in self.tiers else 0,
        )

    def holds(self, key: PageKey) -> bool:
        """Whether any tier has the block, or is getting it."""
        return any(tier.holds(key) for tier in self.tiers.values())

    def found_keys(self) -> list[PageKey]:
        """Every block that a look-up would find, whatever the tier."""
        return [
            block.key
            for tier in self.tiers.values()
            for block in tier.blocks.values()
            if block.content is not None and block.name.startswith(tier.prefix)
        ]

    def num_blocks(self, name: LowerTier) -> int:
        """Capacity of a tier in blocks; 0 where it does not exist or has no bound here."""
        return (self.tiers[name].capacity or 0) if name in self.tiers else 0

    def num_used_blocks(self, name: LowerTier) -> int:
        """Slots of a tier in use, those in flight included."""
        return self.tiers[name].used if name in self.tiers else 0

    def _land_onload(self, transfer: Transfer) -> list[Transfer]:
        contents = transfer.arrived or {
            block.key: block.content
            for block in transfer.source_blocks
            if block.content is not None
        }
        if transfer.target == "device":
            self._write_pages(transfer, contents)
            self._count(h2d_blocks_copied=len(transfer.keys))
        filled: list[PageKey] = []
        for slot in (*transfer.promoted_blocks, *transfer.target_blocks):
            host, content = self.tiers["host"], contents[slot.key]
            host.unpin(slot)
            if transfer.fenced or not self._has_parent(host, slot.parent):
                host.drop(slot)
            else:
                host.fill(slot, content)
                filled.append(slot.key)
        for source, block in zip(transfer.source_tiers, transfer.source_blocks, strict=True):
            source.unpin(block)
        if transfer.source == "disk":
            self._count(disk_blocks_read=len(transfer.keys))
        elif transfer.source == "store":
            self._count(store_blocks_read=len(transfer.keys))
        return self._write_down(filled, transfer.chain)

    def _write_pages(self, transfer: Transfer, contents: Mapping[PageKey, PageBytes]) -> None:
        for key, page in zip(transfer.keys, transfer.pages, strict=True):
            write_page(self.memories[_of(transfer)], page, contents[key])

    def _promote(self, blocks: Sequence[Block], chain: Sequence[PageKey]) -> list[Block]:
        """Host slots for blocks that come from below, root first, as far as there are any.

        The chain says what their parents are: a disk or a store need not remember it.
        """
        slots: list[Block] = []
        if "host" not in self.tiers:
            return slots
        host, protected = self.tiers["host"], frozenset(chain)
        parents = dict(zip(chain[1:], chain, strict=False))
        for block in blocks:
            if host.holds(block.key):
                continue
            parent = parents.get(block.key)
            if not self._has_parent(host, parent):
                break
            slot = host.reserve(block.key, parent, protected)
            if slot is None:
                break
            slots.append(slot)
        return slots

    def _wanted(self, chain: Sequence[PageKey], new: int) -> int:
        """How many leading blocks of ``chain`` the policy wants below the device."""
        if self.policy == "through":
            return len(chain)
        if self.policy == "write_back":
            return 0
        for key in chain[len(chain) - new :]:
            self.uses[key] = self.uses.pop(key, 0) + 1
            if len(self.uses) > self.uses_limit:
                self.uses.popitem(last=False)
        wanted = 0
        while wanted < len(chain) and self.uses.get(chain[wanted], 0) >= 2:
            wanted += 1
        return wanted

    def _reserve_offload(
        self, chain: Sequence[PageKey], pages: Sequence[int], replica: int, run: Sequence[int]
    ) -> list[Transfer]:
        """At most one transfer, of the blocks ``run`` of the chain that find a slot (TIER-9)."""
        assert self.first is not None
        tier, protected = self.tiers[self.first], frozenset(chain)
        slots: list[tuple[PageKey, int, Block]] = []
        for i in run:
            slot = tier.reserve(chain[i], chain[i - 1] if i else None, protected)
            if slot is None:
                # A block without its parent would be out of reach: the descendants go with it.
                self._count(offload_blocks_dropped=len(run) - len(slots))
                break
            slots.append((chain[i], pages[i], slot))
        return [self._offload_transfer(slots, replica, tuple(chain))] if slots else []

    def _offload_transfer(
        self,
        slots: Sequence[tuple[PageKey, int, Block]],
        replica: int,
        chain: tuple[PageKey, ...],
    ) -> Transfer:
        assert self.first is not None
        return Transfer(
            kind="offload",
            source="device",
            target=self.first,
            keys=tuple(key for key, _, _ in slots),
            replica=replica,
            pages=tuple(page for _, page, _ in slots),
            target_blocks=tuple(slot for _, _, slot in slots),
            chain=chain,
        )

    def _write_down(self, keys: Sequence[PageKey], chain: Sequence[PageKey]) -> list[Transfer]:
        """Issue writes of blocks in host memory to the tiers below that lack them (TIER-2)."""
        if self.first != "host":
            return []
        transfers: list[Transfer] = []
        protected = frozenset(chain)
        for name, tier in self.tiers.items():
            if name == "host":
                continue
            host = self.tiers["host"]
            lacking = [b for key in keys if (b := host.find(key)) and not tier.holds(key)]
            slots: list[Block] = []
            for block in lacking:
                slot = (
                    tier.reserve(block.key, block.parent, protected)
                    if self._has_parent(tier, block.parent)
                    else None
                )
                if slot is None:
                    break
                slots.append(slot)
            sources = lacking[: len(slots)]
            self._count(offload_blocks_dropped=len(lacking) - len(slots))
            if slots:
                for block in sources:
                    block.pins += 1
                transfers.append(
                    Transfer(
                        kind="write",
                        source="host",
                        target=name,
                        keys=tuple(block.key for block in sources),
                        source_blocks=tuple(sources),
                        source_tiers=(host,) * len(sources),
                        target_blocks=tuple(slots),
                        chain=tuple(chain),
                    )
                )
                if name in LOCAL:
                    tier.refresh(chain)
        return transfers

    def _has_parent(self, tier: Tier, parent: PageKey | None) -> bool:
        """Whether ``tier`` may take a block: it has the parent, or is getting it (TIER-9)."""
        return self.policy == "write_back" or parent is None or tier.holds(parent)

    def _abandon(self, name: LowerTier, block: Block) -> None:
        self.tiers[name].unpin(block)
        self.tiers[name].drop(block)

    def _fastest(
        self,
        key: PageKey,
        avoided: Collection[tuple[str, PageKey]],
        further: Sequence[Tier],
    ) -> LowerTier | None:
        for name in self.tiers:
            if (name, key) not in avoided and self._find(key, name, further) is not None:
                return name
        return None

    def _find(
        self, key: PageKey, name: LowerTier, further: Sequence[Tier]
    ) -> tuple[Tier, Block] | None:
        """The block, and the tier or further store where it is (STORE-4)."""
        for tier in (self.tiers[name], *(further if name == "store" else ())):
            if (block := tier.find(key)) is not None:
                return tier, block
        return None

    def _count(self, **counts: int) -> None:
        self.copied = self.copied.plus(**counts)


def gives_up(transfer: Transfer, reason: FailReason) -> bool:
    """Whether the source of a failed onload loses the blocks at fault (TIER-6).

    A store is not ours alone: it loses only what is damaged (STORE-3).
    """
    if transfer.kind != "onload" or transfer.source == "peer":
        return False
    return reason == "corrupt" if transfer.source == "store" else reason in BLOCK_IS_LOST


def _of(transfer: Transfer) -> int:
    assert transfer.replica is not None
    return transfer.replica


def _lower(name: TierName) -> LowerTier:
    assert name in ("host", "disk", "store")
    return name
