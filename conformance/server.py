"""The calls of a server: requests are claimed, allocated, computed, stepped and released."""

import copy
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np

from pagedkv.conformance.call_log import batches_text, name_of
from pagedkv.conformance.forward_inputs import check_inputs
from pagedkv.conformance.model import Found
from pagedkv.conformance.observer import Observation, Observer, window_of
from pagedkv.conformance.refusals import is_error
from pagedkv.conformance.slots import (
    check_cached,
    slots_of,
    token_values,
)
from pagedkv.conformance.violation import demand, expect
from pagedkv.reference.context import TextContext
from pagedkv.reference.errors import InsufficientBlocksError
from pagedkv.reference.tokens import TokenBuffer


class Server(Observer):
    """Makes a server's calls on a manager, and checks what each of them gives."""

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

    def prefetch(self, ctx: TextContext) -> None:
        """``prefetch``; no page and no token has anything to do with it."""
        before, observed = copy.deepcopy(ctx), self.observe()
        self.log.call(f"manager.prefetch({name_of(ctx)})", ctx)
        names = list(self.manager.prefetch(ctx))
        self.log.result(f"loads {names}")
        what = f"a prefetch for {ctx.request_id!r}"
        expect("TIER-11", window_of(ctx), window_of(before), f"window after {what}")
        now = self.observe()
        expect("TIER-11", now.tables, observed.tables, f"page tables after {what}")
        expect("TIER-11", now.free, observed.free, f"free pages after {what}")
        if self.twin:
            self.twin.prefetch(before)
        self.check()

    def _refused(self, ctx: TextContext, before: TextContext, observed: Observation) -> None:
        name = ctx.request_id
        expect("ALLOC-2", window_of(ctx), window_of(before), f"window of {name!r} after a refusal")
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
                    self.contexts[ctx.request_id] = ctx
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
                self.contexts.pop(ctx.request_id, None)
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
            for replica, batch in enumerate(batches):
                rows = [self.model.row(ctx) for ctx in batch]
                check_inputs(inputs, self.setup, replica, rows)
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
        self.log.call(f"{name_of(ctx)}.update({token})", ctx)
        ctx.update(token)

    def update_later(self, ctx: TextContext, pending: int = 1) -> None:
        """The context takes a placeholder for a token that is not known yet."""
        self.log.call(f"{name_of(ctx)}.update_with_future_token({pending})", ctx)
        ctx.update_with_future_token(pending)

    def realize(self, ctx: TextContext, token: int) -> None:
        """The oldest placeholder becomes a token; a forward that has computed it knew which."""
        position = len(ctx.tokens) - ctx.pending_future_count
        self.log.call(f"{name_of(ctx)}.realize_future_token({token})", ctx)
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
        self.log.call(f"{name_of(ctx)}.reset()", ctx)
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
