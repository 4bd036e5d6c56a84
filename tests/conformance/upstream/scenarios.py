"""Short runs, each of which some system answers otherwise than the specification."""

from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from pagedkv.conformance.implementation import Implementation
from pagedkv.conformance.upstream.watched import watched
from pagedkv.reference.context import TextContext
from pagedkv.reference.errors import InsufficientBlocksError
from pagedkv.reference.interfaces import SyncKVCacheManager
from pagedkv.reference.tokens import TokenBuffer
from pagedkv.traces.events.recorder import record_to
from pagedkv.traces.events.setup import EventTraceHeader
from pagedkv.traces.manager_setup import ManagerSetup
from pagedkv.traces.sync_adapter import as_sync


def request(name: str, tokens: Iterable[int], chunk: int | None = None) -> TextContext:
    buffer = TokenBuffer(np.array([*tokens], dtype=np.int64))
    if chunk is not None:
        buffer.chunk(chunk)
    return TextContext(max_length=10_000, tokens=buffer, request_id=name)


def admit(manager: SyncKVCacheManager, ctx: TextContext) -> TextContext:
    manager.claim(ctx.request_id, 0)
    manager.alloc(ctx, 0)
    return ctx


def refused(manager: SyncKVCacheManager, ctx: TextContext) -> None:
    manager.claim(ctx.request_id, 0)
    with suppress(InsufficientBlocksError):
        manager.alloc(ctx, 0)


def compute(manager: SyncKVCacheManager, ctx: TextContext) -> None:
    ctx.update(7)
    manager.step([[ctx]])


def serve(manager: SyncKVCacheManager, ctx: TextContext) -> None:
    compute(manager, admit(manager, ctx))
    manager.release(ctx.request_id, 0)


def two_in_a_row(manager: SyncKVCacheManager) -> None:
    admit(manager, request("a", range(5)))
    admit(manager, request("b", range(5)))


def ended_before_its_forward(manager: SyncKVCacheManager) -> None:
    admit(manager, request("a", range(5)))
    manager.release("a", 0)
    admit(manager, request("b", range(5)))


def reset_while_one_runs(manager: SyncKVCacheManager) -> None:
    compute(manager, admit(manager, request("a", range(5))))
    manager.reset_prefix_cache()
    admit(manager, request("b", range(5)))


def cached_between_two_chunks(manager: SyncKVCacheManager) -> None:
    first = admit(manager, request("a", range(13), chunk=4))
    compute(manager, first)
    serve(manager, request("b", range(9)))
    manager.alloc(first, 0)


def chunk(manager: SyncKVCacheManager) -> None:
    serve(manager, request("z", range(50, 53)))
    admit(manager, request("a", range(13), chunk=4))


def refused_after_a_hit(manager: SyncKVCacheManager) -> None:
    serve(manager, request("a", range(9)))
    refused(manager, request("b", range(99)))
    refused(manager, request("c", range(100, 130)))


def never_claimed(manager: SyncKVCacheManager) -> None:
    serve(manager, request("z", range(3)))
    manager.alloc(request("a", range(9)), 0)


def claimed_twice(manager: SyncKVCacheManager) -> None:
    manager.claim("a", 0)
    manager.claim("a", 1)


def garbage(manager: SyncKVCacheManager) -> None:
    serve(manager, request("a", range(4)))
    for name in ("x", "y"):
        admit(manager, request(name, [90, 91, 92, ord(name)]))
        manager.release(name, 0)
    admit(manager, request("b", range(5)))


def another_successor(manager: SyncKVCacheManager) -> None:
    serve(manager, request("a", [0, 1, 2, 3, 8]))
    admit(manager, request("b", [0, 1, 2, 3, 9]))


@dataclass(frozen=True)
class Scenario:
    play: Callable[[SyncKVCacheManager], None]
    """Makes the calls."""
    claim: str
    """What the test is called that comes of it."""
    says: str
    """What it says when it fails."""
    setup: dict[str, object] = field(default_factory=dict)
    """Of the manager, besides 8 pages of 4 tokens."""


SCENARIOS = {
    "two in a row": Scenario(
        two_in_a_row,
        "blocks_are_hit_after_their_forward_only",
        "b hits blocks that are yet to be written",
    ),
    "ended before its forward": Scenario(
        ended_before_its_forward,
        "blocks_of_a_request_that_ended_before_its_forward_are_not_hit",
        "b hits blocks that nobody has written",
    ),
    "reset while one runs": Scenario(
        reset_while_one_runs,
        "nothing_from_before_a_reset_is_hit",
        "b hits what was cached before the reset",
    ),
    "cached between two chunks": Scenario(
        cached_between_two_chunks,
        "later_chunk_hits_what_was_cached_meanwhile",
        "what was cached since the first chunk of a is computed again",
    ),
    "chunk": Scenario(chunk, "chunk_takes_pages_for_its_own_tokens", "the tokens of a need 1 page"),
    "refused after a hit": Scenario(
        refused_after_a_hit,
        "refused_allocation_keeps_nothing",
        "the refused allocation of b holds pages",
    ),
    "never claimed": Scenario(
        never_claimed, "request_that_is_not_claimed_gets_no_pages", "DID NOT RAISE"
    ),
    "claimed twice": Scenario(
        claimed_twice, "request_is_claimed_once", "DID NOT RAISE", {"replicas": 2}
    ),
    "garbage": Scenario(
        garbage,
        "cached_block_stays_while_there_are_others_to_take",
        "what b should hit was given up for nothing",
        {"total_num_pages": 2},
    ),
    "another successor": Scenario(
        another_successor,
        "last_block_of_a_hit_is_not_used_with_eagle",
        "the last block that b hits was written before another token",
        {"speculative_method": "eagle", "num_draft_tokens": 1},
    ),
}


def record(scenario: Scenario, implementation: Implementation, path: Path) -> Path:
    """What a system does in a scenario, as an event trace."""
    setup = ManagerSetup.model_validate({"page_size": 4, "total_num_pages": 8} | scenario.setup)
    name = f"{implementation.name} {implementation.version}"
    header = EventTraceHeader(setup=setup.run_setup(), implementation=name)
    with record_to(path, header) as recorder:
        made = implementation.make(setup)
        scenario.play(watched(as_sync(made), setup.model_copy(update={"tracer": recorder})))
    return path
