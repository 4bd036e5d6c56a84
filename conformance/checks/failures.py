"""FAIL: loads that fail become tokens to compute; a device that fails takes its replica along."""

from itertools import product
from typing import Any, get_args

from pagedkv.conformance.bench import Bench, Skip
from pagedkv.conformance.check import check
from pagedkv.conformance.damage import Damage
from pagedkv.conformance.violation import demand, expect
from pagedkv.reference.errors import (
    BatchesError,
    ReplicaIndexError,
    ReplicaPoisonedError,
    UnknownRequestError,
)
from pagedkv.reference.tier_names import FailReason

# --- FAIL-1: loads --------------------------------------------------------------------------------


@check("FAIL-1", "TIER-5", needs=("disk",))
def a_damaged_disk_does_not_fail_a_request(bench: Bench) -> None:
    """With its blocks damaged in any way a request is allocated, computed and decoded."""
    disk = {"disk_pages": 8, "head_dim": 16, "model_fingerprint": "weights"}
    for kind, block in product(get_args(Damage), range(3)):
        driver = bench.driver(host_pages=4, **disk)
        ctx = driver.serve(bench.prompt(3))
        restarted = bench.restart(driver)
        bench.damage(restarted, "disk", ctx, block, kind)
        live = restarted.admit(bench.prompt(3))
        for token in range(2):
            restarted.forward(live, token=token)
            restarted.alloc(live)


@check("FAIL-1", "TIER-7", needs=("disk",))
def a_damaged_disk_does_not_fail_a_request_that_has_to_save_pages(bench: Bench) -> None:
    """Under ``write_back``, the pages that are computed instead may have to be saved first."""
    bench.writes("write_back")
    driver = bench.driver(
        host_pages=2,
        disk_pages=8,
        head_dim=16,
        model_fingerprint="weights",
        write_policy="write_back",
    )
    ctx = driver.serve(bench.prompt(2))
    restarted = bench.restart(driver)
    restarted.serve(bench.prompt(4, 50))
    bench.damage(restarted, "disk", ctx, 0, "flipped")
    restarted.forward(restarted.admit(bench.prompt(6)))


@check("FAIL-1", "ALLOC-11", needs=("host", "transfers"))
def what_failed_is_computed_from_where_it_failed(bench: Bench) -> None:
    """After a load has failed, the request hits what is still there, and computes the rest."""
    for at_fault in range(3):
        driver = bench.with_chain_below(3)
        ctx = driver.claim(driver.request(bench.prompt(3)))
        driver.begin(ctx)
        block = driver.model.digests(ctx, 3)[at_fault]
        for transfer in driver.in_flight():
            keys = [key for key in transfer.keys if driver.block_of(key, ctx) == block]
            if keys:
                driver.fail(transfer, "io_error", keys)
            else:
                driver.land(transfer)
        demand("FAIL-1", not driver.finish(ctx), "an allocation has overlooked a failure")
        driver.alloc(ctx)
        window = ctx.tokens.processed_length
        expect("FAIL-1", window, at_fault * bench.size, "start of the window after a failure")
        driver.forward(ctx)
        driver.release(ctx)
        expect("FAIL-1", driver.hit(bench.prompt(3)), 3, "blocks found when they were computed")


@check("FAIL-1", "ALLOC-11", needs=("host", "transfers"))
def failures_come_to_an_end(bench: Bench) -> None:
    """A request all of whose loads fail, for whatever reason, soon has none to wait for."""
    for reason in get_args(FailReason):
        driver = bench.with_chain_below(3)
        ctx = driver.claim(driver.request(bench.prompt(3)))
        for _ in range(4):
            driver.begin(ctx)
            for transfer in driver.in_flight():
                driver.fail(transfer, reason)
            if driver.finish(ctx):
                break
        waits = driver.pages(ctx)
        demand(
            "FAIL-1", bool(waits), f"after four loads that failed with {reason} it tries another"
        )
        driver.forward(ctx)


# --- FAIL-2: devices ------------------------------------------------------------------------------


@check("FAIL-2", needs=("poison",))
def a_poisoned_replica_takes_no_work(bench: Bench) -> None:
    """Claims, allocations, inputs and steps are refused; releasing and counting go on."""
    driver = bench.driver()
    ctx = driver.admit(bench.prompt(2))
    driver.compute(ctx)
    driver.update(ctx)
    waiting = driver.claim(driver.request(bench.prompt(1, 50)))
    driver.poison(0)
    calls: list[tuple[str, tuple[Any, ...]]] = [
        ("claim", ("new", 0)),
        ("alloc_dummy", ("padding", 0)),
        ("alloc", (waiting, 0)),
        ("alloc", (ctx, 0)),
        ("begin_alloc", (waiting, 0)),
        ("get_pct_used_blocks_after_allocation", (waiting, 0)),
        ("runtime_inputs", ([[ctx]],)),
        ("step", ([[ctx]],)),
        ("clean", (0, 1)),
    ]
    for method, arguments in calls:
        if callable(getattr(driver.manager, method, None)):
            driver.refused("FAIL-2", ReplicaPoisonedError, method, *arguments)
    expect("FAIL-2", driver.manager.num_free_blocks(0), 8 - 3, "free pages")
    driver.release(ctx)
    driver.release(waiting)
    expect("FAIL-2", driver.manager.num_free_blocks(0), 8, "free pages when all is released")


@check("FAIL-2", needs=("poison", "reserve"))
def a_poisoned_replica_reserves_nothing(bench: Bench) -> None:
    """A reservation on it is refused and leaves nothing claimed."""
    driver = bench.driver()
    driver.poison(0)
    ctx = driver.request(bench.prompt(1))
    driver.refused("FAIL-2", ReplicaPoisonedError, "reserve", [[ctx]])


@check("FAIL-2", needs=("poison", "replicas"))
def other_replicas_go_on(bench: Bench) -> None:
    """The others serve as before, and do not read from the one that has failed."""
    driver = bench.driver(replicas=2)
    driver.serve(bench.prompt(2), 1)
    live = driver.admit(bench.prompt(1, 50), 0)
    driver.serve(bench.prompt(2, 90), 0)
    driver.poison(1)
    expect("FAIL-2", driver.hit(bench.prompt(2, 90), 0), 2, "blocks that were cached elsewhere")
    expect("FAIL-2", driver.hit(bench.prompt(2), 0), 0, "blocks served by the replica that failed")
    driver.forward(live)
    driver.serve(bench.prompt(2), 0)
    expect("FAIL-2", driver.hit(bench.prompt(2), 0), 2, "blocks served by the other replica")


@check("FAIL-2", "INPUT-1", needs=("poison", "replicas"))
def other_replicas_are_stepped_beside_it(bench: Bench) -> None:
    """With an empty batch for the replica that failed, forwards and steps of the others go on."""
    driver = bench.driver(replicas=2)
    here, there = driver.admit(bench.prompt(2)), driver.admit(bench.prompt(2, 50), 1)
    driver.poison(1)
    driver.forward(here)
    driver.refused("FAIL-2", ReplicaPoisonedError, "step", [[here], [there]])


@check("FAIL-2", needs=("poison", "probes"))
def looking_up_goes_on(bench: Bench) -> None:
    """A router may ask, and is told that nothing is found on the replica that has failed."""
    can = bench.implementation.capabilities.__contains__
    tiers = {"host_pages": 8} if can("host") else {}
    driver = bench.driver(replicas=2 if can("replicas") else 1, **tiers)
    driver.serve(bench.prompt(2))
    driver.poison(0)
    told = driver.probe(driver.request(bench.prompt(2)))
    expect("FAIL-2", told[0].total_blocks, 0, "blocks found on the replica that has failed")


@check("FAIL-2", "CLAIM-2", "CLAIM-3", needs=("poison",))
def a_failed_device_comes_before_other_refusals(bench: Bench) -> None:
    """Whatever else is wrong with a call, its replica has failed; one that is not there is not."""
    driver = bench.driver()
    ctx, stranger = driver.admit(bench.prompt(2)), driver.request(bench.prompt(1, 50))
    driver.poison(0)
    driver.refused("FAIL-2", ReplicaPoisonedError, "claim", ctx.request_id, 0)
    driver.refused("FAIL-2", ReplicaPoisonedError, "alloc", stranger, 0)
    driver.refused("FAIL-2", ReplicaPoisonedError, "step", [[stranger]])
    driver.refused("CLAIM-3", ReplicaIndexError, "claim", "elsewhere", 1)
    driver.refused("STEP-1", BatchesError, "step", [[ctx], []])
    driver.refused("CLAIM-2", UnknownRequestError, "release", stranger.request_id, 0)


@check("FAIL-2", "XFER-4", needs=("poison", "transfers", "host"))
def its_transfers_fail(bench: Bench) -> None:
    """Offloads from and loads to a device that has failed are over, and give everything back."""
    bench.writes("through")
    driver = bench.controlled(host_pages=8, write_policy="through")
    driver.serve(bench.prompt(2))
    driver.land_all()
    driver.evict_all()
    ctx = driver.claim(driver.request(bench.prompt(2)))
    driver.begin(ctx)
    driver.serve(bench.prompt(1, 50))
    demand("FAIL-2", len(driver.in_flight()) > 1, "nothing is loaded or offloaded")
    driver.poison(0)
    expect("FAIL-2", driver.in_flight(), [], "transfers in flight")
    expect("FAIL-2", driver.used("host"), 2, "host pages in use")
    driver.release(ctx)
    expect("FAIL-2", driver.manager.num_free_blocks(0), 8, "free pages")


@check("FAIL-2", "ALLOC-11", needs=("poison", "transfers", "replicas"))
def a_copy_from_it_fails(bench: Bench) -> None:
    """Who waits for a copy from a device that fails computes instead."""
    driver = bench.controlled(replicas=2)
    driver.serve(bench.prompt(2), 1)
    ctx = driver.claim(driver.request(bench.prompt(2)))
    driver.begin(ctx)
    if not driver.in_flight():
        raise Skip("replicas do not copy from each other")
    driver.poison(1)
    demand("FAIL-2", not driver.finish(ctx), "a copy from a failed device was taken for good")
    driver.alloc(ctx)
    expect("FAIL-2", ctx.tokens.processed_length, 0, "start of the window")
    driver.forward(ctx)


@check("FAIL-2", "TIER-7", needs=("poison", "disk"))
def nothing_is_saved_from_it(bench: Bench) -> None:
    """Dirty pages of a device that has failed are not read any more, not even at the end."""
    bench.writes("write_back")
    driver = bench.driver(
        host_pages=8, disk_pages=8, write_policy="write_back", model_fingerprint="weights"
    )
    driver.serve(bench.prompt(2))
    driver.poison(0)
    expect("FAIL-2", driver.used("host"), 0, "host pages in use")
    expect("FAIL-2", bench.restart(driver).hit(bench.prompt(2)), 0, "blocks that were saved")


@check("FAIL-2", needs=("poison", "host", "replicas"))
def what_it_had_offloaded_is_still_there(bench: Bench) -> None:
    """Blocks that had reached host memory before the failure serve the other replicas."""
    driver = bench.driver(host_pages=8, replicas=2, enable_dp_cross_replica_prefix_copy=False)
    driver.serve(bench.prompt(2), 1)
    driver.evict_all(1)
    driver.poison(1)
    expect("FAIL-2", driver.hit(bench.prompt(2), 0), 2, "blocks found in host memory")


@check("FAIL-2", "RESET-1", needs=("poison", "reset"))
def a_failed_device_does_not_stand_in_the_way_of_a_reset(bench: Bench) -> None:
    """Resetting the cache still works, and heals nothing."""
    driver = bench.driver()
    ctx = driver.admit(bench.prompt(1))
    driver.poison(0)
    driver.reset()
    driver.release(ctx)
    driver.refused("FAIL-2", ReplicaPoisonedError, "claim", "late", 0)


@check("FAIL-2", "ALLOC-13", needs=("poison", "transfers"))
def an_allocation_on_it_is_not_completed(bench: Bench) -> None:
    """What was begun before the failure ends with it, even if it waits for nothing."""
    driver = bench.controlled()
    ctx = driver.claim(driver.request(bench.prompt(2)))
    driver.begin(ctx)
    driver.poison(0)
    driver.refused("FAIL-2", ReplicaPoisonedError, "finish_alloc", ctx, 0)
    driver.release(ctx)
    expect("FAIL-2", driver.manager.num_free_blocks(0), 8, "free pages when it is released")


@check("FAIL-1", "TIER-5", "ALLOC-11", needs=("disk", "store"))
def damage_in_every_tier_does_not_fail_a_request(bench: Bench) -> None:
    """Where the copies on disk and in the store are damaged alike, the block is computed."""
    driver = bench.driver(
        host_pages=4, disk_pages=8, store=True, head_dim=16, model_fingerprint="weights"
    )
    ctx = driver.serve(bench.prompt(3))
    restarted = bench.restart(driver)
    bench.damage(restarted, "disk", ctx, 2, "flipped")
    bench.damage(restarted, "store", ctx, 2, "flipped")
    again = restarted.admit(bench.prompt(3))
    left = again.tokens.processed_length // bench.size
    demand("FAIL-1", left <= 2, f"blocks served after the third was damaged: {left}")
    restarted.forward(again)


@check("FAIL-1", "STEP-4", "ALLOC-11", needs=("disk", "store"))
def what_landed_beside_two_failures_may_be_used(bench: Bench) -> None:
    """If a block fails on disk and in the store, one behind it may have landed, and be kept."""
    driver = bench.driver(
        host_pages=4, disk_pages=2, store=True, head_dim=16, model_fingerprint="weights"
    )
    ctx = driver.serve(bench.prompt(3))
    restarted = bench.restart(driver)
    bench.damage(restarted, "disk", ctx, 0, "flipped")
    bench.damage(restarted, "store", ctx, 0, "flipped")
    again = restarted.admit(bench.prompt(3))
    expect("FAIL-1", again.tokens.processed_length, 0, "tokens served without an intact root")
    restarted.forward(again)
    restarted.forward(again)
