"""Where a scenario is played: a manager whose transfers land when the scenario says so."""

from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any, Protocol, cast

import numpy as np

from pagedkv.conformance.implementation import ControlledManager, PlannedAllocation
from pagedkv.conformance.recorded.specification import Specification
from pagedkv.reference.context import Context, TextContext
from pagedkv.reference.errors import KVLoadFailed
from pagedkv.reference.events import AllocPlanned, Event
from pagedkv.reference.identity import PageKey
from pagedkv.reference.metrics import PrefixCacheHits
from pagedkv.reference.tier_names import FailReason, TierName
from pagedkv.reference.tokens import TokenBuffer
from pagedkv.traces.events.start import RunStart
from pagedkv.traces.manager_setup import ManagerFactory, ManagerSetup


class StagedManager(Specification, ControlledManager, Protocol):
    """What scenarios make use of."""

    def clean(self, replica_idx: int, count: int) -> Any:  # which transfers were issued
        """Offload the oldest dirty pages."""
        ...


class Stage:
    """A fresh manager, and everything that it reports.

    Args:
        factory: Makes the manager.
        setup: Its sizes and policies.
    """

    def __init__(self, factory: ManagerFactory, setup: ManagerSetup) -> None:
        self.events: list[Event] = []
        """What the manager has reported."""
        self.start: RunStart | None = None
        """Where the manager stood before that; ``None``: it had just been made."""
        self.setup = setup
        """How the manager was set up."""
        made = factory(setup.model_copy(update={"tracer": self}))
        self.manager = cast(StagedManager, made)
        """The manager."""
        self._replicas: dict[Hashable, int] = {}

    def emit(self, event: Event) -> None:
        """Take what the manager reports."""
        self.events.append(event)

    def begin_trace(self) -> None:
        """The trace begins here, with the state as it is; no allocation may be pending."""
        self.start = RunStart(seq=len(self.events), state=self.manager.snapshot())
        self.events.clear()

    def prompt(self, pages: int, start: int = 0) -> range:
        """Tokens for so many full pages, and the one more that has to be computed."""
        return range(start, start + self.setup.page_size * pages + 1)

    # Any: the options of a context, whose types are its own.
    def context(self, name: str, tokens: Iterable[int], **options: Any) -> TextContext:
        """A request that the manager does not know yet."""
        buffer = TokenBuffer(np.fromiter(tokens, dtype=np.int64))
        return TextContext(max_length=1000, tokens=buffer, request_id=name, **options)

    def claim(
        self, name: str, tokens: Iterable[int], replica: int = 0, **options: Any
    ) -> TextContext:
        """A request on a replica, without pages."""
        ctx = self.context(name, tokens, **options)
        self.manager.claim(name, replica)
        self._replicas[name] = replica
        return ctx

    def begin(self, ctx: Context, hit_limit: int | None = None) -> PlannedAllocation:
        """Plan its allocation, with a hit of ``hit_limit`` blocks at most."""
        replica = self._replicas[ctx.request_id]
        planned: PlannedAllocation = self.manager.begin_alloc(ctx, replica, hit_limit)
        return planned

    def finish(self, ctx: Context) -> None:
        """Complete a planned allocation."""
        self.manager.finish_alloc(ctx, self._replicas[ctx.request_id])

    def settle(self, ctx: Context) -> None:
        """Complete it; if a load has failed, allocate once more."""
        try:
            self.finish(ctx)
        except KVLoadFailed:
            self.alloc(ctx)

    def cancel(self, ctx: Context) -> None:
        """Undo a planned allocation."""
        self.manager.cancel_alloc(ctx.request_id, self._replicas[ctx.request_id])

    def alloc(self, ctx: Context) -> None:
        """A whole allocation: its loads land, and one that has failed is planned once more."""
        for transfer in self.begin(ctx).transfers:
            if transfer in self.in_flight():
                self.manager.land(transfer)
        self.settle(ctx)

    def admit(
        self, name: str, tokens: Iterable[int], replica: int = 0, **options: Any
    ) -> TextContext:
        """A request that has the pages of its first forward."""
        ctx = self.claim(name, tokens, replica, **options)
        self.alloc(ctx)
        return ctx

    def forward(self, *contexts: TextContext, token: int = 0) -> None:
        """One forward of these requests, the token that each samples, and the step after it."""
        batches: list[list[TextContext]] = [[] for _ in range(self.setup.replicas)]
        for ctx in contexts:
            batches[self._replicas[ctx.request_id]].append(ctx)
        self.manager.runtime_inputs(batches)
        for ctx in contexts:
            ctx.update(token)
        self.manager.step(batches)

    def release(self, *contexts: Context) -> None:
        """Requests are done."""
        for ctx in contexts:
            self.manager.release(ctx.request_id, self._replicas.pop(ctx.request_id))

    def serve(self, name: str, tokens: Iterable[int], replica: int = 0, **options: Any) -> None:
        """A request from its claim to its release, and all that it offloads lands."""
        ctx = self.admit(name, tokens, replica, **options)
        self.forward(ctx)
        self.release(ctx)
        self.land()

    def in_flight(
        self, source: TierName | None = None, target: TierName | None = None
    ) -> list[str]:
        """Transfers that have not settled, in the order of their issue; perhaps only some."""
        return [
            t.id
            for t in self.manager.in_flight()
            if source in (None, t.source) and target in (None, t.target)
        ]

    def land(self, source: TierName | None = None, target: TierName | None = None) -> None:
        """Land these transfers, and such as follow from them, until none is left."""
        while transfers := self.in_flight(source, target):
            self.manager.land(transfers[0])

    def fail(
        self,
        reason: FailReason,
        source: TierName | None = None,
        target: TierName | None = None,
        keys: Sequence[PageKey] | None = None,
    ) -> None:
        """The oldest of these transfers fails."""
        self.manager.fail(self.in_flight(source, target)[0], reason, keys)


def hits_in(stage: Stage) -> list[PrefixCacheHits]:
    """What every allocation found, in order."""
    return [event.hits for event in stage.events if isinstance(event, AllocPlanned)]


MakeStage = Callable[..., Stage]
"""Makes a stage from the fields of a :class:`~pagedkv.traces.manager_setup.ManagerSetup`."""
