"""Allocations from the wish to the pages: a turn in line, pages to clean, loads to wait for."""

import asyncio
import math
from collections.abc import Callable, Hashable
from contextlib import nullcontext, suppress

import anyio

from pagedkv.engine.admission import AdmissionQueue
from pagedkv.engine.alloc_handle import AllocHandle
from pagedkv.engine.moves import Moves
from pagedkv.engine.observability.operator_log import OperatorLog
from pagedkv.engine.planner import allocation, cleaning, matching
from pagedkv.engine.planner.state import AllocPlan, State
from pagedkv.reference.config import TierOptions
from pagedkv.reference.context import Context
from pagedkv.reference.errors import InsufficientBlocksError, KVLoadFailed
from pagedkv.reference.lengths import required_pages


class Allocator:
    """Waits where :mod:`~pagedkv.engine.planner.allocation` decides.

    Args:
        state: The planner's.
        moves: Moves what is issued.
        options: What to do about slow tiers.
        log: Is told of those.
        acted: To be called after every decision.
        check_open: Raises once the manager is closed.
    """

    def __init__(
        self,
        state: State,
        moves: Moves,
        options: TierOptions,
        log: OperatorLog,
        *,
        acted: Callable[[], None],
        check_open: Callable[[], None],
    ) -> None:
        self.queues = [AdmissionQueue() for _ in state.pools]
        """By replica: who waits for pages."""
        self._state = state
        self._moves = moves
        self._options = options
        self._log = log
        self._acted = acted
        self._check_open = check_open

    async def alloc(self, ctx: Context, replica_idx: int, wait_s: float) -> None:
        """See :meth:`~pagedkv.engine.PagedKVCacheManager.alloc`."""
        watch = self._moves.watch
        with nullcontext() if watch is None else watch.allocating(ctx, replica_idx):
            await self._alloc(ctx, replica_idx, wait_s)

    def defer(self, ctx: Context, replica_idx: int, wait_s: float) -> AllocHandle:
        """The same, but returns at once, and its loads need not have landed when it is ready.

        What can be decided at once is.
        """
        watch = self._moves.watch
        with nullcontext() if watch is None else watch.allocating(ctx, replica_idx):
            plan = self._plan_at_once(ctx, replica_idx, wait_s)
            if plan is not None and not plan.transfers:
                self.finish(ctx, replica_idx)
                return AllocHandle(None)
        going_on = self._alloc(ctx, replica_idx, wait_s, plan, deferred=True)
        task = asyncio.get_running_loop().create_task(going_on)
        if plan is not None:
            # It may be cancelled before it has begun, and then it cleans up nothing.
            task.add_done_callback(lambda _: self._undo(ctx.request_id, plan))
        return AllocHandle(task)

    async def _alloc(
        self,
        ctx: Context,
        replica_idx: int,
        wait_s: float,
        plan: AllocPlan | None = None,
        *,
        deferred: bool = False,
    ) -> None:
        deadline_s = anyio.current_time() + wait_s if wait_s > 0 else 0.0
        patient = True
        waits = self._stands_in_line(ctx, replica_idx, wait_s)
        while True:
            if plan is None and waits:
                plan = await self._plan_in_turn(ctx, replica_idx, deadline_s, patient=patient)
            elif plan is None:
                plan = await self._plan(ctx, replica_idx, patient=patient)
            if await self._completed(ctx, replica_idx, plan, deferred=deferred):
                return
            plan = None
            patient = self._options.slow_tier_policy == "wait"

    def begin(self, ctx: Context, replica_idx: int, hit_limit: int | None = None) -> AllocPlan:
        """Match, take and issue loads.

        Raises:
            InsufficientBlocksError: It does not fit; nothing was changed.
        """
        watch = self._moves.watch
        if watch is not None:
            watch.alloc_planning()
        plan = allocation.begin_alloc(self._state, ctx, replica_idx, hit_limit)
        if watch is not None:
            watch.alloc_planned(ctx, plan)
        self._acted()
        return plan

    def finish(self, ctx: Context, replica_idx: int) -> AllocPlan:
        """Give the request its pages.

        Raises:
            KVLoadFailed: A load has failed and the plan was undone.
            AllocPendingError, NoPlannedAllocError: It is too early, or nothing was begun.
        """
        try:
            return allocation.finish_alloc(self._state, ctx, replica_idx)
        finally:
            self._acted()

    def _stands_in_line(self, ctx: Context, replica_idx: int, wait_s: float) -> bool:
        """Who runs already does not stand in line behind who has not begun."""
        return wait_s > 0 and not self._state.request(ctx.request_id, replica_idx).pages

    def _plan_at_once(self, ctx: Context, replica_idx: int, wait_s: float) -> AllocPlan | None:
        """A plan, if nothing has to be waited for before it can be made.

        Raises:
            InsufficientBlocksError: It does not fit, and is not to wait, or never will.
        """
        waits = self._stands_in_line(ctx, replica_idx, wait_s)
        if waits and self.queues[replica_idx]:
            return None
        limit = self._hit_limit(ctx, replica_idx, patient=True)
        if cleaning.page_to_clean(self._state, ctx, replica_idx, limit) is not None:
            return None
        try:
            return self.begin(ctx, replica_idx, limit)
        except InsufficientBlocksError as error:
            if waits and error.can_ever_fit:
                return None
            raise

    def _hit_limit(self, ctx: Context, replica_idx: int, *, patient: bool) -> int | None:
        """How much of the hit to wait for: all, or what is no slower than host memory."""
        if patient and self._options.slow_tier_policy != "best_effort":
            return None
        return matching.fast_prefix(self._state, ctx, replica_idx)

    async def _plan_in_turn(
        self, ctx: Context, replica_idx: int, deadline_s: float, *, patient: bool
    ) -> AllocPlan:
        """Plan an allocation once there are pages and nobody stands before it."""
        if required_pages(ctx, self._state.params) > self._state.pools[replica_idx].total:
            return await self._plan(ctx, replica_idx)  # It will never fit, and this says so.
        with (
            self.queues[replica_idx].place() as place,
            anyio.CancelScope(deadline=deadline_s),
        ):
            while True:
                if place.is_first:
                    with suppress(InsufficientBlocksError):
                        return await self._plan(ctx, replica_idx, patient=patient)
                await place.changed()
                self._check_open()
        raise allocation.refusal(self._state, ctx, replica_idx)

    async def _plan(self, ctx: Context, replica_idx: int, *, patient: bool = True) -> AllocPlan:
        """Make dirty pages clean that stand in the way (TIER-7), then plan.

        Unless it is ``patient``, what is below host memory is not waited for (ALLOC-15).
        """
        state = self._state
        while True:
            limit = self._hit_limit(ctx, replica_idx, patient=patient)
            found = cleaning.page_to_clean(state, ctx, replica_idx, limit)
            if found is None:
                return self.begin(ctx, replica_idx, limit)
            page, hit_keys = found
            cleaned = cleaning.clean_pages(state, replica_idx, [page], hit_keys)
            self._acted()
            await self._moves.settled(cleaned)
            self._check_open()

    async def _completed(
        self, ctx: Context, replica_idx: int, plan: AllocPlan, *, deferred: bool
    ) -> bool:
        """Wait for a plan's loads and finish it; ``False`` if it was undone.

        It is, if a load has failed, or something below host memory takes too long. If it is
        ``deferred``, loads that are submitted suffice.
        """
        slow = plan.hits.disk_blocks or plan.hits.store_blocks
        limited = slow and self._options.slow_tier_policy == "timeout"
        patience = self._options.slow_tier_timeout_s if limited else math.inf
        try:
            if plan.transfers:
                with anyio.move_on_after(patience) as waiting:
                    if deferred:
                        await self._moves.submitted(plan.transfers)
                    else:
                        await self._moves.settled(plan.transfers)
                if waiting.cancelled_caught:
                    self._log.tier_too_slow(ctx.request_id, waited_s=patience)
                    return False
            self._check_open()
            self.finish(ctx, replica_idx)
        except KVLoadFailed:
            return False
        finally:
            self._undo(ctx.request_id, plan)
        return True

    def _undo(self, request_id: Hashable, plan: AllocPlan) -> None:
        """Cancel a plan that is still pending."""
        request = self._state.requests.get(request_id)
        if request is not None and request.plan is plan:
            allocation.cancel_alloc(self._state, request_id, request.replica)
            self._acted()
