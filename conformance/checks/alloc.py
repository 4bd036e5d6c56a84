"""ALLOC: requests get their pages, and what is cached of them.

Allocations that wait for loads are in ``alloc_loads``.
"""

from collections.abc import Callable
from typing import Any

from pagedkv.conformance.bench import Bench
from pagedkv.conformance.check import check
from pagedkv.conformance.driver import Driver
from pagedkv.conformance.violation import demand, expect
from pagedkv.reference.context import TextContext


def _window(ctx: TextContext) -> int:
    """Where the window of a request begins."""
    return ctx.tokens.processed_length


def _begun(bench: Bench, driver: Driver, pages: int, tokens: int) -> TextContext:
    """``prompt(pages)``, of which a first chunk was computed, but not stepped."""
    ctx = driver.request(bench.prompt(pages))
    driver.chunk(ctx, tokens)
    driver.claim(ctx)
    driver.alloc(ctx)
    driver.compute(ctx)
    driver.update(ctx)
    return ctx


@check("ALLOC-1", needs=("prefix",))
def a_request_gets_its_cached_prefix_first(bench: Bench) -> None:
    """The first pages are those that hold its prefix, and its window begins behind them."""
    driver = bench.driver(total_num_pages=12)
    holder = driver.admit(bench.prompt(4))
    driver.forward(holder)
    for shared in range(5):
        tokens = [*bench.prompt(shared, more=0), *bench.prompt(2, 50)]
        ctx = driver.admit(tokens)
        expect("ALLOC-1", _window(ctx), shared * bench.size, "start of the window")
        expect("ALLOC-1", len(driver.pages(ctx)), shared + 3, "number of pages")
        cached = driver.pages(holder)[:shared]
        expect("ALLOC-1", driver.pages(ctx)[:shared], cached, "pages of the cached prefix")
        driver.release(ctx)


@check("ALLOC-1", "ALLOC-4", needs=("prefix",))
def a_later_chunk_finds_what_was_cached_meanwhile(bench: Bench) -> None:
    """A request in the middle of its prompt skips what another one has computed since."""
    driver, size = bench.driver(total_num_pages=12), bench.size
    for steps in (True, False):
        ctx = _begun(bench, driver, 5, size)
        if steps:
            driver.step(ctx)
        holder = driver.admit(bench.prompt(4))
        driver.forward(holder)
        driver.alloc(ctx)
        expect("ALLOC-1", _window(ctx), 4 * size, "start of the window")
        expect("ALLOC-1", driver.pages(ctx)[1:4], driver.pages(holder)[1:4], "pages of the hit")
        driver.forward(ctx)
        driver.release(ctx)
        driver.release(holder)
        driver.evict_all()


@check("ALLOC-1", "ALLOC-4", needs=("prefix",))
def a_preempted_request_finds_what_it_had_computed(bench: Bench) -> None:
    """A request that lost its pages hits its own chain, generated tokens included."""
    driver, size = bench.driver(), bench.size
    ctx = driver.admit(bench.prompt(2, more=-1))
    for n in range(2):
        driver.forward(ctx, token=500 + n)
        driver.alloc(ctx)
    for _ in range(2):
        driver.release(ctx)
        driver.start_over(ctx)
        driver.alloc(driver.claim(ctx))
        expect("ALLOC-1", _window(ctx), 2 * size, "start of the window")
        driver.forward(ctx)


@check("ALLOC-1")
def without_prefix_caching_nothing_is_shared(bench: Bench) -> None:
    """With prefix caching off, equal requests get pages of their own and compute everything."""
    driver = bench.driver(enable_prefix_caching=False)
    for _ in range(2):
        twins = [driver.admit(bench.prompt(2)) for _ in range(2)]
        driver.forward(*twins)
        pages = [page for ctx in twins for page in driver.pages(ctx)]
        expect("ALLOC-1", len(set(pages)), 6, "different pages of two equal requests")
        for ctx in twins:
            expect("ALLOC-9", ctx.cached_prefix_length, 0, "tokens found cached")
            driver.release(ctx)


@check("ALLOC-2", needs=("prefix",))
def a_refused_alloc_changes_nothing(bench: Bench) -> None:
    """A request that hits and does not fit leaves pages, counters and context as they were."""
    driver = bench.driver()
    driver.serve(bench.prompt(2))
    late = driver.claim(driver.request(bench.prompt(8)))
    for _ in range(3):
        demand("ALLOC-2", not driver.fits(late), "nine pages were found among eight")
    expect("ALLOC-2", driver.pages(late), [], "pages of the refused request")
    expect("ALLOC-9", late.cached_prefix_length, None, "what it has found cached")
    expect("ALLOC-2", driver.hit(bench.prompt(2)), 2, "blocks that are hit afterwards")


@check("ALLOC-2")
def it_fits_to_the_last_page(bench: Bench) -> None:
    """However many pages are held: as many as are left are granted, and one more is refused."""
    driver = bench.driver()
    for held in range(1, 9):
        holder = driver.admit(bench.prompt(held, 100 * held, more=0))
        left = 8 - held
        large = driver.claim(driver.request(bench.prompt(left, 2000 + 100 * held)))
        demand("ALLOC-2", not driver.fits(large), f"{left + 1} pages were found among {left}")
        if left:
            fitting = driver.claim(driver.request(bench.prompt(left, 3000 + 100 * held, more=0)))
            demand("ALLOC-1", driver.fits(fitting), f"{left} pages were not found among {left}")
            driver.release(fitting)
        driver.release(large)
        driver.release(holder)


@check("ALLOC-2")
def a_request_that_cannot_grow_keeps_what_it_has(bench: Bench) -> None:
    """A running request without a page for its next token loses none, and goes on later."""
    driver = bench.driver()
    ctx, other = driver.admit(bench.prompt(4, more=0)), driver.admit(bench.prompt(4, 50, more=0))
    driver.forward(ctx, other)
    pages = driver.pages(ctx)
    for _ in range(2):
        demand("ALLOC-2", not driver.fits(ctx), "a ninth page was found among eight")
        expect("ALLOC-2", driver.pages(ctx), pages, "pages of the refused request")
    driver.release(other)
    driver.alloc(ctx)
    expect("ALLOC-2", driver.pages(ctx)[:4], pages, "pages that it had before")
    driver.forward(ctx)


@check("ALLOC-2", needs=("prefix",))
def a_refused_request_is_looked_up_anew(bench: Bench) -> None:
    """What a refused request would have hit is forgotten: it may be evicted before the next try."""
    driver = bench.driver()
    driver.serve(bench.prompt(3))
    late = driver.claim(driver.request(bench.prompt(8)))
    demand("ALLOC-2", not driver.fits(late), "nine pages were found among eight")
    driver.evict_all()
    driver.chunk(late, 4 * bench.size)
    driver.alloc(late)
    expect("ALLOC-2", _window(late), 0, "start of the window when nothing is cached any more")
    driver.forward(late)


@check("ALLOC-2", needs=("prefix",))
def a_refusal_makes_nobody_younger(bench: Bench) -> None:
    """What is evicted next does not depend on whether a request was refused before."""

    def refuse(driver: Driver) -> None:
        late = driver.claim(driver.request(bench.prompt(7), request_id="late"))
        demand("ALLOC-2", not driver.fits(late), "eight pages were found among six")
        driver.release(late)

    _makes_no_difference(bench, "ALLOC-2", refuse, "a refused allocation")


@check("ALLOC-2", needs=("host",))
def a_refusal_moves_nothing_below(bench: Bench) -> None:
    """A refused request loads and offloads nothing, and what it would load stays where it is."""
    driver = bench.driver(host_pages=16)
    driver.serve(bench.prompt(2))
    driver.evict_all()
    holder = driver.admit(bench.prompt(6, 50, more=0))
    late = driver.claim(driver.request(bench.prompt(2)))
    demand("ALLOC-2", not driver.fits(late), "three pages were found among two")
    driver.release(holder)
    driver.alloc(late)
    expect("ALLOC-2", _window(late), 2 * bench.size, "tokens found below afterwards")


@check("ALLOC-2", needs=("host",))
def a_refusal_makes_nobody_younger_below(bench: Bench) -> None:
    """What the host tier gives up next does not depend on whether a request was refused before."""

    def refuse(driver: Driver) -> None:
        late = driver.claim(driver.request(bench.prompt(7), request_id="late"))
        demand("ALLOC-2", not driver.fits(late), "eight pages were found among six")
        driver.release(late)

    _makes_no_difference(bench, "ALLOC-2", refuse, "a refused allocation", host_pages=6)


# Any: fields of a setup, which checks them.
def _makes_no_difference(
    bench: Bench, rule: str, aside: Callable[[Driver], None], what: str, **options: Any
) -> None:
    """Demand that something done between others changes neither tables nor hits after it."""

    def run(driver: Driver, extra: bool) -> object:
        for start in (0, 50, 100):
            driver.serve(bench.prompt(2, start, more=0))
        if extra:
            aside(driver)
        seen: list[object] = []
        for start in (200, 210):
            ctx = driver.admit(bench.prompt(1, start, more=0), request_id=f"after {start}")
            seen.append(driver.pages(ctx))
            driver.forward(ctx)
            driver.release(ctx)
        return seen, [driver.hit(bench.prompt(2, start)) for start in (0, 50, 100)]

    bench.makes_no_difference(rule, run, what, total_num_pages=6, **options)


@check("ALLOC-3")
def a_second_alloc_changes_nothing(bench: Bench) -> None:
    """Allocating again without new tokens takes nothing and counts nothing, at any time."""
    driver = bench.driver()
    driver.serve(bench.prompt(2))
    ctx = driver.admit([*bench.prompt(2, more=0), *bench.prompt(1, 50)])
    for _ in range(min(bench.size, 8) + 1):
        before = driver.observe()
        for _ in range(3):
            driver.alloc(ctx)
        driver.same(before, "ALLOC-3", "the same request was allocated again")
        driver.forward(ctx)
        driver.alloc(ctx)


@check("ALLOC-3")
def a_covered_request_needs_no_free_page(bench: Bench) -> None:
    """A request that has all the pages it needs is allocated when no page is free at all."""
    driver = bench.driver()
    ctx = driver.admit(bench.prompt(7))
    expect("ALLOC-3", driver.manager.num_free_blocks(0), 0, "free pages")
    for _ in range(min(bench.size, 8) - 1):
        driver.alloc(ctx)
        driver.forward(ctx)


@check("ALLOC-3")
def a_request_that_needs_less_keeps_its_pages(bench: Bench) -> None:
    """A request whose next forward became shorter neither loses pages nor takes any."""
    driver, size = bench.driver(), bench.size
    ctx = driver.admit(bench.prompt(4))
    pages = driver.pages(ctx)
    for end in (size, 3 * size):
        driver.chunk(ctx, end - _window(ctx))
        driver.alloc(ctx)
        expect("ALLOC-3", driver.pages(ctx), pages, "pages of a request that had more than enough")
        driver.forward(ctx)
    driver.alloc(ctx)
    driver.forward(ctx)
    expect("ALLOC-3", driver.pages(ctx), pages, "pages in the end")


@check("ALLOC-3", needs=("prefix",))
def a_covered_request_is_not_looked_up(bench: Bench) -> None:
    """A request that has its pages keeps them, although others have cached the same meanwhile."""
    driver = bench.driver()
    ctx = driver.admit(bench.prompt(3))
    pages = driver.pages(ctx)
    driver.serve(bench.prompt(3))
    driver.alloc(ctx)
    expect("ALLOC-3", driver.pages(ctx), pages, "pages of a request that had enough")
    expect("ALLOC-3", _window(ctx), 0, "start of its window")
    driver.forward(ctx)


@check("ALLOC-4", needs=("prefix",))
def a_hit_is_as_long_as_prompts_agree(bench: Bench) -> None:
    """Prompts that agree in n tokens share the full pages of these, and nothing behind."""
    driver, size = bench.driver(total_num_pages=16), bench.size
    driver.hold(bench.prompt(4))
    for agree in sorted({0, 1, size - 1, size, size + 1, 2 * size, 3 * size - 1, 4 * size}):
        tokens = [*range(agree), *range(1000, 1000 + 5 * size - agree)]
        expect("ALLOC-4", driver.hit(tokens), agree // size, f"blocks hit if {agree} tokens agree")


@check("ALLOC-4", needs=("prefix",))
def a_chain_grows_by_whoever_computes_it(bench: Bench) -> None:
    """Requests that continue each other's prompts hit all that was computed before them."""
    driver = bench.driver()
    for pages in range(1, 7):
        ctx = driver.admit(bench.prompt(pages))
        expect("ALLOC-4", _window(ctx), (pages - 1) * bench.size, "start of the window")
        driver.forward(ctx)
        driver.release(ctx)


@check("ALLOC-4", needs=("host",))
def blocks_of_one_chain_come_from_several_tiers(bench: Bench) -> None:
    """What the device still has is hit there, what it has lost below, in one allocation."""
    driver = bench.driver(host_pages=16)
    driver.serve(bench.prompt(4))
    for kept in (4, 2, 0):
        holder = driver.admit(bench.prompt(kept, more=0)) if kept else None
        driver.evict_all()
        if holder:
            driver.release(holder)
        expect("ALLOC-4", driver.hit(bench.prompt(4)), 4, f"blocks hit, {kept} on the device")


@check("ALLOC-4", "METRIC-1", needs=("host", "metrics"))
def a_block_counts_under_the_fastest_tier_that_has_it(bench: Bench) -> None:
    """Blocks that are on the device and in host memory count as served by the device."""
    driver = bench.driver(host_pages=16)
    driver.serve(bench.prompt(3))
    holder = driver.admit(bench.prompt(2))
    driver.evict_all()
    before = driver.metrics()
    ctx = driver.admit(bench.prompt(3))
    after = driver.metrics()
    expect("ALLOC-4", _window(ctx), 3 * bench.size, "tokens found cached")
    for tier, blocks in (("device", 2), ("host", 1), ("disk", 0), ("store", 0)):
        field = f"{tier}_blocks_served"
        seen = getattr(after, field) - getattr(before, field)
        expect("ALLOC-4", seen, blocks, f"{field} of this allocation")
    driver.release(holder)


@check("ALLOC-4", "TIER-6", needs=("transfers", "host"))
def nothing_behind_a_gap_is_hit(bench: Bench) -> None:
    """If the middle of a chain is lost, only what is before it counts, also in look-ups."""
    driver = bench.with_chain_below(4)
    ctx = driver.claim(driver.request(bench.prompt(4)))
    driver.begin(ctx)
    driver.fail_block(ctx, 2, "io_error")
    demand("ALLOC-11", not driver.finish(ctx), "a load that has failed counts as landed")
    fresh = driver.request(bench.prompt(4))
    if driver.can("probes"):
        hits = driver.manager.get_prefix_cache_hit_counts(fresh)[0].total_blocks
        expect("ALLOC-4", hits, 2, "blocks that a look-up finds before the gap")
    driver.claim(fresh)
    driver.alloc(fresh)
    expect("ALLOC-4", _window(fresh), 2 * bench.size, "tokens hit before the gap")
    driver.forward(fresh)


@check("ALLOC-5", needs=("prefix",))
def a_hit_ends_before_the_window_does(bench: Bench) -> None:
    """A chunk of exactly n pages hits n-1, and one of a token more hits n."""
    driver, size = bench.driver(total_num_pages=16), bench.size
    driver.hold(bench.prompt(4))
    for end in (size, size + 1, 2 * size, 2 * size + 1, 4 * size):
        ctx = driver.request(bench.prompt(4))
        driver.chunk(ctx, end)
        driver.claim(ctx)
        driver.alloc(ctx)
        expect("ALLOC-5", _window(ctx), (end - 1) // size * size, f"window of a chunk to {end}")
        driver.forward(ctx)
        driver.alloc(ctx)
        expect("ALLOC-5", _window(ctx), max(end, 4 * size), "window of the rest")
        driver.forward(ctx)
        driver.release(ctx)


@check("ALLOC-5", "ID-9", needs=("prefix",))
def one_active_token_is_not_looked_up(bench: Bench) -> None:
    """A decoding request gets a page without a look-up: no digest of its last page is needed."""
    driver = bench.driver()
    exact = bench.prompt(2, more=0)
    digests = driver.model.digests(driver.request(exact), 1)
    ctx = driver.admit(exact, given_digests=digests)
    driver.compute(ctx)
    driver.update(ctx)
    driver.alloc(ctx)
    expect("ALLOC-5", len(driver.pages(ctx)), 3, "pages of a decoding request")


@check("ALLOC-5", needs=("prefix",))
def a_hit_that_brings_nothing_new_is_not_used(bench: Bench) -> None:
    """A request that has computed as much as is cached keeps its own pages, and its window."""
    driver, size = bench.driver(), bench.size
    for computed in (size, 2 * size - 1, 2 * size):
        ctx = _begun(bench, driver, 3, computed)
        own = driver.pages(ctx)
        driver.serve(bench.prompt(computed // size))
        driver.alloc(ctx)
        expect("ALLOC-5", _window(ctx), computed, "start of the window")
        expect("ALLOC-5", driver.pages(ctx)[: len(own)], own, "pages of what it has computed")
        driver.forward(ctx)
        driver.release(ctx)
        driver.evict_all()


@check("ALLOC-7", "ALLOC-2", needs=("prefix",))
def what_is_hit_does_not_count_as_free(bench: Bench) -> None:
    """Cached pages are shared or taken, not both: hit pages are no room for the rest."""
    for held in range(1, 4):
        for too_many in (0, 1):
            driver = bench.driver()
            driver.admit(bench.prompt(held, 50, more=0))
            driver.serve(bench.prompt(4, more=0))
            fresh = 8 - 4 - held + too_many
            late = driver.claim(driver.request(bench.prompt(4 + fresh, more=0)))
            what = f"{fresh} pages besides 4 hit ones, {held} of 8 being held"
            demand("ALLOC-7", driver.fits(late) == (not too_many), f"{what}: wrong answer")
            hits = 0 if too_many else 4 * bench.size
            expect("ALLOC-7", _window(late), hits, f"tokens found cached; {what}")
            driver.release(late)
            expect("ALLOC-7", driver.hit(bench.prompt(4)), 4, "blocks hit afterwards")


@check("ALLOC-7", needs=("host",))
def what_is_hit_is_not_evicted_for_what_is_loaded(bench: Bench) -> None:
    """Pages for blocks from below are not those of the blocks before them."""
    driver = bench.driver(host_pages=16, total_num_pages=5)
    driver.serve(bench.prompt(4))
    for kept in (3, 1):
        holder = driver.admit(bench.prompt(kept, more=0))
        driver.evict_all()
        driver.release(holder)
        ctx = driver.admit(bench.prompt(4))
        expect("ALLOC-7", _window(ctx), 4 * bench.size, "tokens found cached")
        driver.forward(ctx)
        driver.release(ctx)


@check("ALLOC-8", needs=("prefix",))
def replaced_pages_serve_the_tokens_behind_a_hit(bench: Bench) -> None:
    """With no page free, a request that hits what it had begun to compute needs none."""
    driver, size = bench.driver(total_num_pages=6), bench.size
    ctx = _begun(bench, driver, 4, size + 1)
    twin = driver.admit(bench.prompt(4, more=0))
    driver.forward(twin)
    expect("ALLOC-8", driver.manager.num_free_blocks(0), 0, "free pages before the allocation")
    demand("ALLOC-8", driver.fits(ctx), "a request is refused that needs no page")
    expect("ALLOC-8", _window(ctx), 4 * size, "tokens found cached")
    expect("ALLOC-8", driver.manager.num_free_blocks(0), 1, "free pages after the allocation")
    driver.forward(ctx)


@check("ALLOC-8", needs=("prefix",))
def replaced_pages_that_are_left_over_go_back(bench: Bench) -> None:
    """Pages whose tokens a hit replaces, and that nothing else needs, are free afterwards."""
    driver, size = bench.driver(total_num_pages=9), bench.size
    ctx = _begun(bench, driver, 5, 3 * size)
    twin = driver.admit(bench.prompt(5, more=0))
    driver.forward(twin)
    driver.alloc(ctx)
    expect("ALLOC-8", _window(ctx), 5 * size, "tokens found cached")
    expect("ALLOC-8", driver.manager.num_free_blocks(0), 3, "free pages")
    driver.forward(ctx)
    driver.release(twin)
    driver.alloc(ctx)
    driver.forward(ctx)


@check("ALLOC-8", needs=("prefix",))
def a_hit_on_held_pages_takes_one_page(bench: Bench) -> None:
    """Beside pages that another request holds, only the tokens behind the hit take pages."""
    driver = bench.driver()
    holder = driver.admit(bench.prompt(6))
    driver.forward(holder)
    expect("ALLOC-8", driver.manager.num_free_blocks(0), 1, "free pages before the allocation")
    demand("ALLOC-8", driver.fits(driver.claim(driver.request(bench.prompt(6)))), "it is refused")
    expect("ALLOC-8", driver.manager.num_free_blocks(0), 0, "free pages after the allocation")


@check("ALLOC-9", needs=("prefix",))
def the_cached_prefix_is_noted_once(bench: Bench) -> None:
    """``cached_prefix_length`` says what the first admission found, whatever is hit later."""
    driver, size = bench.driver(total_num_pages=16), bench.size
    driver.hold(bench.prompt(2))
    for pages, found in ((1, 1), (2, 2), (5, 2)):
        ctx = driver.admit(bench.prompt(pages))
        expect("ALLOC-9", ctx.cached_prefix_length, found * size, "tokens found cached")
        driver.release(ctx)
    late = driver.request(bench.prompt(5, 50))
    driver.chunk(late, size)
    driver.alloc(driver.claim(late))
    driver.serve(bench.prompt(5, 50))
    driver.forward(late)
    driver.alloc(late)
    expect("ALLOC-9", _window(late), 5 * size, "tokens that are cached now")
    expect("ALLOC-9", late.cached_prefix_length, 0, "tokens found cached at first")
    driver.release(late)
    driver.start_over(late)
    driver.alloc(driver.claim(late))
    expect("ALLOC-9", late.cached_prefix_length, 0, "tokens found cached before the preemption")


@check("ALLOC-9", needs=("prefix",))
def a_refused_admission_notes_nothing(bench: Bench) -> None:
    """``cached_prefix_length`` is what the admission found that succeeded."""
    driver = bench.driver()
    driver.serve(bench.prompt(2))
    late = driver.claim(driver.request(bench.prompt(8)))
    demand("ALLOC-2", not driver.fits(late), "nine pages were found among eight")
    driver.evict_all()
    driver.chunk(late, 3 * bench.size)
    driver.alloc(late)
    expect("ALLOC-9", late.cached_prefix_length, 0, "tokens found cached")


@check("ALLOC-10", needs=("replicas", "host", "metrics"))
def a_peer_is_preferred_to_slower_tiers(bench: Bench) -> None:
    """A block that another replica and host memory have is copied from the replica."""
    driver = bench.driver(replicas=2, host_pages=16)
    driver.serve(bench.prompt(2), replica=1)
    before = driver.metrics()
    expect("ALLOC-10", driver.hit(bench.prompt(2), replica=0), 2, "blocks hit")
    after = driver.metrics()
    served = after.peer_blocks_served - before.peer_blocks_served
    expect("ALLOC-10", served, 2, "blocks served by the other replica")
    expect("ALLOC-10", driver.hit(bench.prompt(2), replica=1), 2, "blocks hit where they were")


@check("ALLOC-10", needs=("replicas", "transfers"))
def the_first_replica_that_has_it_serves(bench: Bench) -> None:
    """Of several replicas with a block, that with the lowest index is read."""
    driver = bench.controlled(replicas=4)
    for replica in (2, 1, 3):
        driver.serve(bench.prompt(2), replica=replica)
        driver.land_all()
    driver.begin(driver.claim(driver.request(bench.prompt(2)), 0))
    sources = {transfer.source_replica for transfer in driver.loads()}
    expect("ALLOC-10", sources, {1}, "replicas that are read")


@check("ALLOC-10", needs=("replicas",))
def copies_between_replicas_can_be_switched_off(bench: Bench) -> None:
    """With ``enable_dp_cross_replica_prefix_copy`` off, replicas are not read by each other."""
    driver = bench.driver(replicas=2, enable_dp_cross_replica_prefix_copy=False)
    driver.serve(bench.prompt(2), replica=1)
    expect("ALLOC-10", driver.hit(bench.prompt(2), replica=0), 0, "blocks hit")
    expect("ALLOC-10", driver.hit(bench.prompt(2), replica=1), 2, "blocks hit where they are")


@check("ALLOC-14", needs=("probes", "prefix"))
def a_look_up_says_what_a_request_would_hit(bench: Bench) -> None:
    """``get_prefix_cache_hit_counts`` gives what an allocation then hits, for any prompt."""
    driver, size = bench.driver(), bench.size
    driver.serve(bench.prompt(4))
    for length in (1, size, size + 1, 3 * size, 4 * size, 4 * size + 1, 5 * size):
        ctx = driver.request(range(length))
        [told] = driver.probe(ctx)
        driver.claim(ctx)
        expect("ALLOC-14", told.total_blocks, driver.alloc(ctx), f"blocks of {length} tokens")
        driver.release(ctx)


@check("ALLOC-14", needs=("probes", "replicas", "prefix"))
def a_look_up_says_what_each_replica_would_hit(bench: Bench) -> None:
    """The counts are those of each replica, in their order."""
    driver = bench.driver(replicas=2, enable_dp_cross_replica_prefix_copy=False)
    driver.serve(bench.prompt(3), replica=1)
    driver.serve(bench.prompt(1), replica=0)
    hits = [counts.total_blocks for counts in driver.probe(driver.request(bench.prompt(3)))]
    expect("ALLOC-14", hits, [1, 3], "blocks that would be hit on each replica")


@check("ALLOC-14", needs=("probes", "host"))
def a_look_up_tells_the_tiers(bench: Bench) -> None:
    """Blocks count under the tier from which an allocation would take them."""
    driver = bench.driver(host_pages=16)
    driver.serve(bench.prompt(3))
    driver.admit(bench.prompt(2))
    driver.evict_all()
    [told] = driver.probe(driver.request(bench.prompt(3)))
    expect("ALLOC-14", (told.device_blocks, told.host_blocks), (2, 1), "device and host blocks")


@check("ALLOC-14", needs=("probes", "prefix"))
def a_look_up_of_a_live_request_is_of_a_fresh_one(bench: Bench) -> None:
    """A request that has its pages already is told what another one like it would hit."""
    driver = bench.driver()
    ctx = driver.admit(bench.prompt(3))
    [told] = driver.probe(ctx)
    expect("ALLOC-14", told.total_blocks, 0, "blocks before anything was computed")
    driver.serve(bench.prompt(2))
    [told] = driver.probe(ctx)
    expect("ALLOC-14", told.total_blocks, 2, "blocks that a fresh request would hit")


@check("ALLOC-14", needs=("probes",))
def the_share_of_pages_is_exact(bench: Bench) -> None:
    """``get_pct_used_blocks_after_allocation`` says what is in use once it has happened."""
    driver = bench.driver()

    def foretold(ctx: TextContext, what: str) -> None:
        told = driver.fraction_after(ctx)
        driver.alloc(ctx)
        used = 8 - driver.manager.num_free_blocks(0)
        expect("ALLOC-14", told * 8, used, f"pages in use after the allocation of {what}")

    fresh = driver.claim(driver.request(bench.prompt(3, more=-2)))
    foretold(fresh, "a fresh request")
    foretold(fresh, "a request that has its pages")
    driver.forward(fresh)
    for _ in range(4):
        foretold(fresh, "a decoding request")
        driver.forward(fresh)
    foretold(driver.claim(driver.request(bench.prompt(2))), "a hit on pages that are held")
    for ctx in list(driver.contexts.values()):
        driver.release(ctx)
    foretold(driver.claim(driver.request(bench.prompt(2))), "a hit on pages that are free")
    foretold(driver.claim(driver.request(bench.prompt(2, 50))), "what fills the pool")


@check("ALLOC-14", "ALLOC-8", needs=("probes", "prefix"))
def the_share_of_pages_counts_what_goes_back(bench: Bench) -> None:
    """Pages that a hit sets free, and those that it needs not take, are no part of the share."""
    for begun, free in ((bench.size + 1, 1), (3 * bench.size, 2)):
        driver = bench.driver()
        ctx = _begun(bench, driver, 4, begun)
        driver.forward(driver.admit(bench.prompt(4, more=0)))
        told = driver.fraction_after(ctx)
        driver.alloc(ctx)
        used = 8 - driver.manager.num_free_blocks(0)
        expect("ALLOC-14", told * 8, used, f"pages in use, {free} of which went back")


@check("ALLOC-14", needs=("probes",))
def what_does_not_fit_uses_at_most_everything(bench: Bench) -> None:
    """The share of pages of a request that is far too large is a fraction, too."""
    driver = bench.driver()
    driver.admit(bench.prompt(3))
    for pages in (8, 100):
        late = driver.claim(driver.request(bench.prompt(pages, 200)))
        driver.fraction_after(late)
        demand("ALLOC-2", not driver.fits(late), f"{pages + 1} pages were found among eight")


@check("ALLOC-14", needs=("probes", "prefix"))
def a_look_up_makes_nobody_younger(bench: Bench) -> None:
    """What is evicted next does not depend on what was looked up before."""

    def look_up(driver: Driver) -> None:
        driver.probe(driver.request(bench.prompt(2), request_id="stranger"))

    _makes_no_difference(bench, "ALLOC-14", look_up, "a look-up")


@check("ALLOC-14", needs=("probes", "prefix"))
def a_share_of_pages_makes_nobody_younger(bench: Bench) -> None:
    """What is evicted next does not depend on whose share of pages was asked for before."""

    def ask(driver: Driver) -> None:
        late = driver.claim(driver.request(bench.prompt(2), request_id="late"))
        driver.fraction_after(late)
        driver.release(late)

    _makes_no_difference(bench, "ALLOC-14", ask, "a probe")


@check("ALLOC-14", needs=("probes", "host"))
def a_look_up_makes_nobody_younger_below(bench: Bench) -> None:
    """What the host tier gives up next does not depend on what was looked up before."""

    def look_up(driver: Driver) -> None:
        driver.probe(driver.request(bench.prompt(2), request_id="stranger"))

    _makes_no_difference(bench, "ALLOC-14", look_up, "a look-up", host_pages=6)


@check("ALLOC-7", needs=("prefix",))
def what_is_hit_is_not_evicted_for_what_is_computed(bench: Bench) -> None:
    """Where all free pages are cached, none that is hit is taken for the tokens after the hit."""
    for order in ((0, 1), (1, 0)):
        driver = bench.driver()
        holders = [driver.hold(bench.prompt(4, start, more=0)) for start in (0, 50)]
        for n in order:
            driver.release(holders[n])
        ctx = driver.admit(bench.prompt(6, more=0))
        expect("ALLOC-7", _window(ctx), 4 * bench.size, "tokens found cached")
        driver.forward(ctx)


@check("ALLOC-4", needs=("prefix",))
def a_long_prefix_is_hit_to_its_end(bench: Bench) -> None:
    """However many pages a cached prefix has, all of them are hit."""
    driver = bench.driver(total_num_pages=80)
    driver.serve(bench.prompt(70))
    for pages in (70, 33):
        expect("ALLOC-4", driver.hit(bench.prompt(pages)), pages, "blocks hit")


@check("ALLOC-4", needs=("prefix",))
def nothing_behind_a_gap_on_the_device_is_hit(bench: Bench) -> None:
    """A chain whose root was cached by another request, and is evicted, is not hit behind it."""
    driver = bench.driver(deduplication="keep")
    short, long = driver.admit(bench.prompt(1)), driver.admit(bench.prompt(3))
    driver.forward(short)
    driver.forward(long)
    driver.release(short)
    driver.evict_all()
    driver.hit(bench.prompt(3))  # What may be hit depends on whether doubles are visible.


@check("ALLOC-9", "CLAIM-4", needs=("dummy",))
def a_dummy_is_told_of_no_cached_prefix(bench: Bench) -> None:
    """``cached_prefix_length`` of a dummy stays as it is, also when it is allocated."""
    driver = bench.driver()
    driver.claim_dummy("dummy")
    ctx = driver.request(bench.prompt(1), request_id="dummy")
    driver.alloc(ctx)
    expect("ALLOC-9", ctx.cached_prefix_length, None, "tokens that a dummy found cached")


@check("ALLOC-14", needs=("probes", "replicas"))
def the_share_of_pages_is_that_of_the_replica(bench: Bench) -> None:
    """``get_pct_used_blocks_after_allocation`` counts the pages of the replica that it is given."""
    driver = bench.driver(replicas=2)
    driver.admit(bench.prompt(4))
    for replica, start in ((1, 50), (0, 100)):
        ctx = driver.claim(driver.request(bench.prompt(1, start)), replica)
        told = driver.fraction_after(ctx)
        driver.alloc(ctx)
        used = 8 - driver.manager.num_free_blocks(replica)
        expect("ALLOC-14", told * 8, used, f"pages in use on replica {replica}")
