"""POOL-3, -4, -5, -7, -8 and -11: which page goes next."""

from pagedkv.conformance.bench import Bench, Skip
from pagedkv.conformance.check import check
from pagedkv.conformance.driver import Driver
from pagedkv.conformance.violation import demand, expect


def _served(driver: Driver, bench: Bench, *starts: int) -> list[int]:
    """The pages that requests of one page each have had, which are cached now, oldest first."""
    pages = []
    for start in starts:
        ctx = driver.admit(bench.prompt(1, start, more=0))
        pages += driver.pages(ctx)
        driver.forward(ctx)
        driver.release(ctx)
    return pages


def _taken(driver: Driver, bench: Bench, count: int) -> list[int]:
    """The pages that fresh requests of one page each get, one after the other, and keep."""
    starts = range(900 + 10 * len(driver.contexts), 10_000, 10)
    requests = [driver.admit(bench.prompt(1, starts[n], more=0)) for n in range(count)]
    return [page for ctx in requests for page in driver.pages(ctx)]


@check("POOL-3", needs=("prefix",))
def the_oldest_page_is_taken_first(bench: Bench) -> None:
    """Cached pages are taken in the order in which they were let go."""
    bench.follows("POOL-4")
    driver = bench.driver(total_num_pages=4)
    pages = _served(driver, bench, 0, 10, 20, 30)
    expect("POOL-3", _taken(driver, bench, 4), pages, "pages in the order in which they are taken")


@check("POOL-3", needs=("prefix",))
def one_allocation_takes_the_oldest_pages(bench: Bench) -> None:
    """The same when one request takes them all at once."""
    bench.follows("POOL-4")
    driver = bench.driver(total_num_pages=4)
    pages = _served(driver, bench, 0, 10, 20, 30)
    ctx = driver.admit(bench.prompt(4, 900, more=0))
    expect("POOL-3", driver.pages(ctx), pages, "pages in the order in which they are taken")


@check("POOL-4", needs=("prefix",))
def a_page_that_was_hit_becomes_the_youngest(bench: Bench) -> None:
    """A cached page that is hit and let go again is taken after all others."""
    bench.follows("POOL-3")
    driver = bench.driver(total_num_pages=4)
    first, *others = _served(driver, bench, 0, 10, 20)
    expect("POOL-4", driver.hit(bench.prompt(1)), 1, "blocks hit")
    taken = [page for page in _taken(driver, bench, 4) if page in (first, *others)]
    expect("POOL-4", taken, [*others, first], "pages in the order in which they are taken")


@check("POOL-4", needs=("prefix",))
def the_last_holder_decides_how_old_a_page_is(bench: Bench) -> None:
    """A shared page enters the list when its last holder lets go, not before."""
    bench.follows("POOL-3")
    driver = bench.driver(total_num_pages=4)
    holders = [driver.admit(bench.prompt(1, more=0))]
    driver.forward(*holders)
    shared = driver.pages(holders[0])
    holders.append(driver.admit(bench.prompt(1)))
    expect("ALLOC-1", driver.pages(holders[1])[:1], shared, "the page that both hold")
    driver.release(holders[0])
    others = _served(driver, bench, 20)
    driver.release(holders[1])
    taken = _taken(driver, bench, 4)
    demand(
        "POOL-4",
        taken.index(others[0]) < taken.index(shared[0]),
        f"pages are taken in the order {taken}: {shared[0]} was let go after {others[0]}",
    )


@check("POOL-4", "ALLOC-12", needs=("transfers", "host"))
def a_page_that_is_being_loaded_counts_as_cached(bench: Bench) -> None:
    """A page let go while its load is under way is taken after those that hold nothing."""
    bench.follows("POOL-3")
    driver = bench.with_chain_below(1, total_num_pages=4)
    ctx = driver.claim(driver.request(bench.prompt(1)))
    loaded = driver.begin(ctx).pages[0]
    driver.cancel(ctx)
    driver.land_all()
    expect("POOL-4", _taken(driver, bench, 4)[-1], loaded, "the page that is taken last")


@check("POOL-5", needs=("prefix",))
def a_page_with_nothing_reusable_is_taken_next(bench: Bench) -> None:
    """A page that was let go before anything was committed in it is the next one to be taken."""
    bench.follows("POOL-3", "POOL-4")
    driver = bench.driver(total_num_pages=3)
    oldest, *others = _served(driver, bench, 0, 10, 20)
    driver.release(driver.admit(bench.prompt(1, 50, more=0)))
    driver.release(driver.admit(bench.prompt(1, 60, more=0)))
    expect("POOL-5", _taken(driver, bench, 1), [oldest], "the page that was let go last")
    expect("POOL-5", _taken(driver, bench, 2), others, "the pages after it")


@check("POOL-5", needs=("prefix",))
def a_page_that_is_not_full_is_taken_next(bench: Bench) -> None:
    """The last page of a request, which is not full, goes before the full ones."""
    bench.follows("POOL-3", "POOL-4")
    driver = bench.driver(total_num_pages=3)
    ctx = driver.admit(bench.prompt(2))
    *full, partial = driver.pages(ctx)
    driver.forward(ctx)
    driver.release(ctx)
    expect("POOL-5", _taken(driver, bench, 1), [partial], "the page that is taken first")
    expect("POOL-5", sorted(_taken(driver, bench, 2)), sorted(full), "the pages after it")


@check("POOL-5", "STEP-4", needs=("prefix",))
def a_page_that_was_swapped_away_is_taken_next(bench: Bench) -> None:
    """A page whose content is cached on another one holds nothing reusable."""
    bench.follows("POOL-3", "POOL-4", "STEP-4")
    driver = bench.driver(total_num_pages=3)
    older = _served(driver, bench, 50)
    twins = [driver.admit(bench.prompt(1, more=0)) for _ in range(2)]
    own = driver.pages(twins[1])
    driver.forward(*twins)
    for ctx in twins:
        driver.release(ctx)
    expect("POOL-5", _taken(driver, bench, 2), own + older, "pages in the order of their age")


@check("POOL-5", "RESET-1", needs=("prefix", "reset"))
def a_page_whose_content_was_reset_is_taken_next(bench: Bench) -> None:
    """A page that is let go after a reset holds nothing reusable."""
    bench.follows("POOL-3", "POOL-4")
    driver = bench.driver(total_num_pages=3)
    ctx = driver.admit(bench.prompt(1, more=0))
    driver.forward(ctx)
    driver.reset()
    _served(driver, bench, 10, 20)
    fenced = driver.pages(ctx)
    driver.release(ctx)
    expect("POOL-5", _taken(driver, bench, 1), fenced, "the page that is taken first")


@check("POOL-5", "XFER-4", needs=("transfers", "host"))
def a_page_whose_load_has_failed_is_taken_next(bench: Bench) -> None:
    """An idle page that has lost its load goes before all that is cached."""
    bench.follows("POOL-3", "POOL-4")
    driver = bench.with_chain_below(1, total_num_pages=4)
    _served(driver, bench, 50, 60)
    driver.land_all()
    ctx = driver.claim(driver.request(bench.prompt(1)))
    loading = driver.begin(ctx).pages[0]
    driver.cancel(ctx)
    driver.fail_loads("io_error")
    expect("POOL-5", _taken(driver, bench, 1), [loading], "the page that is taken first")


@check("POOL-7", needs=("transfers", "host"))
def a_pinned_page_keeps_its_place(bench: Bench) -> None:
    """A page that was let go while it was pinned is as old as if it had not been."""
    bench.follows("POOL-3", "POOL-4")
    driver = bench.controlled(host_pages=16, total_num_pages=3)
    pages = _served(driver, bench, 0, 10)
    if not driver.in_flight():
        raise Skip("a committed page is not offloaded at once")
    while transfers := driver.in_flight():
        driver.land(transfers[-1])
    pages += _served(driver, bench, 20)
    driver.land_all()
    taken = _taken(driver, bench, 3)
    expect("POOL-7", taken, pages, "pages in the order in which they are taken")


@check("POOL-8", needs=("prefix",))
def a_chain_loses_its_leaves_first(bench: Bench) -> None:
    """The pages of a released chain are taken from the leaf to the root."""
    bench.follows("POOL-3", "POOL-4")
    driver = bench.driver(total_num_pages=3)
    ctx = driver.admit(bench.prompt(3, more=0))
    chain = driver.pages(ctx)
    driver.forward(ctx)
    driver.release(ctx)
    expect("POOL-8", _taken(driver, bench, 3), chain[::-1], "pages in the order of their age")


@check("POOL-8", needs=("prefix",))
def a_common_root_is_lost_last(bench: Bench) -> None:
    """Of chains that share their root, the branches go first, then the root."""
    bench.follows("POOL-3", "POOL-4")
    driver = bench.driver(total_num_pages=4)
    root = [*bench.prompt(1, more=0)]
    branches = [
        driver.admit([*root, *bench.prompt(1, start, more=more)])
        for start, more in ((20, 0), (30, 0))
    ]
    driver.forward(branches[0])
    driver.release(branches[1])
    branches[1] = driver.admit([*root, *bench.prompt(1, 30, more=0)])
    driver.forward(branches[1])
    tables = [driver.pages(ctx) for ctx in branches]
    expect("ALLOC-4", tables[0][0], tables[1][0], "the page of the common root")
    for ctx in branches:
        driver.release(ctx)
    taken = [page for page in _taken(driver, bench, 4) if page in {*tables[0], *tables[1]}]
    expected = [tables[0][1], tables[1][1], tables[0][0]]
    expect("POOL-8", taken, expected, "pages in the order of their age")


@check("POOL-11")
def fresh_pages_are_taken_in_the_order_of_their_ids(bench: Bench) -> None:
    """A fresh manager hands out pages 0, 1, 2, ..., whatever the requests ask for."""
    bench.follows("POOL-3")
    driver = bench.driver()
    requests = [driver.admit(bench.prompt(n, 20 * n)) for n in (2, 0, 3)]
    tables = [driver.pages(ctx) for ctx in requests]
    expect("POOL-11", tables, [[0, 1, 2], [3], [4, 5, 6, 7]], "pages of the first three requests")
