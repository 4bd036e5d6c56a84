"""Forwards of an asynchronous manager's requests: their inputs are checked, and every byte."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from pagedkv.conformance.forward_inputs import WantedRow, check_inputs
from pagedkv.conformance.slots import BufferSlots, Slot, slots_of, token_values
from pagedkv.conformance.violation import demand
from pagedkv.reference.context import TextContext
from pagedkv.reference.interfaces import AsyncKVCacheManager
from pagedkv.reference.lengths import required_pages
from pagedkv.reference.tokens import TokenBuffer
from pagedkv.traces.manager_setup import ManagerSetup

NAMESPACE = "one model"
"""One for all, resets included: whether old content comes back is seen in the events."""

Launch = Callable[[int, Callable[[], None]], object]
"""Runs a forward on the devices of a replica, now or later."""


@dataclass(eq=False)
class Row:
    """One request of a forward."""

    ctx: TextContext
    """The request."""
    replica: int
    """Where it is."""
    drafts: Sequence[int] = ()
    """Draft tokens that the forward verifies."""
    answer: Sequence[int] = ()
    """What it computes: the drafts that it accepts, and one token more."""
    dummy: bool = False
    """Whether it only fills a batch."""

    def advance(self) -> None:
        """The request goes on behind its forward."""
        for token in self.answer:
            self.ctx.update(token)
        self.ctx.spec_decoding_state.draft_tokens_to_verify = []


@dataclass
class _Work:
    """What a forward does on one replica."""

    rows: list[WantedRow] = field(default_factory=list)
    """What it is told."""
    reads: list[tuple[str, Slot, bytes]] = field(default_factory=list)
    """Whose slots it reads, and what they must hold."""
    writes: list[tuple[Slot, bytes]] = field(default_factory=list)
    """What it writes."""


class Forward:
    """A forward whose inputs were built, and which is still to be launched."""

    def __init__(
        self, forwards: "Forwards", batches: list[list[TextContext]], inputs: Any, work: list[_Work]
    ) -> None:  # Any: inputs of whatever class the manager has
        self._forwards, self._batches, self._inputs = forwards, batches, inputs
        self._work = work

    def launch(self) -> None:
        """Run it on every replica, now or later, and tell the manager."""
        forwards = self._forwards
        for replica, work in enumerate(self._work):
            if not work.rows:
                continue
            if forwards.launch is None:
                self._run(replica, work)
            else:
                forwards.launch(replica, partial(self._run, replica, work))
        if callable(launched := getattr(forwards.manager, "forward_launched", None)):
            launched(self._batches)

    def _run(self, replica: int, work: _Work) -> None:
        slots = self._forwards.slots
        check_inputs(self._inputs, self._forwards.setup, replica, work.rows)
        held = slots.hold(replica, [(slot, value) for _, slot, value in work.reads])
        for (name, (page, offset), _), is_held in zip(work.reads, held, strict=True):
            demand(
                "TIER-3",
                is_held,
                f"request {name!r} would read wrong bytes: slot {offset} of page {page} is called "
                "cached, but does not hold its KV",
            )
        slots.write(replica, work.writes)


class Forwards:
    """Makes forwards of a manager's requests.

    Args:
        manager: The manager.
        setup: How it was set up.
        launch: Runs a forward; ``None``: at once.
    """

    def __init__(
        self, manager: AsyncKVCacheManager, setup: ManagerSetup, launch: Launch | None
    ) -> None:
        self.manager, self.setup, self.launch = manager, setup, launch
        self.slots = BufferSlots([manager.get_device_buffer(n) for n in range(setup.replicas)])
        self._params = setup.params()

    def batches(self, rows: Sequence[Row]) -> list[list[TextContext]]:
        """One batch per replica."""
        batches: list[list[TextContext]] = [[] for _ in range(self.setup.replicas)]
        for row in rows:
            batches[row.replica].append(row.ctx)
        return batches

    # Any: ``launched`` is the engine's own.
    def step(self, rows: Sequence[Row], **options: Any) -> None:
        """Commit what was computed."""
        self.manager.step(self.batches(rows), **options)

    def prepare(self, rows: Sequence[Row]) -> Forward:
        """Ask for the inputs; what the forward is to read and write follows from now.

        Raises: as ``runtime_inputs``.
        """
        batches = self.batches(rows)
        inputs = self.manager.runtime_inputs(batches)
        work = [_Work() for _ in batches]
        for row in rows:
            self._add(work[row.replica], row)
        return Forward(self, batches, inputs, work)

    def _add(self, work: _Work, row: Row) -> None:
        ctx, size = row.ctx, self.setup.page_size
        if row.dummy:
            work.rows.append(WantedRow.of_dummy(ctx))
            return
        name, processed = str(ctx.request_id), ctx.tokens.processed_length
        pages = self.manager.get_req_blocks(ctx.request_id, row.replica)
        work.rows.append(WantedRow.of(ctx, pages, required_pages(ctx, self._params), size))
        end = ctx.current_position + len(row.drafts)
        values = token_values(_with_drafts(ctx, row.drafts), NAMESPACE, end)
        cached = slots_of(pages, size, values[:processed])
        work.reads += [(name, slot, value) for slot, value in cached]
        work.writes += slots_of(pages, size, values, processed)


def _with_drafts(ctx: TextContext, drafts: Sequence[int]) -> TextContext:
    """The request as it is if these draft tokens are accepted."""
    if not drafts:
        return ctx
    tokens = np.append(ctx.tokens.all, np.array(drafts, dtype=np.int64))
    return replace(ctx, max_length=len(tokens), tokens=TokenBuffer(tokens))
