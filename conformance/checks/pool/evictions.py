"""POOL-10: content goes when its page is taken, and not before."""

from pagedkv.conformance.bench import Bench
from pagedkv.conformance.check import check
from pagedkv.conformance.violation import expect


@check("POOL-10", needs=("prefix",))
def a_taken_page_has_lost_its_content(bench: Bench) -> None:
    """When every page was taken for something else, nothing that was cached is hit any more."""
    driver = bench.driver()
    driver.serve(bench.prompt(8, more=0))
    driver.evict_all()
    expect("POOL-10", driver.hit(bench.prompt(7)), 0, "blocks hit after all pages were taken")


@check("POOL-10", needs=("prefix",))
def a_page_that_is_computed_again_is_found_again(bench: Bench) -> None:
    """Content that was evicted and computed anew is hit where it is now, time and again."""
    driver = bench.driver()
    for _ in range(3):
        driver.serve(bench.prompt(3))
        expect("POOL-10", driver.hit(bench.prompt(3)), 3, "blocks of a prompt that was served")
        driver.evict_all()
        driver.serve(bench.prompt(7, 50))
        driver.evict_all()
        expect("POOL-10", driver.hit(bench.prompt(3)), 0, "blocks of a prompt that was evicted")


@check("POOL-10", needs=("prefix",))
def what_is_cached_stays_while_its_page_is_not_taken(bench: Bench) -> None:
    """A chain is hit as long as none of its pages is taken, however many requests come and go."""
    driver = bench.driver()
    holder = driver.admit(bench.prompt(3))
    driver.forward(holder)
    for n in range(6):
        driver.serve(bench.prompt(3, 50 + 10 * n))
        driver.evict_all()
        expect("POOL-10", driver.hit(bench.prompt(3)), 3, "blocks of a chain whose pages are held")


@check("POOL-10", needs=("prefix",))
def an_evicted_duplicate_takes_nothing_with_it(bench: Bench) -> None:
    """When a page with a copy of cached content is taken, the content is still found."""
    for deduplication in ("swap", "keep"):
        driver = bench.driver(deduplication=deduplication)
        twins = [driver.admit(bench.prompt(1)) for _ in range(2)]
        driver.forward(*twins)
        for released in (1, 0):
            driver.release(twins[released])
            driver.evict_all()
            driver.hit(bench.prompt(1))
