"""The tiers below the devices, as one thing that is loaded from and offloaded to.

Rules TIER-1 to TIER-9. All replicas share them; content is the same for all of them.
"""

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import takewhile
from typing import Literal, TypeAlias

from pagedkv.engine.planner.counters import Counters
from pagedkv.engine.planner.slots import TierSlots
from pagedkv.engine.planner.transfer import Transfer
from pagedkv.engine.planner.uses import RecentUses
from pagedkv.reference.identity import PageKey
from pagedkv.reference.tier_names import BLOCK_IS_LOST, FailReason, LowerTier, TierName

WritePolicy: TypeAlias = Literal["through", "write_back", "reuse"]
"""When committed pages are offloaded: at once, before they are evicted, at their second use."""


@dataclass
class LowerTiers:
    """Host memory and disk below the devices; either may be missing."""

    counters: Counters
    """Where copies are counted."""
    tiers: dict[LowerTier, TierSlots] = field(default_factory=dict)
    """The tiers that exist, fastest first."""
    policy: WritePolicy = "through"
    """When committed pages are offloaded."""
    uses: RecentUses = field(default_factory=lambda: RecentUses(0))
    """For ``reuse``: how often recent blocks were used."""

    @property
    def first(self) -> LowerTier | None:
        """The tier that offloads go to."""
        return next(iter(self.tiers), None)

    def fastest(
        self, key: PageKey, avoided: Collection[tuple[str, PageKey]] = ()
    ) -> LowerTier | None:
        """The fastest tier that holds ``key``; pairs in ``avoided`` do not count (ALLOC-11)."""
        for name, tier in self.tiers.items():
            if tier.find(key) is not None and (name, key) not in avoided:
                return name
        return None

    def holds(self, key: PageKey) -> bool:
        """Whether any tier has the block, or is getting it."""
        return any(tier.holds(key) for tier in self.tiers.values())

    def touch(self, chain: Sequence[PageKey]) -> None:
        """Renew the blocks of ``chain``, root first, in all tiers (TIER-4)."""
        for tier in self.tiers.values():
            tier.refresh(chain)

    def load(
        self,
        source: LowerTier,
        keys: Sequence[PageKey],
        pages: Sequence[int],
        replica: int,
        chain: Sequence[PageKey],
    ) -> Transfer:
        """The load of ``keys``, which are there, from ``source`` into device ``pages``.

        What comes from below host memory also gets a host slot, as far as there are any (TIER-2).
        """
        tier = self.tiers[source]
        slots = tuple(tier.slot_of[key] for key in keys)
        tier.pin(slots)
        return Transfer(
            kind="onload",
            source=source,
            target="device",
            keys=tuple(keys),
            replica=replica,
            pages=tuple(pages),
            source_slots=slots,
            promoted=tuple(self._promote(keys, chain)) if source != "host" else (),
            chain=tuple(chain),
        )

    def prefetch(
        self, source: LowerTier, keys: Sequence[PageKey], chain: Sequence[PageKey]
    ) -> Transfer | None:
        """The load of ``keys``, which ``source`` holds, into host slots, if there are any."""
        promoted = list(self._promote(keys, chain))
        if not promoted:
            return None
        tier, taken = self.tiers[source], tuple(keys[: len(promoted)])
        source_slots = tuple(tier.slot_of[key] for key in taken)
        tier.pin(source_slots)
        return Transfer(
            kind="onload",
            source=source,
            target="host",
            keys=taken,
            source_slots=source_slots,
            target_slots=tuple(slot for _, slot in promoted),
            chain=tuple(chain),
        )

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
        first = self.tiers[self.first]
        run = [n for n in range(wanted) if not first.holds(chain[n])]
        if arriving:
            run = list(takewhile(lambda n: pages[n] not in arriving, run))
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
        tier, protected = self.tiers[self.first], _protecting((*keys, *sparing))
        lacking = [place for place in zip(keys, pages, strict=True) if not tier.holds(place[0])]
        places = [
            (key, page, slot)
            for key, page in lacking
            if (slot := tier.reserve(key, None, protected)) is not None
        ]
        self.counters.offload_blocks_dropped += len(lacking) - len(places)
        return [self._offload_transfer(places, replica, (*sparing, *keys))] if places else []

    def land(self, transfer: Transfer) -> list[Transfer]:
        """All bytes have arrived: make them visible, and return the writes that follow."""
        if transfer.kind == "onload":
            return self._land_onload(transfer)
        tier = self.tiers[lower(transfer.target)]
        landed = self._fill(tier, zip(transfer.keys, transfer.target_slots, strict=True), transfer)
        if transfer.kind == "write":
            for slot in transfer.source_slots:
                self.tiers[lower(transfer.source)].unpin(slot)
        self.counters.offload_blocks_dropped += len(transfer.keys) - len(landed)
        if transfer.target == "disk":
            self.counters.disk_blocks_written += len(landed)
            return []
        self.counters.d2h_blocks_copied += len(landed)
        return self._write_down(landed, transfer.chain)

    def fail(self, transfer: Transfer, reason: FailReason, keys: Collection[PageKey]) -> None:
        """The transfer moved nothing, through the fault of ``keys`` (TIER-6)."""
        if transfer.source_slots:
            tier = self.tiers[lower(transfer.source)]
            for key, slot in zip(transfer.keys, transfer.source_slots, strict=True):
                if gives_up(transfer, reason) and key in keys:
                    tier.drop(slot, key)
                tier.unpin(slot)
        for n, slot in transfer.promoted:
            self._abandon("host", slot, transfer.keys[n])
        for key, slot in zip(transfer.keys, transfer.target_slots, strict=False):
            self._abandon(lower(transfer.target), slot, key)
        if transfer.kind == "onload":
            self.counters.load_blocks_failed += len(keys)
        else:
            self.counters.offload_blocks_dropped += len(transfer.keys)

    def reset(self) -> None:
        """Forget everything (RESET-1)."""
        for tier in self.tiers.values():
            tier.reset()
        self.uses.clear()

    def _land_onload(self, transfer: Transfer) -> list[Transfer]:
        slots = [(transfer.keys[n], slot) for n, slot in transfer.promoted]
        slots += zip(transfer.keys, transfer.target_slots, strict=False)
        filled = self._fill(self.tiers["host"], slots, transfer) if slots else []
        source = self.tiers[lower(transfer.source)]
        for slot in transfer.source_slots:
            source.unpin(slot)
        if transfer.target == "device":
            self.counters.h2d_blocks_copied += len(transfer.keys)
        if transfer.source == "disk":
            self.counters.disk_blocks_read += len(transfer.keys)
        return self._write_down(filled, transfer.chain)

    def _fill(
        self, tier: TierSlots, places: Iterable[tuple[PageKey, int]], transfer: Transfer
    ) -> list[PageKey]:
        """The slots have their bytes: those blocks that may be found from now on."""
        filled: list[PageKey] = []
        for key, slot in places:
            may_be_found = not transfer.fenced and self._has_parent(tier, tier.parent_of[slot])
            # First the block, then the pin: a slot without either is somebody else's.
            if may_be_found and tier.slot_of.get(key) == slot:
                tier.visible[slot] = 1
                filled.append(key)
            else:
                tier.drop(slot, key)
            tier.unpin(slot)
        return filled

    def _promote(
        self, keys: Sequence[PageKey], chain: Sequence[PageKey]
    ) -> Iterable[tuple[int, int]]:
        """Host slots for blocks that come from below, root first, as far as there are any.

        The chain says what their parents are: a disk need not remember it.
        """
        if "host" not in self.tiers:
            return
        host, protected = self.tiers["host"], _protecting(chain)
        parents = dict(zip(chain[1:], chain, strict=False))
        for n, key in enumerate(keys):
            if host.holds(key):
                continue
            parent = parents.get(key)
            if not self._has_parent(host, parent):
                return
            slot = host.reserve(key, parent, protected)
            if slot is None:
                return
            yield n, slot

    def _wanted(self, chain: Sequence[PageKey], new: int) -> int:
        """How many leading blocks of ``chain`` the policy wants below the device."""
        if self.policy == "through":
            return len(chain)
        if self.policy == "write_back":
            return 0
        self.uses.add(chain[len(chain) - new :])
        wanted = 0
        while wanted < len(chain) and self.uses.of(chain[wanted]) >= 2:
            wanted += 1
        return wanted

    def _reserve_offload(
        self, chain: Sequence[PageKey], pages: Sequence[int], replica: int, run: Sequence[int]
    ) -> list[Transfer]:
        """At most one transfer, of the blocks ``run`` of the chain that find a slot (TIER-9)."""
        assert self.first is not None
        tier, protected = self.tiers[self.first], _protecting(chain)
        places: list[tuple[PageKey, int, int]] = []
        for n in run:
            slot = tier.reserve(chain[n], chain[n - 1] if n else None, protected)
            if slot is None:
                # A block without its parent would be out of reach: the descendants go with it.
                self.counters.offload_blocks_dropped += len(run) - len(places)
                break
            places.append((chain[n], pages[n], slot))
        return [self._offload_transfer(places, replica, chain)] if places else []

    def _offload_transfer(
        self, places: Sequence[tuple[PageKey, int, int]], replica: int, chain: Sequence[PageKey]
    ) -> Transfer:
        assert self.first is not None
        keys, pages, slots = zip(*places, strict=True)
        return Transfer(
            kind="offload",
            source="device",
            target=self.first,
            keys=keys,
            replica=replica,
            pages=pages,
            target_slots=slots,
            chain=tuple(chain),
        )

    def _write_down(self, keys: Sequence[PageKey], chain: Sequence[PageKey]) -> list[Transfer]:
        """The write of blocks in host memory to the disk, if that lacks them (TIER-2)."""
        host, disk = self.tiers.get("host"), self.tiers.get("disk")
        if host is None or disk is None:
            return []
        lacking = [
            (key, slot)
            for key in keys
            if not disk.holds(key) and (slot := host.find(key)) is not None
        ]
        protected = _protecting(chain)
        targets: list[int] = []
        for key, slot in lacking:
            parent = host.parent_of[slot]
            target = (
                disk.reserve(key, parent, protected) if self._has_parent(disk, parent) else None
            )
            if target is None:
                break
            targets.append(target)
        self.counters.offload_blocks_dropped += len(lacking) - len(targets)
        if not targets:
            return []
        taken = lacking[: len(targets)]
        host.pin(slot for _, slot in taken)
        disk.refresh(chain)
        return [
            Transfer(
                kind="write",
                source="host",
                target="disk",
                keys=tuple(key for key, _ in taken),
                source_slots=tuple(slot for _, slot in taken),
                target_slots=tuple(targets),
                chain=tuple(chain),
            )
        ]

    def _has_parent(self, tier: TierSlots, parent: PageKey | None) -> bool:
        """Whether ``tier`` may take a block: it has the parent, or is getting it (TIER-9)."""
        return self.policy == "write_back" or parent is None or tier.holds(parent)

    def _abandon(self, name: LowerTier, slot: int, key: PageKey) -> None:
        self.tiers[name].drop(slot, key)
        self.tiers[name].unpin(slot)


def gives_up(transfer: Transfer, reason: FailReason) -> bool:
    """Whether the source of a failed onload loses the blocks at fault (TIER-6)."""
    return transfer.kind == "onload" and transfer.source != "peer" and reason in BLOCK_IS_LOST


def lower(name: TierName) -> LowerTier:
    """``name``, which is known to be a tier below the devices."""
    assert name in ("host", "disk", "store")
    return name


def _protecting(keys: Sequence[PageKey]) -> Callable[[], Collection[PageKey]]:
    """``keys`` as a set, made when it is first needed: a tier with room never asks."""
    return cache(lambda: frozenset(keys))
