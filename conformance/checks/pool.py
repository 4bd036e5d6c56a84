"""POOL: the pages of a replica, and which of them goes next."""

from collections.abc import Collection
from itertools import permutations

from pagedkv.conformance.bench import Bench, Skip
from pagedkv.conformance.check import check
from pagedkv.conformance.driver import Driver
from pagedkv.conformance.violation import demand, expect
from pagedkv.reference.context import TextContext
from pagedkv.reference.errors import UnknownRequestError, UnknownTransferError


@check("POOL-1")
def every_page_can_be_held_and_no_other(bench: Bench) -> None:
    """A request can hold pages 0 to N-1, all of them; for one token more there is no page."""
    for pages in (1, 8):
        driver = bench.driver(total_num_pages=pages)
        ctx = driver.admit(bench.prompt(pages, more=0))
        expect("POOL-1", sorted(driver.pages(ctx)), list(range(pages)), "all pages of a replica")
        driver.forward(ctx)
        demand("POOL-1", not driver.fits(ctx), f"a request got {pages + 1} pages of {pages}")


@check("POOL-1")
def every_page_can_be_held_by_another_request(bench: Bench) -> None:
    """N requests can hold one page each; for one more there is none until another lets go."""
    driver = bench.driver()
    live = [driver.admit(bench.prompt(1, n, more=0)) for n in range(8)]
    held = sorted(page for ctx in live for page in driver.pages(ctx))
    expect("POOL-1", held, list(range(8)), "pages of eight requests")
    for n, ctx in enumerate(live):
        late = driver.claim(driver.request(bench.prompt(1, 50 + n, more=0)))
        demand("POOL-1", not driver.fits(late), "a ninth request got one of 8 pages")
        driver.release(ctx)
        driver.alloc(late)


@check("POOL-1", needs=("bytes",))
def the_null_page_has_memory_of_its_own(bench: Bench) -> None:
    """What is written to the null page stays there, and changes no other page."""
    driver = bench.driver()
    places = [(page, offset) for page in range(9) for offset in (0, bench.size - 1)]
    values = [((page, at), f"page {page}, slot {at}".encode()) for page, at in places]
    driver.slots.write(0, values)
    for held, (page, offset) in zip(driver.slots.hold(0, values), places, strict=True):
        demand("POOL-1", held, f"slot {offset} of page {page} has lost what was written to it")


@check("POOL-2")
def shared_pages_are_free_when_the_last_holder_lets_go(bench: Bench) -> None:
    """Whoever of three twins is released first, second and last: no held page is given away."""
    for order in permutations(range(3)):
        driver = bench.driver(total_num_pages=9)
        first = driver.admit(bench.prompt(2))
        driver.forward(first)
        twins = [first, driver.admit(bench.prompt(2)), driver.admit(bench.prompt(2))]
        driver.forward(*twins[1:])
        for n in order:
            driver.release(twins[n])
            driver.evict_all()
        expect("POOL-2", driver.manager.num_free_blocks(0), 9, "free pages in the end")


@check("POOL-2")
def twins_in_one_batch_end_independently(bench: Bench) -> None:
    """Of equal requests that are computed and stepped together, each gives back its own pages."""
    for order in ((0, 1), (1, 0)):
        for deduplication in ("swap", "keep"):
            driver = bench.driver(deduplication=deduplication)
            twins = [driver.admit(bench.prompt(2)) for _ in range(2)]
            driver.forward(*twins)
            driver.release(twins[order[0]])
            driver.evict_all()
            driver.alloc(twins[order[1]])
            driver.forward(twins[order[1]])
            driver.release(twins[order[1]])


@check("POOL-2", "STEP-4")
def a_cached_page_that_is_swapped_in_is_held(bench: Bench) -> None:
    """If a step gives a request a page that nobody held, it is not taken for another one."""
    driver = bench.driver()
    late, early = (driver.admit(bench.prompt(2)) for _ in range(2))
    driver.forward(early)
    driver.release(early)
    driver.forward(late)
    driver.evict_all()
    driver.alloc(late)
    driver.forward(late)


@check("POOL-2")
def cached_pages_may_be_taken(bench: Bench) -> None:
    """Pages that are only cached are free: however many there are, a large request fits."""
    driver = bench.driver()
    for n in range(8):
        driver.serve(bench.prompt(1, n, more=0))
    expect("POOL-2", driver.manager.num_free_blocks(0), 8, "free pages beside cached content")
    driver.admit(bench.prompt(8, 100, more=0))


@check("POOL-2")
def the_counts_of_pages_agree(bench: Bench) -> None:
    """Pages in use and pages that may be taken add up to all pages, in every method."""
    driver = bench.driver()
    driver.serve(bench.prompt(2, 50))  # Cached pages are in nobody's use.
    for pages in (0, 3, 8):
        ctx = driver.admit(bench.prompt(pages, more=0)) if pages else None
        for method, expected in (
            ("num_free_blocks", 8 - pages),
            ("get_num_used_pages", pages),
            ("total_num_blocks", 8),
            ("get_num_pages", 8),
        ):
            if callable(getattr(driver.manager, method, None)):
                expect("POOL-2", getattr(driver.manager, method)(0), expected, method)
        if ctx:
            driver.release(ctx)


@check("POOL-2", needs=("replicas",))
def each_replica_has_pages_of_its_own(bench: Bench) -> None:
    """A full replica leaves all pages of the other one free, under the same ids."""
    driver = bench.driver(replicas=2)
    here = driver.admit(bench.prompt(8, more=0), replica=1)
    expect("POOL-2", driver.manager.num_free_blocks(0), 8, "free pages of the other replica")
    there = driver.admit(bench.prompt(8, 50, more=0), replica=0)
    driver.compute(here, there)
    driver.compute(here, there)
    driver.release(here)
    expect("POOL-2", driver.manager.num_free_blocks(0), 0, "free pages of the other replica")


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


@check("POOL-6", "REL-1")
def nothing_is_released_twice(bench: Bench) -> None:
    """A second release is an error, and pages that are shared keep their other holder."""
    driver = bench.driver()
    first = driver.admit(bench.prompt(2))
    driver.forward(first)
    twin = driver.admit(bench.prompt(2))
    driver.release(first)
    for _ in range(2):
        driver.refused("POOL-6", UnknownRequestError, "release", first.request_id, 0)
    driver.evict_all()
    driver.forward(twin)
    driver.release(twin)
    driver.refused("POOL-6", UnknownRequestError, "release", twin.request_id, 0)
    live = [driver.admit(bench.prompt(4, start, more=0)) for start in (100, 200)]
    driver.forward(*live)


@check("POOL-6", "XFER-2", needs=("transfers", "host"))
def no_pin_is_taken_off_twice(bench: Bench) -> None:
    """A transfer that has landed or failed neither lands nor fails again."""
    driver = bench.with_chain_below(2)
    for end in ("land", "fail"):
        ctx = driver.claim(driver.request(bench.prompt(2)))
        driver.begin(ctx)
        for load in driver.loads():
            if end == "land":
                driver.land(load)
            else:
                driver.fail(load, "timeout")
            driver.refused("POOL-6", UnknownTransferError, "land", load.id)
            driver.refused("POOL-6", UnknownTransferError, "fail", load.id, "timeout")
        driver.finish(ctx)
        driver.release(ctx)
        driver.evict_all()


@check("POOL-7", needs=("transfers", "host"))
def a_page_that_is_being_offloaded_is_not_taken(bench: Bench) -> None:
    """Pages that an offload still reads are not free, although their request is gone."""
    driver = bench.controlled(host_pages=16, total_num_pages=4)
    driver.serve(bench.prompt(2, more=0))
    if not driver.in_flight():
        raise Skip("a committed page is not offloaded at once")
    expect("POOL-7", driver.manager.num_free_blocks(0), 2, "free pages during the offload")
    late = driver.claim(driver.request(bench.prompt(3, 50, more=0)))
    demand("POOL-7", not driver.begins(late), "three pages were taken, of which two are free")
    driver.land_all()
    demand("POOL-7", driver.begins(late), "pages are not free although the offload has landed")


@check("POOL-7", needs=("transfers", "host"))
def a_pinned_page_is_passed_over(bench: Bench) -> None:
    """Pages that an offload still reads are not taken, wherever they stand among the free ones."""
    for slow in range(3):
        driver = bench.controlled(host_pages=16)
        pinned: set[int] = set()
        for n in range(3):
            before = {transfer.id for transfer in driver.in_flight()}
            driver.serve(bench.prompt(2, 50 * n, more=0))
            for transfer in driver.in_flight():
                if n == slow:
                    pinned.update(transfer.pages)
                elif transfer.id not in before:
                    driver.land(transfer)
        if not pinned:
            raise Skip("a committed page is not offloaded at once")
        late = driver.claim(driver.request(bench.prompt(8 - len(pinned), 500, more=0)))
        taken = pinned.intersection(driver.begin(late).pages)
        expect("POOL-7", taken, set(), "pages that were taken while an offload still reads them")


@check("POOL-7", needs=("transfers", "host"))
def a_page_that_is_being_loaded_is_not_taken(bench: Bench) -> None:
    """Pages that a load still writes are not free, although its allocation was cancelled."""
    for lands in (True, False):
        driver = bench.with_chain_below(2, total_num_pages=4)
        ctx = driver.claim(driver.request(bench.prompt(2)))
        driver.begin(ctx)
        driver.cancel(ctx)
        expect("POOL-7", driver.manager.num_free_blocks(0), 2, "free pages during the load")
        late = driver.claim(driver.request(bench.prompt(3, 50, more=0)))
        demand("POOL-7", not driver.begins(late), "three pages were taken, of which two are free")
        for transfer in driver.in_flight():
            if lands:
                driver.land(transfer)
            else:
                driver.fail(transfer, "io_error")
        demand("POOL-7", driver.begins(late), "pages are not free although the load has settled")


@check("POOL-7", needs=("transfers", "host"))
def a_shared_page_is_pinned_until_all_is_over(bench: Bench) -> None:
    """A page that is both held and read is free only when both have ended, in either order."""
    for first in ("release", "land"):
        driver = bench.controlled(host_pages=16, total_num_pages=4)
        ctx = driver.admit(bench.prompt(2, more=0))
        driver.forward(ctx)
        if first == "land":
            driver.land_all()
        driver.release(ctx)
        driver.land_all()
        expect("POOL-7", driver.manager.num_free_blocks(0), 4, "free pages in the end")


@check("POOL-7", needs=("transfers", "replicas"))
def a_page_that_is_copied_to_a_peer_is_not_taken(bench: Bench) -> None:
    """Pages that another replica is being served from are not free while the copy runs."""
    driver = bench.controlled(replicas=2, total_num_pages=4)
    driver.serve(bench.prompt(2, more=0))
    ctx = driver.claim(driver.request(bench.prompt(2)), replica=1)
    driver.begin(ctx)
    if not any(transfer.source_pages for transfer in driver.in_flight()):
        raise Skip("replicas are not served from each other")
    expect("POOL-7", driver.manager.num_free_blocks(0), 2, "free pages during the copy")
    late = driver.claim(driver.request(bench.prompt(3, 50, more=0)))
    demand("POOL-7", not driver.begins(late), "three pages were taken, of which two are free")
    driver.land_all()
    demand("POOL-7", driver.begins(late), "pages are not free although the copy has landed")
    demand("ALLOC-13", driver.finish(ctx), "a load that has landed counts as failed")


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


@check("POOL-9")
def a_busy_server_loses_no_page(bench: Bench) -> None:
    """Requests that share, grow, are preempted and come back: after every call pages add up."""
    _serve_all(bench, bench.driver(total_num_pages=6))


@check("POOL-9")
def a_busy_server_without_a_cache_loses_no_page(bench: Bench) -> None:
    """The same without prefix caching."""
    _serve_all(bench, bench.driver(total_num_pages=6, enable_prefix_caching=False))


@check("POOL-9", "RESET-2", needs=("reset",))
def a_busy_server_that_is_reset_loses_no_page(bench: Bench) -> None:
    """The same with resets in the middle of it."""
    _serve_all(bench, bench.driver(total_num_pages=6), resets=(5, 6, 15))


@check("POOL-9", needs=("host",))
def a_busy_server_with_tiers_loses_no_page(bench: Bench) -> None:
    """The same with a host tier too small for all of it."""
    _serve_all(bench, bench.driver(total_num_pages=6, host_pages=4))


@check("POOL-9", needs=("replicas",))
def busy_replicas_lose_no_page(bench: Bench) -> None:
    """The same on two replicas."""
    _serve_all(bench, bench.driver(total_num_pages=6, replicas=2))


def _serve_all(bench: Bench, driver: Driver, resets: Collection[int] = ()) -> None:
    """Serve requests that together need far more pages than there are, as a scheduler does."""
    replicas = range(driver.setup.replicas)
    waiting = [driver.request(bench.prompt(1 + n % 3, n % 2, more=-(n % 3))) for n in range(8)]
    done = {ctx.request_id: len(ctx) + 8 for ctx in waiting}
    running: dict[TextContext, int] = {}
    for turn in range(2_000):
        if turn in resets:
            driver.reset()
        if waiting:
            _admit_next(driver, waiting, running, turn % len(replicas))
        for ctx in list(running):
            if ctx in running and not driver.fits(ctx):
                _preempt_youngest(driver, waiting, running, running[ctx])
        ready = [ctx for ctx in running if driver.fits(ctx)]
        if ready:
            driver.forward(*ready, token=turn % 5)
        for ctx in [ctx for ctx in running if len(ctx) >= done[ctx.request_id]]:
            driver.release(ctx)
            del running[ctx]
        if not waiting and not running:
            break
    demand("POOL-9", not waiting and not running, "requests that fit one by one are never served")
    for replica in replicas:
        expect("POOL-9", driver.manager.num_free_blocks(replica), 6, "free pages in the end")


def _admit_next(
    driver: Driver, waiting: list[TextContext], running: dict[TextContext, int], replica: int
) -> None:
    ctx = driver.claim(waiting[0], replica)
    if driver.fits(ctx):
        running[waiting.pop(0)] = replica
    else:
        driver.release(ctx)


def _preempt_youngest(
    driver: Driver, waiting: list[TextContext], running: dict[TextContext, int], replica: int
) -> None:
    youngest = [ctx for ctx in running if running[ctx] == replica][-1]
    del running[youngest]
    driver.release(youngest)
    driver.start_over(youngest)
    waiting.insert(0, youngest)


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


@check("POOL-11")
def fresh_pages_are_taken_in_the_order_of_their_ids(bench: Bench) -> None:
    """A fresh manager hands out pages 0, 1, 2, ..., whatever the requests ask for."""
    bench.follows("POOL-3")
    driver = bench.driver()
    requests = [driver.admit(bench.prompt(n, 20 * n)) for n in (2, 0, 3)]
    tables = [driver.pages(ctx) for ctx in requests]
    expect("POOL-11", tables, [[0, 1, 2], [3], [4, 5, 6, 7]], "pages of the first three requests")


@check("POOL-2", "POOL-7", needs=("host", "transfers"))
def pinned_pages_are_in_use(bench: Bench) -> None:
    """A page that nobody holds, and that a load still writes, counts among the pages in use."""
    driver = bench.with_chain_below(2)
    bench.has("get_num_used_pages")
    ctx = driver.claim(driver.request(bench.prompt(2)))
    driver.begin(ctx)
    driver.cancel(ctx)
    used, free = driver.manager.get_num_used_pages(0), driver.manager.num_free_blocks(0)
    expect("POOL-2", used, 8 - free, "pages in use, where pages are pinned")
    driver.land_all()
    expect("POOL-2", driver.manager.get_num_used_pages(0), 0, "pages in use in the end")
