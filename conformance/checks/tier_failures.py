"""TIER-5 and TIER-6: tiers that lie, and tiers that fail."""

from typing import Any, Literal, get_args

from pagedkv.conformance.bench import Bench, Skip
from pagedkv.conformance.check import check
from pagedkv.conformance.damage import Damage
from pagedkv.conformance.driver import Driver
from pagedkv.conformance.violation import demand, expect
from pagedkv.reference.context import TextContext
from pagedkv.reference.identity import page_key
from pagedkv.reference.tier_names import BLOCK_IS_LOST, FailReason

NAMED = {"model_fingerprint": "weights"}
"""Makes what is on disk and in a store outlive the manager."""


# --- TIER-5: damage -------------------------------------------------------------------------------


def on(tier: Literal["disk", "store"]) -> dict[str, Any]:
    """A setup whose blocks are found in that tier after a restart."""
    places: dict[str, dict[str, Any]] = {
        "disk": {"host_pages": 8, "disk_pages": 8},
        "store": {"store": True},
    }
    return {"head_dim": 16, **NAMED, **places[tier]}


def is_never_served_damaged(bench: Bench, tier: Literal["disk", "store"]) -> None:
    """Damage the second of three blocks in every way: it is computed again, and put right."""
    for kind in get_args(Damage):
        driver = bench.driver(**on(tier))
        ctx = driver.serve(bench.prompt(3))
        restarted = bench.restart(driver)
        intact = restarted.hit(bench.prompt(3))
        restarted = bench.restart(restarted)
        bench.damage(restarted, tier, ctx, 1, kind)
        again = restarted.admit(bench.prompt(3))
        left = again.tokens.processed_length // bench.size
        if kind != "missing":  # Whoever has a file open does not miss its name.
            what = f"blocks of {intact} that were served after the second was {kind}"
            demand("TIER-5", left <= 1, f"{what}: {left}")
        restarted.forward(again)
        restarted.release(again)
        if kind == "missing":
            continue
        for _ in range(3):  # The damage may reach as far as the chain; each reading finds some.
            restarted = bench.restart(restarted)
            restarted.serve(bench.prompt(3))
        found = bench.restart(restarted).hit(bench.prompt(3))
        expect("TIER-5", found, intact, f"blocks found after one was {kind} and computed again")


@check("TIER-5", "TIER-6", "FAIL-1", needs=("disk",))
def a_damaged_block_on_disk_is_never_served(bench: Bench) -> None:
    """What was flipped, cut short or exchanged on disk is computed again, and written anew."""
    is_never_served_damaged(bench, "disk")


@check("TIER-5", "TIER-6", "STORE-3", needs=("store",))
def a_damaged_block_in_a_store_is_never_served(bench: Bench) -> None:
    """What was flipped, cut short or exchanged in a store is computed again, and put anew."""
    is_never_served_damaged(bench, "store")


@check("TIER-5", needs=("disk",))
def damage_before_the_start_is_found_as_well(bench: Bench) -> None:
    """Blocks that were damaged while no manager was there are not served by the next one."""
    for kind in get_args(Damage):
        driver = bench.driver(**on("disk"))
        ctx = driver.serve(bench.prompt(3))
        driver.shutdown()
        bench.damage(driver, "disk", ctx, 0, kind)
        restarted = bench.restart(driver)
        expect("TIER-5", restarted.hit(bench.prompt(3)), 0, f"blocks found when the root is {kind}")


@check("TIER-5", needs=("disk",))
def damage_is_no_obstacle_for_others(bench: Bench) -> None:
    """Requests that do not need the damaged block find theirs before and after it."""
    driver = bench.driver(**on("disk"))
    ctx = driver.serve(bench.prompt(2))
    driver.serve(bench.prompt(2, 50))
    restarted = bench.restart(driver)
    intact = restarted.hit(bench.prompt(2, 50))
    restarted = bench.restart(restarted)
    bench.damage(restarted, "disk", ctx, 0, "flipped")
    expect("TIER-5", restarted.hit(bench.prompt(2)), 0, "blocks found of a chain without a root")
    expect("TIER-5", restarted.hit(bench.prompt(2, 50)), intact, "blocks found of another chain")


# --- TIER-6: failures -----------------------------------------------------------------------------


@check("TIER-6", "ALLOC-11", needs=("host", "transfers"))
def a_failed_load_is_a_miss(bench: Bench) -> None:
    """After any failure the request computes; the tier keeps the blocks, or gives them up."""
    for reason in get_args(FailReason):
        driver = bench.with_chain_below(2)
        ctx = driver.claim(driver.request(bench.prompt(2)))
        driver.begin(ctx)
        for transfer in driver.in_flight():
            driver.fail(transfer, reason)
        demand("TIER-6", not driver.finish(ctx), f"an allocation has overlooked {reason}")
        driver.begin(ctx)
        driver.finish(ctx)
        expect("TIER-6", ctx.tokens.processed_length, 0, f"tokens that were cached after {reason}")
        expected = 0 if reason in BLOCK_IS_LOST else 2
        expect("TIER-6", driver.used("host"), expected, f"host pages in use after {reason}")
        expect("TIER-6", driver.hit(bench.prompt(2)), expected, f"blocks left after {reason}")
        driver.forward(ctx)


@check("TIER-6", needs=("store", "transfers"))
def a_store_keeps_all_but_damaged_blocks(bench: Bench) -> None:
    """After failed loads other managers still find the blocks, unless they are corrupt."""
    for reason in get_args(FailReason):
        first = bench.driver(store=True, **NAMED)
        first.serve(bench.prompt(2))
        driver = bench.beside(first, auto_land=False)
        ctx = driver.claim(driver.request(bench.prompt(2)))
        driver.begin(ctx)
        for transfer in driver.in_flight():
            driver.fail(transfer, reason)
        driver.release(ctx)
        other = bench.beside(first)
        expected = 0 if reason == "corrupt" else 2
        expect("TIER-6", other.hit(bench.prompt(2)), expected, f"blocks in a store after {reason}")


@check("TIER-6", needs=("host", "transfers"))
def only_the_blocks_at_fault_are_given_up(bench: Bench) -> None:
    """A load that fails through one block costs that one: the others stay where they are."""
    driver = bench.with_chain_below(3)
    ctx = driver.claim(driver.request(bench.prompt(3)))
    driver.begin(ctx)
    leaf = driver.model.digests(ctx, 3)[2]
    for transfer in driver.in_flight():
        at_fault = [key for key in transfer.keys if driver.block_of(key, ctx) == leaf]
        if at_fault:
            driver.fail(transfer, "io_error", at_fault)
        else:
            driver.land(transfer)
    driver.release(ctx)
    driver.evict_all()
    expect("TIER-6", driver.used("host"), 2, "host pages in use")
    expect("TIER-6", driver.hit(bench.prompt(3)), 2, "blocks left")


@check("TIER-6", "TIER-9", needs=("host", "transfers"))
def a_failed_write_does_not_block_the_next(bench: Bench) -> None:
    """What failed to be offloaded, for whatever reason, is offloaded with the next commit."""
    bench.writes("through")
    driver = bench.controlled(host_pages=2, write_policy="through")
    for reason in get_args(FailReason):
        driver.serve(bench.prompt(2))
        demand("TIER-6", bool(driver.in_flight()), f"nothing is offloaded before {reason}")
        for transfer in driver.in_flight():
            driver.fail(transfer, reason)
        expect("TIER-6", driver.used("host"), 0, f"host pages in use after {reason}")
    driver.serve(bench.prompt(2))
    driver.land_all()
    expect("TIER-6", driver.hit_below(bench.prompt(2)), 2, "blocks found below")


@check("TIER-6", "TIER-9", needs=("host", "disk", "transfers"))
def a_failed_disk_write_does_not_block_the_next(bench: Bench) -> None:
    """A disk that was full for a while gets the blocks when it is not any more."""
    bench.writes("through")
    driver = bench.controlled(host_pages=4, disk_pages=2, write_policy="through", **NAMED)
    for n, reason in enumerate(get_args(FailReason)):
        driver.serve(bench.prompt(2))
        failed = land_all_but_disk_writes(driver, reason)
        if not n and not failed:
            raise Skip("what lands in host memory is not written to disk at once")
        demand("TIER-6", failed > 0, f"nothing is written to disk before {reason}")
        expect("TIER-6", driver.used("disk"), 0, f"disk pages in use after {reason}")
    driver.serve(bench.prompt(2))
    driver.land_all()
    expect("TIER-6", driver.used("disk"), 2, "disk pages in use")
    expect("TIER-6", bench.restart(driver).hit(bench.prompt(2)), 2, "blocks found on disk")


@check("TIER-6", needs=("host", "transfers"))
def failures_leak_nothing(bench: Bench) -> None:
    """After many failed loads and offloads every page and every slot can be used again."""
    driver = bench.with_chain_below(2, host_pages=2)
    for reason in ("timeout", "unavailable", "timeout"):
        ctx = driver.claim(driver.request(bench.prompt(2)))
        driver.begin(ctx)
        for transfer in driver.in_flight():
            driver.fail(transfer, reason)
        driver.finish(ctx)
        driver.release(ctx)
    driver.serve(bench.prompt(2, 50))
    driver.land_all()
    expect("TIER-6", driver.hit_below(bench.prompt(2, 50)), 2, "blocks that took the slots")


@check("TIER-6", "XFER-4", needs=("host", "disk", "transfers"))
def a_failed_disk_write_lets_go_of_what_it_reads(bench: Bench) -> None:
    """Blocks whose write has failed, for whatever reason, make room when it is time."""
    bench.writes("through")
    for reason in get_args(FailReason):
        driver = bench.controlled(host_pages=2, disk_pages=8, write_policy="through")
        driver.serve(bench.prompt(2))
        if not land_all_but_disk_writes(driver, reason):
            raise Skip("what lands in host memory is not written to disk at once")
        driver.serve(bench.prompt(2, 50))
        driver.land_all()
        found = driver.hit_below(bench.prompt(2, 50))
        expect("TIER-6", found, 2, f"blocks that took the slots of those that failed with {reason}")


@check("TIER-6", "ALLOC-4", needs=("store", "transfers"))
def a_store_that_failed_once_is_asked_again(bench: Bench) -> None:
    """After a load that failed, and cost no block, the next request is served from the store."""
    for reason in get_args(FailReason):
        driver = bench.with_chain_below(2, store=True, host_pages=None)
        ctx = driver.claim(driver.request(bench.prompt(2)))
        driver.begin(ctx)
        driver.fail_loads(reason)
        driver.finish(ctx)
        driver.release(ctx)
        expected = 0 if reason == "corrupt" else 2
        found = driver.hit_below(bench.prompt(2))
        expect("TIER-6", found, expected, f"blocks served after one load failed with {reason}")


# --- what is farther off --------------------------------------------------------------------------


@check("TIER-5", needs=("disk",))
def damage_is_found_wherever_it_is(bench: Bench) -> None:
    """One flipped bit at the end of the last shard is damage, too, and so it is in the scales."""
    shapes = [{"shards": 2}] + [{"cache": "fp8"}] * ("fp8" in bench.implementation.capabilities)
    for shape in shapes:
        driver = bench.driver(**on("disk"), **shape)
        ctx = driver.serve(bench.prompt(3))
        restarted = bench.restart(driver)
        flip_the_last_bit(restarted, ctx, 1)
        again = restarted.admit(bench.prompt(3))
        left = again.tokens.processed_length // bench.size
        demand("TIER-5", left <= 1, f"blocks served after the second was damaged: {left}")
        restarted.forward(again)


def flip_the_last_bit(driver: Driver, ctx: TextContext, block: int) -> None:
    """Damage the last byte of a block on a simulated disk.

    Raises:
        Skip: The disk is a real one, where nobody knows which byte that is.
    """
    image = driver.setup.media.disks.get(str(driver.setup.disk_dir))
    key = page_key(driver.model.digests(ctx, block + 1)[block], driver.setup.hash_algorithm)
    found = [block for block in image.blocks.values() if block.key == key] if image else []
    if not found or found[0].content is None:
        raise Skip("the disk is not a simulated one")
    found[0].content[-1][-1] ^= 1


@check("TIER-5", "STORE-4", needs=("store",))
def a_damaged_block_in_a_further_store_is_never_served(bench: Bench) -> None:
    """Blocks of the stores that a request names are verified like those of the manager's own."""
    for kind in get_args(Damage):
        driver = bench.driver(**on("store"))
        endpoint = f"{driver.setup.store_endpoint}-further"
        elsewhere = bench.beside(driver, store_endpoint=endpoint)
        ctx = elsewhere.serve(bench.prompt(3))
        driver.may_ask_the_store_of(elsewhere)
        bench.damage(elsewhere, "store", ctx, 1, kind)
        given = {"endpoints": [endpoint]}
        again = driver.admit(bench.prompt(3), external_block_metadata=given)
        left = again.tokens.processed_length // bench.size
        demand("TIER-5", left <= 1, f"blocks served after the second was {kind}: {left}")
        driver.forward(again)


@check("TIER-6", "TIER-9", needs=("store", "transfers"))
def a_failed_put_does_not_block_the_next(bench: Bench) -> None:
    """What failed to be put into a store, for whatever reason, is put with the next commit."""
    bench.writes("through")
    driver = bench.controlled(store=True, write_policy="through", **NAMED)
    for reason in get_args(FailReason):
        driver.serve(bench.prompt(2))
        demand("TIER-6", bool(driver.in_flight()), f"nothing is put before {reason}")
        for transfer in driver.in_flight():
            driver.fail(transfer, reason)
    driver.serve(bench.prompt(2))
    driver.land_all()
    other = bench.beside(driver, auto_land=True)
    expect("TIER-6", other.hit(bench.prompt(2)), 2, "blocks found in the store")


def land_all_but_disk_writes(driver: Driver, reason: FailReason) -> int:
    """Land what is in flight and what follows; fail what writes to disk. How many have failed."""
    failed = 0
    while transfers := driver.in_flight():
        if transfers[0].target == "disk":
            driver.fail(transfers[0], reason)
            failed += 1
        else:
            driver.land(transfers[0])
    return failed


@check("TIER-6", "XFER-4", needs=("host", "transfers"))
def a_failed_write_costs_its_source_nothing(bench: Bench) -> None:
    """Blocks stay where an offload or a write has read them, whatever it has failed of."""
    disk = {"disk_pages": 8} if "disk" in bench.implementation.capabilities else {}
    for reason in get_args(FailReason):
        driver = bench.controlled(host_pages=8, write_policy="through", **disk)
        driver.serve(bench.prompt(2))
        for offload in driver.in_flight():
            driver.fail(offload, reason)
        expect("TIER-6", driver.hit(bench.prompt(2)), 2, f"blocks on the device after {reason}")
        driver.serve(bench.prompt(2, 50))
        land_all_but_disk_writes(driver, reason)
        driver.evict_all()
        ctx = driver.claim(driver.request(bench.prompt(2, 50)))
        driver.begin(ctx)
        loaded = [key for load in driver.loads() if load.source == "host" for key in load.keys]
        expect("TIER-6", len(loaded), 2, f"blocks in host memory after {reason}")
        driver.land_all()
        driver.finish(ctx)
