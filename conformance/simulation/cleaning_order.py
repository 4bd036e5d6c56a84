"""Which page a manager has made clean, beside the one whose turn it was (TIER-7)."""

from pagedkv.reference.events import Cleaned
from pagedkv.reference.snapshot import Snapshot


def cleaned_out_of_turn(state: Snapshot, event: Cleaned) -> str | None:
    """What is wrong with the page that is cleaned first, for people; ``None``: nothing.

    Pages that nobody holds come first, the oldest of them before all, without those that the
    allocation for which it is done would hit.

    Args:
        state: Of the specification, before.
        event: What was cleaned.
    """
    pool = state.pools[event.replica]
    moving = {
        page
        for transfer in state.in_flight
        for replica, pages in (
            (transfer.replica, transfer.pages),
            (transfer.source_replica, transfer.source_pages),
        )
        if replica == event.replica
        for page in pages
    }
    key_of, dirty = dict(pool.cached), set(pool.dirty)
    turns = (
        page
        for page in pool.idle
        if page in dirty and page not in moving and key_of[page] not in event.sparing
    )
    if (first := next(turns, None)) in (None, event.pages[0]):
        return None
    return f"replica {event.replica} cleans page {event.pages[0]}, but page {first} is older"
