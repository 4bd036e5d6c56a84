"""Replays a recorded event trace on any implementation.

A trace knows lengths and identities, no tokens; tokens are made up from the identities, so that
what was shared is shared again. A manager whose transfers land by themselves can replay a trace in
which every load has landed before the call returned; one that lets the suite play its environment
can replay any.
"""

import copy
import hashlib
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from pagedkv.conformance.driver import Driver
from pagedkv.conformance.violation import expect
from pagedkv.reference.context import SpecDecodingState, TextContext
from pagedkv.reference.events import (
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
    PrefixCacheReset,
    Released,
    Stepped,
    TransferLanded,
)
from pagedkv.reference.identity import PageKey
from pagedkv.reference.tokens import TokenArray, TokenBuffer


class NotReplayableError(ValueError):
    """A trace has events that only its own manager's environment can bring about."""


@dataclass
class Life:
    """One request from its claim to its release."""

    keys: tuple[PageKey, ...] = ()
    """Identities of its pages, as far as the trace says them."""
    length: int = 1
    """The most tokens it ever had."""
    snapshots: list[ContextSnapshot] = field(default_factory=list)
    """Its context at each call, in order."""


def replay_trace(driver: Driver, events: Sequence[Event]) -> None:
    """Make the calls of a trace, and compare what it says of hits and refusals.

    Raises:
        Violation: The implementation breaks a rule, or finds other blocks than were recorded.
        NotReplayableError: Not with calls alone.
    """
    refuse_environment(events)
    lives = lives_of(events)
    started: dict[Hashable, Iterator[Life]] = {name: iter(of) for name, of in lives.items()}
    player = _Player(driver)
    for seq, event in enumerate(events):
        if isinstance(event, Claimed):
            player.begin(event, next(started[event.request_id]))
        else:
            player.make(seq, event)


def refuse_environment(events: Iterable[Event]) -> None:
    """See that every load has landed before its call returned, and that nothing has failed.

    Raises:
        NotReplayableError: It has not.
    """
    pending: Hashable = None
    for seq, event in enumerate(events):
        match event:
            case AllocPlanned(request_id):
                pending = request_id
            case AllocReturned():
                pending = None
            case AllocRefused() | Claimed() | InputsBuilt() | Stepped() | Released():
                if pending is not None:
                    raise NotReplayableError(f"event {seq} comes while {pending!r} waits for loads")
            case TransferLanded() | PrefixCacheReset() | MetricsReset() | Closed() | Cleaned():
                pass
            case DiskOpened(keys) if not keys:
                pass
            case _:
                raise NotReplayableError(f"event {seq} is {type(event).__name__}")


def lives_of(events: Iterable[Event]) -> dict[Hashable, list[Life]]:
    """By request id: every life that it has in the trace, one after another."""
    lives: dict[Hashable, list[Life]] = {}
    for event in events:
        match event:
            case Claimed(request_id):
                lives.setdefault(request_id, []).append(Life())
            case AllocPlanned(request_id, _, context) | AllocRefused(request_id, _, context):
                _see(lives[request_id][-1], context)
            case Stepped(request_id, context):
                _see(lives[request_id][-1], context)
            case InputsBuilt(batches, contexts):
                for batch, snapshots in zip(batches, contexts, strict=True):
                    for request_id, context in zip(batch, snapshots, strict=True):
                        _see(lives[request_id][-1], context)
    return lives


def _see(life: Life, context: ContextSnapshot) -> None:
    life.snapshots.append(context)
    life.length = max(life.length, context.length)
    if len(context.keys) > len(life.keys):
        life.keys = context.keys


def tokens_of(life: Life, name: str, page_size: int) -> TokenArray:
    """Made-up tokens ``[length]``: equal where identities are equal, and nobody else's after."""
    parts = [_draw(key, page_size) for key in life.keys]
    rest = life.length - len(parts) * page_size
    parts.append(_draw(name.encode(), max(0, rest)))
    return np.concatenate(parts)[: life.length]


def _draw(seed: bytes, count: int) -> TokenArray:
    """Tokens from 0 to 2**31, which depend on nothing but the seed."""
    data = hashlib.shake_128(seed).digest(4 * count)
    return np.frombuffer(data, dtype="<u4").astype(np.int64) >> 1


class _Player:
    """Makes calls as a trace says."""

    def __init__(self, driver: Driver) -> None:
        self.driver = driver
        self.all_tokens: dict[Hashable, TokenArray] = {}
        self.count = 0

    def begin(self, event: Claimed, life: Life) -> None:
        """A request is claimed; its context gets all the tokens that it will ever have."""
        name = str(event.request_id)
        self.count += 1
        tokens = tokens_of(life, f"{self.count} {name}", self.driver.setup.page_size)
        self.all_tokens[name] = tokens
        if event.dummy:
            self.driver.claim_dummy(name, event.replica)
            return
        first = life.snapshots[0] if life.snapshots else ContextSnapshot(1, 0, 1)
        ctx = self.driver.request(tokens[: first.length], request_id=name)
        ctx.preempted = first.preempted
        self.driver.claim(ctx, event.replica)

    def make(self, seq: int, event: Event) -> None:
        """Make the call that an event reports, unless its cause was made already."""
        driver = self.driver
        match event:
            case AllocPlanned(request_id, _, context, _, hits):
                self.compute_up_to(request_id, context)
                ctx = self.at(request_id, context)
                committed = driver.model.requests[request_id].committed
                driver.alloc(ctx)
                found = driver.model.requests[request_id].committed - committed
                if driver.twin is not None:
                    expect("ALLOC-4", found, hits.total_blocks, f"hits of event {seq}")
            case AllocRefused(request_id, _, context):
                self.compute_up_to(request_id, context)
                fits = driver.fits(self.at(request_id, context))
                expect("ALLOC-2", fits, False, f"whether the allocation of event {seq} fits,")
            case InputsBuilt(batches, contexts, max_cache_length, bounds):
                if max_cache_length is None and bounds is None:
                    rows = zip(batches, contexts, strict=True)
                    pairs = [pair for row in rows for pair in zip(*row, strict=True)]
                    for name, context in pairs:
                        self.compute_up_to(name, context)
                    driver.compute(*(self.at(name, context) for name, context in pairs))
            case Stepped(request_id, context):
                self.compute_up_to(request_id, context)
                driver.step(self.at(request_id, context))
            case Released(request_id):
                driver.release(driver.contexts[request_id])
            case PrefixCacheReset():
                driver.reset()
            case MetricsReset() if driver.can("metrics"):
                driver.reset_metrics()
            case _:
                pass

    def compute_up_to(self, request_id: Hashable, context: ContextSnapshot) -> None:
        """The forwards before a call, whether the trace shows them or not."""
        before = self.driver.contexts[request_id].tokens.processed_length
        if context.processed > before:
            window = replace(context, processed=before, position=context.processed)
            ctx = self.at(request_id, window)
            self.driver.write(ctx)
            if self.driver.twin is not None:
                self.driver.twin.write(copy.deepcopy(ctx))

    def at(self, request_id: Hashable, context: ContextSnapshot) -> TextContext:
        """The context of a request, as a call found it."""
        ctx = self.driver.contexts[request_id]
        tokens = TokenBuffer(self.all_tokens[request_id][: context.length])
        tokens.skip_processing(context.processed)
        if context.position < context.length:
            tokens.chunk(context.position - context.processed)
        ctx.tokens = tokens
        ctx.pending_future_count = context.placeholders
        ctx.preempted = context.preempted
        ctx.spec_decoding_state = SpecDecodingState(
            [0] * context.drafts_to_verify, [0] * context.maybe_accepted_drafts
        )
        return ctx
