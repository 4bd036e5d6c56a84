"""POOL-1 and POOL-2: which pages there are, and who has them."""

from itertools import permutations

from pagedkv.conformance.bench import Bench
from pagedkv.conformance.check import check
from pagedkv.conformance.violation import demand, expect


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
    """A full replica leaves all pages of the others free, under the same ids."""
    driver = bench.driver(replicas=4)
    live = [driver.admit(bench.prompt(8, 50 * n, more=0), replica=n) for n in (2, 0, 3, 1)]
    for _ in range(2):
        driver.compute(*live)
    driver.release(live[0])
    free = [driver.manager.num_free_blocks(replica) for replica in range(4)]
    expect("POOL-2", free, [0, 0, 8, 0], "free pages of the replicas")


@check("POOL-2", needs=("prefix",))
def a_page_has_room_for_many_holders(bench: Bench) -> None:
    """A page that dozens of requests share is free when the last of them has let go."""
    driver = bench.driver(total_num_pages=41)
    live = [driver.hold(bench.prompt(1))]
    live += [driver.admit(bench.prompt(1)) for _ in range(39)]
    for ctx in live[:-1]:
        driver.release(ctx)
    driver.evict_all()
    driver.forward(live[-1])
    driver.release(live[-1])


@check("POOL-2", needs=("prefix", "reserve"))
def hundreds_may_reserve_one_page(bench: Bench) -> None:
    """A page with more holders than a byte can count stays with the one that is left."""
    sharers = 300
    driver = bench.driver(total_num_pages=sharers + 2)
    ctx = driver.hold(bench.prompt(1))
    with driver.reserve([driver.request(bench.prompt(1)) for _ in range(sharers)]):
        pass
    driver.evict_all()
    driver.alloc(ctx)
    driver.forward(ctx)
