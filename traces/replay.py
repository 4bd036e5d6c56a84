"""Replays a workload on any manager, the way a simple server would drive it.

Each round grows what runs, admits what waits, runs one forward over all of it and releases what
is done. With a concurrency of 1 and without decoding, that is for each request in file order:
``claim``, ``alloc``, one forward over the whole prompt, one sampled token, ``step``, ``release``.

There is no model: a forward computes nothing, and the tokens it samples are made up. Arrival
times are not simulated either; a request is admitted as soon as its turn and pages have come.
"""

from array import array
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from time import perf_counter_ns
from typing import ParamSpec, TypeVar

from pagedkv.reference.context import TextContext
from pagedkv.reference.errors import InsufficientBlocksError
from pagedkv.reference.interfaces import SyncKVCacheManager
from pagedkv.reference.tokens import TokenBuffer
from pagedkv.traces.cache_counters import (
    EVICTIONS,
    PAGES_HIT_AGAIN,
    TIERS,
    TOKENS_HIT,
    pages_hit,
    read_counters,
)
from pagedkv.traces.manager_call import ManagerCallError, call_manager
from pagedkv.traces.manager_setup import ManagerFactory, ManagerSetup
from pagedkv.traces.replay_report import CallTimes, ReplayReport
from pagedkv.traces.sync_adapter import as_sync
from pagedkv.traces.tokens import generated_token, tokens_of
from pagedkv.traces.workload import WorkloadRequest

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


@dataclass(frozen=True)
class ReplayOptions:
    """How to drive the manager."""

    concurrency: int = 1
    """Most requests in flight, 1 or more."""
    decode: bool = False
    """Whether answers are generated to their full length, or end with their first token."""
    runtime_inputs: bool = False
    """Whether to ask for the inputs of every forward, although no model reads them."""
    patience_s: float = 60.0
    """Longest time without progress to wait for transfers that hold pages, in seconds."""


def replay(
    requests: Iterable[WorkloadRequest],
    block_size: int,
    factory: ManagerFactory,
    setup: ManagerSetup,
    options: ReplayOptions | None = None,
    on_request_done: Callable[[], None] = lambda: None,
) -> ReplayReport:
    """Serve ``requests`` on a fresh manager and report what its cache did.

    Args:
        requests: The workload; taken one by one as they are admitted.
        block_size: Tokens per hash id, from the workload's header.
        factory: Builds the manager, which is shut down at the end.
        setup: The manager's sizes.
        options: How to drive it; one request at a time by default.
        on_request_done: Called whenever a request was served or refused.

    Raises:
        TraceError: The workload turns out to be malformed.
        ManagerCallError: The manager raised something else than ``InsufficientBlocksError`` from
            ``alloc``, or its transfers do not end.
    """
    manager = as_sync(factory(setup))
    try:
        report = _Driver(
            enumerate(requests),
            block_size,
            manager,
            setup,
            options or ReplayOptions(),
            on_request_done,
        ).run()
    except BaseException:
        with suppress(ManagerCallError):  # the first error is the one to tell
            call_manager("shutdown", manager.shutdown)
        raise
    call_manager("shutdown", manager.shutdown)
    return report


@dataclass(eq=False)
class _Job:
    """One request on its way through the manager."""

    index: int
    """Its number in the workload, counted from 0."""
    request: WorkloadRequest
    """What the workload says about it."""
    context: TextContext
    """Its tokens; a new context after every preemption."""
    replica: int = 0
    """Where it runs, or ran last."""
    generated: int = 0
    """Tokens sampled so far."""
    can_ever_fit: bool = True
    """Whether an empty pool could serve it, as far as the manager has said."""

    def is_done(self, *, decode: bool) -> bool:
        return not decode or self.generated >= self.request.output_length


class _Driver:
    """The state of one replay, and its rounds."""

    def __init__(
        self,
        arrivals: Iterator[tuple[int, WorkloadRequest]],
        block_size: int,
        manager: SyncKVCacheManager,
        setup: ManagerSetup,
        options: ReplayOptions,
        on_request_done: Callable[[], None],
    ) -> None:
        self.arrivals = arrivals
        self.block_size = block_size
        self.manager = manager
        self.setup = setup
        self.options = options
        self.on_request_done = on_request_done
        self.running: dict[int, _Job] = {}  # by index, in order of admission
        self.waiting: deque[_Job] = deque()  # preempted ones, then the next arrival
        self.head_waits_for_pages = False  # and nothing was released since
        self.progress_ns = perf_counter_ns()  # when the last forward ended
        self.durations_ns: defaultdict[str, array[int]] = defaultdict(lambda: array("q"))
        self.requests = self.pages_referenced = self.tokens_total = 0
        self.refused = self.preemptions = self.tokens_generated = 0

    def run(self) -> ReplayReport:
        before = self.counters()
        started_ns = self.progress_ns = perf_counter_ns()
        while self.running or self.head():
            if not self.grow_running():
                self.admit_waiting()
            if self.running:
                self.forward()
        seconds = (perf_counter_ns() - started_ns) / 1e9
        return self.report(before, self.counters(), seconds)

    # The rounds

    def grow_running(self) -> bool:
        """Get each running request the page its next token may need, the oldest first.

        Where no page is free, the youngest request of that replica is preempted. Whoever is alone
        there and still does not fit never will. Returns whether any was preempted.
        """
        preempted = False
        for job in list(self.running.values()):
            while job.index in self.running and not self.alloc(job):
                neighbours = [j for j in self.running.values() if j.replica == job.replica]
                if job.can_ever_fit and len(neighbours) > 1:
                    self.preempt(neighbours[-1])
                    preempted = True
                elif not (job.can_ever_fit and self.settle(job.replica)):
                    del self.running[job.index]
                    self.refuse(job)
        return preempted

    def admit_waiting(self) -> None:
        """Admit requests strictly first come first served, as far as places and pages go."""
        while len(self.running) < self.options.concurrency and not self.head_waits_for_pages:
            job = self.head()
            if job is None:
                return
            job.replica = self.choose_replica(job)
            self.timed("claim", self.manager.claim, job.context.request_id, job.replica)
            if self.alloc(job):
                self.waiting.popleft()
                self.running[job.index] = job
            elif job.can_ever_fit and self.has_company(job):
                self.release(job)
                self.head_waits_for_pages = True
            elif job.can_ever_fit and self.settle(job.replica):
                self.release(job)
            else:
                self.waiting.popleft()
                self.refuse(job)

    def forward(self) -> None:
        """Run all requests through one forward, and release those that are done."""
        batches: list[list[TextContext]] = [[] for _ in range(self.setup.replicas)]
        jobs = list(self.running.values())
        for job in jobs:
            batches[job.replica].append(job.context)
        if self.options.runtime_inputs:
            self.timed("runtime_inputs", self.manager.runtime_inputs, batches)
        for job in jobs:
            job.context.update(generated_token(job.index, job.generated))
            job.generated += 1
        self.tokens_generated += len(jobs)
        self.timed("step", self.manager.step, batches)
        self.progress_ns = perf_counter_ns()
        for job in jobs:
            if job.is_done(decode=self.options.decode):
                del self.running[job.index]
                self.release(job)
                self.on_request_done()

    # The queue

    def head(self) -> _Job | None:
        """The request whose turn it is, taken from the workload if none was put back."""
        if not self.waiting:
            for index, request in islice(self.arrivals, 1):
                self.requests += 1
                self.pages_referenced += request.input_length // self.setup.page_size
                self.tokens_total += request.input_length
                context = TextContext(
                    max_length=request.input_length + max(1, request.output_length),
                    tokens=TokenBuffer(tokens_of(request, self.block_size)),
                    request_id=str(index),
                )
                self.waiting.append(_Job(index, request, context))
        return self.waiting[0] if self.waiting else None

    def choose_replica(self, job: _Job) -> int:
        """The replica with most of the prefix cached, then with most free pages."""
        if self.setup.replicas == 1:
            return 0
        replicas = range(self.setup.replicas)
        hits = self.timed(
            "get_prefix_cache_hit_counts", self.manager.get_prefix_cache_hit_counts, job.context
        )
        merits = call_manager(
            "num_free_blocks",
            lambda: [(hits[r].total_blocks, self.manager.num_free_blocks(r)) for r in replicas],
        )
        return max(replicas, key=merits.__getitem__)

    def has_company(self, job: _Job) -> bool:
        """Whether another request holds pages on the same replica."""
        return any(j is not job and j.replica == job.replica for j in self.running.values())

    def preempt(self, job: _Job) -> None:
        """Take a request's pages and let it begin again with all the tokens it has."""
        del self.running[job.index]
        self.release(job)
        job.context = TextContext(
            max_length=job.context.max_length,
            tokens=TokenBuffer(job.context.tokens.all),
            request_id=job.context.request_id,
            preempted=True,
        )
        self.waiting.appendleft(job)
        self.preemptions += 1

    def refuse(self, job: _Job) -> None:
        """Give up on a request that not even an empty pool could serve."""
        self.release(job)
        self.refused += 1
        self.on_request_done()

    # The manager's calls

    def alloc(self, job: _Job) -> bool:
        """Try to get the pages for the next forward of a request."""
        try:
            self.timed("alloc", self.manager.alloc, job.context, job.replica)
        except ManagerCallError as error:
            if not isinstance(error.__cause__, InsufficientBlocksError):
                raise
            job.can_ever_fit = error.__cause__.can_ever_fit
            return False
        return True

    def release(self, job: _Job) -> None:
        """Give a request's pages back."""
        self.timed("release", self.manager.release, job.context.request_id, job.replica)
        self.head_waits_for_pages = False

    def settle(self, replica: int) -> bool:
        """Let transfers land, which may free pages that they pin; false if there are none."""
        name, pending = "pending_transfers_exist", self.manager.pending_transfers_exist
        if not call_manager(name, lambda: pending(replica)):
            return False
        if perf_counter_ns() - self.progress_ns > self.options.patience_s * 1e9:
            raise ManagerCallError(
                name,
                f"still says so after {self.options.patience_s:g} s without progress, and a "
                "request needs the pages that transfers hold",
            )
        call_manager("poll_transfers", self.manager.poll_transfers)
        return True

    def counters(self) -> Counter[str]:
        """The manager's counters as they are now."""
        return call_manager(
            "get_metrics_aggregated", lambda: read_counters(self.manager.get_metrics_aggregated())
        )

    def timed(
        self,
        name: str,
        call: Callable[Arguments, Result],
        *args: Arguments.args,
        **kwargs: Arguments.kwargs,
    ) -> Result:
        """Make one call and record how long it took, also if it raises."""

        def clocked() -> Result:
            started_ns = perf_counter_ns()
            try:
                return call(*args, **kwargs)
            finally:
                self.durations_ns[name].append(perf_counter_ns() - started_ns)

        return call_manager(name, clocked)

    # The result

    def report(self, before: Counter[str], after: Counter[str], seconds: float) -> ReplayReport:
        def counted(name: str) -> int | None:
            """What a counter has gained; ``None`` if the implementation has no such counter."""
            return after[name] - before[name] if name in after else None

        hits = {tier: counted(pages_hit(tier)) for tier in TIERS}
        known = [pages for pages in hits.values() if pages is not None]
        return ReplayReport(
            requests=self.requests,
            pages_referenced=self.pages_referenced,
            pages_hit=sum(known) if known else None,
            hits_by_tier=hits,
            tokens_total=self.tokens_total,
            tokens_hit=counted(TOKENS_HIT),
            evictions=counted(EVICTIONS),
            refused=self.refused,
            preemptions=self.preemptions,
            pages_hit_again=counted(PAGES_HIT_AGAIN),
            tokens_generated=self.tokens_generated,
            seconds=seconds,
            calls={name: CallTimes.of(times) for name, times in self.durations_ns.items()},
        )
