"""What is seen of a manager from outside is what it reports of itself."""

from contextlib import suppress

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from pagedkv.conformance.upstream.watched import watched
from pagedkv.reference.context import TextContext
from pagedkv.reference.errors import InsufficientBlocksError
from pagedkv.reference.tokens import TokenBuffer
from pagedkv.specification import build_reference
from pagedkv.traces.events.recorder import FlightRecorder
from pagedkv.traces.manager_setup import ManagerSetup

MOVES = st.lists(
    st.tuples(
        st.sampled_from(["go on"] * 8 + ["release", "reset"]),
        st.integers(0, 2),
        st.integers(1, 12),
        st.booleans(),
    ),
    min_size=10,
    max_size=40,
)


@settings(max_examples=300)
@given(MOVES, st.sampled_from([True, True, True, False]))
def test_events_from_outside_are_those_from_inside(
    moves: list[tuple[str, int, int, bool]], caching: bool
) -> None:
    inside, outside = FlightRecorder(1000), FlightRecorder(1000)
    setup = ManagerSetup(
        page_size=2, total_num_pages=9, enable_prefix_caching=caching, tracer=inside
    )
    manager = watched(build_reference(setup), setup.model_copy(update={"tracer": outside}))
    live: dict[int, TextContext] = {}
    has_room: set[int] = set()
    for move, who, length, is_chunk in moves:
        ctx = live.get(who)
        if move == "reset":
            manager.reset_prefix_cache()
        elif ctx is None:
            tokens = TokenBuffer(np.arange(length) // 5)
            if is_chunk and length > 4:
                tokens.chunk(3)
            live[who] = TextContext(max_length=99, tokens=tokens, request_id=f"r{who}")
            manager.claim(f"r{who}", 0)
        elif move == "release":
            manager.release(ctx.request_id, 0)
            has_room.discard(who)
            del live[who]
        elif who in has_room:
            ctx.update(length)
            manager.step([[ctx]])
            has_room.discard(who)
        else:
            with suppress(InsufficientBlocksError):
                manager.alloc(ctx, 0)
                has_room.add(who)
    assert outside.events == inside.events
