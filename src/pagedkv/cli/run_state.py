"""The state of a recorded run in a few lines: free pages, tables of requests, tiers, transfers."""

from collections.abc import Collection, Hashable, Iterable
from typing import TYPE_CHECKING

from rich.table import Table

from pagedkv.cli.output import number, printable

if TYPE_CHECKING:
    from pagedkv.reference.events import Event
    from pagedkv.reference.snapshot import RequestSnapshot, Snapshot

MOST_SHOWN = 16
"""Requests, and pages of one request, that a table shows."""


def free_pages(state: "Snapshot") -> list[int]:
    """By replica: how many pages may be taken."""
    pinned: set[tuple[int | None, int]] = set()
    for t in state.in_flight:
        pinned.update((t.replica, page) for page in t.pages)
        pinned.update((t.source_replica, page) for page in t.source_pages)
    return [
        sum((replica, page) not in pinned for page in pool.idle)
        for replica, pool in enumerate(state.pools)
    ]


def requests_of(event: "Event | None", state: "Snapshot") -> set[Hashable]:
    """The requests that an event is about: those it names, or that wait for its transfer."""
    names: set[Hashable] = {name for batch in getattr(event, "batches", ()) for name in batch}
    names.add(getattr(event, "request_id", None))
    transfer = getattr(event, "transfer", None)
    names.update(r.request_id for r in state.requests if r.plan and transfer in r.plan.transfers)
    return names - {None}


def add_state(
    table: Table, state: "Snapshot", total_num_pages: int, only: Collection[Hashable] | None = None
) -> None:
    """Rows for replicas, requests, tiers and transfers; of requests perhaps ``only`` some."""
    for replica, free in enumerate(free_pages(state)):
        pool = state.pools[replica]
        table.add_row(
            f"  replica {replica}",
            f"{number(free)} of {number(total_num_pages)}",
            f"pages may be taken; {number(len(pool.cached))} committed, "
            f"{number(len(pool.dirty))} dirty",
        )
    chosen = [r for r in state.requests if only is None or r.request_id in only]
    for request in chosen[:MOST_SHOWN]:
        pages = shortened(map(str, request.pages), len(request.pages))
        table.add_row(
            f"  {printable(str(request.request_id))}",
            f"{number(len(request.pages))} pages",
            f"on replica {request.replica}: {pages}; {_standing(request)}",
        )
    if len(chosen) > MOST_SHOWN:
        table.add_row("  and", f"{number(len(chosen) - MOST_SHOWN)} more", "requests")
    for name, tier in state.tiers.items():
        table.add_row(f"  {name}", number(len(tier.blocks) + len(tier.leaving)), "blocks")
    if state.in_flight:
        names = shortened((t.transfer for t in state.in_flight), len(state.in_flight))
        table.add_row("  in flight", number(len(state.in_flight)), printable(names))


def state_record(state: "Snapshot", only: Collection[Hashable]) -> dict[str, object]:
    """The same for programs."""
    return {
        "free_pages": free_pages(state),
        "requests": {
            str(r.request_id): {
                "replica": r.replica,
                "pages": list(r.pages),
                "committed": r.committed,
                "waits_for": list(r.plan.transfers) if r.plan else [],
            }
            for r in state.requests
            if r.request_id in only
        },
    }


def shortened(items: Iterable[str], count: int) -> str:
    """Some of ``count`` items, in one line."""
    shown = [item for _, item in zip(range(MOST_SHOWN), items, strict=False)]
    return " ".join(shown) + (" ..." if count > MOST_SHOWN else "") or "none"


def _standing(request: "RequestSnapshot") -> str:
    if request.plan is None:
        return f"{request.committed} committed"
    pages = shortened(map(str, request.plan.pages), len(request.plan.pages))
    waits = " ".join(request.plan.transfers) or "nothing"
    return f"{request.committed} committed; is to get {pages}, and waits for {printable(waits)}"
