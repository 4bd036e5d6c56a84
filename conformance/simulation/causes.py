"""Whether what a manager has done has a cause in its world: failures, and hits that it left out."""

from collections.abc import Iterable

from pagedkv.conformance.simulation.world import World
from pagedkv.reference.events import AllocPlanned, Event, IssuedTransfer, TransferFailed
from pagedkv.reference.tier_names import BLOCK_IS_LOST, FailReason


def uncaused_failure(world: World, life: int, events: Iterable[Event]) -> str | None:
    """A transfer of a life that has failed for a reason that its world does not hold."""
    issued: dict[str, IssuedTransfer] = {}
    for event in events:
        issued.update((transfer.transfer, transfer) for transfer in getattr(event, "issued", ()))
        if isinstance(event, TransferFailed) and event.transfer in issued:
            transfer = issued[event.transfer]
            if event.reason not in _possible(world, life, transfer):
                way = f"{transfer.source} to {transfer.target}"
                return (
                    f"{event.transfer} from {way} has failed with {event.reason!r}, but nothing "
                    "in its world does that"
                )
    return None


def wrong_patience(world: World, events: Iterable[Event]) -> str | None:
    """An allocation that has waited for a slow tier, or has not, against the policy (ALLOC-15)."""
    for event in events:
        if isinstance(event, AllocPlanned):
            if world.slow_tier_policy == "wait" and event.hit_limit is not None:
                return f"{event.request_id!r} was to wait for its hit, but leaves some of it out"
            if world.slow_tier_policy == "best_effort" and event.hits.disk_blocks:
                return f"{event.request_id!r} was to wait for no disk, but loads from it"
    return None


def _possible(world: World, life: int, transfer: IssuedTransfer) -> set[FailReason]:
    """The reasons for which a transfer can fail."""
    disk, reasons = world.disk, set[FailReason]()
    if world.lives[life].device_failure is not None and transfer.pages:
        reasons.add("unavailable")
    if transfer.source == "disk":
        if disk.read_errors:
            reasons.add("io_error")
        decays = any(earlier.decay for earlier in world.lives[:life])
        if disk.torn or disk.flipped or disk.misplaced_after_s or decays:
            reasons.add("corrupt")
        if reasons & BLOCK_IS_LOST or world.lives[life].reset_share:
            reasons.add("missing")  # Another load of the same block has found it so, or the reset.
    if transfer.target == "disk":
        if disk.write_errors:
            reasons.add("io_error")
        if disk.no_space:
            reasons.add("no_space")
    return reasons
