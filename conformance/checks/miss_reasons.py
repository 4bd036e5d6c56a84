"""METRIC-6: why blocks that were looked up are missing."""

from pagedkv.conformance.bench import Bench
from pagedkv.conformance.check import check
from pagedkv.conformance.driver import Driver
from pagedkv.conformance.violation import expect
from pagedkv.reference.tier_names import FailReason

NAMED = {"model_fingerprint": "weights"}
"""Makes what is on disk and in a store outlive the manager."""


def misses_of(driver: Driver, tokens: range) -> dict[str, int]:
    """Reasons of the misses of one request."""
    driver.reset_metrics()
    ctx = driver.admit(tokens)
    found = driver.missed()
    driver.release(ctx)
    return found


@check("METRIC-6", needs=("metrics", "prefix"))
def a_block_that_nobody_computed_was_never_seen(bench: Bench) -> None:
    """Each full page of a new prompt counts once, whatever else was cached."""
    driver = bench.driver()
    driver.serve(bench.prompt(1))
    expect("METRIC-6", misses_of(driver, bench.prompt(3)), {"never_seen": 2}, "misses")


@check("METRIC-6", needs=("metrics", "prefix"))
def a_block_that_made_room_was_evicted(bench: Bench) -> None:
    """Where there is no tier below, what leaves the device was evicted."""
    driver = bench.driver()
    driver.serve(bench.prompt(2))
    driver.evict_all()
    expected = {"evicted": 2, "never_seen": 1}
    expect("METRIC-6", misses_of(driver, bench.prompt(3)), expected, "misses")


@check("METRIC-6", "TIER-9", needs=("metrics", "host"))
def a_block_that_found_no_slot_was_not_stored(bench: Bench) -> None:
    """What leaves the device without being anywhere below was not stored."""
    driver = bench.driver(host_pages=1)
    driver.serve(bench.prompt(2))
    driver.evict_all()
    expect("METRIC-6", misses_of(driver, bench.prompt(2)), {"not_stored": 1}, "misses")


@check("METRIC-6", needs=("metrics", "host"))
def a_block_that_made_room_below_was_evicted(bench: Bench) -> None:
    """What has left the device and was then given up in host memory was evicted."""
    driver = bench.driver(host_pages=2)
    driver.serve(bench.prompt(2))
    driver.evict_all()
    driver.serve(bench.prompt(2, 50))
    driver.evict_all()
    expect("METRIC-6", misses_of(driver, bench.prompt(2)), {"evicted": 2}, "misses")


@check("METRIC-6", needs=("metrics", "host"))
def a_block_that_made_room_below_first_was_evicted(bench: Bench) -> None:
    """What was given up in host memory while it was on the device, and then there, was evicted."""
    bench.writes("through")
    driver = bench.driver(host_pages=1, write_policy="through")
    for start in (0, 50):
        driver.serve(bench.prompt(1, start))
    driver.evict_all()
    expect("METRIC-6", misses_of(driver, bench.prompt(1)), {"evicted": 1}, "misses")


@check("METRIC-6", "RESET-1", needs=("metrics", "prefix", "reset"))
def a_block_from_before_a_reset_is_in_another_namespace(bench: Bench) -> None:
    """What a reset hides, on the device and below, counts as that."""
    tiers = {"host_pages": 8} if "host" in bench.implementation.capabilities else {}
    driver = bench.driver(**tiers)
    driver.serve(bench.prompt(1, 50))
    if tiers:
        driver.evict_all()
    driver.serve(bench.prompt(2))
    driver.reset()
    expect("METRIC-6", misses_of(driver, bench.prompt(2)), {"other_namespace": 2}, "misses")
    expect("METRIC-6", misses_of(driver, bench.prompt(1, 50)), {"other_namespace": 1}, "misses")


@check("METRIC-6", "NS-3", needs=("metrics", "disk"))
def a_block_of_another_model_is_in_another_namespace(bench: Bench) -> None:
    """What was on disk under other weights counts as that."""
    before = bench.driver(host_pages=8, disk_pages=8, **NAMED)
    before.serve(bench.prompt(2))
    driver = bench.restart(before, model_fingerprint="other weights")
    expect("METRIC-6", misses_of(driver, bench.prompt(2)), {"other_namespace": 2}, "misses")


@check("METRIC-6", "TIER-6", needs=("metrics", "host", "transfers"))
def a_block_whose_load_failed_says_how(bench: Bench) -> None:
    """A load that has timed out was too slow; any other has failed, also for later requests."""
    reasons: list[tuple[FailReason, str]] = [("timeout", "too_slow"), ("unavailable", "failed")]
    for reason, expected in reasons:
        driver = bench.with_chain_below(1)
        ctx = driver.claim(driver.request(bench.prompt(1)))
        driver.begin(ctx)
        driver.reset_metrics()
        for transfer in driver.in_flight():
            driver.fail(transfer, reason)
        driver.finish(ctx)
        driver.alloc(ctx)
        expect("METRIC-6", driver.missed(), {expected: 1}, f"misses after {reason}")
    driver = bench.with_chain_below(1)
    ctx = driver.claim(driver.request(bench.prompt(1)))
    driver.begin(ctx)
    for transfer in driver.in_flight():
        driver.fail(transfer, "io_error")
    driver.release(ctx)
    expect("METRIC-6", misses_of(driver, bench.prompt(1)), {"failed": 1}, "misses of another one")


@check("METRIC-6", needs=("metrics", "prefix"))
def a_miss_counts_once(bench: Bench) -> None:
    """A chunked request counts its misses once, and not for what it computes itself."""
    # A chunk of exactly one page looks nothing up: its last token has to be computed.
    for first_chunk, misses in ((bench.size + 1, 5), (bench.size, 4)):
        driver = bench.driver()
        ctx = driver.claim(driver.request(bench.prompt(5)))
        driver.chunk(ctx, first_chunk)
        for _ in range(2):  # There is no step in between, so nothing is committed.
            driver.alloc(ctx)
            driver.alloc(ctx)
            driver.compute(ctx)
            driver.update(ctx)
        what = f"misses of a prompt with a first chunk of {first_chunk}"
        expect("METRIC-6", driver.missed(), {"never_seen": misses}, what)


@check("METRIC-6", needs=("metrics", "host", "transfers"))
def a_block_behind_the_gap_is_no_miss(bench: Bench) -> None:
    """What is still below, but out of reach, is not counted as missing."""
    driver = bench.with_chain_below(3)
    ctx = driver.claim(driver.request(bench.prompt(3)))
    driver.begin(ctx)
    driver.reset_metrics()
    root = driver.model.digests(ctx, 1)[0]
    for transfer in driver.in_flight():
        keys = [key for key in transfer.keys if driver.block_of(key, ctx) == root]
        driver.fail(transfer, "timeout", keys or None)
    driver.finish(ctx)
    driver.alloc(ctx)
    expect("METRIC-6", driver.missed(), {"too_slow": 1}, "misses")


@check("METRIC-6", needs=("metrics", "prefix"))
def a_block_that_is_cached_again_has_no_reason(bench: Bench) -> None:
    """After its return a block is lost anew, for the reason of that time."""
    bench.needs("reset")
    driver = bench.driver()
    driver.serve(bench.prompt(1))
    driver.evict_all()
    driver.serve(bench.prompt(1))
    driver.reset()
    expect("METRIC-6", misses_of(driver, bench.prompt(1)), {"other_namespace": 1}, "misses")
    driver.serve(bench.prompt(1))
    driver.evict_all()
    expect("METRIC-6", misses_of(driver, bench.prompt(1)), {"evicted": 1}, "misses")


@check("METRIC-6", needs=("metrics", "prefix"))
def reasons_are_remembered_for_a_while(bench: Bench) -> None:
    """After as many further losses as four times the device's pages allow, a reason is known."""
    driver = bench.driver()
    for n in range(4 * 8):
        driver.serve(bench.prompt(1, 50 * n))
    driver.evict_all()
    expect("METRIC-6", misses_of(driver, bench.prompt(1)), {"evicted": 1}, "misses of the first")
