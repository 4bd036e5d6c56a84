"""What a manager shows of itself, and what has to hold between any two calls of it."""

import time
from collections.abc import Hashable
from dataclasses import dataclass, fields
from typing import Any, Literal, Self

from pagedkv.conformance.call_log import CallLog
from pagedkv.conformance.implementation import Capability, Implementation, offered_by
from pagedkv.conformance.model import Found, Model
from pagedkv.conformance.slots import (
    BufferSlots,
    OwnSlots,
    RemoteSlots,
    Slots,
)
from pagedkv.conformance.violation import Violation, demand, expect
from pagedkv.reference.context import TextContext
from pagedkv.reference.identity import PageKey
from pagedkv.reference.metrics import KVCacheMetrics
from pagedkv.traces.manager_setup import ManagerSetup
from pagedkv.traces.sync_adapter import as_sync

PATIENCE_S = 10.0
"""Longest wait for transfers that should land by themselves, in seconds."""

SHORTEST_PAUSE_S = 20e-6
"""First pause of that wait, in seconds: most transfers of the checks are as short. Each next one
is twice as long as the one before."""

LONGEST_PAUSE_S = 0.001
"""And so long at most."""

COUNTERS = tuple(f.name for f in fields(KVCacheMetrics) if f.name != "inflight_disk_ops")
"""What a manager counts; the other field is a level."""


@dataclass(frozen=True)
class Observation:
    """What a manager shows of itself between two calls, as far as it shows it."""

    tables: dict[Hashable, tuple[int, ...]]
    """Page table by live request."""
    free: tuple[int, ...]
    """Free pages by replica."""
    used_below: tuple[int, ...]
    """Host and disk pages in use."""
    metrics: object
    """Counters."""


@dataclass(frozen=True)
class Pending:
    """An allocation that was begun and waits for its loads."""

    found: Found
    """What was to be found when it was planned."""
    pages: tuple[int, ...]
    """The page table that the request is to get."""
    transfers: tuple[str, ...]
    """What it waits for."""


class Observer:
    """One manager, its model, and perhaps a twin of it on the reference.

    Args:
        implementation: What to build.
        setup: How to build it.
        impl: What the implementation is known by, for reproductions.
        twin: The same setup on the reference, for managers that choose as it does.
        log: Where to write down the calls; a fresh log by default.
    """

    def __init__(
        self,
        implementation: Implementation,
        setup: ManagerSetup,
        *,
        impl: str = "",
        twin: Self | None = None,
        log: CallLog | None = None,
    ) -> None:
        self.implementation = implementation
        self.setup = setup
        self.log = log or CallLog(impl or implementation.name)
        self.log.make(setup)
        # Any: an implementation offers a part of the interface; which one, ``can`` says.
        made = implementation.make(setup)
        self.manager: Any = as_sync(made)
        self.is_async = self.manager is not made
        self.capabilities = offered_by(self.manager, implementation.capabilities)
        self.model = Model(setup, implementation.follows)
        self.twin = twin
        self.contexts: dict[Hashable, TextContext] = {}
        self.pending: dict[Hashable, Pending] = {}
        self.stale: set[str] = set()  # transfers that were issued before a reset
        self.names = 0
        self.closed = False
        self.epoch = 0  # counts resets: what was computed before one is other KV
        self._namespaces: dict[Hashable, object] = {}
        self._blocks: dict[PageKey, bytes] = {}  # digests by the manager's keys
        self.damaged: set[str] = set()  # transfers whose source was damaged
        self.submitted: set[str] = set()  # loads that are still to land
        self.counted: dict[str, int] = {}  # what counters have come to, since they were reset
        self.renaming: dict[tuple[int, int], int] = {}  # (replica, page) -> the twin's page
        self.slots = self._slots()

    def _slots(self) -> Slots:
        replicas = range(self.setup.replicas)
        if callable(getattr(self.manager, "read_slots", None)):
            return RemoteSlots(self.manager)
        if self.can("memory"):
            return BufferSlots([self.manager.get_device_buffer(replica) for replica in replicas])
        return OwnSlots(sees_all=self.setup.replicas == 1 and not self.model.has_tiers)

    def can(self, capability: Capability) -> bool:
        """Whether the manager has a capability."""
        return capability in self.capabilities

    def pages(self, ctx: TextContext) -> list[int]:
        """``get_req_blocks``."""
        replica = self.model.requests[ctx.request_id].replica
        return list(self.manager.get_req_blocks(ctx.request_id, replica))

    def used(self, tier: Literal["host", "disk"]) -> int:
        """``get_num_used_host_pages`` or ``get_num_used_disk_pages``."""
        return int(getattr(self.manager, f"get_num_used_{tier}_pages")(0))

    def metrics(self) -> Any:
        """``get_metrics_aggregated``."""
        return self.manager.get_metrics_aggregated()

    def missed(self) -> dict[str, int]:
        """Missed blocks by reason (METRIC-6), without the reasons that did not occur."""
        metrics, prefix = self.metrics(), "missed_blocks_"
        names = [field.name for field in fields(KVCacheMetrics) if field.name.startswith(prefix)]
        return {name.removeprefix(prefix): n for name in names if (n := getattr(metrics, name))}

    def observe(self) -> Observation:
        """What the manager shows of itself now."""
        replicas = range(self.setup.replicas)
        tables = {
            name: tuple(self.manager.get_req_blocks(name, request.replica))
            for name, request in self.model.requests.items()
        }
        used = tuple(
            getattr(self.manager, method)(0)
            for method in ("get_num_used_host_pages", "get_num_used_disk_pages")
            if callable(getattr(self.manager, method, None))
        )
        free = tuple(self.manager.num_free_blocks(replica) for replica in replicas)
        return Observation(tables, free, used, self.metrics() if self.can("metrics") else None)

    def same(self, before: Observation, rule: str, occasion: str) -> None:
        """Demand that nothing has changed since ``before``.

        Raises:
            Violation: Something has.
        """
        now = self.observe()
        for field in ("tables", "free", "used_below", "metrics"):
            seen, expected = getattr(now, field), getattr(before, field)
            expect(rule, seen, expected, f"{occasion}, which changes nothing; {field}")

    def settle(self) -> None:
        """Wait for transfers that land by themselves, writes between lower tiers among them."""
        if not callable(getattr(self.manager, "pending_transfers_exist", None)):
            return
        deadline, pause_s = time.monotonic() + PATIENCE_S, SHORTEST_PAUSE_S
        while self._transfers_run():
            demand("XFER-2", time.monotonic() < deadline, "transfers do not end")
            self.manager.poll_transfers()
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    def _transfers_run(self) -> bool:
        replicas = range(self.setup.replicas)
        if any(self.manager.pending_transfers_exist(replica) for replica in replicas):
            return True
        return self.can("metrics") and getattr(self.metrics(), "inflight_disk_ops", 0) > 0

    def check(self) -> None:
        """Recount what must add up between any two calls.

        Raises:
            Violation: It does not.
        """
        if self.setup.auto_land:
            self.settle()
        for replica in range(self.setup.replicas):
            self._check_pages(replica)
        self._check_capacities()
        if self.can("metrics"):
            self._check_counters()
        if self.twin:
            self._compare()

    def _check_pages(self, replica: int) -> None:
        held = self.model.held(replica) | self._pinned(replica)
        for name, pending in self.pending.items():
            if self.model.requests[name].replica == replica:
                held |= set(pending.pages)
        expect(
            "POOL-2",
            self.manager.num_free_blocks(replica),
            self.setup.total_num_pages - len(held),
            f"free pages of replica {replica}, where requests hold or transfers pin {len(held)},",
        )
        for name, request in self.model.requests.items():
            if request.replica == replica and not request.dummy:
                pages = list(self.manager.get_req_blocks(name, replica))
                expect("POOL-2", pages, request.pages, f"pages of {name!r}, which had no call,")

    def _check_capacities(self) -> None:
        """Slots count from their reservation on, so there are never more than there is room for."""
        tiers: list[tuple[Literal["host", "disk"], int | None]] = [
            ("host", self.setup.host_pages),
            ("disk", self.setup.disk_pages),
        ]
        for tier, capacity in tiers:
            told = callable(getattr(self.manager, f"get_num_used_{tier}_pages", None))
            if capacity is not None and told:
                used = self.used(tier)
                demand("TIER-1", used <= capacity, f"{tier} pages in use: {used} of {capacity}")

    def _pinned(self, replica: int) -> set[int]:
        """Pages of the replica that transfers in flight read or write."""
        if not self.can("transfers"):
            return set()
        pinned: set[int] = set()
        for transfer in self.manager.in_flight():
            if transfer.replica == replica:
                pinned |= set(transfer.pages)
            if transfer.source_replica == replica:
                pinned |= set(transfer.source_pages)
        return pinned

    def _check_counters(self) -> None:
        metrics, counts = self.metrics(), self.model.counts
        for field in ("input_tokens", "cache_tokens"):
            expect("METRIC-1", getattr(metrics, field), getattr(counts, field), field)
        for field in ("preempted_input_tokens", "preempted_cache_tokens"):
            expect("METRIC-4", getattr(metrics, field), getattr(counts, field), field)
        for field in COUNTERS:
            now, before = getattr(metrics, field, 0), self.counted.get(field, 0)
            demand("METRIC-7", now >= before, f"{field} went down from {before} to {now}")
            self.counted[field] = now

    def _compare(self) -> None:
        """Demand the same as on the reference, page for page or up to their names."""
        assert self.twin is not None
        mine, theirs = self.observe(), self.twin.observe()
        for name, table in mine.tables.items():
            replica = self.model.requests[name].replica
            other = theirs.tables[name]
            expect("ALLOC-1", len(table), len(other), f"number of pages of {name!r}")
            if "POOL-11" in self.implementation.follows:
                expect("POOL-11", table, other, f"pages of {name!r}, compared with the reference,")
            for page, expected in zip(table, other, strict=True):
                known = self.renaming.setdefault((replica, page), expected)
                if known != expected:
                    raise Violation(
                        "POOL-3",
                        f"page {page} of {name!r} stands where the reference has {expected}; "
                        f"before, it stood for {known}: another page was reused",
                    )
        expect("POOL-2", mine.free, theirs.free, "free pages, compared with the reference,")
        if len(mine.used_below) == len(theirs.used_below):  # who has no tiers need not count them
            expect("TIER-4", mine.used_below, theirs.used_below, "pages in use below the devices")
        if self.can("metrics"):
            expect(
                "METRIC-1", mine.metrics, theirs.metrics, "counters, compared with the reference,"
            )


def window_of(ctx: TextContext) -> tuple[int, int, int | None]:
    """What a manager may change of a context."""
    return ctx.tokens.processed_length, ctx.tokens.current_position, ctx.cached_prefix_length
