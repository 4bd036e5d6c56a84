"""Forgetting all cached content.  Rules RESET-1 to RESET-4."""

from pagedkv.reference.events import PrefixCacheReset
from pagedkv.reference.state import State
from pagedkv.reference.tier_setup import store_prefix


def reset_prefix_cache(state: State) -> None:
    """Make everything unfindable, on the devices and below, and fence what is on its way."""
    # FORGET: the devices, the local tiers, and on a store this manager's namespace
    for pool in state.pools:
        state.fates.note(pool.page_of, "other_namespace")
        pool.reset()
    state.fates.note(state.connector.found_keys(), "other_namespace")
    state.connector.reset_prefix_cache(store_prefix(state.params, state.media, reset=True))

    # FENCE: nothing old becomes visible, neither from a transfer nor from a request (RESET-2)
    for transfer in state.in_flight.values():
        transfer.fenced = True
    for request in state.requests.values():
        request.fenced = bool(request.pages or request.plan)

    # RECORD
    state.emit(PrefixCacheReset())
