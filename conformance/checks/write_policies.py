"""TIER-7 and TIER-8: when blocks are written to the tiers below, and how many."""

from typing import Any

from pagedkv.conformance.bench import Bench, Skip
from pagedkv.conformance.check import check
from pagedkv.conformance.driver import Driver
from pagedkv.conformance.violation import demand, expect
from pagedkv.reference.context import TextContext
from pagedkv.reference.identity import page_key

NAMED = {"model_fingerprint": "weights"}
"""Makes what is on disk and in a store outlive the manager."""


# --- TIER-7: write-back ---------------------------------------------------------------------------


def write_back(bench: Bench, **options: Any) -> Driver:
    """A driver under ``write_back``."""
    bench.writes("write_back")
    return bench.driver(write_policy="write_back", **options)


@check("TIER-7", needs=("host",))
def a_dirty_page_is_saved_before_it_is_evicted(bench: Bench) -> None:
    """Under ``write_back`` everything that is evicted is found below."""
    driver = write_back(bench, host_pages=16)
    for start in (0, 50, 90):
        driver.serve(bench.prompt(2, start))
    driver.evict_all()
    for start in (90, 0, 50):
        expect("TIER-7", driver.hit(bench.prompt(2, start)), 2, "blocks found below")


@check("TIER-7", "POOL-2", needs=("host",))
def dirty_pages_may_be_taken(bench: Bench) -> None:
    """Dirty pages count as free, and an allocation may ask for all of them."""
    driver = write_back(bench, host_pages=2)
    for start in (0, 50, 90):
        driver.serve(bench.prompt(2, start))
    driver.admit(range(10**6, 10**6 + 8 * bench.size))


@check("TIER-7", "ALLOC-2", needs=("host",))
def an_allocation_that_cannot_fit_saves_nothing(bench: Bench) -> None:
    """A refused allocation offloads no dirty page."""
    driver = write_back(bench, host_pages=8)
    driver.admit(bench.prompt(3, 50))
    driver.serve(bench.prompt(2))
    used = driver.used("host")
    too_long = driver.claim(driver.request(range(10**6, 10**6 + 6 * bench.size)))
    demand("TIER-7", not driver.fits(too_long), "six pages were taken where four are free")
    expect("TIER-7", driver.used("host"), used, "host pages in use after a refusal")


@check("TIER-7", needs=("host",))
def a_page_that_finds_no_slot_is_lost(bench: Bench) -> None:
    """With host memory full, dirty pages are evicted all the same; nothing hangs or is wrong."""
    driver = write_back(bench, host_pages=1)
    for n in range(6):
        driver.serve(bench.prompt(3, 50 * n))
    driver.evict_all()
    for n in range(6):
        driver.hit(bench.prompt(3, 50 * n))


@check("TIER-7", needs=("host", "metrics"))
def what_is_below_already_is_not_saved_again(bench: Bench) -> None:
    """A block that came from host memory is clean: it is not copied there a second time."""
    driver = write_back(bench, host_pages=8)
    driver.serve(bench.prompt(2))
    for _ in range(3):
        driver.evict_all()
        driver.serve(bench.prompt(2))
    expect("TIER-7", driver.metrics().d2h_blocks_copied, 2, "blocks copied to host memory")


@check("TIER-7", needs=("host",))
def a_page_committed_twice_is_saved_once_it_goes(bench: Bench) -> None:
    """Twins that have computed the same content leave it to be found below, once."""
    driver = write_back(bench, host_pages=8)
    twins = [driver.admit(bench.prompt(2)) for _ in range(2)]
    driver.forward(*twins)
    for ctx in twins:
        driver.release(ctx)
    expect("TIER-7", driver.hit_below(bench.prompt(2)), 2, "blocks found below")
    expect("TIER-7", driver.used("host"), 2, "host pages in use")


@check("TIER-7", needs=("host", "disk"))
def below_host_memory_blocks_are_written_through(bench: Bench) -> None:
    """Under ``write_back`` too, what lands in host memory goes on to the disk."""
    driver = write_back(bench, host_pages=8, disk_pages=8)
    driver.serve(bench.prompt(2))
    driver.evict_all()
    expect("TIER-7", driver.used("disk"), 2, "disk pages in use")


@check("TIER-7", "ALLOC-7", needs=("host",))
def saving_makes_no_hit_wrong(bench: Bench) -> None:
    """An allocation that saves pages for its room may hit blocks in the slots that it needs."""
    driver = write_back(bench, host_pages=2)
    driver.serve(bench.prompt(2))
    driver.evict_all()
    driver.serve(bench.prompt(3, 50))
    driver.forward(driver.admit(bench.prompt(6)))


@check("TIER-7", "ALLOC-7", needs=("host",))
def dirty_pages_that_are_hit_are_not_taken(bench: Bench) -> None:
    """An allocation that needs all pages but those that it hits saves and takes the others."""
    driver = write_back(bench, host_pages=16)
    driver.serve(bench.prompt(2))
    driver.serve(bench.prompt(3, 50))
    ctx = driver.admit(bench.prompt(7))
    expect("TIER-7", ctx.tokens.processed_length, 2 * bench.size, "tokens hit on dirty pages")
    driver.forward(ctx)


# --- TIER-8: budgets and second uses --------------------------------------------------------------


@check("TIER-8", needs=("disk",))
def no_more_is_written_than_the_budget(bench: Bench) -> None:
    """With a budget of two blocks a day, no more are on disk, however many were served."""
    driver = bench.driver(host_pages=8, disk_pages=8, disk_writes_per_day=2, **NAMED)
    for n in range(4):
        driver.serve(bench.prompt(1, 50 * n))
        driver.evict_all()
        used = driver.used("disk")
        demand("TIER-8", used <= 2, f"{used} blocks were written under a budget of 2")
    driver.shutdown()
    restarted = bench.restart(driver)
    found = sum(restarted.hit(bench.prompt(1, 50 * n)) for n in range(4))
    demand("TIER-8", found <= 2, f"{found} blocks were found on disk under a budget of 2")


@check("TIER-8", needs=("disk", "metrics"))
def the_budget_limits_writes_not_blocks(bench: Bench) -> None:
    """Blocks that made room for others on disk have spent their share of the budget."""
    driver = bench.driver(host_pages=1, disk_pages=2, disk_writes_per_day=3, **NAMED)
    for n in range(6):
        driver.serve(bench.prompt(1, 50 * n))
        driver.evict_all()
    written = driver.metrics().disk_blocks_written
    demand("TIER-8", written <= 3, f"{written} blocks were written under a budget of 3")


@check("TIER-8", needs=("disk",))
def a_restart_renews_the_budget(bench: Bench) -> None:
    """A disk that is opened anew takes blocks again."""
    bench.writes("through")
    options = {"host_pages": 8, "disk_pages": 8, "disk_writes_per_day": 1}
    driver = bench.driver(write_policy="through", **options, **NAMED)
    driver.serve(bench.prompt(2))
    if not driver.used("disk"):
        raise Skip("what lands in host memory is not written to disk")
    expect("TIER-8", driver.used("disk"), 1, "disk pages in use")
    restarted = bench.restart(driver)
    restarted.serve(bench.prompt(2))
    expect("TIER-8", restarted.used("disk"), 2, "disk pages in use after a restart")


@check("TIER-8", needs=("disk", "transfers"))
def a_failed_write_has_spent_its_share(bench: Bench) -> None:
    """A budget of one block buys one attempt."""
    bench.writes("through")
    driver = bench.controlled(
        host_pages=8, disk_pages=8, disk_writes_per_day=1, write_policy="through"
    )
    attempts = 0
    for n in range(3):
        driver.serve(bench.prompt(1, 50 * n))
        while transfers := driver.in_flight():
            if transfers[0].target == "disk":
                attempts += 1
                driver.fail(transfers[0], "io_error")
            else:
                driver.land(transfers[0])
    demand("TIER-8", attempts <= 1, f"{attempts} writes were begun under a budget of 1")


@check("TIER-8", needs=("host",))
def a_block_is_offloaded_at_its_second_use(bench: Bench) -> None:
    """Under ``reuse`` the first request leaves nothing below, the second what both share."""
    bench.writes("reuse")
    driver = bench.driver(host_pages=8, write_policy="reuse")
    driver.serve(bench.prompt(3))
    expect("TIER-8", driver.used("host"), 0, "host pages in use after the first use")
    driver.serve([*bench.prompt(2, more=0), *bench.prompt(1, 50)])
    expect("TIER-8", driver.used("host"), 2, "host pages in use after the second use of two")
    expect("TIER-8", driver.hit_below(bench.prompt(3)), 2, "blocks found below")


@check("TIER-8", "STEP-4", needs=("host",))
def twins_use_a_block_twice(bench: Bench) -> None:
    """Under ``reuse`` two requests that have computed the same side by side are two uses."""
    bench.writes("reuse")
    driver = bench.driver(host_pages=8, write_policy="reuse")
    twins = [driver.admit(bench.prompt(2)) for _ in range(2)]
    driver.forward(*twins)
    expect("TIER-8", driver.used("host"), 2, "host pages in use")


# --- TIER-7: cleaning, where the caller can ask for it --------------------------------------------


def with_dirty_pages(bench: Bench) -> tuple[Driver, list[TextContext]]:
    """A driver that may call ``clean(replica, count)``, with three dirty pages: one that a request
    holds, and two of requests that are gone, in this order."""
    bench.writes("write_back")
    driver = bench.controlled(host_pages=8, write_policy="write_back")
    if not callable(getattr(driver.manager, "clean", None)):
        raise Skip(f"{bench.implementation.name} has no clean")
    driver.hold(bench.prompt(1, 90))
    return driver, [driver.serve(bench.prompt(1, start)) for start in (0, 50)]


@check("TIER-7", needs=("host", "transfers"))
def the_oldest_idle_pages_are_cleaned(bench: Bench) -> None:
    """As many are saved as were asked for, those that were let go first; none that is held."""
    for count in (0, 1, 3):
        driver, served = with_dirty_pages(bench)
        driver.manager.clean(0, count)
        saved = {key for transfer in driver.in_flight() for key in transfer.keys}
        oldest = [driver.model.digests(ctx, 1)[0] for ctx in served[:count]]
        expected = {page_key(digest, driver.setup.hash_algorithm) for digest in oldest}
        expect("TIER-7", saved, expected, f"blocks that are saved when {count} are asked for")
        driver.check()


@check("TIER-7", "TIER-6", needs=("host", "transfers"))
def a_page_whose_cleaning_fails_may_be_taken(bench: Bench) -> None:
    """A dirty page that could not be saved is dirty no longer: its room is there to be taken."""
    driver, _ = with_dirty_pages(bench)
    driver.manager.clean(0, 2)
    for transfer in driver.in_flight():
        driver.fail(transfer, "no_space")
    expect("TIER-7", driver.used("host"), 0, "host pages in use")
    greedy = driver.claim(driver.request(range(10**6, 10**6 + 6 * bench.size)))
    demand("TIER-7", driver.begins(greedy), "pages that could not be saved cannot be taken")


# --- TIER-8 again: what is no second use, and what renews no budget -------------------------------


@check("TIER-8", needs=("host",))
def one_request_uses_a_block_once(bench: Bench) -> None:
    """Under ``reuse`` a request that commits page after page leaves nothing below."""
    bench.writes("reuse")
    driver = bench.driver(host_pages=8, write_policy="reuse")
    ctx = driver.hold(bench.prompt(2))
    for token in range(2 * bench.size):
        driver.alloc(ctx)
        driver.forward(ctx, token=token)
    expect("TIER-8", driver.used("host"), 0, "host pages in use after one use")


@check("TIER-8", "METRIC-5", needs=("disk", "transfers", "metrics", "reset"))
def resets_renew_no_budget(bench: Bench) -> None:
    """Neither a reset of the counters nor one of the cache buys further writes."""
    bench.writes("through")
    for reset in ("metrics", "reset"):
        driver = bench.controlled(
            host_pages=8, disk_pages=8, disk_writes_per_day=1, write_policy="through"
        )
        writes = 0
        for start in (0, 50, 90):
            driver.serve(bench.prompt(1, start))
            while transfers := driver.in_flight():
                writes += transfers[0].target == "disk"
                driver.land(transfers[0])
            if reset == "metrics":
                driver.reset_metrics()
            else:
                driver.reset()
        demand("TIER-8", writes <= 1, f"{writes} writes under a budget of 1, with {reset} between")


@check("TIER-8", "TIER-3", needs=("disk", "mla"))
def a_replicated_block_costs_the_budget_of_one_shard(bench: Bench) -> None:
    """A budget of two blocks lets two of a replicated latent pass, however many shards hold it."""
    bench.writes("through")
    options = {"host_pages": 8, "disk_pages": 8, "cache": "mla", "shards": 2}
    driver = bench.driver(write_policy="through", disk_writes_per_day=2, **options)
    driver.serve(bench.prompt(3))
    if not driver.used("disk"):
        raise Skip("what lands in host memory is not written to disk")
    expect("TIER-8", driver.used("disk"), 2, "blocks written under a budget of 2")


@check("TIER-8", needs=("disk", "transfers"))
def a_renewed_budget_is_that_of_a_day(bench: Bench) -> None:
    """A renewed budget allows as much as on the first day, and no more for what was left."""
    bench.writes("through")
    options = {"host_pages": 8, "disk_pages": 8, "disk_writes_per_day": 2}
    driver = bench.controlled(write_policy="through", **options)
    if not callable(getattr(driver.manager, "renew_write_budget", None)):
        raise Skip(f"{bench.implementation.name} has no renew_write_budget")
    written = []
    for tokens in (bench.prompt(1, 90), bench.prompt(4), bench.prompt(2, 50)):
        driver.serve(tokens)
        driver.land_all()
        written.append(driver.used("disk"))
        driver.manager.renew_write_budget()
    if not written[0]:
        raise Skip("what lands in host memory is not written to disk")
    expect("TIER-8", written, [1, 3, 5], "blocks written in one, two and three days")
