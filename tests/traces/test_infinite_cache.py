"""The infinite-cache bound is exact: arithmetic on ids agrees with tokens, and with a manager."""

from hypothesis import given, settings
from hypothesis import strategies as st

from pagedkv.implementations import reference_manager
from pagedkv.traces import WorkloadRequest, tokens_of
from pagedkv.traces.capacity import demand_of
from pagedkv.traces.infinite_cache import InfiniteCache
from pagedkv.traces.manager_setup import ManagerSetup
from pagedkv.traces.prefix_ids import PrefixIds
from pagedkv.traces.replay import ReplayOptions, replay

Content = list[tuple[int, int]]

prompts = st.lists(st.integers(0, 2), min_size=1, max_size=5)
workloads = st.lists(st.tuples(prompts, st.integers(1, 12)), min_size=1, max_size=8)
sizes = st.integers(1, 12)


def requests_of(workload: list[tuple[list[int], int]], block_size: int) -> list[WorkloadRequest]:
    """Prompts of shared blocks, the last of each filled as far as the number says."""
    prefixes = PrefixIds[tuple[int, int]]()
    requests = []
    for blocks, fill in workload:
        fill = min(fill, block_size)
        content: Content = [(block, block_size) for block in blocks[:-1]] + [(blocks[-1], fill)]
        requests.append(
            WorkloadRequest(
                arrival_ms=0,
                input_length=(len(blocks) - 1) * block_size + fill,
                output_length=0,
                hash_ids=prefixes.chain(content),
            )
        )
    return requests


@given(workloads, sizes, sizes)
def test_the_bound_is_what_comparing_all_tokens_finds(
    workload: list[tuple[list[int], int]], block_size: int, page_size: int
) -> None:
    cache = InfiniteCache(page_size, block_size)
    seen: set[tuple[int, ...]] = set()
    for request in requests_of(workload, block_size):
        tokens = tuple(tokens_of(request, block_size).tolist())
        prefixes = [tokens[:end] for end in range(page_size, len(tokens) + 1, page_size)]
        hits = 0
        for prefix in prefixes:
            if prefix not in seen or len(prefix) == len(tokens):
                break
            hits += 1
        seen.update(prefixes)
        counts = cache.admit(request)
        assert (counts.full, counts.hit) == (len(prefixes), hits)
    assert cache.distinct_pages == len(seen)


@settings(max_examples=30)
@given(workloads, sizes, sizes)
def test_a_manager_that_never_evicts_reaches_the_bound(
    workload: list[tuple[list[int], int]], block_size: int, page_size: int
) -> None:
    requests = requests_of(workload, block_size)
    cache = InfiniteCache(page_size, block_size)
    bound = sum(cache.admit(request).hit for request in requests)
    pages = demand_of(requests, page_size, decode=False).pages
    report = replay(
        requests,
        block_size,
        reference_manager,
        ManagerSetup(page_size=page_size, total_num_pages=pages),
        ReplayOptions(),
    )
    assert report.pages_hit == bound
    assert report.evictions == 0
