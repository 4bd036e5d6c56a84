"""Drives a manager the way a server does, and checks after every call what always has to hold.

Checks talk to a :class:`Driver` in place of the manager. Each call goes to the manager, then to the
:class:`~pagedkv.conformance.model.Model`, and where the manager claims to choose as the reference
does, to a twin on the reference as well, whose answers must be the same.
"""

import copy
import time
from collections.abc import Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, fields
from typing import Any, Literal

import numpy as np

from pagedkv.conformance.call_log import CallLog, batches_text, name_of
from pagedkv.conformance.forward_inputs import check_inputs
from pagedkv.conformance.implementation import Capability, Implementation, offered_by
from pagedkv.conformance.model import Counts, Found, Model
from pagedkv.conformance.slots import (
    BufferSlots,
    OwnSlots,
    RemoteSlots,
    Slots,
    check_cached,
    slots_of,
    token_values,
)
from pagedkv.conformance.violation import Violation, demand, expect
from pagedkv.reference.context import TextContext
from pagedkv.reference.errors import InsufficientBlocksError, KVLoadFailed
from pagedkv.reference.identity import PageKey, page_key
from pagedkv.reference.metrics import KVCacheMetrics, PrefixCacheHits
from pagedkv.reference.tier_names import FailReason
from pagedkv.reference.tokens import TokenBuffer
from pagedkv.traces.manager_setup import ManagerSetup
from pagedkv.traces.sync_adapter import as_sync

PATIENCE_S = 10.0
"""Longest wait for transfers that should land by themselves, in seconds."""


NAMESPACE = {
    "page_size",
    "cache",
    "shards",
    "layers",
    "head_dim",
    "speculative_method",
    "hash_algorithm",
    "hash_seed",
    "model_fingerprint",
}
"""What of a setup says whose blocks those on disk and in a store are (NS-1, NS-2)."""


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


class Driver:
    """One manager under test.

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
        twin: "Driver | None" = None,
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
        self.renaming: dict[tuple[int, int], int] = {}  # (replica, page) -> the twin's page
        self.slots = self._slots()

    def _slots(self) -> Slots:
        replicas = range(self.setup.replicas)
        if callable(getattr(self.manager, "read_slots", None)):
            return RemoteSlots(self.manager)
        if self.can("memory"):
            return BufferSlots([self.manager.get_device_buffer(replica) for replica in replicas])
        return OwnSlots()

    def can(self, capability: Capability) -> bool:
        """Whether the manager has a capability."""
        return capability in self.capabilities

    # --- requests -----------------------------------------------------------------------------

    # Any: the options of TextContext are passed on; their types are its own.
    def request(self, tokens: Iterable[int], **options: Any) -> TextContext:
        """A fresh context over ``tokens``, not claimed yet."""
        options.setdefault("request_id", f"r{self.names}")
        self.names += 1
        array = np.fromiter(tokens, dtype=np.int64)
        return TextContext(max_length=100_000, tokens=TokenBuffer(array), **options)

    def claim(self, ctx: TextContext, replica: int = 0) -> TextContext:
        """``claim``."""
        self.log.call(f"manager.claim({str(ctx.request_id)!r}, {replica})", ctx)
        self.manager.claim(ctx.request_id, replica)
        self.model.claimed(ctx.request_id, replica)
        self.contexts[ctx.request_id] = ctx
        self.namespace(ctx)
        if self.twin:
            self.twin.claim(copy.deepcopy(ctx), replica)
        self.check()
        return ctx

    def claim_dummy(self, request_id: str, replica: int = 0) -> TextContext:
        """``alloc_dummy``; the context to put into batches."""
        ctx = self.request([0], request_id=request_id)
        self.log.call(f"manager.alloc_dummy({request_id!r}, {replica})", ctx)
        self.manager.alloc_dummy(request_id, replica)
        self.model.claimed(request_id, replica, dummy=True)
        self.contexts[ctx.request_id] = ctx
        if self.twin:
            self.twin.claim_dummy(request_id, replica)
        self.check()
        return ctx

    def alloc(self, ctx: TextContext) -> int:
        """``alloc``; the number of blocks that were hit. Cached bytes are read back."""
        replica = self.model.requests[ctx.request_id].replica
        before, processed = copy.deepcopy(ctx), ctx.tokens.processed_length
        found = self.model.find(ctx, replica, self.model.requests[ctx.request_id])
        observed = self.observe()
        self.log.call(f"manager.alloc({name_of(ctx)}, {replica})", ctx)
        try:
            self.manager.alloc(ctx, replica)
        except Exception as error:
            if not is_error(error, InsufficientBlocksError):
                raise
            self.log.refused("InsufficientBlocksError")
            self._refused(ctx, before, observed)
            raise
        return self._allocated(ctx, before, processed, found)

    def fits(self, ctx: TextContext) -> bool:
        """``alloc``; whether there were enough pages."""
        try:
            self.alloc(ctx)
        except Exception as error:
            if not is_error(error, InsufficientBlocksError):
                raise
            return False
        return True

    def _refused(self, ctx: TextContext, before: TextContext, observed: Observation) -> None:
        name = ctx.request_id
        expect("ALLOC-2", _window(ctx), _window(before), f"window of {name!r} after a refusal")
        self.same(observed, "ALLOC-2", f"alloc of {name!r} was refused")
        self.model.refused(ctx, self._pinned(self.model.requests[name].replica))
        if self.twin:
            fits = self.twin.fits(before)
            demand("ALLOC-1", not fits, "alloc was refused; the reference has room for it")
        self.check()

    def _allocated(
        self, ctx: TextContext, before: TextContext, processed: int, found: Found
    ) -> int:
        name, replica = ctx.request_id, self.model.requests[ctx.request_id].replica
        pages = list(self.manager.get_req_blocks(name, replica))
        self.log.result(f"pages {pages}, window from {ctx.tokens.processed_length}")
        hits = self.model.allocated(ctx, pages, processed, found)
        self._check_cached_length(ctx, before.cached_prefix_length, processed)
        self._check_cached(ctx)
        if self.twin:
            demand("ALLOC-1", self.twin.fits(before), "alloc went well; the reference has no room")
            expect(
                "ALLOC-4",
                ctx.tokens.processed_length,
                before.tokens.processed_length,
                f"tokens of {name!r} that were found cached, compared with the reference,",
            )
        self.check()
        return hits

    def _check_cached_length(self, ctx: TextContext, before: int | None, processed: int) -> None:
        """``cached_prefix_length`` is what the first admission found, and stays that."""
        expected = before
        if before is None and not self.model.requests[ctx.request_id].dummy:
            expected = ctx.tokens.processed_length - processed
        what = f"cached_prefix_length of {ctx.request_id!r}"
        # Whether it says 0 or nothing without a hit is for the checks of ALLOC-9 to look at.
        expect("ALLOC-9", ctx.cached_prefix_length or 0, expected or 0, what)

    def _check_cached(self, ctx: TextContext) -> None:
        """Read back what the request's pages are said to hold."""
        request = self.model.requests[ctx.request_id]
        if not request.dummy:
            namespace, size = self.namespace(ctx), self.setup.page_size
            check_cached(self.slots, ctx, namespace, request.replica, request.pages, size)

    def pages(self, ctx: TextContext) -> list[int]:
        """``get_req_blocks``."""
        replica = self.model.requests[ctx.request_id].replica
        return list(self.manager.get_req_blocks(ctx.request_id, replica))

    def used(self, tier: Literal["host", "disk"]) -> int:
        """``get_num_used_host_pages`` or ``get_num_used_disk_pages``."""
        return int(getattr(self.manager, f"get_num_used_{tier}_pages")(0))

    @contextmanager
    def reserve(self, *batches: Sequence[TextContext]) -> Iterator[None]:
        """``reserve``, one batch per replica."""
        contexts = [(ctx, n) for n, batch in enumerate(batches) for ctx in batch]
        before = [copy.deepcopy(ctx) for ctx, _ in contexts]
        for_twin = copy.deepcopy(batches)
        call = f"with manager.reserve({batches_text(batches)}): ..."
        self.log.call(call, *(ctx for ctx, _ in contexts))
        try:
            with self.manager.reserve(batches):
                for (ctx, replica), former in zip(contexts, before, strict=True):
                    self.model.claimed(ctx.request_id, replica)
                    found = self.model.find(former, replica, self.model.requests[ctx.request_id])
                    processed = former.tokens.processed_length
                    self.model.allocated(ctx, self.pages(ctx), processed, found)
                    self._check_cached(ctx)
                with self.twin.reserve(*for_twin) if self.twin else nullcontext():
                    self.check()
                    yield
        finally:
            for ctx, _ in contexts:
                self.model.requests.pop(ctx.request_id, None)
                self._namespaces.pop(ctx.request_id, None)
        for (ctx, _), former in zip(contexts, before, strict=True):
            expect(
                "CLAIM-5",
                ctx.tokens.processed_length,
                former.tokens.processed_length,
                f"window of {ctx.request_id!r} after the reservation",
            )
        self.check()

    def admit(self, tokens: Iterable[int], replica: int = 0, **options: Any) -> TextContext:
        """A fresh request, claimed and allocated."""
        ctx = self.claim(self.request(tokens, **options), replica)
        self.alloc(ctx)
        return ctx

    def release(self, ctx: TextContext) -> None:
        """``release``."""
        name = ctx.request_id
        replica = self.model.requests[name].replica
        self.log.call(f"manager.release({str(name)!r}, {replica})")
        self.manager.release(name, replica)
        self.pending.pop(name, None)
        self._namespaces.pop(name, None)
        self.model.released(name)
        del self.contexts[name]
        if self.twin:
            self.twin.release(self.twin.contexts[name])
        self.check()

    def namespace(self, ctx: TextContext) -> object:
        """What a request's KV depends on besides its tokens: the weights it was started with."""
        return self._namespaces.setdefault(
            ctx.request_id, (self.setup.model_fingerprint, self.epoch)
        )

    def evict_all(self, replica: int = 0) -> None:
        """Another request takes every page that may be taken: nothing stays cached there."""
        pages, size = self.manager.num_free_blocks(replica), self.setup.page_size
        self.names += 1
        never_seen = self.names * 1_000_000
        drafts = 2 * self.setup.num_draft_tokens + (self.setup.speculative_method == "dflash")
        if pages:
            tokens = range(never_seen, never_seen + max(1, pages * size - drafts))
            self.release(self.admit(tokens, replica))

    def hit_below(self, tokens: Iterable[int], replica: int = 0, **options: Any) -> int:
        """Blocks that a fresh request finds once nothing is cached on the device any more."""
        self.evict_all(replica)
        return self.hit(tokens, replica, **options)

    def visible_below(self, tokens: Iterable[int]) -> int:
        """Blocks of a prompt that the tiers below hold, as the last replica sees them.

        Only where replicas copy nothing from each other, and that one has served nothing.
        """
        return self.probe(self.request(tokens))[-1].total_blocks

    # --- forwards -----------------------------------------------------------------------------

    def batches(self, contexts: Sequence[TextContext]) -> list[list[TextContext]]:
        """One batch per replica."""
        batches: list[list[TextContext]] = [[] for _ in range(self.setup.replicas)]
        for ctx in contexts:
            batches[self.model.requests[ctx.request_id].replica].append(ctx)
        return batches

    def compute(self, *contexts: TextContext) -> None:
        """A forward: ask for its inputs, read what they call cached, write what is active."""
        if self.can("inputs"):
            batches = self.batches(contexts)
            self.log.call(f"manager.runtime_inputs({batches_text(batches)})")
            inputs = self.manager.runtime_inputs(batches)
            check_inputs(self.model, batches, inputs)
        for ctx in contexts:
            self.write(ctx)
        if self.twin:
            self.twin.compute(*(copy.deepcopy(ctx) for ctx in contexts))

    def write(self, ctx: TextContext) -> None:
        """What a forward does with one request: reads the cached slots, writes the active ones."""
        request, size = self.model.requests[ctx.request_id], self.setup.page_size
        if request.dummy:
            return
        self._check_cached(ctx)
        values = token_values(ctx, self.namespace(ctx), ctx.tokens.current_position)
        active = slots_of(request.pages, size, values, ctx.tokens.processed_length)
        self.slots.write(request.replica, active)

    def step(self, *contexts: TextContext) -> None:
        """``step``."""
        batches = self.batches(contexts)
        self.log.call(f"manager.step({batches_text(batches)})")
        before = [copy.deepcopy(ctx) for ctx in contexts]
        self.manager.step(batches)
        chains = sum(ctx.tokens.processed_length // self.setup.page_size for ctx in contexts)
        for ctx in contexts:
            replica = self.model.requests[ctx.request_id].replica
            pages = list(self.manager.get_req_blocks(ctx.request_id, replica))
            self.model.stepped(ctx, pages, chains)
        if self.twin:
            self.twin.step(*before)
        self.check()

    def forward(self, *contexts: TextContext, token: int = 7) -> None:
        """A forward, the token it samples, and the step after it."""
        self.compute(*contexts)
        for ctx in contexts:
            self.update(ctx, token)
        self.step(*contexts)

    def update(self, ctx: TextContext, token: int = 7) -> None:
        """The context takes a sampled token."""
        self.log.call(f"{name_of(ctx)}.update({token})")
        ctx.update(token)

    def update_later(self, ctx: TextContext, pending: int = 1) -> None:
        """The context takes a placeholder for a token that is not known yet."""
        self.log.call(f"{name_of(ctx)}.update_with_future_token({pending})")
        ctx.update_with_future_token(pending)

    def realize(self, ctx: TextContext, token: int) -> None:
        """The oldest placeholder becomes a token; a forward that has computed it knew which."""
        position = len(ctx.tokens) - ctx.pending_future_count
        self.log.call(f"{name_of(ctx)}.realize_future_token({token})")
        ctx.realize_future_token(token)
        for driver in (self, self.twin):
            if driver is not None and position < ctx.tokens.processed_length:
                request = driver.model.requests[ctx.request_id]
                values = token_values(ctx, self.namespace(ctx), ctx.tokens.processed_length)
                computed = slots_of(request.pages, self.setup.page_size, values, position)
                driver.slots.write(request.replica, computed)

    def chunk(self, ctx: TextContext, n: int) -> None:
        """Only the first ``n`` active tokens are computed in the next forward."""
        self.log.call(f"{name_of(ctx)}.chunk({n})", ctx)
        ctx.chunk(n)

    def skip(self, ctx: TextContext, n: int) -> None:
        """The KV of the first ``n`` active tokens is there, however it came."""
        self.log.call(f"{name_of(ctx)}.skip_processing({n})", ctx)
        ctx.skip_processing(n)

    def rewind(self, ctx: TextContext, n: int) -> None:
        """The last ``n`` tokens before the window are to be computed again."""
        self.log.call(f"{name_of(ctx)}.rewind_processing({n})", ctx)
        ctx.rewind_processing(n)

    def bring_drafts(
        self, ctx: TextContext, drafts: list[int], maybe_accepted: Sequence[int] = ()
    ) -> None:
        """The next forward verifies draft tokens, after those that one in flight may accept."""
        state, name = ctx.spec_decoding_state, f"{name_of(ctx)}.spec_decoding_state"
        self.log.call(f"{name}.draft_tokens_to_verify = {drafts}", ctx)
        self.log.call(f"{name}.maybe_accepted_draft_tokens = {list(maybe_accepted)}")
        state.draft_tokens_to_verify = drafts
        state.maybe_accepted_draft_tokens = list(maybe_accepted)

    def start_over(self, ctx: TextContext) -> None:
        """A released request is preempted: all its tokens are active again."""
        self.log.call(f"{name_of(ctx)}.reset()")
        ctx.reset()

    def serve(self, tokens: Iterable[int], replica: int = 0, **options: Any) -> TextContext:
        """A whole request: claim, alloc, one forward, step, release."""
        ctx = self.hold(tokens, replica, **options)
        self.release(ctx)
        return ctx

    def hold(self, tokens: Iterable[int], replica: int = 0, **options: Any) -> TextContext:
        """A whole request but for its release: whatever goes first, nothing can take its pages."""
        ctx = self.admit(tokens, replica, **options)
        self.forward(ctx)
        return ctx

    def hit(self, tokens: Iterable[int], replica: int = 0, **options: Any) -> int:
        """Blocks that a fresh request finds cached; it is released at once."""
        ctx = self.claim(self.request(tokens, **options), replica)
        hits = self.alloc(ctx)
        self.release(ctx)
        return hits

    # --- the environment, for managers that let the suite play it ------------------------------

    def begin(self, ctx: TextContext) -> Pending:
        """``begin_alloc``: plan, and issue the loads."""
        name, request = ctx.request_id, self.model.requests[ctx.request_id]
        found = self.model.find(ctx, request.replica, request)
        observed = self.observe()
        self.log.call(f"manager.begin_alloc({name_of(ctx)}, {request.replica})", ctx)
        try:
            plan = self.manager.begin_alloc(ctx, request.replica)
        except Exception as error:
            if is_error(error, InsufficientBlocksError):
                self.same(observed, "ALLOC-2", f"begin_alloc of {name!r} was refused")
            raise
        pending = Pending(found, tuple(plan.pages), tuple(plan.transfers))
        self.log.result(f"pages {list(pending.pages)}, waits for {list(pending.transfers)}")
        loading = {
            page: self.block_of(key, ctx)
            for transfer in self.manager.in_flight()
            if transfer.id in pending.transfers
            for key, page in zip(transfer.keys, transfer.pages, strict=True)
        }
        self.pending[name] = pending
        self.model.planned(ctx, pending.pages, loading)
        self.check()
        return pending

    def begins(self, ctx: TextContext) -> bool:
        """:meth:`begin`; whether there were enough pages."""
        try:
            self.begin(ctx)
        except Exception as error:
            if not is_error(error, InsufficientBlocksError):
                raise
            return False
        return True

    def finish(self, ctx: TextContext) -> bool:
        """``finish_alloc``; false if a load has failed, and the plan was undone."""
        name, request = ctx.request_id, self.model.requests[ctx.request_id]
        processed, cached_before = ctx.tokens.processed_length, ctx.cached_prefix_length
        self.log.call(f"manager.finish_alloc({name_of(ctx)}, {request.replica})")
        try:
            self.manager.finish_alloc(ctx, request.replica)
        except Exception as error:
            if not is_error(error, KVLoadFailed):
                raise
            self.log.refused("KVLoadFailed")
            del self.pending[name]
            expect("ALLOC-11", ctx.tokens.processed_length, processed, f"window of {name!r}")
            self.model.unplanned(name)
            self.check()
            return False
        found = self.pending.pop(name).found
        self.model.unplanned(name)
        pages = list(self.manager.get_req_blocks(name, request.replica))
        self.log.result(f"pages {pages}, window from {ctx.tokens.processed_length}")
        self.model.allocated(ctx, pages, processed, found)
        self._check_cached_length(ctx, cached_before, processed)
        self._check_cached(ctx)
        self.check()
        return True

    def cancel(self, ctx: TextContext) -> None:
        """``cancel_alloc``."""
        name, replica = ctx.request_id, self.model.requests[ctx.request_id].replica
        self.log.call(f"manager.cancel_alloc({str(name)!r}, {replica})")
        self.manager.cancel_alloc(name, replica)
        del self.pending[name]
        self.model.unplanned(name)
        self.check()

    # Any: transfers of whatever class the implementation has; see ControlledManager.
    def in_flight(self) -> list[Any]:
        """Transfers that have neither landed nor failed, in the order of their issue."""
        return list(self.manager.in_flight())

    def land(self, transfer: Any) -> None:
        """The bytes of a transfer have arrived."""
        self.log.call(f"manager.land({transfer.id!r})")
        onload = transfer.kind == "onload" and transfer.id not in self.stale
        pairs = list(zip(transfer.keys, transfer.pages, strict=True)) if onload else []
        damaged = transfer.id in self.damaged
        self.manager.land(transfer.id)
        for key, page in pairs:
            self.model.landed(transfer.replica, page, self._blocks.get(key), lost=damaged)
        self.check()

    def loads(self) -> list[Any]:
        """Transfers in flight that bring blocks to a device; one may bring many."""
        return [transfer for transfer in self.in_flight() if transfer.kind == "onload"]

    def fail_loads(self, reason: FailReason) -> None:
        """All loads in flight fail."""
        for transfer in self.loads():
            self.fail(transfer, reason)

    def fail_block(self, ctx: TextContext, block: int, reason: FailReason) -> None:
        """The load of the ``block``-th block fails through its fault alone; other loads land."""
        digest = self.model.digests(ctx, block + 1)[block]
        key = page_key(digest, self.setup.hash_algorithm)
        for transfer in self.loads():
            if key in transfer.keys:
                self.fail(transfer, reason, [key])
            else:
                self.land(transfer)

    def land_all(self) -> None:
        """Land what is in flight and what follows from it, in the order of issue."""
        while transfers := self.in_flight():
            self.land(transfers[0])

    def fail(
        self, transfer: Any, reason: FailReason, keys: Sequence[PageKey] | None = None
    ) -> None:
        """A transfer has failed."""
        faults = "" if keys is None else f", {list(keys)!r}"
        self.log.call(f"manager.fail({transfer.id!r}, {reason!r}{faults})")
        onload = transfer.kind == "onload"
        pages = list(transfer.pages) if onload else []
        self.manager.fail(transfer.id, reason, keys)
        for page in pages:
            self.model.landed(transfer.replica, page, None, lost=True)
        self.check()

    def block_of(self, key: PageKey, ctx: TextContext) -> bytes:
        """The block that a manager's key stands for, which is a block of ``ctx``."""
        count = len(ctx.tokens) // self.setup.page_size
        for digest in self.model.digests(ctx, count):
            self._blocks[page_key(digest, self.setup.hash_algorithm)] = digest
        demand("ID-1", key in self._blocks, f"no block of {ctx.request_id!r} has key {key.hex()}")
        return self._blocks[key]

    # --- the rest -----------------------------------------------------------------------------

    def reset(self) -> None:
        """``reset_prefix_cache``."""
        self.log.call("manager.reset_prefix_cache()")
        if self.can("transfers"):
            self.stale |= {transfer.id for transfer in self.manager.in_flight()}
        self.manager.reset_prefix_cache()
        self.model.reset()
        self.epoch += 1
        for name, request in self.model.requests.items():
            if not request.fenced:
                self._namespaces.pop(name, None)
        if self.twin:
            self.twin.reset()
        self.check()

    def poison(self, replica: int, reason: str = "an illegal memory access") -> None:
        """``poison``: the device of a replica has failed."""
        self.log.call(f"manager.poison({replica}, {reason!r})")
        lost = [
            transfer
            for transfer in (self.in_flight() if self.can("transfers") else ())
            if transfer.kind == "onload" and replica in (transfer.replica, transfer.source_replica)
        ]
        self.manager.poison(replica, reason)
        for transfer in lost:
            for page in transfer.pages:
                self.model.landed(transfer.replica, page, None, lost=True)
        self.model.poisoned(replica)
        if self.twin:
            self.twin.poison(replica, reason)
        self.check()

    def finds_what_is_left_by(self, other: "Driver") -> None:
        """This manager is on the disk or the store of another one: it may hit what that put there,
        if both are of one namespace (NS-1, NS-2)."""
        other.twin = None  # It would be alone on its store.
        mine, theirs = (driver.setup.model_dump(include=NAMESPACE) for driver in (self, other))
        if (
            mine == theirs
            and self.setup.model_fingerprint is not None
            and self.setup.store_endpoint == other.setup.store_endpoint
        ):
            self.epoch = other.epoch
            self.model.inherit(other.model)

    def may_ask_the_store_of(self, other: "Driver") -> None:
        """Requests may name the store of another manager as a further one (STORE-4)."""
        self.twin = None  # It cannot ask there.
        self.model.may_find(other.model.stored)

    def probe(self, ctx: TextContext) -> list[PrefixCacheHits]:
        """``get_prefix_cache_hit_counts``, checked against the model; nothing may change."""
        observed = self.observe()
        self.log.call(f"manager.get_prefix_cache_hit_counts({name_of(ctx)})", ctx)
        counts = list(self.manager.get_prefix_cache_hit_counts(ctx))
        expect("ALLOC-14", len(counts), self.setup.replicas, "results of a look-up, by replica")
        for replica, hits in enumerate(counts):
            found = self.model.find_fresh(ctx, replica)
            demand(
                "ALLOC-14",
                found.must <= hits.total_blocks <= found.may,
                f"a look-up says {hits.total_blocks} blocks on replica {replica}; it should say "
                f"{found.must}" + (f" to {found.may}" if found.may != found.must else ""),
            )
        self.same(observed, "ALLOC-14", "a look-up was made")
        return counts

    def fraction_after(self, ctx: TextContext) -> float:
        """``get_pct_used_blocks_after_allocation``; nothing may change."""
        observed, replica = self.observe(), self.model.requests[ctx.request_id].replica
        call = f"manager.get_pct_used_blocks_after_allocation({name_of(ctx)}, {replica})"
        self.log.call(call, ctx)
        fraction = float(self.manager.get_pct_used_blocks_after_allocation(ctx, replica))
        self.same(observed, "ALLOC-14", "a probe was made")
        demand("ALLOC-14", 0 <= fraction <= 1, f"a fraction of pages is {fraction}")
        return fraction

    def shutdown(self) -> None:
        """``shutdown``, if the manager has it; nothing may be asked of it afterwards."""
        self.closed = True
        if self.can("shutdown"):
            self.log.call("manager.shutdown()")
            self.manager.shutdown()
        if self.twin:
            self.twin.shutdown()

    def give_up(self) -> None:
        """Close the manager whatever state it is in, so that it holds nothing any more."""
        for driver in (self, self.twin):
            if driver is not None and not driver.closed and driver.can("shutdown"):
                driver.closed = True
                with suppress(Exception):
                    driver.manager.shutdown()

    def reset_metrics(self) -> None:
        """``reset_metrics``."""
        self.log.call("manager.reset_metrics()")
        self.manager.reset_metrics()
        self.model.counts = Counts()
        if self.twin:
            self.twin.reset_metrics()
        self.check()

    # Any: arguments of whatever method.
    def refused(
        self, rule: str, kind: type[Exception], method: str, *args: Any, **options: Any
    ) -> None:
        """Call a method of the manager that has to refuse, and to change nothing.

        Raises:
            Violation: It does not refuse, refuses with another error, or changes something.
        """
        before = self.observe()
        windows = [(ctx, _window(ctx)) for ctx in _contexts_in(args)]
        shown = [*map(_as_python, args), *(f"{k}={_as_python(v)}" for k, v in options.items())]
        call = f"manager.{method}({', '.join(shown)})"
        self.log.call(call, *_contexts_in(args))
        self.log.refused(f"must raise {kind.__name__}")
        with raises(rule, kind, call):
            result = getattr(self.manager, method)(*args, **options)
            if hasattr(result, "__enter__"):
                with result:
                    pass
        self.same(before, rule, f"{method} was refused")
        for ctx, window in windows:
            expect(rule, _window(ctx), window, f"window of {ctx.request_id!r} after a refusal")

    def metrics(self) -> Any:
        """``get_metrics_aggregated``."""
        return self.manager.get_metrics_aggregated()

    def missed(self) -> dict[str, int]:
        """Missed blocks by reason (METRIC-6), without the reasons that did not occur."""
        metrics, prefix = self.metrics(), "missed_blocks_"
        names = [field.name for field in fields(KVCacheMetrics) if field.name.startswith(prefix)]
        return {name.removeprefix(prefix): n for name in names if (n := getattr(metrics, name))}

    # --- what always has to hold --------------------------------------------------------------

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
        deadline = time.monotonic() + PATIENCE_S
        while self._transfers_run():
            demand("XFER-2", time.monotonic() < deadline, "transfers do not end")
            self.manager.poll_transfers()
            time.sleep(0.001)

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
        expect("TIER-4", mine.used_below, theirs.used_below, "pages in use below the devices")
        if self.can("metrics"):
            expect(
                "METRIC-1", mine.metrics, theirs.metrics, "counters, compared with the reference,"
            )


def _window(ctx: TextContext) -> tuple[int, int, int | None]:
    """What a manager may change of a context."""
    return ctx.tokens.processed_length, ctx.tokens.current_position, ctx.cached_prefix_length


def _contexts_in(value: object) -> list[TextContext]:
    if isinstance(value, TextContext):
        return [value]
    if isinstance(value, list | tuple):
        return [ctx for item in value for ctx in _contexts_in(item)]
    return []


def _as_python(value: object) -> str:
    if isinstance(value, TextContext):
        return name_of(value)
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_as_python, value))}]"
    return repr(value)


@contextmanager
def raises(rule: str, kind: type[Exception], what: str) -> Iterator[None]:
    """Demand that a call is refused with an error of that kind.

    Raises:
        Violation: It is not refused, or with another error.
    """
    try:
        yield
    except Violation:
        raise
    except Exception as error:
        if is_error(error, kind):
            return
        raise Violation(
            rule, what, expected=kind.__name__, seen=f"{type(error).__name__}({error})"
        ) from error
    raise Violation(rule, what, expected=kind.__name__, seen="no error")


def is_error(error: Exception, kind: type[Exception]) -> bool:
    """Whether an error is of that kind: by class, by name, or by the built-in class it stands for.

    Managers of other projects do not import our classes.
    """
    if isinstance(error, kind) or type(error).__name__ == kind.__name__:
        return True
    built_in = tuple(
        base
        for base in kind.__mro__
        if base.__module__ == "builtins" and base not in (Exception, BaseException, object)
    )
    return isinstance(error, built_in)
