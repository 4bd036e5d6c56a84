"""Recording managers that report nothing of themselves: their events follow from what they show.

::

    pagedkv replay WORKLOAD --impl pagedkv.conformance.upstream.watched:vllm --record run.jsonl
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from pagedkv.reference.context import Context
from pagedkv.reference.errors import InsufficientBlocksError
from pagedkv.reference.events import (
    AllocPlanned,
    AllocRefused,
    AllocReturned,
    Claimed,
    ContextSnapshot,
    Event,
    PrefixCacheReset,
    Released,
    Stepped,
)
from pagedkv.reference.identity import PageKey, page_digests, page_key
from pagedkv.reference.interfaces import SyncKVCacheManager
from pagedkv.reference.metrics import PrefixCacheHits
from pagedkv.traces.manager_setup import ManagerSetup


@dataclass
class Life:
    """What has to be remembered of a request to say what its calls were given."""

    digests: list[bytes] = field(default_factory=list)
    """Of its leading full pages, as far as calls have looked at them."""
    committed: int = 0
    """Leading pages that are cached."""
    offered: int = 0
    """Those of them that a step has offered to lower tiers, if there were any."""
    counted: int = 0
    """Leading tokens that were computed or found."""
    has_pages: bool = False
    """Whether an allocation has succeeded."""
    fenced: bool = False
    """Whether the cache was reset since it got its pages: it commits nothing any more."""


class WatchedManager:
    """Passes calls on to a manager without lower tiers, and reports those that have methods here.

    A call that raises anything but :class:`InsufficientBlocksError` is not reported. All hits count
    as the replica's own: nobody sees from outside whether another replica had the block.

    Args:
        manager: The manager, which belongs to this one from now on.
        setup: What it was made from; ``setup.tracer`` receives the events.
    """

    def __init__(self, manager: SyncKVCacheManager, setup: ManagerSetup) -> None:
        self._manager = manager
        self._setup = setup
        self._lives: dict[Hashable, Life] = {}

    # Any: whatever else the manager has.
    def __getattr__(self, name: str) -> Any:
        return getattr(self._manager, name)

    def claim(self, request_id: Hashable, replica_idx: int) -> None:
        """The manager's ``claim``."""
        self._manager.claim(request_id, replica_idx)
        self._lives[request_id] = Life()
        self._emit(Claimed(request_id, replica_idx))

    def alloc(self, data: Context, replica_idx: int) -> None:
        """The manager's ``alloc``; what was hit shows in the window."""
        life = self._life(data.request_id)
        before = _snapshot(data, self._looked_up(data, life))
        try:
            self._manager.alloc(data, replica_idx)
        except InsufficientBlocksError as error:
            self._emit(AllocRefused(data.request_id, replica_idx, before, error.needed, error.free))
            raise
        processed = data.tokens.processed_length
        hits = 0
        life.counted = max(life.counted, before.processed)
        if processed > before.processed:
            hits = processed // self._setup.page_size - life.committed
            life.counted = processed
        life.committed += hits
        life.has_pages = True
        self._emit(
            AllocPlanned(
                data.request_id,
                replica_idx,
                before,
                tuple(self._manager.get_req_blocks(data.request_id, replica_idx)),
                PrefixCacheHits(device_blocks=hits),
                issued=(),
                waits_for=(),
            )
        )
        self._emit(AllocReturned(data.request_id, processed))

    def step(self, batches: Sequence[Sequence[Context]]) -> None:
        """The manager's ``step``: an event for each request that it moves on (STEP-6)."""
        self._manager.step(batches)
        for replica_idx, batch in enumerate(batches):
            for ctx in batch:
                self._stepped(ctx, replica_idx)

    def release(self, request_id: Hashable, replica_idx: int) -> None:
        """The manager's ``release``."""
        self._manager.release(request_id, replica_idx)
        self._lives.pop(request_id, None)
        self._emit(Released(request_id))

    def reset_prefix_cache(self) -> None:
        """The manager's ``reset_prefix_cache``."""
        self._manager.reset_prefix_cache()
        for life in self._lives.values():
            life.fenced = life.has_pages
        self._emit(PrefixCacheReset())

    def _stepped(self, ctx: Context, replica_idx: int) -> None:
        life = self._life(ctx.request_id)
        known = len(ctx.tokens) - max(1, ctx.pending_future_count)
        written = min(ctx.tokens.processed_length, known) // self._setup.page_size
        full = max(life.committed, written)
        may_commit = self._setup.enable_prefix_caching and not life.fenced
        commits = may_commit and full > life.offered
        if not commits and ctx.tokens.processed_length <= life.counted:
            return
        keys: tuple[PageKey, ...] = ()
        if commits:
            keys = self._keys(ctx, life, full)
            life.committed = life.offered = full
        life.counted = max(life.counted, ctx.tokens.processed_length)
        pages = tuple(self._manager.get_req_blocks(ctx.request_id, replica_idx))
        self._emit(Stepped(ctx.request_id, _snapshot(ctx, keys), pages, issued=()))

    def _looked_up(self, ctx: Context, life: Life) -> tuple[PageKey, ...]:
        """Identities of the pages that an allocation may hit, and of those before (ALLOC-5)."""
        if not self._setup.enable_prefix_caching:
            return ()
        known = len(ctx.tokens) - max(1, ctx.pending_future_count)
        within = min(known, ctx.tokens.current_position - 1) // self._setup.page_size
        one = ctx.tokens.active_length == 1
        return self._keys(ctx, life, life.committed if one else max(within, life.committed))

    def _keys(self, ctx: Context, life: Life, count: int) -> tuple[PageKey, ...]:
        algorithm = self._setup.hash_algorithm
        digests = page_digests(
            ctx,
            count=count,
            page_size=self._setup.page_size,
            algorithm=algorithm,
            seed=self._setup.hash_seed,
            known=life.digests,
        )
        life.digests = max(life.digests, digests, key=len)
        return tuple(page_key(digest, algorithm) for digest in digests)

    def _life(self, request_id: Hashable) -> Life:
        """Of a request that was not claimed, too: a manager may take it all the same."""
        return self._lives.setdefault(request_id, Life())

    def _emit(self, event: Event) -> None:
        if self._setup.tracer is not None:
            self._setup.tracer.emit(event)


def _snapshot(ctx: Context, keys: tuple[PageKey, ...]) -> ContextSnapshot:
    drafts = ctx.spec_decoding_state
    return ContextSnapshot(
        length=len(ctx.tokens),
        processed=ctx.tokens.processed_length,
        position=ctx.tokens.current_position,
        keys=keys,
        placeholders=ctx.pending_future_count,
        drafts_to_verify=len(drafts.draft_tokens_to_verify),
        maybe_accepted_drafts=len(drafts.maybe_accepted_draft_tokens),
        preempted=ctx.preempted,
    )


def watched(manager: SyncKVCacheManager, setup: ManagerSetup) -> SyncKVCacheManager:
    """A manager whose calls are reported to ``setup.tracer``."""
    return cast("SyncKVCacheManager", WatchedManager(manager, setup))


# The peers are imported when they are asked for: few have both installed.


def vllm(setup: ManagerSetup) -> SyncKVCacheManager:
    """vLLM's manager, watched."""
    from pagedkv.conformance.peers.vllm import VllmManager

    return watched(cast("SyncKVCacheManager", VllmManager(setup)), setup)


def modular_max(setup: ManagerSetup) -> SyncKVCacheManager:
    """MAX's manager, watched."""
    from pagedkv.conformance.peers.max import MaxManager

    return watched(cast("SyncKVCacheManager", MaxManager(setup)), setup)
