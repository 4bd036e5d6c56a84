"""One movement of blocks between tiers, from its issue until it lands or fails."""

from dataclasses import dataclass, field

from pagedkv.reference.identity import PageKey
from pagedkv.reference.page_bytes import PageBytes
from pagedkv.reference.tier_names import TierName, TransferKind
from pagedkv.reference.tiers import Block, Tier


@dataclass(eq=False)
class Transfer:
    """Blocks of one chain on their way between two tiers (XFER-1).

    Slot, victim and recency were settled when it was issued; landing makes the blocks visible
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
    source_blocks: tuple[Block, ...] = ()
    """Blocks of the source tier that are read; empty when the source is a device."""
    source_tiers: tuple[Tier, ...] = ()
    """Where each of them is: for a store, the manager's own or a further one."""
    target_blocks: tuple[Block, ...] = ()
    """Slots of the target tier that are written; empty when the target is a device."""
    promoted_blocks: tuple[Block, ...] = ()
    """Host slots that a load from below fills on its way; root first, maybe fewer than ``keys``."""
    chain: tuple[PageKey, ...] = ()
    """The chain of the request that caused it, root first: none of it is a victim for it."""
    fenced: bool = False
    """Whether the prefix cache was reset meanwhile: nothing of it becomes visible (RESET-2)."""
    arrived: dict[PageKey, PageBytes] | None = None
    """Once it is submitted: its bytes by block, as they were read and verified (XFER-8)."""
    id: str = field(default="", init=False)
    """Its name, given when it is issued: ``onload-7``."""

    @property
    def submitted(self) -> bool:
        """Whether who has hit it may go on before it lands."""
        return self.arrived is not None

    def __repr__(self) -> str:
        return f"Transfer({self.id}: {self.source} -> {self.target}, {len(self.keys)} blocks)"
