"""ALLOC-4, -5, -7, -9 and -10: how far a hit reaches, where it comes from, what is noted."""

from pagedkv.conformance.bench import Bench
from pagedkv.conformance.check import check
from pagedkv.conformance.checks.alloc.midway import begun, window
from pagedkv.conformance.violation import demand, expect


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
        expect("ALLOC-4", window(ctx), (pages - 1) * bench.size, "start of the window")
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
    expect("ALLOC-4", window(ctx), 3 * bench.size, "tokens found cached")
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
    expect("ALLOC-4", window(fresh), 2 * bench.size, "tokens hit before the gap")
    driver.forward(fresh)


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
        expect("ALLOC-5", window(ctx), (end - 1) // size * size, f"window of a chunk to {end}")
        driver.forward(ctx)
        driver.alloc(ctx)
        expect("ALLOC-5", window(ctx), max(end, 4 * size), "window of the rest")
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
        ctx = begun(bench, driver, 3, computed)
        own = driver.pages(ctx)
        driver.serve(bench.prompt(computed // size))
        driver.alloc(ctx)
        expect("ALLOC-5", window(ctx), computed, "start of the window")
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
            expect("ALLOC-7", window(late), hits, f"tokens found cached; {what}")
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
        expect("ALLOC-7", window(ctx), 4 * bench.size, "tokens found cached")
        driver.forward(ctx)
        driver.release(ctx)


@check("ALLOC-7", needs=("prefix",))
def what_is_hit_is_not_evicted_for_what_is_computed(bench: Bench) -> None:
    """Where all free pages are cached, none that is hit is taken for the tokens after the hit."""
    for order in ((0, 1), (1, 0)):
        driver = bench.driver()
        holders = [driver.hold(bench.prompt(4, start, more=0)) for start in (0, 50)]
        for n in order:
            driver.release(holders[n])
        ctx = driver.admit(bench.prompt(6, more=0))
        expect("ALLOC-7", window(ctx), 4 * bench.size, "tokens found cached")
        driver.forward(ctx)


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
    expect("ALLOC-9", window(late), 5 * size, "tokens that are cached now")
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


@check("ALLOC-9", "CLAIM-4", needs=("dummy",))
def a_dummy_is_told_of_no_cached_prefix(bench: Bench) -> None:
    """``cached_prefix_length`` of a dummy stays as it is, also when it is allocated."""
    driver = bench.driver()
    driver.claim_dummy("dummy")
    ctx = driver.request(bench.prompt(1), request_id="dummy")
    driver.alloc(ctx)
    expect("ALLOC-9", ctx.cached_prefix_length, None, "tokens that a dummy found cached")


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
