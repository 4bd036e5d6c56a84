"""One movement of blocks between tiers, from its issue until it lands or fails."""

from dataclasses import dataclass, field

from pagedkv.reference.identity import PageKey
from pagedkv.reference.tier_names import TierName, TransferKind


@dataclass(eq=False, slots=True)
class Transfer:
    """Blocks of one chain on their way between two tiers (XFER-1): work for the movers.

    Slots, victims and recency were settled when it was issued; landing makes the blocks visible
    and takes the pins off, failing takes everything back (XFER-3, XFER-4).
    """

    kind: TransferKind
    """Its direction."""
    source: TierName
    """The tier that is read."""
    target: TierName
    """The tier that is written."""
    keys: tuple[PageKey, ...]
    """The blocks, root first."""
    replica: int | None = None
    """The replica whose device pages take part; ``None`` for ``write``."""
    pages: tuple[int, ...] = ()
    """Its device pages, one per block: written by an onload, read by an offload."""
    source_replica: int | None = None
    """For ``peer``: the replica that is read."""
    source_pages: tuple[int, ...] = ()
    """For ``peer``: its pages, one per block."""
    source_slots: tuple[int, ...] = ()
    """Slots of the source tier that are read; empty when the source is a device."""
    target_slots: tuple[int, ...] = ()
    """Slots of the target tier that are written; empty when the target is a device."""
    promoted: tuple[tuple[int, int], ...] = ()
    """Host slots that a load from below fills on its way: ``(index in keys, slot)``, root first."""
    chain: tuple[PageKey, ...] = ()
    """The chain of the request that caused it, root first: none of it is a victim for it."""
    fenced: bool = False
    """Whether the prefix cache was reset meanwhile: nothing of it becomes visible (RESET-2)."""
    submitted: bool = False
    """Whether who has hit it may go on before it lands (XFER-8)."""
    id: str = field(default="", init=False)
    """Its name, given when it is issued: ``onload-7``."""

    def __repr__(self) -> str:
        return f"Transfer({self.id}: {self.source} -> {self.target}, {len(self.keys)} blocks)"
