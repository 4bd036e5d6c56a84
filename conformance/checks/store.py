"""STORE: a block store, which others use too."""

from typing import Any

from pagedkv.conformance.bench import Bench, Skip
from pagedkv.conformance.check import check
from pagedkv.conformance.violation import demand, expect

SHARED: dict[str, Any] = {"store": True, "model_fingerprint": "weights"}
"""A manager on a store, which all who serve the same model share."""


# --- STORE-1: namespaces --------------------------------------------------------------------------


@check("STORE-1", "NS-2", needs=("store",))
def other_weights_are_another_namespace(bench: Bench) -> None:
    """Managers of two models on one store find each their own blocks, never those of the other."""
    driver = bench.driver(**SHARED)
    other = bench.beside(driver, model_fingerprint="other weights")
    for manager in (driver, other):
        expect("STORE-1", manager.hit(bench.prompt(2)), 0, "blocks found of another model")
        manager.serve(bench.prompt(2))
    for manager in (driver, other):
        expect("STORE-1", manager.hit_below(bench.prompt(2)), 2, "blocks found of its own model")


@check("STORE-1", "NS-1", needs=("store",))
def another_layout_is_another_namespace(bench: Bench) -> None:
    """Whatever changes what the bytes of a page mean keeps managers apart."""
    driver = bench.driver(**SHARED)
    driver.serve(bench.prompt(2))
    changes: list[dict[str, Any]] = [
        {"layers": 3},
        {"head_dim": 4},
        {"shards": 2},
        {"hash_seed": bytes(range(32))},
        *({"hash_algorithm": other} for other in bench.implementation.hash_algorithms[1:]),
    ]
    for change in changes:
        other = bench.beside(driver, **change)
        expect("STORE-1", other.hit(bench.prompt(2)), 0, f"blocks found by a manager with {change}")
        other.serve(bench.prompt(2))
        expect("STORE-1", other.hit_below(bench.prompt(2)), 2, f"own blocks found with {change}")
    expect("STORE-1", driver.hit_below(bench.prompt(2)), 2, "blocks found by the first manager")


@check("STORE-1", "RESET-4", needs=("store", "reset"))
def a_reset_is_another_namespace(bench: Bench) -> None:
    """What a manager puts after a reset is not taken for what was there before, and vice versa."""
    driver = bench.driver(**SHARED)
    driver.serve(bench.prompt(2))
    old = bench.beside(driver)
    driver.reset()
    driver.serve(bench.prompt(2, 50))
    expect("STORE-1", driver.hit_below(bench.prompt(2, 50)), 2, "blocks found from after the reset")
    expect("STORE-1", driver.hit(bench.prompt(2)), 0, "blocks found from before the reset")
    expect("STORE-1", old.hit(bench.prompt(2)), 2, "blocks found by who was not reset")
    old.hit(bench.prompt(2, 50))


# --- STORE-2: sharing -----------------------------------------------------------------------------


@check("STORE-2", "NS-2", needs=("store",))
def one_manager_hits_what_another_has_put(bench: Bench) -> None:
    """Managers of one model hit each other's blocks, while both are there, and both ways."""
    driver = bench.driver(**SHARED)
    other = bench.beside(driver)
    driver.serve(bench.prompt(2))
    expect("STORE-2", other.hit(bench.prompt(2)), 2, "blocks of the other manager")
    other.serve(bench.prompt(2, 50))
    expect("STORE-2", driver.hit(bench.prompt(2, 50)), 2, "blocks of the other manager")


@check("STORE-2", "CLOSE-1", needs=("store",))
def a_store_outlives_its_managers(bench: Bench) -> None:
    """What a manager has put is found by those that start when it is gone."""
    driver = bench.driver(**SHARED)
    driver.serve(bench.prompt(2))
    restarted = bench.restart(driver)
    expect("STORE-2", restarted.hit(bench.prompt(2)), 2, "blocks of a former manager")
    ctx = restarted.admit(bench.prompt(3))
    restarted.forward(ctx)
    restarted.release(ctx)
    expect("STORE-2", bench.restart(restarted).hit(bench.prompt(3)), 3, "blocks of both of them")


@check("STORE-2", needs=("store", "transfers"))
def a_put_is_seen_when_it_has_landed(bench: Bench) -> None:
    """Others find a block when all its bytes are in the store, and not before."""
    driver = bench.controlled(**SHARED)
    driver.serve(bench.prompt(2))
    demand("STORE-2", bool(driver.in_flight()), "nothing is put into the store")
    other = bench.beside(driver, auto_land=True)
    expect("STORE-2", other.hit(bench.prompt(2)), 0, "blocks found before they have landed")
    driver.land_all()
    expect("STORE-2", other.hit(bench.prompt(2)), 2, "blocks found when they have landed")


@check("STORE-2", "NS-2", needs=("store",))
def without_a_fingerprint_nothing_is_shared(bench: Bench) -> None:
    """A manager that does not say whose weights it has neither finds nor shows anything."""
    driver = bench.driver(store=True)
    driver.serve(bench.prompt(2))
    other = bench.beside(driver)
    expect("STORE-2", other.hit(bench.prompt(2)), 0, "blocks found of an unnamed model")
    expect("STORE-2", driver.hit_below(bench.prompt(2)), 2, "own blocks found")


# --- STORE-3: nothing is deleted ------------------------------------------------------------------


@check("STORE-3", "RESET-4", needs=("store", "reset"))
def others_keep_what_one_gives_up(bench: Bench) -> None:
    """Evictions, resets and the end of one manager delete nothing that others may use."""
    driver = bench.driver(**SHARED)
    driver.serve(bench.prompt(2))
    other = bench.beside(driver)
    driver.evict_all()
    driver.reset()
    driver.reset()
    driver.serve(bench.prompt(2, 50))
    driver.shutdown()
    expect("STORE-3", other.hit(bench.prompt(2)), 2, "blocks left for another manager")


@check("STORE-3", "TIER-6", needs=("store", "transfers"))
def others_keep_what_one_cannot_read(bench: Bench) -> None:
    """A manager that fails to read from a store, and goes, leaves the blocks as they are."""
    driver = bench.driver(**SHARED)
    driver.serve(bench.prompt(2))
    unlucky = bench.beside(driver, auto_land=False)
    for reason in ("timeout", "missing", "io_error"):
        ctx = unlucky.claim(unlucky.request(bench.prompt(2)))
        unlucky.begin(ctx)
        for transfer in unlucky.in_flight():
            unlucky.fail(transfer, reason)
        unlucky.release(ctx)
    ctx = unlucky.claim(unlucky.request(bench.prompt(2)))
    unlucky.begin(ctx)
    unlucky.release(ctx)
    unlucky.shutdown()
    expect("STORE-3", bench.beside(driver).hit(bench.prompt(2)), 2, "blocks left for others")


# --- STORE-4: further stores ----------------------------------------------------------------------


@check("STORE-4", "ALLOC-4", needs=("store",))
def further_stores_are_asked_after_the_own(bench: Bench) -> None:
    """A request hits what its own and the further stores hold together, in that order."""
    driver = bench.driver(**SHARED)
    driver.serve(bench.prompt(1))
    further = []
    for pages in (2, 3):
        endpoint = f"{driver.setup.store_endpoint}-further-{pages}"
        elsewhere = bench.beside(driver, store_endpoint=endpoint)
        elsewhere.serve(bench.prompt(pages))
        further.append(endpoint)
        driver.may_ask_the_store_of(elsewhere)
    driver.evict_all()
    expect("STORE-4", driver.hit(bench.prompt(3)), 1, "blocks found without further stores")
    for endpoints, blocks in ((further[:1], 2), (further, 3), (further[1:], 3)):
        driver.evict_all()
        given = {"endpoints": endpoints}
        found = driver.hit(bench.prompt(3), external_block_metadata=given)
        expect("STORE-4", found, blocks, f"blocks found with {len(endpoints)} further stores")


@check("STORE-4", needs=("store",))
def a_further_store_without_the_blocks_is_a_miss(bench: Bench) -> None:
    """An endpoint that nobody has put anything to changes nothing."""
    driver = bench.driver(**SHARED)
    driver.serve(bench.prompt(2))
    driver.evict_all()
    given = {"endpoints": [f"{driver.setup.store_endpoint}-unused"]}
    found = driver.hit(bench.prompt(3), external_block_metadata=given)
    expect("STORE-4", found, 2, "blocks found with an empty further store")


@check("STORE-4", needs=("store",))
def other_metadata_is_refused(bench: Bench) -> None:
    """``external_block_metadata`` of another form is an error, and takes no page."""
    driver = bench.driver(**SHARED)
    wrong: list[object] = ["store", ["store"], {}, {"endpoints": "store"}, {"endpoints": [2]}, 7]
    for metadata in (*wrong, {"endpoints": [], "more": 1}):
        ctx = driver.claim(driver.request(bench.prompt(1)))
        ctx.external_block_metadata = metadata
        driver.refused("STORE-4", ValueError, "alloc", ctx, 0)
        driver.release(ctx)


@check("STORE-4", "TIER-5", needs=("store", "metrics"))
def stores_are_asked_in_their_order(bench: Bench) -> None:
    """What the first store has is fetched there: damage in those after it is not even noticed."""
    for holder in range(2):
        driver = bench.driver(**SHARED, head_dim=16)
        own = driver.setup.store_endpoint
        others = [bench.beside(driver, store_endpoint=f"{own}-further-{n}") for n in range(2)]
        stores = [driver, *others][holder:]
        given = {"endpoints": [other.setup.store_endpoint for other in others]}
        for n, store in enumerate(stores):
            ctx = store.serve(bench.prompt(2))
            store.evict_all()
            driver.may_ask_the_store_of(store)
            if n:
                bench.damage(store, "store", ctx, 0, "flipped")
        driver.evict_all()
        found = driver.hit(bench.prompt(2), external_block_metadata=given)
        expect("STORE-4", found, 2, f"blocks found in store {holder}")
        failed = driver.metrics().load_blocks_failed
        expect("STORE-4", failed, 0, "loads that have failed where nobody should have asked")


@check("STEP-5", "TIER-9", needs=("store", "disk"))
def a_full_disk_keeps_nothing_from_the_store(bench: Bench) -> None:
    """What the disk does not take, for want of budget, is offered to the store all the same."""
    bench.writes("through")
    driver = bench.driver(
        host_pages=8, disk_pages=8, disk_writes_per_day=1, write_policy="through", **SHARED
    )
    for start in (0, 50):
        driver.serve(bench.prompt(1, start))
    other = bench.beside(driver, host_pages=None, disk_pages=None)
    if not other.hit(bench.prompt(1)):
        raise Skip("what is in host memory is not in the store")
    expect("STEP-5", other.hit(bench.prompt(1, 50)), 1, "blocks in the store, but not on disk")


@check("STEP-5", "STORE-2", needs=("store", "transfers"))
def what_a_store_has_lost_is_put_again(bench: Bench) -> None:
    """A block that somebody has deleted is offered with the next commit, by who had put it, too."""
    driver = bench.controlled(**SHARED, head_dim=16)
    ctx = driver.serve(bench.prompt(2))
    driver.evict_all()
    driver.land_all()
    for block in range(2):
        bench.damage(driver, "store", ctx, block, "missing")
    driver.serve(bench.prompt(2))
    driver.evict_all()
    driver.land_all()
    other = bench.beside(driver, auto_land=True)
    expect("STEP-5", other.hit(bench.prompt(2)), 2, "blocks that were put again")
