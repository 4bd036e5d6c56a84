"""A manager whose calls have to be reported, or nobody could judge them (EVENT-1)."""

from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import Any

from pagedkv.conformance.bench import Recording
from pagedkv.conformance.violation import demand
from pagedkv.reference.context import Context
from pagedkv.reference.events import (
    Claimed,
    Event,
    InputsBuilt,
    MetricsReset,
    Prefetched,
    PrefixCacheReset,
    Released,
    Stepped,
    WriteBudgetRenewed,
)

REPORTED: dict[str, type[Event]] = {
    "alloc_dummy": Claimed,
    "claim": Claimed,
    "prefetch": Prefetched,
    "release": Released,
    "renew_write_budget": WriteBudgetRenewed,
    "reset_metrics": MetricsReset,
    "reset_prefix_cache": PrefixCacheReset,
    "runtime_inputs": InputsBuilt,
}
"""What a call is reported as, if it returns. Allocations wait, and are known by what follows."""


class ReportedCalls:
    """Passes everything on, and sees to it that what has happened is reported.

    Args:
        manager: The manager.
        events: What it has reported so far.
    """

    # Any, here and below: calls are passed on as they come.
    def __init__(self, manager: Any, events: Recording) -> None:
        self._manager, self._events = manager, events
        self._dummies: set[Hashable] = set()

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._manager, name)
        return partial(self._call, name, method) if name in REPORTED else method

    def alloc_dummy(self, request_id: Hashable, replica_idx: int) -> None:
        """Claim a request that only fills a batch: its steps are not reported."""
        self._call("alloc_dummy", self._manager.alloc_dummy, request_id, replica_idx)
        self._dummies.add(request_id)

    def step(self, batches: Sequence[Sequence[Context]], **options: Any) -> None:
        """Commit what was computed: it is reported for each request.

        Raises:
            Violation: It is not.
        """
        before = len(self._events)
        self._manager.step(batches, **options)
        reported = {event.request_id for event in self._since(before, Stepped)}
        for request_id in (ctx.request_id for batch in batches for ctx in batch):
            told = f"step of {request_id!r}, whose forward has computed something, is not reported"
            demand("EVENT-1", request_id in reported | self._dummies, told)

    def _call(self, name: str, method: Callable[..., Any], *args: Any, **options: Any) -> Any:
        before = len(self._events)
        result = method(*args, **options)
        demand("EVENT-1", bool(self._since(before, REPORTED[name])), f"{name} is not reported")
        return result

    def _since(self, before: int, kind: type[Any]) -> list[Any]:
        return [event for event in self._events[before:] if isinstance(event, kind)]
