"""Forgetting all cached content.  Rules RESET-1 to RESET-3."""

from pagedkv.engine.planner.state import State
from pagedkv.reference.events import PrefixCacheReset


def reset_prefix_cache(state: State) -> None:
    """Make everything unfindable, on the devices and below, and fence what is on its way."""
    for pool in state.pools:
        state.fates.note(pool.page_of, "other_namespace")
        pool.reset()
    for tier in state.lower.tiers.values():
        landed = (key for key, slot in tier.slot_of.items() if tier.visible[slot])
        state.fates.note(landed, "other_namespace")
    state.lower.reset()
    for transfer in state.in_flight.values():
        transfer.fenced = True
    for request in state.requests.values():
        request.fenced = bool(request.pages or request.plan)
    if state.tracer is not None:
        state.tracer.emit(PrefixCacheReset())
