"""An anonymised workload tells nothing of people, and a cache does on it what it did before."""

import json

from hypothesis import given
from hypothesis import strategies as st
from tests.traces.conftest import TraceOf

from pagedkv.traces import GeneratorParameters, generate
from pagedkv.traces.anonymiser import anonymise_workload
from pagedkv.traces.summary import summarise
from pagedkv.traces.workload import WorkloadHeader, WorkloadRequest

HEADER = WorkloadHeader(block_size=4, origin="chats of tenant 17")


def request(ids: tuple[int, ...], **fields: object) -> WorkloadRequest:
    values = {"arrival_ms": 0.0, "input_length": 4 * len(ids), "output_length": 1, "hash_ids": ids}
    return WorkloadRequest.model_validate(values | fields)


def anonymous(*requests: WorkloadRequest, coarsen_ms: float = 0) -> list[WorkloadRequest]:
    header, found = anonymise_workload(HEADER, requests, coarsen_ms=coarsen_ms)
    assert (header.block_size, header.origin) == (4, None)
    return list(found)


def test_names_become_numbers_and_equal_ones_stay_equal() -> None:
    first, second, third = anonymous(
        request((901, 902), session="alice", type="legal"),
        request((901, 903), session="bob", type="legal"),
        request((904,), session="alice"),
    )
    assert [r.hash_ids for r in (first, second, third)] == [(0, 1), (0, 2), (3,)]
    assert [r.session for r in (first, second, third)] == ["session-1", "session-2", "session-1"]
    assert [r.type for r in (first, second, third)] == ["type-1", "type-1", None]


def test_times_are_rounded_down_if_that_is_asked() -> None:
    requests = [request((n,), arrival_ms=n * 700.5) for n in range(4)]
    assert [r.arrival_ms for r in anonymous(*requests)] == [0.0, 700.5, 1401.0, 2101.5]
    assert [r.arrival_ms for r in anonymous(*requests, coarsen_ms=1000)] == [0, 0, 1000, 2000]


@given(st.integers(0, 5))
def test_a_cache_sees_no_difference(seed: int) -> None:
    header, requests = generate(GeneratorParameters(requests=50, seed=seed))
    before = list(requests)
    after_header, after = anonymise_workload(header, before)
    found = list(after)
    names = {str(r.session) for r in before} | {str(r.type) for r in before}
    text = json.dumps([r.model_dump() for r in found])
    assert not [name for name in names if f'"{name}"' in text]
    assert after_header.origin is None
    assert [len(r.hash_ids) for r in found] == [len(r.hash_ids) for r in before]


def test_the_summary_of_a_workload_stays_what_it_was(trace_of: TraceOf) -> None:
    header, requests = generate(GeneratorParameters(requests=100))
    before = list(requests)
    after_header, after = anonymise_workload(header, before)

    def summary(header: WorkloadHeader, requests: list[WorkloadRequest]) -> object:
        lines = [header.model_dump_json(exclude_none=True)]
        lines += [r.model_dump_json(exclude_none=True) for r in requests]
        found = summarise(trace_of(*lines), None)
        return (
            found.requests,
            found.sessions,
            sorted(found.types.values()),
            found.distinct_pages,
            (found.infinite_cache_hits),
        )

    assert summary(header, before) == summary(after_header, list(after))
