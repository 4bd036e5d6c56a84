"""Making the calls of a run on a manager, with made-up tokens."""

from contextlib import suppress

import numpy as np

from pagedkv.conformance.upstream.requests import Cast, Request
from pagedkv.reference.context import TextContext
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
from pagedkv.reference.interfaces import SyncKVCacheManager
from pagedkv.reference.tokens import TokenBuffer


class Calls:
    """One run of a manager.

    Args:
        manager: Whose calls are made.
        cast: Who takes part.
        replicas: How many batches a step has.
    """

    def __init__(self, manager: SyncKVCacheManager, cast: Cast, replicas: int) -> None:
        self._manager = manager
        self._cast = cast
        self._replicas = replicas
        self._contexts: dict[str, TextContext] = {}

    def make(self, event: Event) -> None:
        """Make the call that an event reports, whatever comes of it.

        Raises:
            Exception: The manager's own, but for :class:`InsufficientBlocksError`.
        """
        manager = self._manager
        match event:
            case Claimed(name, replica):
                request = self._cast.claimed(name)
                request.replica = replica
                manager.claim(request.request_id, replica)
            case AllocPlanned(name, replica, context) | AllocRefused(name, replica, context):
                with suppress(InsufficientBlocksError):
                    manager.alloc(self._context(self._cast.named(name), context), replica)
            case AllocReturned(name, processed):
                self._cast.named(name).processed = processed
            case Stepped(name, context):
                request = self._cast.named(name)
                batches: list[list[TextContext]] = [[] for _ in range(self._replicas)]
                batches[request.replica].append(self._context(request, context))
                manager.step(batches)
            case Released(name):
                request = self._cast.named(name)
                manager.release(request.request_id, request.replica)
            case PrefixCacheReset():
                manager.reset_prefix_cache()
            case _:
                pass

    def _context(self, request: Request, snapshot: ContextSnapshot) -> TextContext:
        """The context as the call found it, but that its window begins where it does this time."""
        ctx = self._contexts.get(request.variable)
        processed = snapshot.processed
        if ctx is None:
            ctx = self._contexts[request.variable] = TextContext(
                max_length=len(request.tokens) + 1,
                tokens=TokenBuffer(np.array(request.tokens[: snapshot.length], dtype=np.int64)),
                request_id=request.request_id,
            )
        elif snapshot.processed == request.processed:  # no forward has run since its allocation
            processed = ctx.tokens.processed_length
        tokens = TokenBuffer(np.array(request.tokens[: snapshot.length], dtype=np.int64))
        tokens.skip_processing(processed)
        if snapshot.position < snapshot.length:
            tokens.chunk(snapshot.position - processed)
        ctx.tokens = tokens
        ctx.preempted = snapshot.preempted
        return ctx
