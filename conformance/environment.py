"""The environment of a manager, for those that let the suite play it: transfers land or fail."""

from collections.abc import Sequence
from typing import Any

from pagedkv.conformance.call_log import name_of
from pagedkv.conformance.observer import Pending
from pagedkv.conformance.refusals import is_error
from pagedkv.conformance.server import Server
from pagedkv.conformance.violation import demand, expect
from pagedkv.reference.context import TextContext
from pagedkv.reference.errors import InsufficientBlocksError, KVLoadFailed
from pagedkv.reference.identity import PageKey, page_key
from pagedkv.reference.tier_names import FailReason


class Environment(Server):
    """Begins allocations, and decides when and whether their loads arrive."""

    def begin(self, ctx: TextContext, hit_limit: int | None = None) -> Pending:
        """``begin_alloc``: plan, and issue the loads, for ``hit_limit`` blocks at most."""
        name, request = ctx.request_id, self.model.requests[ctx.request_id]
        found = self.model.find(ctx, request.replica, request, hit_limit)
        observed = self.observe()
        # Only managers with ``prefetch`` know the argument.
        limit = () if hit_limit is None else (hit_limit,)
        shown = ", ".join(map(str, (name_of(ctx), request.replica, *limit)))
        self.log.call(f"manager.begin_alloc({shown})", ctx)
        try:
            plan = self.manager.begin_alloc(ctx, request.replica, *limit)
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

    def begins(self, ctx: TextContext, hit_limit: int | None = None) -> bool:
        """:meth:`begin`; whether there were enough pages."""
        try:
            self.begin(ctx, hit_limit)
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
        for transfer in self.in_flight():
            if transfer.id in self.submitted - self.stale:
                for key, page in zip(transfer.keys, transfer.pages, strict=True):
                    self.model.arriving(transfer.replica, page, self._blocks[key])
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

    def submit(self, transfer: Any) -> None:
        """What can fail of a load has been done, but it has not landed."""
        self.log.call(f"manager.submit({transfer.id!r})")
        self.manager.submit(transfer.id)
        if transfer.id in {other.id for other in self.in_flight()}:
            self.submitted.add(transfer.id)
        else:
            for page in transfer.pages:
                self.model.landed(transfer.replica, page, None, lost=True)
        self.check()

    def submit_loads(self) -> None:
        """All loads from below are submitted."""
        for transfer in self.loads():
            if transfer.source != "peer" and transfer.id not in self.submitted:
                self.submit(transfer)

    def land(self, transfer: Any) -> None:
        """The bytes of a transfer have arrived."""
        self.log.call(f"manager.land({transfer.id!r})")
        shows = transfer.target == "device" and transfer.id not in self.stale
        pairs = list(zip(transfer.keys, transfer.pages, strict=True)) if shows else []
        damaged = transfer.id in self.damaged and transfer.id not in self.submitted
        self.manager.land(transfer.id)
        for key, page in pairs:
            self.model.landed(transfer.replica, page, self._blocks.get(key), lost=damaged)
        self.check()

    def loads(self) -> list[Any]:
        """Transfers in flight that bring blocks to a device; one may bring many."""
        return [transfer for transfer in self.in_flight() if transfer.target == "device"]

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
        pages = list(transfer.pages) if transfer.target == "device" else []
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
