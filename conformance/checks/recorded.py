"""The recorded runs that come with the package: one check for each that calls can replay."""

from collections.abc import Sequence
from typing import Any

from pagedkv.conformance.bench import Bench, Skip
from pagedkv.conformance.check import CheckFunction, check
from pagedkv.conformance.implementation import Capability
from pagedkv.conformance.trace_replay import NotReplayableError, refuse_environment, replay_trace
from pagedkv.reference.events import Claimed, Event, PrefixCacheReset
from pagedkv.traces.events.reader import EventTrace
from pagedkv.traces.events.setup import RunSetup
from pagedkv.traces.events.shipped import RecordedRun, recorded_runs


def _needs(setup: RunSetup, events: Sequence[Event]) -> tuple[Capability, ...]:
    """What a manager has to be able to do to be set up like this, and for these calls."""
    wanted: dict[Capability, bool] = {
        "prefix": setup.enable_prefix_caching,
        "replicas": setup.replicas > 1,
        "host": setup.host_pages is not None,
        "disk": setup.disk_pages is not None,
        "store": setup.store,
        "speculative": setup.speculative_method is not None,
        "dummy": any(isinstance(event, Claimed) and event.dummy for event in events),
        "reset": any(isinstance(event, PrefixCacheReset) for event in events),
    }
    return tuple(capability for capability, is_wanted in wanted.items() if is_wanted)


def _is_replayable(trace: EventTrace) -> bool:
    """Whether calls alone bring the run about."""
    try:
        refuse_environment(trace)
    except NotReplayableError:
        return False
    return trace.header.start is None


def _check_of(run: RecordedRun, trace: EventTrace) -> CheckFunction:
    def replayed(bench: Bench) -> None:
        setup = trace.header.setup
        if setup.write_policy not in bench.implementation.write_policies:
            raise Skip(f"{bench.implementation.name} has no write policy {setup.write_policy!r}")
        # Any: fields of ManagerSetup.
        options: dict[str, Any] = setup.model_dump(exclude={"layers", "head_dim"})
        replay_trace(bench.driver(**options), list(trace))

    replayed.__name__ = run.name
    replayed.__doc__ = run.shows
    return replayed


for _run in recorded_runs().values():
    _trace = EventTrace(_run.path)
    if _is_replayable(_trace):
        check(*_run.rules, needs=_needs(_trace.header.setup, list(_trace)))(_check_of(_run, _trace))
