"""What must hold between any two calls; checked when ``enable_runtime_checks`` is on (POOL-9)."""

from collections import Counter

from pagedkv.reference.errors import PoolCorruptedError
from pagedkv.reference.pool import PagePool
from pagedkv.reference.state import State
from pagedkv.reference.tiers import Block


def check(state: State) -> None:
    """Recount holders, pins and slots from requests and transfers, and compare.

    Raises:
        PoolCorruptedError: Something does not add up; the message says what.
    """
    for replica, pool in enumerate(state.pools):
        _check_holders(state, replica, pool)
        _check_pins(state, replica, pool)
        _check_content(replica, pool)
    _check_tiers(state)


def _check_holders(state: State, replica: int, pool: PagePool) -> None:
    expected: Counter[int] = Counter()
    for request in state.requests.values():
        if request.replica == replica and not request.dummy:
            expected.update(request.pages)
            if request.plan is not None:
                expected.update(request.plan.added)
    for page, holders in enumerate(pool.holders):
        if holders != expected[page]:
            raise PoolCorruptedError(
                f"replica {replica}, page {page}: {holders} holders counted, {expected[page]} found"
            )
        if (page in pool.idle) != (holders == 0):
            raise PoolCorruptedError(
                f"replica {replica}, page {page}: {holders} holders, and "
                f"{'in' if page in pool.idle else 'not in'} the list of idle pages"
            )


def _check_pins(state: State, replica: int, pool: PagePool) -> None:
    expected: Counter[int] = Counter()
    for transfer in state.in_flight.values():
        if transfer.replica == replica:
            expected.update(transfer.pages)
        if transfer.source_replica == replica:
            expected.update(transfer.source_pages)
    if dict(expected) != pool.pins:
        raise PoolCorruptedError(
            f"replica {replica}: pins are {pool.pins}, the transfers in flight account for "
            f"{dict(expected)}"
        )


def _check_tiers(state: State) -> None:
    for name, tier in state.connector.tiers.items():
        if tier.capacity is not None and tier.used > tier.capacity:
            raise PoolCorruptedError(
                f"the {name} tier uses {tier.used} slots, its capacity is {tier.capacity}"
            )
        expected: Counter[Block] = Counter()
        for transfer in state.in_flight.values():
            expected.update(transfer.source_blocks if transfer.source == name else ())
            expected.update(transfer.target_blocks if transfer.target == name else ())
            expected.update(transfer.promoted_blocks if name == "host" else ())
        for block in (*tier.blocks.values(), *tier.leaving):
            own = expected.pop(block, 0)
            # A store is shared: the transfers of other managers pin its blocks, too.
            if block.pins < own or (block.pins > own and name != "store"):
                raise PoolCorruptedError(
                    f"the {name} tier's block {block.key.hex()[:12]} has {block.pins} pins, which "
                    "the transfers in flight do not account for"
                )
        # What is left in a store belongs to another one, or to an earlier namespace.
        if expected and name != "store":
            raise PoolCorruptedError(f"the {name} tier gave up a block that a transfer uses")


def _check_content(replica: int, pool: PagePool) -> None:
    if {page: key for key, page in pool.page_of.items()} != pool.key_of:
        raise PoolCorruptedError(f"replica {replica}: pages and identities do not match one to one")
    if not pool.dirty <= pool.key_of.keys():
        raise PoolCorruptedError(f"replica {replica}: a dirty page holds nothing committed")
    statistics = pool.statistics()
    parts = (statistics.held, statistics.pinned, statistics.cached, statistics.free)
    if sum(parts) != pool.total:
        raise PoolCorruptedError(f"replica {replica}: {statistics} does not add up")
