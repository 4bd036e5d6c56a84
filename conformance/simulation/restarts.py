"""What a manager finds on a disk that another one has used: nothing wrong, nothing missing."""

from collections.abc import Iterable, Sequence

from pagedkv.conformance.recorded.cutting import start_at
from pagedkv.conformance.recorded.restart import wrong_survivors
from pagedkv.conformance.recorded.specification import SpecificationFactory
from pagedkv.conformance.simulation.life import LifeRecord
from pagedkv.reference.events import (
    Closed,
    DiskOpened,
    Event,
    IssuedTransfer,
    PrefixCacheReset,
    TransferFailed,
)
from pagedkv.reference.identity import PageKey
from pagedkv.reference.snapshot import BlockSnapshot, TierSnapshot
from pagedkv.traces.events.setup import EventTraceHeader, RunSetup


def wrong_after_restart(
    setup: RunSetup, before: LifeRecord, after: LifeRecord, specification: SpecificationFactory
) -> str | None:
    """What is wrong with the blocks that a life has found on its disk, for people."""
    opened = next((event for event in after.events if isinstance(event, DiskOpened)), None)
    if opened is None:
        return None
    after.seen["survivors"] = len(opened.keys)
    if before.events and isinstance(before.events[-1], Closed):
        header = EventTraceHeader(setup=setup)
        return wrong_survivors(header, before.events, header, opened, specification)
    return wrong_after_crash(setup, before, opened, specification)


def wrong_after_crash(
    setup: RunSetup, before: LifeRecord, opened: DiskOpened, specification: SpecificationFactory
) -> str | None:
    """What is wrong with the blocks that a crash has left, for people; ``None``: nothing.

    A block can be whole before its transfer has landed, and one that was given up may come back
    once. But what was flushed is there, unless something has happened to it since, and what was
    gone by then stays away.
    """
    resets = [n + 1 for n, event in enumerate(before.events) if isinstance(event, PrefixCacheReset)]
    begin = max([before.flushed, *resets])
    touched = _touched(before.events[begin:])
    flushed: Sequence[BlockSnapshot] = ()
    if begin == before.flushed:
        flushed = _disk_after(setup, before.events[:begin], specification)
    left = {block.key for block in _disk_after(setup, before.events, specification)}
    may_be = {block.key for block in flushed} | touched
    must_be = {block.key for block in flushed if block.landed} & left - touched
    if strangers := set(opened.keys) - may_be:
        names = ", ".join(sorted(key.hex() for key in strangers))
        return f"the disk holds what nobody wrote to it since its flush or reset: {names}"
    if missing := must_be - set(opened.keys):
        names = ", ".join(sorted(key.hex() for key in missing))
        return f"the disk lacks what was on it when it was flushed: {names}"
    return None


def _disk_after(
    setup: RunSetup, events: Sequence[Event], specification: SpecificationFactory
) -> Sequence[BlockSnapshot]:
    state = start_at(EventTraceHeader(setup=setup), events, None, specification).state
    return state.tiers.get("disk", TierSnapshot()).blocks


def _touched(events: Iterable[Event]) -> set[PageKey]:
    """Blocks that were found on disk, written to it, or read from it in vain."""
    touched: set[PageKey] = set()
    for event in events:
        issued: tuple[IssuedTransfer, ...] = getattr(event, "issued", ())
        for transfer in issued:
            if transfer.target == "disk":
                touched.update(transfer.keys)
        if isinstance(event, DiskOpened | TransferFailed):
            touched.update(event.keys)
    return touched
