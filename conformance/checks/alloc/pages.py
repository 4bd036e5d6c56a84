"""ALLOC-1, -3 and -8: the pages that a request has when it is allocated."""

from pagedkv.conformance.bench import Bench
from pagedkv.conformance.check import check
from pagedkv.conformance.checks.alloc.midway import begun, window
from pagedkv.conformance.violation import demand, expect


@check("ALLOC-1", needs=("prefix",))
def a_request_gets_its_cached_prefix_first(bench: Bench) -> None:
    """The first pages are those that hold its prefix, and its window begins behind them."""
    driver = bench.driver(total_num_pages=12)
    holder = driver.admit(bench.prompt(4))
    driver.forward(holder)
    for shared in range(5):
        tokens = [*bench.prompt(shared, more=0), *bench.prompt(2, 50)]
        ctx = driver.admit(tokens)
        expect("ALLOC-1", window(ctx), shared * bench.size, "start of the window")
        expect("ALLOC-1", len(driver.pages(ctx)), shared + 3, "number of pages")
        cached = driver.pages(holder)[:shared]
        expect("ALLOC-1", driver.pages(ctx)[:shared], cached, "pages of the cached prefix")
        driver.release(ctx)


@check("ALLOC-1", "ALLOC-4", needs=("prefix",))
def a_later_chunk_finds_what_was_cached_meanwhile(bench: Bench) -> None:
    """A request in the middle of its prompt skips what another one has computed since."""
    driver, size = bench.driver(total_num_pages=12), bench.size
    for steps in (True, False):
        ctx = begun(bench, driver, 5, size)
        if steps:
            driver.step(ctx)
        holder = driver.admit(bench.prompt(4))
        driver.forward(holder)
        driver.alloc(ctx)
        expect("ALLOC-1", window(ctx), 4 * size, "start of the window")
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
        expect("ALLOC-1", window(ctx), 2 * size, "start of the window")
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
        driver.chunk(ctx, end - window(ctx))
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
    expect("ALLOC-3", window(ctx), 0, "start of its window")
    driver.forward(ctx)


@check("ALLOC-8", needs=("prefix",))
def replaced_pages_serve_the_tokens_behind_a_hit(bench: Bench) -> None:
    """With no page free, a request that hits what it had begun to compute needs none."""
    driver, size = bench.driver(total_num_pages=6), bench.size
    ctx = begun(bench, driver, 4, size + 1)
    twin = driver.admit(bench.prompt(4, more=0))
    driver.forward(twin)
    expect("ALLOC-8", driver.manager.num_free_blocks(0), 0, "free pages before the allocation")
    demand("ALLOC-8", driver.fits(ctx), "a request is refused that needs no page")
    expect("ALLOC-8", window(ctx), 4 * size, "tokens found cached")
    expect("ALLOC-8", driver.manager.num_free_blocks(0), 1, "free pages after the allocation")
    driver.forward(ctx)


@check("ALLOC-8", needs=("prefix",))
def replaced_pages_that_are_left_over_go_back(bench: Bench) -> None:
    """Pages whose tokens a hit replaces, and that nothing else needs, are free afterwards."""
    driver, size = bench.driver(total_num_pages=9), bench.size
    ctx = begun(bench, driver, 5, 3 * size)
    twin = driver.admit(bench.prompt(5, more=0))
    driver.forward(twin)
    driver.alloc(ctx)
    expect("ALLOC-8", window(ctx), 5 * size, "tokens found cached")
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
