"""XFER-8: loads that are submitted before they land, so that the device can wait for them."""

from pagedkv.conformance.bench import Bench
from pagedkv.conformance.check import check
from pagedkv.conformance.violation import demand, expect
from pagedkv.reference.errors import (
    AllocPendingError,
    SubmittedTransferError,
    UnknownTransferError,
)


@check("XFER-8", "ALLOC-13", needs=("host", "transfers", "deferral"))
def an_allocation_returns_when_its_loads_are_submitted(bench: Bench) -> None:
    """Not before; its forward then finds the right bytes, and so does whoever comes later."""
    driver = bench.with_chain_below(3)
    ctx, joining = (driver.claim(driver.request(bench.prompt(3))) for _ in range(2))
    driver.begin(ctx)
    driver.begin(joining)
    driver.refused("ALLOC-13", AllocPendingError, "finish_alloc", ctx, 0)
    driver.submit_loads()
    for request in (ctx, joining):
        demand("XFER-8", driver.finish(request), "a submitted load counts as failed")
        expect("XFER-8", request.tokens.processed_length, 3 * bench.size, "cached tokens")
    driver.forward(ctx, joining)
    later = driver.claim(driver.request(bench.prompt(3)))
    driver.begin(later)
    demand("XFER-8", driver.finish(later), "who joins a submitted load cannot return at once")
    driver.forward(later)
    driver.land_all()
    for request in (ctx, joining, later):
        driver.release(request)
    expect("XFER-3", driver.manager.num_free_blocks(0), 8, "free pages when all has landed")


@check("XFER-8", "REL-3", needs=("host", "transfers", "deferral"))
def pages_of_a_submitted_load_stay_pinned(bench: Bench) -> None:
    """The request may be gone before its load has landed: nobody else gets the pages."""
    driver = bench.with_chain_below(2)
    ctx = driver.claim(driver.request(bench.prompt(2)))
    driver.begin(ctx)
    driver.submit_loads()
    driver.finish(ctx)
    driver.release(ctx)
    expect("XFER-8", driver.manager.num_free_blocks(0), 6, "free pages while two are being written")
    driver.land_all()
    expect("XFER-8", driver.manager.num_free_blocks(0), 8, "free pages after the landing")
    expect("XFER-3", driver.hit(bench.prompt(2)), 2, "blocks hit after the landing")


@check("XFER-8", "ALLOC-6", needs=("host", "transfers", "deferral", "replicas"))
def a_submitted_block_is_no_source_yet(bench: Bench) -> None:
    """No replica copies a block from another that is still getting it."""
    driver = bench.with_chain_below(2, replicas=2)
    ctx = driver.claim(driver.request(bench.prompt(2)))
    driver.begin(ctx)
    driver.submit_loads()
    driver.finish(ctx)
    elsewhere = driver.claim(driver.request(bench.prompt(2)), 1)
    driver.begin(elsewhere)
    sources = {load.source for load in driver.loads() if load.replica == 1}
    expect("XFER-8", sources, {"host"}, "where another replica loads the blocks from")


@check("STEP-5", "XFER-8", needs=("disk", "transfers", "deferral"))
def a_submitted_block_is_not_offloaded_yet(bench: Bench) -> None:
    """What host memory lacks of a chain waits until the page it is copied from is there."""
    bench.writes("through")
    driver = bench.controlled(host_pages=2, disk_pages=16, write_policy="through")
    driver.serve(bench.prompt(2, more=0))
    driver.land_all()
    driver.evict_all()
    driver.serve(bench.prompt(1, 50))
    driver.land_all()
    driver.serve(bench.prompt(1, 90))
    driver.land_all()
    driver.serve(bench.prompt(1, 130))
    busy = driver.in_flight()  # An offload to host memory, which cannot be given up for a load.
    ctx = driver.claim(driver.request(bench.prompt(3)))
    driver.begin(ctx)
    driver.submit_loads()
    driver.finish(ctx)
    for transfer in busy:
        driver.land(transfer)
    for transfer in driver.in_flight():
        if transfer.target == "disk":
            driver.land(transfer)
    driver.forward(ctx)
    arriving = {page for load in driver.loads() for page in load.pages}
    demand("XFER-8", bool(arriving), "nothing is being loaded, so nothing was tried")
    copied = {page for t in driver.in_flight() if t.kind == "offload" for page in t.pages}
    expect("STEP-5", arriving & copied, set(), "pages that are being loaded and copied at once")
    driver.land_all()
    driver.release(ctx)


@check("XFER-8", needs=("host", "transfers", "deferral"))
def a_submitted_load_fails_with_its_device_alone(bench: Bench) -> None:
    """Whoever has gone on with it could not be told."""
    driver = bench.with_chain_below(2)
    ctx = driver.claim(driver.request(bench.prompt(2)))
    driver.begin(ctx)
    driver.submit_loads()
    (load,) = driver.loads()
    driver.refused("XFER-8", SubmittedTransferError, "fail", load.id, "io_error")
    driver.refused("XFER-8", SubmittedTransferError, "submit", load.id)
    if driver.can("poison"):
        driver.poison(0)
        expect("XFER-8", driver.loads(), [], "loads into a device that has failed")
    driver.release(ctx)


@check("XFER-8", needs=("host", "transfers", "deferral", "replicas"))
def only_loads_from_below_are_submitted(bench: Bench) -> None:
    """Offloads, and copies between devices, have to land."""
    bench.writes("through")
    driver = bench.controlled(host_pages=8, replicas=2, write_policy="through")
    driver.serve(bench.prompt(2))
    driver.begin(driver.claim(driver.request(bench.prompt(2)), 1))
    demand("XFER-8", len(driver.in_flight()) >= 2, "there is nothing in flight to be refused")
    for transfer in driver.in_flight():
        if transfer.target != "device" or transfer.source == "peer":
            driver.refused("XFER-8", SubmittedTransferError, "submit", transfer.id)
    driver.refused("XFER-2", UnknownTransferError, "submit", "no-such-transfer")


@check("XFER-8", "TIER-5", needs=("disk", "transfers", "deferral"))
def a_damaged_block_is_not_submitted(bench: Bench) -> None:
    """Bytes that are not those that were written are found before anybody goes on with them."""
    driver = bench.with_chain_below(2, host_pages=2, disk_pages=16)
    driver.serve(bench.prompt(2, 50))
    driver.land_all()
    driver.evict_all()
    driver.land_all()
    bench.damage(driver, "disk", driver.request(bench.prompt(2)), 0, "flipped")
    ctx = driver.claim(driver.request(bench.prompt(2)))
    driver.begin(ctx)
    driver.submit_loads()
    demand("TIER-5", not driver.finish(ctx), "a damaged block was served")


@check("XFER-8", "RESET-2", needs=("host", "transfers", "deferral", "reset"))
def a_submitted_load_is_fenced_by_a_reset(bench: Bench) -> None:
    """The request keeps its bytes; nobody finds them any more, landed or not."""
    driver = bench.with_chain_below(2)
    ctx = driver.claim(driver.request(bench.prompt(2)))
    driver.begin(ctx)
    driver.submit_loads()
    driver.finish(ctx)
    driver.reset()
    driver.forward(ctx)
    driver.land_all()
    driver.forward(ctx)
    driver.release(ctx)
    expect("RESET-2", driver.hit(bench.prompt(2)), 0, "blocks hit after the reset")
