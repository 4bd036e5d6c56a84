"""Remembers what allocations found, so that somebody can ask why."""

import math
from collections import OrderedDict
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from operator import itemgetter
from typing import NamedTuple

from pagedkv.engine.observability.explanation import BlockRun, Explanation, Outcome
from pagedkv.engine.observability.observer import Observer
from pagedkv.engine.observability.records import AllocRecord, TransferRecord
from pagedkv.engine.observability.watch import Watch
from pagedkv.engine.planner import matching
from pagedkv.engine.planner.fates import MissReason
from pagedkv.engine.planner.state import AllocPlan, Load, Request, State
from pagedkv.reference.identity import PageKey
from pagedkv.reference.tier_names import TierName


class NotExplainedError(LookupError):
    """Nothing is known of a request."""

    def __init__(self, request_id: Hashable, kept: int) -> None:
        self.request_id = request_id
        """The request."""
        self.kept = kept
        """How many released requests are remembered."""
        super().__init__(
            f"nothing is known of request {request_id!r}: it was not allocated while the explainer "
            f"was attached, or {kept} others have been released since; attach it earlier, or make "
            "it with a larger keep"
        )


@dataclass(eq=False, slots=True)
class _Loading:
    """A load that explanations point at until somebody asks."""

    seconds: float | None = None


class _Finding(NamedTuple):
    """What there is to say of one block, or of a run of them."""

    outcome: Outcome
    tier: TierName | None = None
    reason: MissReason | None = None
    joined: bool = False
    load: _Loading | None = None


ON_DEVICE = _Finding("hit", "device")
NEVER_SEEN = _Finding("missed", None, "never_seen")


@dataclass(frozen=True, slots=True)
class _Run:
    first: int
    last: int
    finding: _Finding
    lost_s_ago: float | None


@dataclass(eq=False, slots=True)
class _Story:
    """What has happened to one request so far."""

    replica: int
    runs: list[_Run] = field(default_factory=list)
    plans: int = 0
    queue_s: float | None = None
    total_s: float | None = None


class Explainer(Observer):
    """Explains hits and misses: ``manager.attach(explainer)``, later ``explainer.explain(id)``.

    Args:
        keep: Most released requests to remember.
        keep_losses: Most lost blocks whose time is remembered.

    Raises:
        ValueError: One of them is negative.
    """

    def __init__(self, keep: int = 1_000, keep_losses: int = 100_000) -> None:
        if keep < 0 or keep_losses < 0:
            raise ValueError(
                f"keep is {keep} and keep_losses is {keep_losses}; neither may be negative"
            )
        self._keep = keep
        self._keep_losses = keep_losses
        self._live: dict[Hashable, _Story] = {}
        self._released: OrderedDict[Hashable, _Story] = OrderedDict()
        self._loads: dict[str, _Loading] = {}
        self._losses: OrderedDict[PageKey, tuple[TierName | None, float]] = OrderedDict()
        self._watch: Watch | None = None

    def explain(self, request_id: Hashable) -> Explanation:
        """What the cache did for a request that is alive, or was released not long ago.

        Raises:
            NotExplainedError: Nothing is known of it.
        """
        story = self._live.get(request_id) or self._released.get(request_id)
        if story is None:
            raise NotExplainedError(request_id, self._keep)
        return Explanation(
            request_id=request_id,
            replica=story.replica,
            runs=tuple(_as_told(run) for run in story.runs),
            plans=story.plans,
            queue_s=story.queue_s,
            total_s=story.total_s,
            released=request_id not in self._live,
        )

    # --- what the engine says ---------------------------------------------------------------

    def attached(self, watch: Watch) -> None:
        """Be told of losses, too."""
        self._watch = watch
        watch.state.fates.witness = self._lost

    def detached(self) -> None:
        """What is known can still be asked."""
        assert self._watch is not None
        self._watch.state.fates.witness = None
        self._watch = None

    def alloc_planned(self, request_id: Hashable, request: Request, plan: AllocPlan) -> None:
        """Remember what was found, unless the request only grows."""
        if request.admitted and not plan.found:
            return
        assert self._watch is not None
        for transfer_id in plan.transfers:
            self._loads.setdefault(transfer_id, _Loading())
        story = self._live.setdefault(request_id, _Story(request.replica))
        story.plans += not request.admitted
        story.runs = [
            replace(run, last=min(run.last, request.committed - 1))
            for run in story.runs
            if run.first < request.committed
        ]
        story.runs += self._runs_of(self._watch.state, request, plan)

    def alloc_ended(self, alloc: AllocRecord) -> None:
        """Remember how long the admission took."""
        story = self._live.get(alloc.request_id)
        if story is not None and story.total_s is None and alloc.error is None:
            story.queue_s, story.total_s = alloc.queue_s, alloc.total_s

    def transfer_settled(self, record: TransferRecord) -> None:
        """Remember how long a load took."""
        load = self._loads.pop(record.transfer.id, None)
        if load is not None and record.reason is None:
            load.seconds = record.total_s

    def released(self, request_id: Hashable) -> None:
        """Remember the request for a while."""
        story = self._live.pop(request_id, None)
        if story is None:
            return
        self._released.pop(request_id, None)
        self._released[request_id] = story
        while len(self._released) > self._keep:
            self._released.popitem(last=False)

    # --- internals --------------------------------------------------------------------------

    def _lost(self, keys: Sequence[PageKey], reason: MissReason, tier: TierName | None) -> None:
        assert self._watch is not None
        now_s = self._watch.clock()
        for key in keys:
            self._losses.pop(key, None)
            self._losses[key] = tier, now_s
        while len(self._losses) > self._keep_losses:
            self._losses.popitem(last=False)

    def _runs_of(self, state: State, request: Request, plan: AllocPlan) -> Iterator[_Run]:
        """What there is to say of the blocks that the plan has looked up, as runs."""
        assert self._watch is not None
        now_s = self._watch.clock()
        first = request.committed
        findings = self._findings_of(state, request, plan)
        for finding, group in groupby(findings, key=itemgetter(0)):
            keys = [key for _, key in group]
            ago_s = None
            if finding.outcome == "missed" and any(key in self._losses for key in keys):
                ago_s = now_s - max(self._losses[key][1] for key in keys if key in self._losses)
            yield _Run(first, first + len(keys) - 1, finding, ago_s)
            first += len(keys)

    def _findings_of(
        self, state: State, request: Request, plan: AllocPlan
    ) -> Iterator[tuple[_Finding, PageKey]]:
        loads = {}
        for transfer_id in plan.transfers:
            transfer = state.in_flight[transfer_id]
            loads[transfer.source, transfer.source_replica] = self._loads[transfer_id]
        start, end = request.committed, request.committed + len(plan.found)
        for hit, key in zip(plan.found, request.keys[start:end], strict=True):
            if not isinstance(hit, Load):
                yield ON_DEVICE, key
            elif hit.joined is not None:
                load = self._loads[hit.joined.id]
                yield _Finding("hit", hit.tier, joined=True, load=load), key
            else:
                yield _Finding("hit", hit.tier, load=loads[hit.tier, hit.peer]), key
        rest = request.keys[end : plan.looked_up]
        if plan.misses == {"never_seen": len(rest)}:
            # So it is for most requests, and nothing more can be said of each.
            yield from ((NEVER_SEEN, key) for key in rest)
            return
        gap = False
        for key in rest:
            tier = self._where(state, request, key)
            gap = gap or tier is None
            if tier is None:
                reason = matching.why_missing(state, request, key)
                lost_by = self._losses[key][0] if key in self._losses else None
                yield _Finding("missed", lost_by, reason), key
            elif gap:
                yield _Finding("behind_gap", tier), key
            else:
                yield (
                    _Finding("not_used", tier, None if state.drafts_look_ahead else "too_slow"),
                    key,
                )

    def _where(self, state: State, request: Request, key: PageKey) -> TierName | None:
        """The fastest tier that had a block when the planning began."""
        assert self._watch is not None
        lost_by, lost_s = self._losses.get(key, (None, -math.inf))
        if lost_s >= self._watch.planning_s:
            return lost_by  # to make room for this very allocation
        if not matching.is_somewhere(state, request.replica, key, request.avoided):
            return None
        pool = state.pools[request.replica]
        if key in pool.page_of or key in pool.loading:
            return "device"
        return state.lower.fastest(key, request.avoided) or "peer"


def _as_told(run: _Run) -> BlockRun:
    finding = run.finding
    return BlockRun(
        first=run.first,
        last=run.last,
        outcome=finding.outcome,
        tier=finding.tier,
        reason=finding.reason,
        joined=finding.joined,
        load_s=None if finding.load is None else finding.load.seconds,
        lost_s_ago=run.lost_s_ago,
    )
