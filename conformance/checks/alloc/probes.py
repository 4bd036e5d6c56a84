"""ALLOC-14: what a request would hit and take."""

from pagedkv.conformance.bench import Bench
from pagedkv.conformance.check import check
from pagedkv.conformance.checks.alloc.midway import begun
from pagedkv.conformance.violation import demand, expect
from pagedkv.reference.context import TextContext


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
    for chunk, free in ((bench.size + 1, 1), (3 * bench.size, 2)):
        driver = bench.driver()
        ctx = begun(bench, driver, 4, chunk)
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
