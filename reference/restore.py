"""Taking the state of a manager as a snapshot, and letting a fresh manager go on from one."""

from collections import OrderedDict, defaultdict
from collections.abc import Hashable, Iterable, Iterator

from pagedkv.reference import invariants
from pagedkv.reference.errors import PoolCorruptedError
from pagedkv.reference.identity import PageKey
from pagedkv.reference.page_bytes import read_page
from pagedkv.reference.pool import PagePool
from pagedkv.reference.snapshot import (
    BlockSnapshot,
    PoolSnapshot,
    RequestSnapshot,
    Snapshot,
    TierSnapshot,
    TransferSnapshot,
)
from pagedkv.reference.state import Request, State
from pagedkv.reference.tier_names import LowerTier, TierName
from pagedkv.reference.tiers import Block, Tier
from pagedkv.reference.transfer import Transfer

Uses = dict[tuple[str, TierName, PageKey], tuple[Tier, Block]]
"""The blocks that transfers in flight use, by transfer, tier and identity."""


def take_snapshot(state: State) -> Snapshot:
    """All that the manager knows, as data; changes nothing."""
    users: defaultdict[Block, list[str]] = defaultdict(list)
    places: dict[Block, Tier] = {}
    for transfer in state.in_flight.values():
        for tier, block in _places(state, transfer):
            users[block].append(transfer.id)
            places[block] = tier

    def taken(tier: Tier) -> TierSnapshot:
        return _take_tier(tier, users, [b for b, where in places.items() if where is tier])

    return Snapshot(
        pools=tuple(
            PoolSnapshot(
                idle=tuple(pool.idle),
                cached=tuple(sorted(pool.key_of.items())),
                dirty=tuple(sorted(pool.dirty)),
                evictions=pool.evictions,
            )
            for pool in state.pools
        ),
        tiers={name: taken(tier) for name, tier in state.connector.tiers.items()},
        further_stores={name: taken(tier) for name, tier in state.further_stores.items()},
        requests=tuple(_take_request(name, request) for name, request in state.requests.items()),
        in_flight=tuple(_take_transfer(transfer) for transfer in state.in_flight.values()),
        issued=state.issued,
        uses=tuple(state.connector.uses.items()),
        fates=tuple(state.fates.reasons.items()),
        poisoned=dict(state.poisoned),
        served=state.metrics,
        copied=state.connector.copied,
        closed=state.closed,
    )


def restore(state: State, snapshot: Snapshot) -> None:
    """Bring a fresh manager into the state of ``snapshot``; the bytes of its blocks are made up.

    Raises:
        ValueError: The manager is not fresh, has other replicas or tiers, or the snapshot
            contradicts itself.
    """
    # CHECK
    tiers = state.connector.tiers
    if state.issued or state.requests:
        raise ValueError("the manager has been used already; restore a fresh one")
    if len(snapshot.pools) != len(state.pools) or snapshot.tiers.keys() != tiers.keys():
        raise ValueError(
            f"the snapshot is of {len(snapshot.pools)} replica(s) with {_listed(snapshot.tiers)}, "
            f"the manager has {len(state.pools)} with {_listed(tiers)}; make it with the same setup"
        )

    # MOVE, and recount: a snapshot from a file may say anything
    try:
        _restore_pools(state, snapshot)
        used = _restore_tiers(state, snapshot)
        for transfer in snapshot.in_flight:
            _restore_transfer(state, transfer, used)
        for request in snapshot.requests:
            _restore_request(state, request)
        invariants.check(state)
    except (LookupError, TypeError, ValueError, PoolCorruptedError) as error:
        raise ValueError(f"the snapshot contradicts itself: {error!r}") from error

    # RECORD
    state.issued = snapshot.issued
    state.connector.uses.update(snapshot.uses)
    state.fates.reasons.update(snapshot.fates)
    state.poisoned.update(snapshot.poisoned)
    state.metrics, state.connector.copied = snapshot.served, snapshot.copied
    state.closed = snapshot.closed


def _places(state: State, transfer: Transfer) -> Iterator[tuple[Tier, Block]]:
    """The blocks that a transfer reads and writes below the devices."""
    yield from zip(transfer.source_tiers, transfer.source_blocks, strict=True)
    for block in transfer.promoted_blocks:
        yield state.connector.tiers["host"], block
    for name, tier in state.connector.tiers.items():
        if name == transfer.target:
            yield from ((tier, block) for block in transfer.target_blocks)


def _take_tier(tier: Tier, users: dict[Block, list[str]], in_use: Iterable[Block]) -> TierSnapshot:
    here = (*tier.blocks.values(), *tier.arriving.values())
    blocks = [block for block in here if block.name.startswith(tier.prefix)]
    # A store keeps no list of its own of what transfers still use, because nothing bounds it.
    leaving = dict.fromkeys([*tier.leaving, *in_use])
    for block in blocks:
        leaving.pop(block, None)

    def taken(block: Block) -> BlockSnapshot:
        landed = block.content is not None
        return BlockSnapshot(block.key, block.parent, landed, tuple(users.get(block, ())))

    return TierSnapshot(
        tuple(map(taken, blocks)), tuple(map(taken, leaving)), tier.evictions, tier.writes_left
    )


def _take_transfer(transfer: Transfer) -> TransferSnapshot:
    return TransferSnapshot(
        transfer=transfer.id,
        kind=transfer.kind,
        source=transfer.source,
        target=transfer.target,
        keys=transfer.keys,
        replica=transfer.replica,
        pages=transfer.pages,
        source_replica=transfer.source_replica,
        source_pages=transfer.source_pages,
        chain=transfer.chain,
        fenced=transfer.fenced,
        submitted=transfer.submitted,
    )


def _take_request(name: Hashable, request: Request) -> RequestSnapshot:
    return RequestSnapshot(
        request_id=name,
        replica=request.replica,
        pages=tuple(request.pages),
        digests=tuple(request.digests),
        committed=request.committed,
        offered=request.offered,
        counted=request.counted,
        repeated=request.repeated,
        admitted=request.admitted,
        dummy=request.dummy,
        fenced=request.fenced,
        plan=request.plan,
        failed=tuple(sorted(request.failed)),
        avoided=tuple((*source, reason) for source, reason in request.avoided.items()),
        looked_up=request.looked_up,
    )


def _restore_pools(state: State, snapshot: Snapshot) -> None:
    for pool, taken in zip(state.pools, snapshot.pools, strict=True):
        pool.idle = OrderedDict.fromkeys(taken.idle)
        _check_pages(pool, [page for page, _ in taken.cached])
        for page, key in taken.cached:
            if key in pool.page_of or page in pool.key_of:
                raise ValueError(f"page {page} is cached twice, or what it holds is")
            pool.commit(page, key)
        pool.dirty.update(taken.dirty)
        pool.evictions = taken.evictions


def _restore_tiers(state: State, snapshot: Snapshot) -> Uses:
    tiers: list[tuple[LowerTier, Tier, TierSnapshot]] = [
        (name, state.connector.tiers[name], taken) for name, taken in snapshot.tiers.items()
    ]
    for endpoint, taken in snapshot.further_stores.items():
        own = state.connector.tiers["store"]
        tiers.append(("store", state.further_store(endpoint, own), taken))
    content = read_page(state.memories[0], state.pools[0].null_page)
    uses: Uses = {}
    for name, tier, taken in tiers:
        tier.evictions, tier.writes_left = taken.evictions, taken.writes_left
        places = [(saved, False) for saved in taken.blocks]
        places += [(saved, True) for saved in taken.leaving]
        for saved, leaving in places:
            block = Block(
                name=tier.prefix + saved.key,
                key=saved.key,
                parent=saved.parent,
                content=content if saved.landed else None,
                pins=len(saved.used_by),
            )
            uses.update({(user, name, saved.key): (tier, block) for user in saved.used_by})
            _put_back(tier, block, leaving=leaving)
    return uses


def _put_back(tier: Tier, block: Block, *, leaving: bool) -> None:
    if tier.capacity is not None:
        if leaving:
            tier.leaving.append(block)
        else:
            tier.blocks[block.name] = block
    elif leaving:
        block.name = block.key  # It has another name than what can be found.
    elif block.content is None:
        tier.arriving[block.name] = block
    else:
        tier.blocks[block.name] = block
        tier.known.add(block.name)


def _restore_transfer(state: State, saved: TransferSnapshot, uses: Uses) -> None:
    def used_in(name: TierName) -> list[tuple[Tier, Block]]:
        found = (uses.get((saved.transfer, name, key)) for key in saved.keys)
        return [place for place in found if place is not None]

    sources, targets = used_in(saved.source), used_in(saved.target)
    promoted = used_in("host") if "host" not in (saved.source, saved.target) else []
    transfer = Transfer(
        kind=saved.kind,
        source=saved.source,
        target=saved.target,
        keys=saved.keys,
        replica=saved.replica,
        pages=saved.pages,
        source_replica=saved.source_replica,
        source_pages=saved.source_pages,
        source_blocks=tuple(block for _, block in sources),
        source_tiers=tuple(tier for tier, _ in sources),
        target_blocks=tuple(block for _, block in targets),
        promoted_blocks=tuple(block for _, block in promoted),
        chain=saved.chain,
        fenced=saved.fenced,
    )
    transfer.id = saved.transfer
    if saved.submitted:
        state.connector.submit(transfer)
    state.in_flight[transfer.id] = transfer
    if transfer.replica is not None:
        pool = state.pools[transfer.replica]
        _check_pages(pool, transfer.pages)
        pool.pin(transfer.pages)
        if transfer.kind == "onload" and not transfer.fenced:
            for page, key in zip(transfer.pages, transfer.keys, strict=True):
                pool.begin_load(page, key)
    if transfer.source_replica is not None:
        pool = state.pools[transfer.source_replica]
        _check_pages(pool, transfer.source_pages)
        pool.pin(transfer.source_pages)


def _restore_request(state: State, saved: RequestSnapshot) -> None:
    state.requests[saved.request_id] = Request(
        replica=saved.replica,
        pages=list(saved.pages),
        digests=list(saved.digests),
        committed=saved.committed,
        offered=saved.offered,
        counted=saved.counted,
        repeated=saved.repeated,
        admitted=saved.admitted,
        dummy=saved.dummy,
        fenced=saved.fenced,
        plan=saved.plan,
        failed=set(saved.failed),
        avoided={(source, key): reason for source, key, reason in saved.avoided},
        looked_up=saved.looked_up,
    )
    if not saved.dummy:
        pool = state.pools[saved.replica]
        held = (*saved.pages, *(saved.plan.added if saved.plan else ()))
        _check_pages(pool, held)
        for page in held:
            pool.holders[page] += 1


def _check_pages(pool: PagePool, pages: Iterable[int]) -> None:
    strangers = [page for page in pages if not 0 <= page < pool.total]
    if strangers:
        raise ValueError(f"there are no pages {strangers}, only 0 to {pool.total - 1}")


def _listed(tiers: Iterable[str]) -> str:
    return ", ".join(tiers) or "no tier"
