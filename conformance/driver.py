"""Drives a manager the way a server does, and checks after every call what always has to hold.

Checks talk to a :class:`Driver` in place of the manager. Each call goes to the manager, then to the
:class:`~pagedkv.conformance.model.Model`, and where the manager claims to choose as the reference
does, to a twin on the reference as well, whose answers must be the same.
"""

from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from pagedkv.conformance.call_log import name_of
from pagedkv.conformance.environment import Environment
from pagedkv.conformance.model import Counts
from pagedkv.conformance.observer import window_of
from pagedkv.conformance.refusals import raises
from pagedkv.conformance.violation import demand, expect
from pagedkv.reference.context import TextContext
from pagedkv.reference.metrics import PrefixCacheHits

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


class Driver(Environment):
    """One manager under test; the arguments are those of :class:`Observer`."""

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

    def crash(self) -> None:
        """The manager's process dies; said by ``crash``, to managers that have it."""
        self.closed = True
        if callable(getattr(self.manager, "crash", None)):
            self.log.call("manager.crash()")
            self.manager.crash()

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
        self.counted.clear()
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
        windows = [(ctx, window_of(ctx)) for ctx in _contexts_in(args)]
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
            expect(rule, window_of(ctx), window, f"window of {ctx.request_id!r} after a refusal")


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
