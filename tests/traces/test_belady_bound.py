"""The Belady bound is the optimum: no search finds more hits, and no cache gets them."""

from functools import cache
from itertools import combinations

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pagedkv.implementations import reference_manager
from pagedkv.traces import Workload, WorkloadRequest
from pagedkv.traces.belady_bound import Prompt, belady_hits, prompts_of
from pagedkv.traces.infinite_cache import InfiniteCache
from pagedkv.traces.manager_setup import ManagerSetup
from pagedkv.traces.prefix_ids import PrefixIds
from pagedkv.traces.replay import ReplayOptions, replay

PAGE = 4

Content = tuple[int, ...]
contents = st.lists(st.integers(0, 1), min_size=1, max_size=4).map(tuple)
"""What the blocks of one prompt hold; the last token or more of the last one may be missing."""
prompts = st.lists(st.tuples(contents, st.integers(1, PAGE)), min_size=1, max_size=8)
sizes = st.integers(1, 6)


def requests_of(workload: list[tuple[Content, int]]) -> list[WorkloadRequest]:
    """Requests in blocks of one page, each last block filled as far as the number says."""
    prefixes = PrefixIds[tuple[int, int]]()
    return [
        WorkloadRequest(
            arrival_ms=0,
            input_length=(len(content) - 1) * PAGE + fill,
            output_length=2 * PAGE,
            # A block that is filled less is another block.
            hash_ids=prefixes.chain([*((c, PAGE) for c in content[:-1]), (content[-1], fill)]),
        )
        for content, fill in workload
    ]


def prompt_list(workload: list[tuple[Content, int]]) -> list[Prompt]:
    return list(prompts_of(requests_of(workload), PAGE, PAGE))


def prompt(*names: int, partial: bool = True) -> Prompt:
    """Full pages, and by default a partly filled one behind them, so that all may be hit."""
    return Prompt(names, len(names) - (not partial), len(names) + partial)


def best_of_all_policies(prompts: list[Prompt], device_pages: int, lower_pages: int) -> int:
    """The most hits, by trying after every request every set of pages that a cache could keep."""

    @cache
    def best_from(index: int, cached: frozenset[int]) -> int:
        if index == len(prompts):
            return 0
        prompt = prompts[index]
        if prompt.pages > device_pages:
            return best_from(index + 1, cached)
        hits = 0
        while hits < prompt.hittable and prompt.names[hits] in cached:
            hits += 1
        others = cached - set(prompt.names[:hits])
        room = min(device_pages + lower_pages - prompt.pages, len(others))
        return hits + max(
            best_from(index + 1, frozenset(survivors) | set(prompt.names))
            for count in range(room + 1)
            for survivors in combinations(sorted(others), count)
        )

    return best_from(0, frozenset())


@settings(max_examples=300)
@given(prompts, sizes, st.integers(0, 3))
def test_no_policy_hits_more_and_one_hits_as_many(
    workload: list[tuple[Content, int]], device_pages: int, lower_pages: int
) -> None:
    prompts = prompt_list(workload)
    assert belady_hits(prompts, device_pages, lower_pages) == best_of_all_policies(
        prompts, device_pages, lower_pages
    )


@settings(max_examples=100)
@given(prompts, sizes, st.integers(0, 3), st.integers(1, 3), st.booleans())
def test_a_real_cache_stays_below_it_and_it_below_the_infinite_cache(
    workload: list[tuple[Content, int]],
    pages: int,
    host_pages: int,
    concurrency: int,
    decode: bool,
) -> None:
    requests = requests_of(workload)
    setup = ManagerSetup(
        page_size=PAGE,
        total_num_pages=pages,
        host_pages=host_pages or None,
        max_batch_size=concurrency,
    )
    report = replay(requests, PAGE, reference_manager, setup, ReplayOptions(concurrency, decode))
    assume(report.preemptions == 0)
    infinite_cache = InfiniteCache(PAGE, PAGE)
    infinite = sum(infinite_cache.admit(request).hit for request in requests)
    assert report.pages_hit is not None
    assert report.pages_hit <= belady_hits(prompt_list(workload), pages, host_pages) <= infinite


@given(prompts, sizes)
def test_more_room_never_hurts_unless_it_admits_larger_requests(
    workload: list[tuple[Content, int]], pages: int
) -> None:
    prompts = [p for p in prompt_list(workload) if p.pages <= pages]
    assert belady_hits(prompts, pages) <= belady_hits(prompts, pages + 1)
    assert belady_hits(prompts, pages) <= belady_hits(prompts, pages, lower_pages=1)


@given(prompts, st.integers(1, 12), st.integers(1, 12))
def test_with_room_for_everything_it_is_the_infinite_cache_at_any_page_size(
    workload: list[tuple[Content, int]], page_size: int, block_size: int
) -> None:
    requests = [
        request.model_copy(update={"input_length": len(request.hash_ids) * block_size})
        for request in requests_of(workload)
    ]
    cache = InfiniteCache(page_size, block_size)
    counts = [cache.admit(request) for request in requests]
    prompts = list(prompts_of(requests, page_size, block_size))
    assert [len(prompt.names) for prompt in prompts] == [count.full for count in counts]
    assert belady_hits(prompts, 10_000) == sum(count.hit for count in counts)


def test_it_keeps_what_comes_back_first() -> None:
    rounds = [prompt(0), prompt(1), prompt(2)] * 3
    # Least recently used pages are always the ones that come back next: LRU would hit nothing.
    assert belady_hits(rounds, 3) == 3
    assert belady_hits(rounds, 4) == 6


def test_a_partly_filled_page_takes_room_and_a_last_token_is_computed() -> None:
    assert belady_hits([prompt(0), prompt(1), prompt(0)], 2) == 0
    assert belady_hits([prompt(0), prompt(1, partial=False), prompt(0)], 2) == 1
    assert belady_hits([prompt(0, 1, partial=False)] * 2, 2) == 1


def test_a_request_that_does_not_fit_touches_nothing() -> None:
    assert belady_hits([prompt(0), prompt(1, 2), prompt(0)], 2) == 1
    assert belady_hits([prompt(0), prompt(1, 2), prompt(0)], 2, lower_pages=5) == 1


def test_lower_tiers_keep_pages_but_serve_no_request() -> None:
    assert belady_hits([prompt(0), prompt(1), prompt(0)], 2, lower_pages=1) == 1


@pytest.mark.parametrize(("pages", "lru_hits"), [(1000, 12_988), (5000, 34_185)])
def test_mooncake_leaves_room_above_lru(mooncake: Workload, pages: int, lru_hits: int) -> None:
    prompts = list(prompts_of(mooncake, 512, 512))
    assert lru_hits < belady_hits(prompts, pages) < belady_hits(prompts, 2**30) == 105_592
