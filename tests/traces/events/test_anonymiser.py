"""An anonymised run tells nothing of people, and is allowed or diverges as before."""

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pagedkv.conformance.recorded.cutting import cut
from pagedkv.conformance.validation import Divergence, validate
from pagedkv.reference.events import AllocPlanned, Event, Stepped
from pagedkv.specification import reference_specification
from pagedkv.traces.events.anonymiser import anonymise_events
from pagedkv.traces.events.codec import encode, encode_header
from pagedkv.traces.events.reader import EventTrace
from pagedkv.traces.events.setup import EventTraceHeader
from pagedkv.traces.events.shipped import recorded_runs

Run = tuple[EventTraceHeader, list[Event]]


def recorded(name: str) -> Run:
    trace = EventTrace(recorded_runs()[name].path)
    return trace.header, list(trace)


def anonymous(run: Run, secret: bytes = b"secret") -> Run:
    header, events = anonymise_events(*run, secret)
    return header, list(events)


def text_of(run: Run) -> str:
    header, events = run
    lines = [encode_header(header), *(encode(n, event) for n, event in enumerate(events))]
    return b"\n".join(lines).decode()


def names_in(run: Run) -> set[str]:
    """Every request, transfer, store, identity and text that a trace names."""
    header, events = run
    found: set[str] = set()
    identities: set[bytes] = set()
    for event in events:
        for field in ("request_id", "transfer", "endpoint"):
            found.add(str(getattr(event, field, None)))
        found.update(t.transfer for t in getattr(event, "issued", ()))
        identities.update(getattr(event, "keys", ()))
        identities.update(getattr(getattr(event, "context", None), "keys", ()))
    if header.start is not None:
        state = header.start.state
        found.update(str(request.request_id) for request in state.requests)
        found.update(transfer.transfer for transfer in state.in_flight)
        identities.update(block.key for tier in state.tiers.values() for block in tier.blocks)
        identities.update(key for pool in state.pools for _, key in pool.cached)
    return (found | {key.hex() for key in identities}) - {"None"}


@pytest.mark.parametrize("name", recorded_runs())
def test_an_anonymised_run_is_allowed_as_before(name: str) -> None:
    header, events = anonymous(recorded(name))
    assert validate(header.setup, events, reference_specification, header.start) == len(events)


@pytest.mark.parametrize(
    "name", ["busy", "from_the_middle", "further_stores", "broken_device", "warm_disk"]
)
def test_no_name_of_the_original_is_left(name: str) -> None:
    run = recorded(name)
    text = text_of(anonymous(run))
    assert not [known for known in names_in(run) if f'"{known}"' in text or known in text.split()]
    assert "scenario" not in text and "illegal memory access" not in text


@pytest.mark.parametrize("place", [30, 120, 200])
def test_the_state_in_the_middle_of_a_run_is_anonymised_too(place: int) -> None:
    header, tail = cut(*recorded("busy"), place, None, reference_specification)
    part = header, list(tail)
    after = anonymous(part)
    assert not [known for known in names_in(part) if f'"{known}"' in text_of(after)]
    outcome = validate(after[0].setup, after[1], reference_specification, after[0].start)
    assert outcome == len(after[1])


def test_what_diverges_still_does_at_the_same_place() -> None:
    header, events = recorded("busy")
    place = max(n for n, event in enumerate(events) if isinstance(event, AllocPlanned))
    planned = events[place]
    assert isinstance(planned, AllocPlanned)
    events[place] = replace(planned, pages=planned.pages[::-1])
    before = validate(header.setup, events, reference_specification)
    header, events = anonymous((header, events))
    after = validate(header.setup, events, reference_specification)
    assert isinstance(before, Divergence) and isinstance(after, Divergence)
    assert (after.seq, after.differing) == (before.seq, before.differing)


def test_what_is_shared_stays_shared_and_nothing_else() -> None:
    run = recorded("busy")

    def chains(events: list[Event]) -> list[tuple[bytes, ...]]:
        return [e.context.keys for e in events if isinstance(e, AllocPlanned | Stepped)]

    old, new = chains(run[1]), chains(anonymous(run)[1])
    pairs = {pair for a, b in zip(old, new, strict=True) for pair in zip(a, b, strict=True)}
    assert len(pairs) == len({old for old, _ in pairs}) == len({new for _, new in pairs})
    assert all(len(old) == len(new) for old, new in pairs), "identities keep their lengths"


@given(st.binary(min_size=1), st.binary(min_size=1))
def test_another_secret_gives_other_identities(one: bytes, other: bytes) -> None:
    run = recorded("twins_share")
    first, second = text_of(anonymous(run, one)), text_of(anonymous(run, other))
    assert (first == second) == (one == other)


def test_seed_model_and_origin_are_left_out(tmp_path: Path) -> None:
    header, events = recorded("warm_disk")
    setup = header.setup.model_copy(update={"hash_seed": b"s" * 32})
    after, _ = anonymous((header.model_copy(update={"setup": setup}), events))
    assert after.setup.hash_seed is None
    assert after.setup.model_fingerprint not in (None, "weights")
    assert after.origin is None
