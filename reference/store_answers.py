"""What a block store says that does not follow from the run so far, as others use it (EVENT-5)."""

from collections.abc import Mapping, Sequence

from pagedkv.reference.events import StoreAnswered
from pagedkv.reference.identity import PageKey
from pagedkv.reference.page_bytes import read_page
from pagedkv.reference.state import State
from pagedkv.reference.tiers import Tier


def report_answers(
    state: State, keys: Sequence[PageKey], further: Mapping[str, Tier] | None = None
) -> None:
    """Ask the store, and the ``further`` ones by endpoint, for blocks; report what is news.

    Comes before every decision that depends on what a store holds, so that a run can be followed
    by somebody who sees its events only (EVENT-5).
    """
    own = state.connector.tiers.get("store")
    if own is None:
        return
    for endpoint, store in [(None, own), *(further or {}).items()]:
        found, missing = store.ask(keys)
        if found or missing:
            state.emit(StoreAnswered(found, missing, endpoint))


def take_answer(
    state: State, found: Sequence[PageKey], missing: Sequence[PageKey], endpoint: str | None
) -> None:
    """Let a store hold what it was recorded to hold; the bytes of its blocks are made up.

    Raises:
        ValueError: The manager has no store.
    """
    # CHECK
    own = state.connector.tiers.get("store")
    if own is None:
        raise ValueError(
            f"a store has answered, but the manager has none (kv_connector is "
            f"{state.params.kv_connector})"
        )

    # MOVE
    store = own if endpoint is None else state.further_store(endpoint, own)
    store.believe(found, missing, read_page(state.memories[0], state.pools[0].null_page))

    # RECORD
    state.emit(StoreAnswered(tuple(found), tuple(missing), endpoint))
