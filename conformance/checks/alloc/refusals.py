"""ALLOC-2: what does not fit is refused, and changes nothing."""

from pagedkv.conformance.bench import Bench
from pagedkv.conformance.check import check
from pagedkv.conformance.checks.alloc.midway import window
from pagedkv.conformance.violation import demand, expect


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
    expect("ALLOC-2", window(late), 0, "start of the window when nothing is cached any more")
    driver.forward(late)


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
    expect("ALLOC-2", window(late), 2 * bench.size, "tokens found below afterwards")
