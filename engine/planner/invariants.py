"""What must hold between any two calls; checked when ``enable_runtime_checks`` is on (POOL-9)."""

from collections import Counter

from pagedkv.engine.planner.pages import PagePool
from pagedkv.engine.planner.slots import TierSlots
from pagedkv.engine.planner.state import State
from pagedkv.reference.errors import PoolCorruptedError


def check(state: State) -> None:
    """Recount holders, pins, slots and free pages from requests and transfers, and compare.

    Raises:
        PoolCorruptedError: Something does not add up; the message says what.
    """
    for replica, pool in enumerate(state.pools):
        _check_holders(state, replica, pool)
        _check_pins(state, replica, pool)
        _check_content(replica, pool)
    for name, tier in state.lower.tiers.items():
        _check_tier(state, name, tier)


def _check_holders(state: State, replica: int, pool: PagePool) -> None:
    expected: Counter[int] = Counter()
    for request in state.requests.values():
        if request.replica == replica and not request.dummy:
            expected.update(request.pages)
            if request.plan is not None:
                expected.update(request.plan.added)
    idle = list(pool.idle)
    _demand(len(idle) == len(set(idle)), f"replica {replica}: a page stands twice in the list")
    _demand(
        len(idle) == len(pool.idle) == sum(page in pool.idle for page in range(pool.total)),
        f"replica {replica}: {len(pool.idle)} idle pages counted, {len(idle)} are in the list",
    )
    _demand(
        not any(page in pool.idle for page in pool.sharers),
        f"replica {replica}: a page is shared, and in the list of idle pages",
    )
    for page in range(pool.total):
        _demand(
            pool.holders(page) == expected[page],
            f"replica {replica}, page {page}: {pool.holders(page)} holders counted, "
            f"{expected[page]} found",
        )


def _check_pins(state: State, replica: int, pool: PagePool) -> None:
    expected: Counter[int] = Counter()
    for transfer in state.in_flight.values():
        if transfer.replica == replica:
            expected.update(transfer.pages)
        if transfer.source_replica == replica:
            expected.update(transfer.source_pages)
    _demand(
        dict(expected) == pool.pins,
        f"replica {replica}: pins are {pool.pins}, the transfers in flight account for "
        f"{dict(expected)}",
    )
    free = sum(1 for page in pool.idle if page not in pool.pins)
    cleanable = sum(1 for page in pool.idle if page in pool.dirty and page not in pool.pins)
    _demand(
        (free, cleanable) == (pool.num_free, pool.num_cleanable),
        f"replica {replica}: {pool.num_free} free and {pool.num_cleanable} cleanable pages "
        f"counted, {free} and {cleanable} found",
    )


def _check_content(replica: int, pool: PagePool) -> None:
    by_page = {page: key for page, key in enumerate(pool.key_of) if key is not None}
    _demand(
        {page: key for key, page in pool.page_of.items()} == by_page,
        f"replica {replica}: pages and identities do not match one to one",
    )
    _demand(
        pool.dirty <= by_page.keys(), f"replica {replica}: a dirty page holds nothing committed"
    )


def _check_tier(state: State, name: str, tier: TierSlots) -> None:
    expected: Counter[int] = Counter()
    for transfer in state.in_flight.values():
        expected.update(transfer.source_slots if transfer.source == name else ())
        expected.update(transfer.target_slots if transfer.target == name else ())
        expected.update((s for _, s in transfer.promoted) if name == "host" else ())
    _demand(
        dict(expected) == tier.pins,
        f"the {name} tier's pins are {tier.pins}, the transfers in flight account for "
        f"{dict(expected)}",
    )
    listed = set(tier.recency)
    _demand(
        listed == {slot for _, slot in tier.slot_of.items()}
        and len(listed) + len(tier.leaving) == tier.used,
        f"the {name} tier has {len(listed)} slots in its order, {len(tier.slot_of)} blocks and "
        f"{len(tier.leaving)} leaving, but counts {tier.used}",
    )
    _demand(
        all(tier.visible[slot] or slot in tier.pins for slot in listed),
        f"the {name} tier has a reserved slot that nobody fills",
    )


def _demand(holds: bool, message: str) -> None:
    if not holds:
        raise PoolCorruptedError(message)
