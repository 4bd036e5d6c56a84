"""What a disk may hold when it is opened, judged by the run that used it before (NS-2 to NS-4)."""

from collections import Counter
from collections.abc import Iterable

from pagedkv.conformance.recorded.cutting import start_at
from pagedkv.conformance.recorded.specification import SpecificationFactory
from pagedkv.reference.events import (
    DiskOpened,
    Event,
    IssuedTransfer,
    PrefixCacheReset,
    TransferFailed,
    TransferLanded,
)
from pagedkv.reference.identity import PageKey
from pagedkv.reference.snapshot import TierSnapshot, TransferSnapshot
from pagedkv.reference.tier_names import BLOCK_IS_LOST
from pagedkv.traces.events.setup import EventTraceHeader


def wrong_survivors(
    before: EventTraceHeader,
    events: Iterable[Event],
    after: EventTraceHeader,
    opened: DiskOpened,
    specification: SpecificationFactory,
) -> str | None:
    """What is wrong with the blocks that a disk was opened with, for people; ``None``: nothing.

    Every one of them has landed in the run before, and nothing has taken it back since. After
    a run that was closed, all that it left is there, in the same order.

    Args:
        before: Header of the run before.
        events: Its events, gone through twice.
        after: Header of the run that opens the disk.
        opened: What it found.
        specification: Makes the specification.

    Raises:
        RunDivergesError: The run before is not allowed itself.
    """
    model = before.setup.model_fingerprint
    if model is None or model != after.setup.model_fingerprint:
        names = f"{model!r} and then {after.setup.model_fingerprint!r}"
        return f"the weights were {names}: the disk must be cold" if opened.keys else None
    landed = _landed(before, events)
    strangers = [key.hex() for key in opened.keys if key not in landed]
    if strangers:
        return f"the disk holds what had not landed in the run before: {', '.join(strangers)}"
    end = start_at(before, events, None, specification).state
    left = [block.key for block in end.tiers.get("disk", TierSnapshot()).blocks if block.landed]
    kept = left[max(0, len(left) - (after.setup.disk_pages or 0)) :]
    if end.closed and list(opened.keys) != kept:
        return f"the run before was closed and left {len(kept)} blocks, oldest first; not these"
    return None


def _landed(header: EventTraceHeader, events: Iterable[Event]) -> set[PageKey]:
    """Blocks that had landed on the disk and were not reset or found damaged."""
    on_disk: set[PageKey] = set()
    moving: dict[str, IssuedTransfer | TransferSnapshot] = {}
    # A load that fails loses the block that it has read, not one that was written meanwhile.
    landings: Counter[PageKey] = Counter()
    landings_before: dict[str, Counter[PageKey]] = {}
    if header.start is not None:
        state = header.start.state
        disk = state.tiers.get("disk", TierSnapshot())
        on_disk.update(block.key for block in disk.blocks if block.landed)
        moving.update((t.transfer, t) for t in state.in_flight if not t.fenced)
    for event in events:
        for issued in getattr(event, "issued", ()):
            moving[issued.transfer] = issued
            landings_before[issued.transfer] = Counter({k: landings[k] for k in issued.keys})
        match event:
            case DiskOpened(keys):
                on_disk.update(keys)
            case PrefixCacheReset():
                on_disk.clear()
                moving.clear()  # What is fenced does not land.
            case TransferLanded(name) if name in moving and moving[name].target == "disk":
                on_disk.update(moving[name].keys)
                landings.update(moving[name].keys)
            case TransferFailed(name, reason, keys) if name in moving and reason in BLOCK_IS_LOST:
                if moving[name].source == "disk":
                    before = landings_before.get(name, Counter())
                    on_disk.difference_update(k for k in keys if landings[k] == before[k])
    return on_disk
