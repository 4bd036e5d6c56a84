"""Playing recorded events on a specification: its calls are made again, its environment returns."""

from collections import deque
from collections.abc import Hashable, Sequence
from contextlib import suppress

from pagedkv.conformance.recorded.context import RecordedContext
from pagedkv.conformance.recorded.specification import Specification, SpecificationFactory
from pagedkv.reference.errors import (
    InsufficientBlocksError,
    KVLoadFailed,
    UnknownTransferError,
)
from pagedkv.reference.events import (
    AllocCancelled,
    AllocPlanned,
    AllocRefused,
    AllocReturned,
    Claimed,
    Cleaned,
    Closed,
    ContextSnapshot,
    DiskOpened,
    Event,
    InputsBuilt,
    MetricsReset,
    Prefetched,
    PrefixCacheReset,
    Released,
    ReplicaPoisoned,
    Stepped,
    StoreAnswered,
    TransferFailed,
    TransferLanded,
    TransferSubmitted,
    WriteBudgetRenewed,
)
from pagedkv.traces.errors import MalformedLineError
from pagedkv.traces.events.renaming import Renaming
from pagedkv.traces.events.setup import RunSetup
from pagedkv.traces.events.start import RunStart


class NeverIssuedError(UnknownTransferError):
    """A trace names a transfer that it has not issued."""


class Player:
    """A specification, the requests that a run has claimed on it, and what it reports of itself.

    Args:
        setup: How the recorded manager was set up.
        specification: Makes the specification.
        start: What was before the first event; ``None`` at the beginning of a run.

    Raises:
        MalformedLineError: The start contradicts the setup, or itself.
    """

    def __init__(
        self,
        setup: RunSetup,
        specification: SpecificationFactory,
        start: RunStart | None = None,
    ) -> None:
        self.reported: deque[Event] = deque()
        """Events that the specification has reported and nobody has looked at yet."""
        self.own_names: dict[str, str] = {}
        """Of transfers: the specification's name, by the trace's."""
        self.names: dict[str, str] = {}
        """The other way round."""
        self._setup = setup
        self._specification = specification
        self._manager: Specification | None = None
        self._contexts: dict[Hashable, RecordedContext] = {}
        self._replicas: dict[Hashable, int] = {}
        if start is not None:
            self._go_on_from(start)

    def emit(self, event: Event) -> None:
        """Take what the specification reports."""
        self.reported.append(event)

    @property
    def manager(self) -> Specification:
        """The specification; if it was not opened yet, with nothing on its disk."""
        return self._manager or self._open()

    def play(self, event: Event) -> None:
        """Do again what an event says was done, and collect what the specification reports.

        Raises:
            PagedKVError, ValueError: The specification refuses it.
        """
        if self._manager is None:
            self._open(event.keys if isinstance(event, DiskOpened) else ())
            if self.reported:
                return
        with suppress(InsufficientBlocksError, KVLoadFailed):  # Both are reported as events.
            self._do(event)

    def pair(self, name: str, own_name: str) -> None:
        """Note that the trace calls a transfer ``name`` and the specification ``own_name``."""
        self.own_names[name] = own_name
        self.names[own_name] = name

    def name(self, own_name: str) -> str:
        """The trace's name of a transfer, or the specification's if the trace has none."""
        return self.names.get(own_name, own_name)

    def start(self, seq: int) -> RunStart:
        """What is known before event ``seq``, which comes next."""
        state = Renaming(transfer=self.name).apply(self.manager.snapshot())
        planned = [request.request_id for request in state.requests if request.plan is not None]
        contexts = {name: self._contexts[name].snapshot for name in planned}
        return RunStart(seq=seq, state=state, contexts=contexts)

    def _open(self, disk: Sequence[bytes] = ()) -> Specification:
        self._manager = self._specification(self._setup, self, disk)
        return self._manager

    def _go_on_from(self, start: RunStart) -> None:
        def own_name(name: str) -> str:
            # Apart from the names that the specification will give.
            self.pair(name, f"earlier {name}")
            return self.own_names[name]

        manager = self._open()
        self.reported.clear()
        try:
            manager.restore(Renaming(transfer=own_name).apply(start.state))
        except ValueError as error:
            raise MalformedLineError(
                f"begins with a state that does not fit ({error})", remedy="cut the run again"
            ) from None
        for request in start.state.requests:
            name = request.request_id
            self._contexts[name] = ctx = RecordedContext(name)
            ctx.snapshot = start.contexts.get(name, ctx.snapshot)
            self._replicas[name] = request.replica

    def _do(self, event: Event) -> None:
        manager = self.manager
        match event:
            case Claimed(name, replica, dummy):
                (manager.alloc_dummy if dummy else manager.claim)(name, replica)
                self._contexts[name] = RecordedContext(name)
                self._replicas[name] = replica
            case AllocPlanned() | AllocRefused():
                ctx = self._at(event.request_id, event.context)
                manager.begin_alloc(ctx, event.replica, event.hit_limit)
            case AllocReturned(name) | AllocCancelled(name, (_, *_)):
                manager.finish_alloc(self._context(name), self._replica(name))
            case AllocCancelled(name):
                manager.cancel_alloc(name, self._replica(name))
            case InputsBuilt(batches, contexts, max_cache_length, bounds):
                manager.runtime_inputs(
                    [
                        [self._at(name, context) for name, context in zip(*batch, strict=True)]
                        for batch in zip(batches, contexts, strict=True)
                    ],
                    max_cache_length=max_cache_length,
                    batch_characteristics=bounds,
                )
            case Stepped(name, context):
                own: list[list[RecordedContext]] = [[] for _ in range(self._setup.replicas)]
                own[self._replica(name)].append(self._at(name, context))
                manager.step(own)
            case Prefetched(name, context):
                manager.prefetch(self._at(name, context))
            case Cleaned(replica, pages, sparing):
                manager.clean_pages(replica, pages, sparing)
            case Released(name):
                manager.release(name, self._replica(name))
                del self._contexts[name], self._replicas[name]
            case TransferSubmitted(transfer):
                manager.submit(self._own_name(transfer))
            case TransferLanded(transfer):
                manager.land(self._own_name(transfer))
            case TransferFailed(transfer, reason, keys):
                manager.fail(self._own_name(transfer), reason, keys)
            case StoreAnswered(found, missing, endpoint):
                manager.store_answered(found, missing, endpoint)
            case ReplicaPoisoned(replica, reason):
                manager.poison(replica, reason)
            case PrefixCacheReset():
                manager.reset_prefix_cache()
            case MetricsReset():
                manager.reset_metrics()
            case WriteBudgetRenewed():
                manager.renew_write_budget()
            case Closed():
                manager.shutdown()
            case DiskOpened():
                pass  # A disk is opened once, before everything else.

    # What a request that is not claimed gets does not matter: the specification refuses it.

    def _context(self, request_id: Hashable) -> RecordedContext:
        return self._contexts.get(request_id, RecordedContext(request_id))

    def _replica(self, request_id: Hashable) -> int:
        return self._replicas.get(request_id, 0)

    def _at(self, request_id: Hashable, snapshot: ContextSnapshot) -> RecordedContext:
        """The context of a request, as a call found it."""
        ctx = self._context(request_id)
        ctx.snapshot = snapshot
        return ctx

    def _own_name(self, transfer: str) -> str:
        if transfer not in self.own_names:
            raise NeverIssuedError(transfer)
        return self.own_names[transfer]
