"""TIER: what is kept below the devices, what comes back from there, and what makes room."""

from typing import Any

from pagedkv.conformance.bench import Bench, Skip
from pagedkv.conformance.check import check
from pagedkv.conformance.driver import Driver
from pagedkv.conformance.implementation import Capability
from pagedkv.conformance.violation import demand, expect
from pagedkv.reference.context import TextContext
from pagedkv.reference.tokens import TokenHashOverride

ISOLATED = {"replicas": 2, "enable_dp_cross_replica_prefix_copy": False}
"""Replicas that share nothing but the tiers below; the last one shows what those hold."""

NAMED = {"model_fingerprint": "weights"}
"""Makes what is on disk and in a store outlive the manager."""


# --- TIER-1: visibility and capacity --------------------------------------------------------------


@check("TIER-1", "XFER-3", needs=("host", "transfers", "replicas", "probes"))
def a_block_is_visible_when_its_bytes_are_there(bench: Bench) -> None:
    """What is on its way into host memory is not found there, but takes its slots already."""
    bench.writes("through")
    driver = bench.controlled(host_pages=8, write_policy="through", **ISOLATED)
    driver.serve(bench.prompt(2))
    expect("TIER-1", driver.used("host"), 2, "host pages in use before anything has landed")
    expect("TIER-1", driver.visible_below(bench.prompt(2)), 0, "blocks visible before they land")
    driver.land_all()
    expect("TIER-1", driver.used("host"), 2, "host pages in use")
    expect("TIER-1", driver.visible_below(bench.prompt(2)), 2, "blocks visible when they are there")


@check("TIER-1", "TIER-9", needs=("host", "transfers"))
def slots_in_flight_count(bench: Bench) -> None:
    """A slot that a transfer writes is given to no other; what finds none is dropped."""
    bench.writes("through")
    driver = bench.controlled(host_pages=2, write_policy="through")
    for start in (0, 50, 90):
        driver.serve(bench.prompt(1, start))
    expect("TIER-1", driver.used("host"), 2, "host pages in use")
    offered = sum(len(transfer.keys) for transfer in driver.in_flight())
    expect("TIER-1", offered, 2, "blocks on their way into two slots")


@check("TIER-1", needs=("host",))
def a_tier_never_holds_more_than_it_has_room_for(bench: Bench) -> None:
    """However many chains of whatever length are served, the tiers below stay within bounds."""
    disk = {"disk_pages": 5} if "disk" in bench.implementation.capabilities else {}
    driver = bench.driver(host_pages=3, **disk)
    for n in range(12):
        driver.serve(bench.prompt(n % 5, 50 * n))
        driver.hit(bench.prompt(3, 50 * (n // 2)))


@check("TIER-1", "NS-4", needs=("host", "disk"))
def a_smaller_disk_holds_fewer_blocks(bench: Bench) -> None:
    """A disk that is opened with less room than it had stays within it from the start."""
    driver = bench.driver(host_pages=8, disk_pages=6, **NAMED)
    driver.serve(bench.prompt(5))
    restarted = bench.restart(driver, disk_pages=2)
    demand(
        "TIER-1", restarted.used("disk") <= 2, f"{restarted.used('disk')} of 2 disk pages in use"
    )
    restarted.serve(bench.prompt(5))
    restarted.serve(bench.prompt(2, 50))


# --- TIER-2: inclusion ----------------------------------------------------------------------------


@check("TIER-2", needs=("host", "disk"))
def what_lands_in_host_memory_is_written_to_disk(bench: Bench) -> None:
    """Every block of host memory is also on disk."""
    bench.writes("through")
    driver = bench.driver(host_pages=8, disk_pages=8, write_policy="through")
    for pages in (2, 3):
        driver.serve(bench.prompt(pages))
        expect("TIER-2", driver.used("host"), pages, "host pages in use")
        expect("TIER-2", driver.used("disk"), pages, "disk pages in use")


@check("TIER-2", needs=("host", "disk", "store", "metrics"))
def what_lands_in_host_memory_is_written_to_all_tiers_below(bench: Bench) -> None:
    """With disk and store behind host memory, both get every block once."""
    bench.writes("through")
    driver = bench.driver(host_pages=8, disk_pages=8, store=True, write_policy="through")
    for _ in range(2):
        driver.serve(bench.prompt(2))
    metrics = driver.metrics()
    expect("TIER-2", metrics.disk_blocks_written, 2, "blocks written to disk")
    expect("TIER-2", metrics.store_blocks_written, 2, "blocks put into the store")


@check("TIER-2", needs=("host", "disk"))
def a_disk_hit_gets_host_slots(bench: Bench) -> None:
    """What is read from disk is in host memory afterwards, as far as there are slots."""
    for host_pages in (4, 2):
        before = bench.driver(host_pages=4, disk_pages=8, **NAMED)
        before.serve(bench.prompt(3))
        driver = bench.restart(before, host_pages=host_pages)
        expect("TIER-2", driver.used("host"), 0, "host pages in use after a restart")
        expect("TIER-2", driver.hit(bench.prompt(3)), 3, "blocks read from disk")
        expect("TIER-2", driver.used("host"), min(3, host_pages), "host pages in use")


@check("TIER-2", needs=("host", "disk", "store"))
def a_store_hit_is_written_to_the_local_tiers(bench: Bench) -> None:
    """What is fetched from a store is in host memory and on disk afterwards."""
    before = bench.driver(store=True, **NAMED)
    before.serve(bench.prompt(2))
    driver = bench.beside(before, host_pages=4, disk_pages=4)
    expect("TIER-2", driver.hit(bench.prompt(2)), 2, "blocks fetched from the store")
    expect("TIER-2", driver.used("host"), 2, "host pages in use")
    expect("TIER-2", driver.used("disk"), 2, "disk pages in use")


# --- TIER-3: bytes --------------------------------------------------------------------------------


def every_byte_comes_back(bench: Bench, pages: int = 2, **shape: Any) -> None:
    """Through host memory, through disk and through a store, as far as there are any."""
    has = bench.implementation.capabilities.__contains__
    room, tokens = 4 * pages, bench.prompt(pages)
    shape["total_num_pages"] = room
    driver = bench.driver(host_pages=room, **shape)
    driver.serve(tokens)
    expect("TIER-3", driver.hit_below(tokens), pages, "blocks from host memory")
    driver.forward(driver.admit(tokens))
    places: list[tuple[Capability, dict[str, Any]]] = [
        ("disk", {"host_pages": room, "disk_pages": room}),
        ("store", {"store": True}),
    ]
    for tier, options in places:
        if has(tier):
            driver = bench.driver(**options, **shape, **NAMED)
            driver.serve(tokens)
            restarted = bench.restart(driver)
            hits = restarted.hit(tokens)
            if "TIER-2" in bench.implementation.follows:
                expect("TIER-3", hits, pages, f"blocks from {tier}")


@check("TIER-3", needs=("host", "bytes"))
def every_byte_of_a_long_chain_comes_back(bench: Bench) -> None:
    """However many blocks are loaded at once, each page gets its own bytes again."""
    every_byte_comes_back(bench, pages=70)


@check("TIER-3", needs=("host", "bytes"))
def every_byte_of_every_layer_comes_back(bench: Bench) -> None:
    """Keys and values of all layers are what they were when they were offloaded."""
    every_byte_comes_back(bench, layers=3)


@check("TIER-3", needs=("host", "bytes"))
def every_byte_of_every_shard_comes_back(bench: Bench) -> None:
    """Each tensor-parallel shard gets its own bytes again."""
    every_byte_comes_back(bench, shards=2)


@check("TIER-3", needs=("host", "bytes", "mla"))
def every_byte_of_a_latent_comes_back(bench: Bench) -> None:
    """A cache of one latent per token is restored; where shards replicate it, on all of them."""
    for shards in (1, 2, 3):
        every_byte_comes_back(bench, cache="mla", shards=shards)


@check("TIER-3", needs=("host", "bytes", "fp8"))
def every_byte_of_the_scales_comes_back(bench: Bench) -> None:
    """Values come back together with their scales."""
    every_byte_comes_back(bench, cache="fp8")
    every_byte_comes_back(bench, cache="fp8", shards=2)


@check("TIER-3", needs=("host", "bytes", "multi"))
def every_byte_of_every_cache_comes_back(bench: Bench) -> None:
    """Where a model has two caches, both are restored."""
    every_byte_comes_back(bench, cache="tree", shards=2)


@check("TIER-3", "ALLOC-10", needs=("replicas", "bytes"))
def every_byte_comes_from_another_replica(bench: Bench) -> None:
    """What another replica has computed is right in every shard, whichever way it comes."""
    kinds: dict[Capability, dict[str, Any]] = {
        "bytes": {"shards": 2},
        "host": {"host_pages": 8},
        "mla": {"cache": "mla", "shards": 3},
        "fp8": {"cache": "fp8"},
        "multi": {"cache": "tree"},
    }
    for capability, shape in kinds.items():
        if capability in bench.implementation.capabilities or capability == "bytes":
            driver = bench.driver(replicas=2, **shape)
            driver.serve(bench.prompt(5), 1)
            driver.forward(driver.admit(bench.prompt(6)))


@check("TIER-3", "POOL-7", needs=("host", "bytes"))
def bytes_below_are_those_of_their_prefix(bench: Bench) -> None:
    """Equal pages after other prefixes, salts, adapters or images come back each as it was."""
    driver = bench.driver(host_pages=32)
    tails = [[7, *bench.prompt(2)], [8, *bench.prompt(2)]]
    media = [TokenHashOverride(1, 5)]
    kinds: list[dict[str, Any]] = [
        {},
        {"cache_salt": "a"},
        {"adapter": "b"},
        {"token_hash_overrides": media},
    ]
    for options in kinds:
        for tokens in tails:
            driver.serve(tokens, **options)
    driver.evict_all()
    for options in kinds:
        for tokens in tails:
            expect("TIER-3", driver.hit(tokens, **options), 2, "blocks found below")


@check("TIER-3", "XFER-3", needs=("host", "bytes", "transfers"))
def bytes_are_read_while_they_are_pinned(bench: Bench) -> None:
    """An offload that lands late still reads what was committed, whatever happened meanwhile."""
    bench.writes("through")
    driver = bench.controlled(host_pages=8, write_policy="through")
    ctx = driver.admit(bench.prompt(2))
    driver.forward(ctx)
    for token in range(3):
        driver.alloc(ctx)
        driver.forward(ctx, token=token)
    driver.release(ctx)
    driver.evict_all()
    driver.land_all()
    expect("TIER-3", driver.hit_below(bench.prompt(2)), 2, "blocks found below")


# --- TIER-4: recency ------------------------------------------------------------------------------


@check("TIER-4", needs=("host",))
def a_chain_loses_its_leaf_first(bench: Bench) -> None:
    """When host memory is short, a chain keeps its root, although that was offloaded first."""
    driver = bench.driver(host_pages=3)
    driver.serve(bench.prompt(3))
    driver.evict_all()
    driver.serve(bench.prompt(1, 50))
    expect("TIER-4", driver.hit_below(bench.prompt(3)), 2, "blocks left of a chain of three")


@check("TIER-4", needs=("host",))
def a_host_hit_renews_what_it_hits(bench: Bench) -> None:
    """Of two blocks in host memory, the one that was hit since stays."""
    driver = bench.driver(host_pages=2)
    for start in (0, 50):
        driver.serve(bench.prompt(1, start))
    expect("TIER-4", driver.hit_below(bench.prompt(1)), 1, "blocks hit in host memory")
    driver.evict_all()
    driver.serve(bench.prompt(1, 90))
    expect("TIER-4", driver.hit_below(bench.prompt(1)), 1, "blocks that were hit since")
    expect("TIER-4", driver.hit(bench.prompt(1, 50)), 0, "blocks that were not")


@check("TIER-4", needs=("host",))
def a_device_hit_renews_what_is_below(bench: Bench) -> None:
    """A block that is hit on the device is not forgotten below."""
    bench.writes("through")
    driver = bench.driver(host_pages=2, write_policy="through")
    for start in (0, 50):
        driver.serve(bench.prompt(1, start))
    driver.hit(bench.prompt(1))
    driver.serve(bench.prompt(1, 90))
    expect("TIER-4", driver.hit_below(bench.prompt(1)), 1, "blocks that were hit since")


@check("TIER-4", needs=("host", "disk"))
def a_disk_hit_renews_what_it_hits(bench: Bench) -> None:
    """Of two blocks on disk, the one that was read since stays."""
    bench.follows("TIER-2")
    driver = bench.driver(host_pages=1, disk_pages=2, **NAMED)
    for start in (0, 50):
        driver.serve(bench.prompt(1, start))
    expect("TIER-4", driver.hit_below(bench.prompt(1)), 1, "blocks read from disk")
    driver.evict_all()
    driver.serve(bench.prompt(1, 90))
    restarted = bench.restart(driver)
    expect("TIER-4", restarted.hit(bench.prompt(1)), 1, "blocks on disk that were hit since")
    expect("TIER-4", restarted.hit(bench.prompt(1, 50)), 0, "blocks on disk that were not")


@check("TIER-4", needs=("host",))
def an_offered_chain_is_renewed_as_a_whole(bench: Bench) -> None:
    """A request that commits one more page renews its older ones below."""
    bench.writes("through")
    driver = bench.driver(host_pages=3, write_policy="through")
    ctx = driver.admit(bench.prompt(1))
    driver.forward(ctx)
    driver.serve(bench.prompt(1, 50))
    for token in range(bench.size - 1):
        driver.alloc(ctx)
        driver.forward(ctx, token=token)
    driver.release(ctx)
    driver.serve(bench.prompt(1, 90))
    expect("TIER-4", driver.hit_below(ctx.tokens.all.tolist()), 2, "blocks of the chain left")
    expect("TIER-4", driver.hit(bench.prompt(1, 50)), 0, "blocks left of the other chain")


@check("TIER-4", "TIER-9", needs=("host",))
def a_chain_does_not_make_room_for_itself(bench: Bench) -> None:
    """Of a chain that is longer than host memory, the root part is kept, as the chain grows."""
    driver = bench.driver(host_pages=2)
    for pages in (2, 3, 4):
        driver.serve(bench.prompt(pages))
    expect("TIER-4", driver.hit_below(bench.prompt(4)), 2, "blocks left of a chain of four")


@check("TIER-4", "XFER-1", needs=("host", "transfers"))
def recency_is_leaf_first_whatever_lands_first(bench: Bench) -> None:
    """A chain whose leaf lands before its root still loses its leaf first."""
    bench.writes("through")
    driver = bench.controlled(host_pages=2, write_policy="through")
    ctx = driver.admit(bench.prompt(1))
    for token in range(bench.size):
        driver.forward(ctx, token=token)
        driver.alloc(ctx)
    driver.release(ctx)
    for transfer in reversed(driver.in_flight()):
        driver.land(transfer)
    driver.serve(bench.prompt(1, 50))
    driver.land_all()
    expect("TIER-4", driver.hit_below(ctx.tokens.all.tolist()), 1, "blocks left of the chain")


# --- TIER-9: what finds no slot -------------------------------------------------------------------


@check("TIER-9", needs=("host", "transfers"))
def descendants_of_a_dropped_block_are_dropped(bench: Bench) -> None:
    """Where a chain finds one slot of three, its root gets it; the next commit offers the rest."""
    bench.writes("through")
    driver = bench.controlled(host_pages=3, total_num_pages=12, write_policy="through")
    driver.serve(bench.prompt(2, 50))
    in_use = {transfer.id for transfer in driver.in_flight()}
    ctx = driver.admit(bench.prompt(3))
    driver.forward(ctx)
    blocks = driver.model.digests(ctx, 3)
    expect("TIER-9", offered(driver, ctx, in_use), blocks[:1], "blocks that found the only slot")
    driver.land_all()
    for token in range(bench.size):
        driver.alloc(ctx)
        driver.forward(ctx, token=token)
    demand(
        "TIER-9", blocks[1] in offered(driver, ctx, set()), "a dropped block is not offered again"
    )


def offered(driver: Driver, ctx: TextContext, but: set[str]) -> list[bytes]:
    """The blocks of a request that are on their way down."""
    transfers = [transfer for transfer in driver.in_flight() if transfer.id not in but]
    return [driver.block_of(key, ctx) for transfer in transfers for key in transfer.keys]


@check("TIER-9", needs=("host", "disk", "transfers"))
def a_block_without_its_parent_is_not_taken(bench: Bench) -> None:
    """A leaf whose root has failed to arrive on disk is not kept there."""
    bench.writes("through")
    driver = bench.controlled(host_pages=4, disk_pages=4, write_policy="through")
    ctx = driver.admit(bench.prompt(1))
    for token in range(bench.size):
        driver.forward(ctx, token=token)
        driver.alloc(ctx)
    for transfer in driver.in_flight():
        driver.land(transfer)
    root = driver.model.digests(ctx, 1)[0]
    for transfer in driver.in_flight():
        if root in [driver.block_of(key, ctx) for key in transfer.keys]:
            driver.fail(transfer, "io_error")
    driver.land_all()
    expect("TIER-9", driver.used("disk"), 0, "disk pages in use by a chain without its root")


@check("TIER-9", "TIER-4", needs=("host",))
def a_long_chain_leaves_no_orphans(bench: Bench) -> None:
    """Chains longer than host memory: whatever is found below begins with the root."""
    driver = bench.driver(host_pages=2, total_num_pages=12)
    for n in range(3):
        driver.serve(bench.prompt(5, 50 * n))
        driver.evict_all()
        driver.hit(bench.prompt(5, 50 * n))


# --- TIER-10: which tiers there are ---------------------------------------------------------------


@check("TIER-10")
def without_a_connector_nothing_is_kept_below(bench: Bench) -> None:
    """A manager of devices alone forgets what it evicts."""
    driver = bench.driver()
    driver.serve(bench.prompt(2))
    expect("TIER-10", driver.hit_below(bench.prompt(2)), 0, "blocks found below the device")


def capacities(driver: Driver) -> list[int]:
    """Pages of host memory and of the disk, as every replica tells them."""
    tiers, replicas = ("host", "disk"), range(driver.setup.replicas)
    return [getattr(driver.manager, f"get_num_{t}_pages")(r) for t in tiers for r in replicas]


@check("TIER-10", needs=("host",))
def local_is_host_memory(bench: Bench) -> None:
    """A manager with host memory has as many pages of it as it was given, and no disk."""
    expect("TIER-10", capacities(bench.driver(host_pages=5)), [5, 0], "host and disk pages")


@check("TIER-10", needs=("host", "disk"))
def tiered_is_host_memory_and_disk(bench: Bench) -> None:
    """Host memory and disk have the pages that they were given."""
    driver = bench.driver(host_pages=5, disk_pages=7)
    expect("TIER-10", capacities(driver), [5, 7], "host and disk pages")


@check("TIER-10", needs=("store",))
def a_store_needs_nothing_in_front_of_it(bench: Bench) -> None:
    """A block store alone serves; host memory and disk stand before it where they are asked for."""
    driver = bench.driver(store=True)
    expect("TIER-10", capacities(driver), [0, 0], "host and disk pages")
    driver.serve(bench.prompt(2))
    expect("TIER-10", driver.hit_below(bench.prompt(2)), 2, "blocks found in the store")
    for options in ({"host_pages": 5}, {"host_pages": 5, "disk_pages": 7}):
        expected = [5, options.get("disk_pages", 0)]
        expect("TIER-10", capacities(bench.driver(store=True, **options)), expected, "pages")


@check("TIER-10", needs=("host", "replicas"))
def one_host_tier_serves_all_replicas(bench: Bench) -> None:
    """What one replica has offloaded another one hits, and its slots are counted once."""
    driver = bench.driver(host_pages=8, **ISOLATED)
    expect("TIER-10", capacities(driver), [8, 8, 0, 0], "host and disk pages, by replica")
    driver.serve(bench.prompt(2), 0)
    driver.evict_all(0)
    expect("TIER-10", driver.hit(bench.prompt(2), 1), 2, "blocks hit on the other replica")
    driver.evict_all(1)
    used = [driver.manager.get_num_used_host_pages(replica) for replica in range(2)]
    expect("TIER-10", used, [2, 2], "host pages in use, as both replicas tell it")


@check("TIER-10", needs=("host", "disk", "replicas"))
def one_disk_serves_all_replicas(bench: Bench) -> None:
    """Replicas do not bring a disk each: they share the pages that it was given."""
    driver = bench.driver(host_pages=2, disk_pages=3, **ISOLATED)
    expect("TIER-10", capacities(driver), [2, 2, 3, 3], "host and disk pages, by replica")
    for n in range(4):
        driver.serve(bench.prompt(2, 50 * n), n % 2)
    driver.check()


@check("TIER-10", "TIER-3", "SIZE-3", needs=("host", "disk", "mla"))
def a_replicated_latent_takes_the_room_of_one_shard(bench: Bench) -> None:
    """A disk of so many pages takes so many blocks, however many shards hold them."""
    driver = bench.driver(host_pages=5, disk_pages=7, cache="mla", shards=2)
    expect("TIER-10", capacities(driver), [5, 7], "host and disk pages")


# --- TIER-3 again: two at once --------------------------------------------------------------------


@check("TIER-3", "TIER-2", needs=("host", "disk", "transfers", "replicas", "bytes"))
def loads_that_overlap_mix_no_bytes(bench: Bench) -> None:
    """Two replicas read chains with a common root at once: every block is right, wherever it is."""
    driver = bench.driver(host_pages=8, disk_pages=8, **NAMED)
    driver.serve(bench.prompt(3))
    for backwards in (False, True):
        driver = bench.restart(driver, auto_land=False, **ISOLATED)
        readers = [
            driver.claim(driver.request(bench.prompt(pages)), replica)
            for replica, pages in enumerate((1, 3))
        ]
        for ctx in readers:
            driver.begin(ctx)
        for transfer in driver.in_flight()[:: -1 if backwards else 1]:
            driver.land(transfer)
        driver.land_all()
        for ctx in readers:
            driver.finish(ctx)
            driver.release(ctx)
        for replica in range(2):
            driver.hit_below(bench.prompt(3), replica)


@check("TIER-9", "TIER-2", needs=("host", "disk", "transfers"))
def nothing_is_promoted_without_its_parent(bench: Bench) -> None:
    """What is read from disk stays out of host memory if its parent is on the device alone."""
    bench.writes("through")
    before = bench.driver(host_pages=8, disk_pages=8, write_policy="through", **NAMED)
    before.serve(bench.prompt(3))
    driver = bench.restart(before, host_pages=2, auto_land=False)
    driver.hit(bench.prompt(1))
    driver.land_all()
    driver.serve(bench.prompt(2, 50))
    driver.land_all()
    driver.hit(bench.prompt(3))
    driver.land_all()
    driver.evict_all()
    driver.land_all()
    ctx = driver.claim(driver.request(bench.prompt(3)))
    driver.begin(ctx)
    loads = [load for load in driver.loads() if load.source == "host"]
    in_host = [driver.block_of(key, ctx) for load in loads for key in load.keys]
    root = driver.model.digests(ctx, len(in_host))
    expect("TIER-9", in_host, root, "blocks in host memory, which begin with the root")


@check("TIER-9", "XFER-4", needs=("host", "disk", "transfers", "replicas"))
def what_is_promoted_does_not_outlive_its_parent(bench: Bench) -> None:
    """A block whose parent another load was to bring is not kept when that load has failed."""
    before = bench.driver(host_pages=8, disk_pages=8, **NAMED)
    before.serve(bench.prompt(2))
    driver = bench.restart(before, auto_land=False, **ISOLATED)
    for replica, pages in enumerate((1, 2)):
        driver.begin(driver.claim(driver.request(bench.prompt(pages)), replica))
    loads = driver.loads()
    if len(loads) < 2:
        raise Skip("nothing is read from disk")
    driver.fail(loads[0], "timeout")
    driver.land(loads[1])
    demand("TIER-9", driver.used("host") != 1, "a leaf is in host memory without its root")
