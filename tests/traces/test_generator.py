"""Generated workloads: the same seed gives the same bytes, and the traffic is what was asked."""

from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pagedkv.traces import (
    GeneratorParameters,
    Workload,
    generate,
    summarise,
    validate,
    write_workload,
)
from pagedkv.traces.arrivals import ARRIVALS
from pagedkv.traces.errors import InvalidFieldError
from pagedkv.traces.generator import blocks_of
from pagedkv.traces.scenario import MIX, SCENARIOS
from pagedkv.traces.shipped import DEMO_PARAMETERS, DEMO_WORKLOAD
from pagedkv.traces.workload import MAX_TOKENS

scenarios = st.sampled_from([MIX, *SCENARIOS])


@pytest.mark.parametrize("arrival", ARRIVALS)
@pytest.mark.parametrize("scenario", [MIX, *SCENARIOS])
def test_the_same_seed_gives_the_same_bytes(tmp_path: Path, scenario: str, arrival: str) -> None:
    parameters = GeneratorParameters(scenario=scenario, arrival=arrival, requests=50, seed=7)
    for name in ("a", "b"):
        write_workload(tmp_path / name, *generate(parameters))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert validate(Workload(tmp_path / "a")).warnings == []
    assert validate(Workload(tmp_path / "a")).ok


def test_another_seed_gives_another_workload() -> None:
    ours, theirs = (list(generate(GeneratorParameters(requests=20, seed=s))[1]) for s in (1, 2))
    assert ours != theirs


def test_the_shipped_workload_is_what_its_parameters_generate() -> None:
    header, requests = generate(DEMO_PARAMETERS)
    shipped = Workload(DEMO_WORKLOAD)
    assert shipped.header == header
    assert list(shipped) == list(requests)
    assert DEMO_WORKLOAD.stat().st_size < 300 * 1024


@settings(max_examples=30)
@given(scenarios, st.integers(1, 60), st.integers(1, 60), st.integers())
def test_as_many_requests_and_sessions_as_asked_in_order_of_arrival(
    scenario: str, requests: int, sessions: int, seed: int
) -> None:
    sessions = min(requests, sessions)
    parameters = GeneratorParameters(
        scenario=scenario, requests=requests, sessions=sessions, seed=seed
    )
    made = list(generate(parameters)[1])
    assert len(made) == requests
    assert len({request.session for request in made}) == sessions
    assert made == sorted(made, key=lambda request: request.arrival_ms)


def test_more_sessions_than_requests_are_refused() -> None:
    with pytest.raises(ValueError, match="sessions is 6, more than the 5 requests"):
        GeneratorParameters(requests=5, sessions=6)


def test_a_request_longer_than_the_format_allows_is_not_generated() -> None:
    parameters = GeneratorParameters(requests=20, input_tokens=MAX_TOKENS, block_size=MAX_TOKENS)
    with pytest.raises(InvalidFieldError, match="above the 100000000 tokens"):
        list(generate(parameters)[1])


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_every_scenario_shares_prefixes(tmp_path: Path, scenario: str) -> None:
    write_workload(tmp_path / "w", *generate(GeneratorParameters(scenario=scenario, requests=200)))
    assert summarise(Workload(tmp_path / "w")).infinite_cache_hit_rate > 0.1


def test_a_conversation_repeats_what_was_said_before() -> None:
    parameters = GeneratorParameters(scenario="chat", requests=8, sessions=1, block_size=16)
    turns = list(generate(parameters)[1])
    for earlier, later in pairwise(turns):
        assert later.input_length > earlier.input_length + earlier.output_length
        full = earlier.input_length // 16
        assert later.hash_ids[:full] == earlier.hash_ids[:full]


def test_lengths_can_be_asked_for() -> None:
    parameters = GeneratorParameters(scenario="chat", requests=300, sessions=300, input_tokens=5000)
    lengths = [request.input_length for request in generate(parameters)[1]]
    assert 4000 < sum(lengths) / len(lengths) < 7000


@pytest.mark.parametrize("arrival", ARRIVALS)
def test_requests_come_at_the_rate_that_was_asked_for(arrival: str) -> None:
    parameters = GeneratorParameters(scenario="rag", requests=2000, rate=10.0, arrival=arrival)
    *_, last = generate(parameters)[1]
    assert last.arrival_ms == pytest.approx(200_000, rel=0.2)


@given(
    st.lists(st.tuples(st.text(max_size=2), st.integers(1, 20)), max_size=6).map(tuple),
    st.integers(1, 9),
)
def test_blocks_are_all_of_a_size_but_the_last_and_lose_nothing(
    segments: tuple[tuple[str, int], ...], block_size: int
) -> None:
    blocks = list(blocks_of(segments, block_size))
    lengths = [sum(taken for _, _, taken in block) for block in blocks]
    assert all(length == block_size for length in lengths[:-1])
    assert sum(lengths) == sum(length for _, length in segments)
    tokens = [(name, start + i) for block in blocks for name, start, n in block for i in range(n)]
    assert tokens == [(name, i) for name, length in segments for i in range(length)]
