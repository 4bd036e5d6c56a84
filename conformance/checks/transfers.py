"""XFER: transfers between tiers, from their issue until they land or fail."""

from typing import Any

from pagedkv.conformance.bench import Bench, Skip
from pagedkv.conformance.check import check
from pagedkv.conformance.driver import Driver
from pagedkv.conformance.violation import demand, expect
from pagedkv.reference.errors import UnknownTransferError
from pagedkv.reference.events import TransferLanded

ISOLATED: dict[str, Any] = {"replicas": 2, "enable_dp_cross_replica_prefix_copy": False}
"""Replicas that share nothing but the tiers below; the last one shows what those hold."""


def eager(bench: Bench, **options: Any) -> Driver:
    """A driver that plays the environment of a manager which offloads at each commit."""
    bench.writes("through")
    return bench.controlled(**({"host_pages": 8, "write_policy": "through"} | options))


# --- XFER-1: what is settled at the issue ---------------------------------------------------------


@check("XFER-1", "POOL-7", needs=("host", "transfers"))
def pages_are_pinned_from_the_issue_on(bench: Bench) -> None:
    """Pages of an offload may not be taken between the step that issues it and its landing."""
    driver = eager(bench, total_num_pages=3)
    driver.serve(bench.prompt(2))
    pinned = sum(len(transfer.pages) for transfer in driver.in_flight())
    expect("XFER-1", driver.manager.num_free_blocks(0), 3 - pinned, "free pages during an offload")
    greedy = driver.claim(driver.request(bench.prompt(2, 50)))
    demand("XFER-1", not driver.begins(greedy), "an allocation took pages that are being read")
    driver.land_all()
    demand("XFER-1", driver.begins(greedy), "pages of a landed offload cannot be taken")


@check("XFER-1", "TIER-1", needs=("host", "transfers", "replicas", "probes"))
def a_victim_goes_when_the_transfer_is_issued(bench: Bench) -> None:
    """The block that makes room is not found any more, although its successor has not landed."""
    driver = eager(bench, host_pages=1, **ISOLATED)
    driver.serve(bench.prompt(1))
    driver.land_all()
    expect("XFER-1", driver.visible_below(bench.prompt(1)), 1, "blocks below before the issue")
    driver.serve(bench.prompt(1, 50))
    demand("XFER-1", bool(driver.in_flight()), "a victim can be found, but nothing is offloaded")
    expect("XFER-1", driver.visible_below(bench.prompt(1)), 0, "blocks below after the issue")
    expect("XFER-1", driver.visible_below(bench.prompt(1, 50)), 0, "blocks before they land")


@check("XFER-1", "TIER-4", needs=("host", "transfers", "replicas"))
def a_block_that_is_being_read_is_no_victim(bench: Bench) -> None:
    """While a load reads a block, no offload takes its slot."""
    driver = eager(bench, host_pages=1, **ISOLATED)
    driver.serve(bench.prompt(1))
    driver.land_all()
    ctx = driver.claim(driver.request(bench.prompt(1)), 1)
    driver.begin(ctx)
    driver.serve(bench.prompt(1, 50))
    offloads = [transfer for transfer in driver.in_flight() if transfer.kind == "offload"]
    expect("XFER-1", offloads, [], "offloads into a slot that is being read")
    driver.land_all()
    demand("XFER-1", driver.finish(ctx), "a load failed whose source was there")
    driver.forward(ctx)


@check("XFER-1", "TIER-4", needs=("host", "transfers"))
def recency_is_that_of_the_issue(bench: Bench) -> None:
    """Which block is given up next does not depend on the order in which transfers have landed."""
    left = []
    for backwards in (False, True):
        driver = eager(bench, host_pages=2)
        for start in (0, 50):
            driver.serve(bench.prompt(1, start))
        for transfer in sorted(driver.in_flight(), key=lambda t: t.id, reverse=backwards):
            driver.land(transfer)
        driver.serve(bench.prompt(1, 90))
        driver.land_all()
        driver.evict_all()
        left.append([driver.hit(bench.prompt(1, start)) for start in (0, 50, 90)])
    expect("XFER-1", left[1], left[0], "blocks left in host memory, landing in another order")


# --- XFER-2: once ---------------------------------------------------------------------------------


@check("XFER-2", needs=("host", "transfers"))
def a_transfer_settles_once(bench: Bench) -> None:
    """Landing or failing what has landed or failed, or was never issued, is an error."""
    driver = eager(bench)
    driver.refused("XFER-2", UnknownTransferError, "land", "no-such-transfer")
    driver.refused("XFER-2", UnknownTransferError, "fail", "no-such-transfer", "timeout")
    for start, fails in ((0, False), (50, True)):
        driver.serve(bench.prompt(1, start))
        settled = driver.in_flight()
        for transfer in settled:
            if fails:
                driver.fail(transfer, "timeout")
            else:
                driver.land(transfer)
        demand("XFER-2", bool(settled), "nothing was offloaded")
        for transfer in settled:
            driver.refused("XFER-2", UnknownTransferError, "land", transfer.id)
            driver.refused("XFER-2", UnknownTransferError, "fail", transfer.id, "timeout")


@check("XFER-2", needs=("host", "transfers"))
def a_load_settles_once(bench: Bench) -> None:
    """A load that has landed cannot fail any more: its blocks stay."""
    driver = bench.with_chain_below(2)
    ctx = driver.claim(driver.request(bench.prompt(2)))
    driver.begin(ctx)
    loads = driver.in_flight()
    driver.land_all()
    for transfer in loads:
        driver.refused("XFER-2", UnknownTransferError, "fail", transfer.id, "corrupt")
        driver.refused("XFER-2", UnknownTransferError, "land", transfer.id)
    demand("XFER-2", driver.finish(ctx), "a load that had landed was taken for failed")
    driver.forward(ctx)


@check("XFER-2", needs=("host", "transfers"))
def names_of_transfers_are_not_used_twice(bench: Bench) -> None:
    """Each transfer has a name of its own, also when others have settled."""
    driver = eager(bench)
    seen: list[str] = []
    for n in range(4):
        driver.serve(bench.prompt(1, 50 * n))
        seen += [transfer.id for transfer in driver.in_flight()]
        driver.land_all()
    expect("XFER-2", len(set(seen)), len(seen), "names of transfers")


# --- XFER-3: landing ------------------------------------------------------------------------------


@check("XFER-3", "ALLOC-13", needs=("host", "transfers"))
def landing_changes_no_request(bench: Bench) -> None:
    """When its load lands, a request still has its old table and window, until it is finished."""
    driver = bench.with_chain_below(2)
    ctx = driver.claim(driver.request(bench.prompt(2)))
    driver.begin(ctx)
    free = driver.manager.num_free_blocks(0)
    driver.land_all()
    expect("XFER-3", driver.pages(ctx), [], "pages of a request whose load has landed")
    expect("XFER-3", ctx.tokens.processed_length, 0, "start of its window")
    expect("XFER-3", driver.manager.num_free_blocks(0), free, "free pages")
    driver.finish(ctx)
    expect("XFER-3", ctx.tokens.processed_length, 2 * bench.size, "start of its window when done")


@check("XFER-3", "TIER-1", needs=("host", "transfers"))
def landing_makes_blocks_visible(bench: Bench) -> None:
    """What has landed on the device is hit there by others, without another load."""
    driver = bench.with_chain_below(2)
    ctx = driver.claim(driver.request(bench.prompt(2)))
    driver.begin(ctx)
    driver.land_all()
    other = driver.claim(driver.request(bench.prompt(2)))
    waits = driver.begin(other).transfers
    expect("XFER-3", waits, (), "transfers that a request waits for whose blocks have landed")
    driver.finish(other)
    driver.finish(ctx)
    driver.forward(ctx, other)


@check("XFER-3", "TIER-2", needs=("host", "disk", "transfers"))
def landing_issues_the_writes_that_follow(bench: Bench) -> None:
    """When an offload lands in host memory, the write to disk follows."""
    bench.follows("TIER-2")
    driver = eager(bench, disk_pages=8)
    driver.serve(bench.prompt(2))
    expect("XFER-3", {t.target for t in driver.in_flight()}, {"host"}, "targets at first")
    for transfer in driver.in_flight():
        driver.land(transfer)
    expect("XFER-3", {t.target for t in driver.in_flight()}, {"disk"}, "targets then")
    for transfer in driver.in_flight():
        driver.land(transfer)
    expect("XFER-3", driver.in_flight(), [], "transfers in flight when all has landed")


@check("XFER-3", needs=("host", "transfers", "probes"))
def landing_moves_no_page(bench: Bench) -> None:
    """Which cached page is taken next does not depend on when offloads have landed."""
    left = []
    for early in (True, False):
        driver = eager(bench, total_num_pages=6)
        held = [driver.hold(bench.prompt(1, start)) for start in (0, 50, 90)]
        if early:
            driver.land_all()
        for ctx in held:
            driver.release(ctx)
        for transfer in reversed(driver.in_flight()):
            driver.land(transfer)
        driver.release(driver.admit(range(10**6, 10**6 + 5 * bench.size)))
        probes = [driver.probe(driver.request(bench.prompt(1, n)))[0] for n in (0, 50, 90)]
        left.append([hits.device_blocks for hits in probes])
    expect("XFER-3", left[1], left[0], "blocks left after landings at another time")


# --- XFER-4: failing ------------------------------------------------------------------------------


@check("XFER-4", "POOL-2", needs=("host", "transfers"))
def a_failed_load_shows_nothing(bench: Bench) -> None:
    """Pages whose load has failed are free, and nobody hits them."""
    driver = bench.with_chain_below(2)
    ctx = driver.claim(driver.request(bench.prompt(2)))
    driver.begin(ctx)
    for transfer in driver.in_flight():
        driver.fail(transfer, "io_error")
    driver.release(ctx)
    expect("XFER-4", driver.manager.num_free_blocks(0), 8, "free pages")
    expect("XFER-4", driver.hit(bench.prompt(2)), 0, "blocks found after their load has failed")


@check("XFER-4", "TIER-1", needs=("host", "transfers", "replicas", "probes"))
def a_failed_offload_gives_its_slots_back(bench: Bench) -> None:
    """Slots whose offload fails are free, and hold nothing that can be found."""
    driver = eager(bench, host_pages=2, **ISOLATED)
    driver.serve(bench.prompt(2))
    for transfer in driver.in_flight():
        driver.fail(transfer, "io_error")
    expect("XFER-4", driver.used("host"), 0, "host pages in use")
    expect("XFER-4", driver.visible_below(bench.prompt(2)), 0, "blocks found below")
    driver.serve(bench.prompt(2, 50))
    driver.land_all()
    expect("XFER-4", driver.visible_below(bench.prompt(2, 50)), 2, "blocks that got the slots")


@check("XFER-4", "TIER-1", needs=("host", "disk", "transfers"))
def a_failed_disk_write_gives_its_slots_back(bench: Bench) -> None:
    """Disk slots whose write fails are free; host memory keeps its blocks."""
    driver = eager(bench, disk_pages=4)
    driver.serve(bench.prompt(2))
    while transfers := driver.in_flight():
        if transfers[0].target == "disk":
            driver.fail(transfers[0], "no_space")
        else:
            driver.land(transfers[0])
    expect("XFER-4", driver.used("disk"), 0, "disk pages in use")
    expect("XFER-4", driver.used("host"), 2, "host pages in use")
    driver.evict_all()
    expect("XFER-4", driver.hit(bench.prompt(2)), 2, "blocks left in host memory")


@check("XFER-4", "TIER-2", needs=("host", "disk", "transfers"))
def a_failed_load_gives_promised_slots_back(bench: Bench) -> None:
    """A load from disk that fails takes no host slot."""
    before = bench.driver(host_pages=4, disk_pages=4, model_fingerprint="weights")
    before.serve(bench.prompt(2))
    driver = bench.restart(before, auto_land=False)
    ctx = driver.claim(driver.request(bench.prompt(2)))
    driver.begin(ctx)
    for transfer in driver.in_flight():
        driver.fail(transfer, "timeout")
    expect("XFER-4", driver.used("host"), 0, "host pages in use")
    driver.release(ctx)


# --- XFER-5: by another way -----------------------------------------------------------------------


@check("XFER-5", "ALLOC-6", needs=("host", "transfers", "replicas"))
def a_block_that_was_computed_meanwhile_stays(bench: Bench) -> None:
    """A block that a request commits while it is loaded for another stays on its page."""
    driver = eager(bench, **ISOLATED)
    computing = driver.admit(bench.prompt(1))  # Nobody has the block yet.
    driver.serve(bench.prompt(1), 1)
    driver.land_all()
    loading = driver.claim(driver.request(bench.prompt(1)))
    driver.begin(loading)
    demand("XFER-5", bool(driver.in_flight()), "a block in host memory is not loaded")
    driver.forward(computing)
    own = driver.pages(computing)[0]
    driver.land_all()
    driver.finish(loading)
    third = driver.admit(bench.prompt(1))
    expect("XFER-5", driver.pages(third)[0], own, "page of the block that was there first")
    driver.forward(computing, loading, third)


# --- XFER-6: by default ---------------------------------------------------------------------------


@check("XFER-6", needs=("host", "transfers"))
def transfers_land_within_the_call(bench: Bench) -> None:
    """Unless somebody else decides, nothing is in flight when a call has returned."""
    disk = {"disk_pages": 8} if "disk" in bench.implementation.capabilities else {}
    driver = bench.driver(host_pages=8, **disk)
    ctx = driver.admit(bench.prompt(2))
    driver.forward(ctx)
    expect("XFER-6", driver.in_flight(), [], "transfers in flight after a step")
    driver.release(ctx)
    driver.evict_all()
    driver.claim(ctx)
    driver.start_over(ctx)
    driver.alloc(ctx)
    expect("XFER-6", driver.in_flight(), [], "transfers in flight after an allocation")


@check("XFER-6", needs=("host", "disk", "events"))
def transfers_land_in_the_order_of_their_issue(bench: Bench) -> None:
    """Two offloads of one step land one after the other, and then the writes that follow."""
    bench.writes("through")
    driver, events = bench.recorded(host_pages=8, disk_pages=8, write_policy="through")
    driver.forward(*(driver.admit(bench.prompt(1, start)) for start in (0, 50)))
    issued = [transfer for event in events for transfer in getattr(event, "issued", ())]
    landed = [event.transfer for event in events if isinstance(event, TransferLanded)]
    expect("XFER-6", landed, [transfer.transfer for transfer in issued], "transfers that landed")
    targets = [transfer.target for transfer in issued]
    expect("XFER-6", targets, ["host", "host", "disk", "disk"], "targets, in the order of issue")


# --- several transfers at once --------------------------------------------------------------------


@check("XFER-1", "TIER-4", needs=("host", "transfers", "replicas"))
def a_block_that_is_still_read_by_another_is_no_victim(bench: Bench) -> None:
    """A slot that two loads read is given to nobody when the first of them has landed."""
    for ends in (Driver.land, fail_in_time):
        driver = eager(bench, host_pages=1, **(ISOLATED | {"replicas": 3}))
        driver.serve(bench.prompt(1))
        driver.land_all()
        readers = [driver.claim(driver.request(bench.prompt(1)), replica) for replica in (1, 2)]
        for ctx in readers:
            driver.begin(ctx)
        loads = driver.loads()
        expect("XFER-1", [load.source for load in loads], ["host"] * 2, "where replicas load from")
        ends(driver, loads[0])
        driver.serve(bench.prompt(1, 50))
        offloads = [transfer for transfer in driver.in_flight() if transfer.kind == "offload"]
        expect("XFER-1", offloads, [], "offloads into a slot that is being read")
        driver.land_all()
        demand("XFER-1", driver.finish(readers[1]), "a load failed whose source was there")
        driver.forward(readers[1])


def fail_in_time(driver: Driver, transfer: Any) -> None:
    """It takes too long; what it was to read is still there."""
    driver.fail(transfer, "timeout")


@check("XFER-1", "TIER-4", needs=("host", "disk", "transfers"))
def a_block_that_is_being_written_down_is_no_victim(bench: Bench) -> None:
    """While a write reads a host slot, no offload takes it."""
    driver = eager(bench, host_pages=1, disk_pages=4)
    driver.serve(bench.prompt(1))
    for transfer in driver.in_flight():
        driver.land(transfer)
    if not any(transfer.source == "host" for transfer in driver.in_flight()):
        raise Skip("what lands in host memory is not written to disk at once")
    driver.serve(bench.prompt(1, 50))
    offloads = [transfer for transfer in driver.in_flight() if transfer.target == "host"]
    expect("XFER-1", offloads, [], "offloads into a slot that is being read")
    driver.land_all()
    expect("XFER-1", driver.hit_below(bench.prompt(1)), 1, "blocks found below")


@check("XFER-1", "POOL-7", needs=("host", "transfers", "replicas"))
def a_page_is_pinned_until_the_last_transfer_settles(bench: Bench) -> None:
    """Pages that an offload and copies to two replicas read are free when all three have landed."""
    for backwards in (False, True):
        driver = eager(bench, replicas=3)
        driver.serve(bench.prompt(2), 1)
        for replica in (0, 2):
            driver.begin(driver.claim(driver.request(bench.prompt(2)), replica))
        for transfer in driver.in_flight()[:: -1 if backwards else 1]:
            driver.land(transfer)
        expect("XFER-1", driver.manager.num_free_blocks(1), 8, "free pages")


@check("XFER-4", "TIER-6", needs=("host", "transfers"))
def one_block_at_fault_fails_the_whole_offload(bench: Bench) -> None:
    """An offload that fails through one of its blocks gives the slots of all of them back."""
    driver = eager(bench, host_pages=2)
    for at_fault in (0, -1):
        driver.serve(bench.prompt(2))
        for transfer in driver.in_flight():
            driver.fail(transfer, "io_error", [transfer.keys[at_fault]])
        expect("XFER-4", driver.used("host"), 0, "host pages in use")
    driver.serve(bench.prompt(2, 50))
    driver.land_all()
    expect("XFER-4", driver.hit_below(bench.prompt(2, 50)), 2, "blocks that got the slots")


@check("XFER-3", "POOL-7", needs=("host", "transfers", "probes"))
def a_late_load_moves_no_page(bench: Bench) -> None:
    """A page whose request is gone keeps its place, whenever its load lands."""
    left = []
    for early in (True, False):
        driver = bench.with_chain_below(1)
        held = [driver.hold(bench.prompt(1, start)) for start in (50, 90)]
        driver.land_all()
        ctx = driver.claim(driver.request(bench.prompt(1)))
        driver.begin(ctx)
        driver.cancel(ctx)
        if early:
            driver.land_all()
        for other in held:
            driver.release(other)
        driver.land_all()
        driver.release(driver.admit(range(10**6, 10**6 + 6 * bench.size)))
        probes = [driver.probe(driver.request(bench.prompt(1, n)))[0] for n in (0, 50, 90)]
        left.append([hits.device_blocks for hits in probes])
    expect("XFER-3", left[1], left[0], "blocks left after a landing at another time")


@check("XFER-5", "XFER-4", needs=("host", "transfers", "replicas"))
def a_block_that_was_computed_meanwhile_survives_a_failed_load(bench: Bench) -> None:
    """A load that fails takes nothing from who has computed the same block."""
    driver = eager(bench, **ISOLATED)
    computing = driver.admit(bench.prompt(1))  # Nobody has the block yet.
    driver.serve(bench.prompt(1), 1)
    driver.land_all()
    loading = driver.claim(driver.request(bench.prompt(1)))
    driver.begin(loading)
    demand("XFER-5", bool(driver.loads()), "a block in host memory is not loaded")
    driver.forward(computing)
    driver.fail_loads("io_error")
    driver.release(loading)
    driver.land_all()
    third = driver.claim(driver.request(bench.prompt(1)))
    expect("XFER-5", driver.begin(third).transfers, (), "loads of a block that was computed")
    driver.finish(third)
    expect("XFER-5", driver.pages(third)[0], driver.pages(computing)[0], "page of the block")


@check("XFER-3", "TIER-6", needs=("host", "disk", "store", "transfers"))
def what_was_written_to_all_tiers_makes_room(bench: Bench) -> None:
    """Blocks of host memory that disk and store have got leave their slots to others."""
    driver = eager(bench, host_pages=2, disk_pages=8, store=True)
    for start in (0, 50, 90):
        driver.serve(bench.prompt(2, start))
        driver.land_all()
        expect("XFER-3", driver.hit_below(bench.prompt(2, start)), 2, "blocks that got the slots")
        driver.land_all()


@check("XFER-7", "REL-3", needs=("transfers", "replicas"))
def a_replica_that_is_read_has_transfers_pending(bench: Bench) -> None:
    """``pending_transfers_exist`` is true of both replicas of a copy until it has settled."""
    driver = bench.controlled(replicas=2)
    bench.has("pending_transfers_exist")
    pending = driver.manager.pending_transfers_exist
    driver.serve(bench.prompt(2), 1)
    expect("XFER-7", [pending(0), pending(1)], [False, False], "transfers before any copy")
    ctx = driver.claim(driver.request(bench.prompt(2)))
    driver.begin(ctx)
    if not driver.loads():
        raise Skip("replicas do not copy from each other")
    expect("XFER-7", [pending(0), pending(1)], [True, True], "transfers during a copy")
    driver.land_all()
    expect("XFER-7", [pending(0), pending(1)], [False, False], "transfers after the copy")
    driver.finish(ctx)
