"""What an engine may not still hold when it has nothing to do."""

from collections.abc import Iterator

from pagedkv.engine import PagedKVCacheManager
from pagedkv.engine.simulated.disk import SimulatedDisk


def leftovers(manager: PagedKVCacheManager, disk: SimulatedDisk | None) -> Iterator[str]:
    """Pages held for nobody, lists that only grow, and a disk that is not as its books say.

    Args:
        manager: No request is claimed, and no transfer is in flight.
        disk: Its disk.
    """
    for replica in range(len(manager.params.devices_per_replica)):
        left = manager.statistics(replica)
        if left.held or left.pinned:
            yield f"replica {replica}: {left}"
    state, moves, mover = manager._state, manager._moves, manager._mover
    growing: dict[str, object] = {
        "pins of slots": {name: tier.pins for name, tier in state.lower.tiers.items() if tier.pins},
        "slots that were given up, and nobody was told": {
            name: tier.given_up for name, tier in state.lower.tiers.items() if tier.given_up
        },
        "slots that leave": {name: t.leaving for name, t in state.lower.tiers.items() if t.leaving},
        "replicas that are about to be poisoned": state.failing,
        "transfers that nobody has begun": state.issued,
        "marks of transfers": moves._marks,
        "tasks of transfers": moves._tasks,
        "arrivals of loads": moves._arrivals,
        "who waits for a load": moves._enqueued,
        "transfers that are held back": moves._held_back,
        "tasks that poison": moves._failing,
        "who stands in line": [len(queue) for queue in manager._allocator.queues if queue],
    }
    yield from (f"{what}: {left}" for what, left in growing.items() if left)
    num_rows = 0 if mover._passing is None else mover._passing.num_slots
    if mover._unused_rows.qsize() != num_rows:
        yield f"of {num_rows} passing rows only {mover._unused_rows.qsize()} are back"
    for replica, tables in enumerate(manager._inputs):
        for staging in tables._staging:
            if len(staging.used_until) > manager.params.tensor_parallel_degree:
                yield f"replica {replica} keeps {len(staging.used_until)} events of one staging"
    tier = state.lower.tiers.get("disk")
    if disk is not None and tier is not None:
        landed = {slot: key for key, slot in tier.slot_of.items() if tier.visible[slot]}
        if landed != disk.blocks:
            yield f"the planner has blocks in slots {landed} of the disk, which has {disk.blocks}"
