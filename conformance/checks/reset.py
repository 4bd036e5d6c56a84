"""RESET: all cached content is forgotten, and nothing old comes back."""

from pagedkv.conformance.bench import Bench, Skip
from pagedkv.conformance.check import check
from pagedkv.conformance.violation import demand, expect

# --- RESET-1: everywhere --------------------------------------------------------------------------


@check("RESET-1", needs=("reset",))
def nothing_on_the_device_is_found_after_a_reset(bench: Bench) -> None:
    """Cached prefixes of all lengths and tenants are forgotten; new ones are cached as before."""
    driver = bench.driver()
    driver.reset()
    for salt in (None, "a"):
        driver.serve(bench.prompt(2), cache_salt=salt)
    driver.reset()
    for salt in (None, "a"):
        expect("RESET-1", driver.hit(bench.prompt(2), cache_salt=salt), 0, "blocks found")
    driver.serve(bench.prompt(2))
    expect("RESET-1", driver.hit(bench.prompt(2)), 2, "blocks found that were computed since")


@check("RESET-1", needs=("reset", "replicas"))
def nothing_on_any_replica_is_found_after_a_reset(bench: Bench) -> None:
    """All replicas forget what they have, and what the others have."""
    driver = bench.driver(replicas=2)
    for replica in range(2):
        driver.serve(bench.prompt(2, 50 * replica), replica)
    driver.reset()
    for replica in range(2):
        for start in (0, 50):
            expect("RESET-1", driver.hit(bench.prompt(2, start), replica), 0, "blocks found")


@check("RESET-1", needs=("reset", "host"))
def nothing_below_is_found_after_a_reset(bench: Bench) -> None:
    """Host memory and disk are empty, and their room can be used again."""
    disk = {"disk_pages": 3} if "disk" in bench.implementation.capabilities else {}
    driver = bench.driver(host_pages=3, **disk)
    driver.serve(bench.prompt(2))
    driver.evict_all()
    driver.serve(bench.prompt(1, 50))
    driver.reset()
    expect("RESET-1", driver.used("host"), 0, "host pages in use")
    if disk:
        expect("RESET-1", driver.used("disk"), 0, "disk pages in use")
    expect("RESET-1", driver.hit(bench.prompt(2)), 0, "blocks found")
    driver.serve(bench.prompt(3))
    expect("RESET-1", driver.hit_below(bench.prompt(3)), 3, "blocks found that were computed since")


@check("RESET-1", "NS-4", needs=("reset", "host", "disk"))
def a_restart_does_not_bring_back_what_was_reset(bench: Bench) -> None:
    """What a reset has forgotten is not on disk for the next manager either."""
    driver = bench.driver(host_pages=8, disk_pages=8, model_fingerprint="weights")
    driver.serve(bench.prompt(2))
    driver.reset()
    restarted = bench.restart(driver)
    expect("RESET-1", restarted.hit(bench.prompt(2)), 0, "blocks found after a restart")
    restarted.serve(bench.prompt(2))


@check("RESET-1", "TIER-7", needs=("reset", "host"))
def dirty_pages_are_not_saved_after_a_reset(bench: Bench) -> None:
    """Under ``write_back`` what was dirty at the reset does not turn up below."""
    bench.writes("write_back")
    driver = bench.driver(host_pages=8, write_policy="write_back")
    driver.serve(bench.prompt(2))
    driver.reset()
    driver.evict_all()
    expect("RESET-1", driver.used("host"), 0, "host pages in use")
    expect("RESET-1", driver.hit(bench.prompt(2)), 0, "blocks found below")


@check("RESET-1", "TIER-8", needs=("reset", "host"))
def uses_before_a_reset_do_not_count(bench: Bench) -> None:
    """Under ``reuse`` the first use after a reset is the first."""
    bench.writes("reuse")
    driver = bench.driver(host_pages=8, write_policy="reuse")
    driver.serve(bench.prompt(2))
    driver.reset()
    driver.serve(bench.prompt(2))
    expect("RESET-1", driver.used("host"), 0, "host pages in use")


# --- RESET-2: what is on its way, and who is still there ------------------------------------------


@check("RESET-2", needs=("reset",))
def a_live_request_keeps_its_pages(bench: Bench) -> None:
    """A request that holds pages goes on as if nothing had happened, shared pages included."""
    driver = bench.driver()
    driver.serve(bench.prompt(2))
    sharing = [driver.admit(bench.prompt(2)) for _ in range(2)]
    tables = [driver.pages(ctx) for ctx in sharing]
    driver.reset()
    expect("RESET-2", [driver.pages(ctx) for ctx in sharing], tables, "page tables")
    driver.forward(sharing[0])
    driver.release(sharing[0])
    driver.evict_all()
    driver.forward(sharing[1])
    driver.alloc(sharing[1])


@check("RESET-2", "STEP-3", needs=("reset",))
def old_pages_are_never_hit_again(bench: Bench) -> None:
    """Pages of a request from before are hit neither while it lives nor when it is gone."""
    driver = bench.driver()
    ctx = driver.admit(bench.prompt(2))
    driver.forward(ctx)
    driver.reset()
    expect("RESET-2", driver.hit(bench.prompt(2)), 0, "blocks found of a live request")
    driver.step(ctx)
    driver.alloc(ctx)
    driver.forward(ctx)
    expect("RESET-2", driver.hit(bench.prompt(2)), 0, "blocks found after another forward")
    driver.release(ctx)
    expect("RESET-2", driver.hit(bench.prompt(2)), 0, "blocks found of a released request")


@check("RESET-2", needs=("reset",))
def old_pages_do_not_mix_with_new_ones(bench: Bench) -> None:
    """What is computed anew while old requests live is found, and their end changes nothing."""
    driver = bench.driver(total_num_pages=12)
    old = driver.admit(bench.prompt(2))
    driver.forward(old)
    driver.reset()
    driver.serve(bench.prompt(2))
    expect("RESET-2", driver.hit(bench.prompt(2)), 2, "blocks found that were computed anew")
    driver.alloc(old)
    driver.forward(old)
    driver.release(old)
    expect("RESET-2", driver.hit(bench.prompt(2)), 2, "blocks found when the old request is gone")


@check("RESET-2", needs=("reset",))
def who_lived_through_a_reset_hits_no_more(bench: Bench) -> None:
    """A chunked request from before a reset computes all the rest, whatever others have cached."""
    driver = bench.driver(total_num_pages=12)
    ctx = driver.claim(driver.request(bench.prompt(3)))
    driver.chunk(ctx, bench.size)
    driver.alloc(ctx)
    driver.reset()
    driver.serve(bench.prompt(3))
    driver.forward(ctx)
    driver.alloc(ctx)
    expect("RESET-2", ctx.tokens.processed_length, bench.size, "start of the window")
    driver.forward(ctx)


@check("RESET-2", needs=("reset",))
def who_holds_no_page_is_not_old(bench: Bench) -> None:
    """A request that was only claimed before the reset hits what was computed after it."""
    driver = bench.driver()
    ctx = driver.claim(driver.request(bench.prompt(2)))
    driver.reset()
    driver.serve(bench.prompt(2))
    driver.alloc(ctx)
    expect("RESET-2", ctx.tokens.processed_length, 2 * bench.size, "start of the window")
    driver.forward(ctx)


@check("RESET-2", "REL-1", needs=("reset",))
def an_id_from_before_a_reset_is_new_when_it_is_claimed_again(bench: Bench) -> None:
    """A released id is not taken for a request that lived through the reset."""
    driver = bench.driver()
    old = driver.admit(bench.prompt(2), request_id="again")
    driver.reset()
    driver.release(old)
    ctx = driver.admit(bench.prompt(2), request_id="again")
    driver.forward(ctx)
    driver.release(ctx)
    expect("RESET-2", driver.hit(bench.prompt(2)), 2, "blocks found of the new request")


@check("RESET-2", "XFER-3", needs=("reset", "host", "transfers"))
def an_offload_from_before_does_not_bring_its_blocks_back(bench: Bench) -> None:
    """What was on its way down when the cache was reset is found nowhere when it lands."""
    bench.writes("through")
    disk = {"disk_pages": 8} if "disk" in bench.implementation.capabilities else {}
    for landed in range(2 if disk else 1):
        driver = bench.controlled(host_pages=8, write_policy="through", **disk)
        driver.serve(bench.prompt(2))
        for _ in range(landed):
            driver.land(driver.in_flight()[0])
        driver.reset()
        driver.land_all()
        driver.evict_all()
        expect("RESET-2", driver.hit(bench.prompt(2)), 0, "blocks brought back")
        expect("RESET-2", driver.used("host"), 0, "host pages in use")
        if disk:
            expect("RESET-2", driver.used("disk"), 0, "disk pages in use")


@check("RESET-2", "XFER-3", needs=("reset", "host", "transfers"))
def a_load_from_before_does_not_bring_its_blocks_back(bench: Bench) -> None:
    """Who waits for a load gets it; nobody else joins it, or hits what it has brought."""
    driver = bench.with_chain_below(2, total_num_pages=12)
    ctx = driver.claim(driver.request(bench.prompt(2)))
    driver.begin(ctx)
    driver.reset()
    other = driver.claim(driver.request(bench.prompt(2)))
    expect("RESET-2", driver.begin(other).transfers, (), "loads that a new request waits for")
    driver.finish(other)
    driver.land_all()
    driver.finish(ctx)
    expect("RESET-2", driver.hit(bench.prompt(2)), 0, "blocks found that an old load has brought")
    driver.forward(ctx, other)
    driver.release(ctx)
    expect("RESET-2", driver.hit(bench.prompt(2)), 2, "blocks found that were computed anew")


@check("RESET-2", "XFER-3", needs=("reset", "host", "transfers"))
def an_old_load_does_not_end_up_under_a_new_block(bench: Bench) -> None:
    """A block that is computed and offloaded anew is not mixed up with a load from before."""
    driver = bench.with_chain_below(1)
    stale = driver.claim(driver.request(bench.prompt(1)))
    driver.begin(stale)
    driver.reset()
    fresh = driver.admit(bench.prompt(1))
    driver.forward(fresh)
    driver.release(fresh)
    driver.land_all()
    driver.finish(stale)
    driver.forward(stale)
    driver.release(stale)
    expect("RESET-2", driver.hit(bench.prompt(1)), 1, "blocks found that were computed anew")


@check("RESET-2", "TIER-2", needs=("reset", "host", "disk", "transfers"))
def a_load_from_below_leaves_nothing_on_its_way(bench: Bench) -> None:
    """A load from disk that was issued before the reset leaves no block in host memory."""
    before = bench.driver(host_pages=4, disk_pages=4, model_fingerprint="weights")
    before.serve(bench.prompt(2))
    driver = bench.restart(before, auto_land=False)
    ctx = driver.claim(driver.request(bench.prompt(2)))
    driver.begin(ctx)
    driver.reset()
    driver.land_all()
    driver.release(ctx)
    expect("RESET-2", driver.used("host"), 0, "host pages in use")
    expect("RESET-2", driver.used("disk"), 0, "disk pages in use")
    expect("RESET-2", driver.hit_below(bench.prompt(2)), 0, "blocks brought back")


@check("RESET-2", "STORE-2", needs=("reset", "store", "transfers"))
def a_put_from_before_is_not_seen_by_others(bench: Bench) -> None:
    """What was on its way into a store when the cache was reset does not appear there."""
    driver = bench.controlled(store=True, model_fingerprint="weights")
    driver.serve(bench.prompt(2))
    older = bench.beside(driver, auto_land=True)
    driver.reset()
    driver.land_all()
    for other in (older, bench.beside(driver, auto_land=True)):
        expect("RESET-2", other.hit(bench.prompt(2)), 0, "blocks found from before the reset")


# --- RESET-3: slots -------------------------------------------------------------------------------


@check("RESET-3", "TIER-1", needs=("reset", "host", "transfers"))
def slots_of_a_fenced_offload_count_until_it_settles(bench: Bench) -> None:
    """A slot that an old transfer still writes is in use; it is free when that lands or fails."""
    bench.writes("through")
    for fails in (False, True):
        driver = bench.controlled(host_pages=2, write_policy="through")
        driver.serve(bench.prompt(2))
        demand("RESET-3", bool(driver.in_flight()), "nothing is offloaded")
        driver.reset()
        expect("RESET-3", driver.used("host"), 2, "host pages in use after the reset")
        old = {transfer.id for transfer in driver.in_flight()}
        driver.serve(bench.prompt(2, 50))
        new = {transfer.id for transfer in driver.in_flight()} - old
        expect("RESET-3", new, set(), "offloads into slots that are in use")
        for transfer in driver.in_flight():
            if fails:
                driver.fail(transfer, "timeout")
            else:
                driver.land(transfer)
        expect("RESET-3", driver.used("host"), 0, "host pages in use when all has settled")
        driver.serve(bench.prompt(2, 90))
        driver.land_all()
        expect("RESET-3", driver.used("host"), 2, "host pages in use by new blocks")


@check("RESET-3", "TIER-1", needs=("reset", "host", "transfers"))
def slots_that_a_fenced_load_reads_count_until_it_settles(bench: Bench) -> None:
    """A host slot that an old load still reads is in use until that settles."""
    driver = bench.with_chain_below(2, host_pages=2)
    ctx = driver.claim(driver.request(bench.prompt(2)))
    driver.begin(ctx)
    driver.reset()
    expect("RESET-3", driver.used("host"), 2, "host pages in use after the reset")
    driver.land_all()
    expect("RESET-3", driver.used("host"), 0, "host pages in use when the load has landed")
    driver.finish(ctx)
    driver.forward(ctx)


@check("RESET-3", needs=("reset", "host", "disk", "transfers"))
def slots_of_a_fenced_disk_write_count_until_it_settles(bench: Bench) -> None:
    """A write from host memory to disk keeps the slots of both until it settles."""
    bench.writes("through")
    driver = bench.controlled(host_pages=2, disk_pages=2, write_policy="through")
    driver.serve(bench.prompt(2))
    for transfer in driver.in_flight():
        driver.land(transfer)
    if not driver.in_flight():
        raise Skip("what lands in host memory is not written to disk at once")
    driver.reset()
    used = driver.used("host"), driver.used("disk")
    expect("RESET-3", used, (2, 2), "host and disk pages in use after the reset")
    driver.land_all()
    used = driver.used("host"), driver.used("disk")
    expect("RESET-3", used, (0, 0), "host and disk pages in use when the write has landed")


# --- RESET-4: on a store --------------------------------------------------------------------------


@check("RESET-4", "STORE-3", needs=("reset", "store"))
def on_a_store_a_reset_concerns_this_manager(bench: Bench) -> None:
    """The manager finds nothing old any more; others find what they found."""
    driver = bench.driver(store=True, model_fingerprint="weights")
    driver.serve(bench.prompt(2))
    other = bench.beside(driver)
    driver.reset()
    expect("RESET-4", driver.hit(bench.prompt(2)), 0, "blocks found after the reset")
    expect("RESET-4", other.hit(bench.prompt(2)), 2, "blocks found by another manager")
    other.serve(bench.prompt(2, 50))
    expect("RESET-4", driver.hit(bench.prompt(2, 50)), 0, "blocks of the old namespace found")


@check("RESET-4", needs=("reset", "store"))
def later_managers_join_the_latest_namespace(bench: Bench) -> None:
    """Who starts after a reset finds what was put after it, and nothing from before."""
    driver = bench.driver(store=True, model_fingerprint="weights")
    driver.serve(bench.prompt(2))
    driver.reset()
    driver.serve(bench.prompt(2, 50))
    later = bench.beside(driver)
    expect("RESET-4", later.hit(bench.prompt(2, 50)), 2, "blocks found from after the reset")
    expect("RESET-4", later.hit(bench.prompt(2)), 0, "blocks found from before the reset")


@check("RESET-4", needs=("reset", "store"))
def every_reset_is_a_new_namespace(bench: Bench) -> None:
    """After a second reset neither what was there first nor what was put in between is found."""
    driver = bench.driver(store=True, model_fingerprint="weights")
    for _ in range(3):
        driver.serve(bench.prompt(2))
        driver.reset()
        expect("RESET-4", driver.hit(bench.prompt(2)), 0, "blocks found after a reset")


@check("RESET-4", "NS-2", needs=("reset", "store"))
def resets_of_one_model_concern_no_other(bench: Bench) -> None:
    """Managers of other weights go on finding their blocks, those that start later included."""
    driver = bench.driver(store=True, model_fingerprint="weights")
    other = bench.beside(driver, model_fingerprint="other weights")
    other.serve(bench.prompt(2))
    driver.reset()
    expect("RESET-4", bench.beside(other).hit(bench.prompt(2)), 2, "blocks of other weights found")


@check("RESET-4", "STORE-4", needs=("reset", "store"))
def a_reset_concerns_further_stores_too(bench: Bench) -> None:
    """What a request has found in a store that it names is not found there after a reset."""
    driver = bench.driver(store=True, model_fingerprint="weights")
    endpoint = f"{driver.setup.store_endpoint}-further"
    elsewhere = bench.beside(driver, store_endpoint=endpoint)
    elsewhere.serve(bench.prompt(2))
    driver.may_ask_the_store_of(elsewhere)
    given = {"endpoints": [endpoint]}
    found = driver.hit(bench.prompt(2), external_block_metadata=given)
    expect("STORE-4", found, 2, "blocks found in the further store")
    driver.reset()
    found = driver.hit(bench.prompt(2), external_block_metadata=given)
    expect("RESET-4", found, 0, "blocks found there after the reset")


@check("RESET-2", "STEP-3", needs=("reset", "host", "transfers"))
def who_waits_during_a_reset_commits_no_more(bench: Bench) -> None:
    """A request that had no pages yet, but loads on their way, shows nobody what it computes."""
    driver = bench.with_chain_below(2)
    ctx = driver.claim(driver.request(bench.prompt(3)))
    driver.begin(ctx)
    demand("RESET-2", bool(driver.loads()), "nothing is loaded")
    driver.reset()
    driver.land_all()
    driver.finish(ctx)
    driver.forward(ctx)
    driver.release(ctx)
    driver.land_all()
    expect("RESET-2", driver.hit(bench.prompt(3)), 0, "blocks found on the device")
    expect("RESET-2", driver.hit_below(bench.prompt(3)), 0, "blocks found below")
    expect("RESET-2", driver.used("host"), 0, "host pages in use")


@check("RESET-2", "STEP-3", needs=("reset", "replicas", "prefix"))
def a_reset_concerns_the_requests_of_every_replica(bench: Bench) -> None:
    """On whatever replica a request has lived through a reset, what it computes is not found."""
    driver = bench.driver(replicas=2)
    old = [driver.admit(bench.prompt(2), replica) for replica in range(2)]
    driver.reset()
    driver.forward(*old)
    for replica in range(2):
        hits = driver.hit(bench.prompt(2), replica)
        expect("RESET-2", hits, 0, f"blocks of old requests that are hit on replica {replica}")


@check("RESET-2", "STEP-3", needs=("reset", "prefix"))
def who_lived_through_a_reset_commits_nothing_however_long_it_lives(bench: Bench) -> None:
    """A request from before a reset that goes on for pages shows nobody any of them."""
    driver = bench.driver(total_num_pages=16)
    ctx = driver.admit(bench.prompt(6, more=-1))
    driver.reset()
    for token in range(bench.size + 2):
        driver.forward(ctx, token=token)
        hits = driver.hit(ctx.tokens.all.tolist())
        expect("RESET-2", hits, 0, "blocks of an old request that are hit")
        driver.alloc(ctx)


@check("RESET-2", "ALLOC-6", needs=("reset", "host", "transfers"))
def nobody_waits_for_a_load_from_before(bench: Bench) -> None:
    """Who joins the load of a block that an old load brings too waits for the new one."""
    bench.writes("through")
    driver = bench.with_chain_below(1, write_policy="through")
    driver.begin(driver.claim(driver.request(bench.prompt(1))))
    old = driver.loads()
    driver.reset()
    driver.serve(bench.prompt(1))
    for transfer in driver.in_flight():
        if transfer.kind != "onload":
            driver.land(transfer)
    driver.evict_all()
    first, second = (driver.claim(driver.request(bench.prompt(1))) for _ in range(2))
    waits_for = driver.begin(first).transfers
    expect("RESET-2", driver.begin(second).transfers, waits_for, "loads that the second waits for")
    for transfer in old:
        driver.land(transfer)
    driver.land_all()
    for ctx in (first, second):
        driver.finish(ctx)
        expect("RESET-2", ctx.tokens.processed_length, bench.size, "tokens found cached")
    driver.forward(first, second)
