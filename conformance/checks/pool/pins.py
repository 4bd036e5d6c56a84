"""POOL-6 and POOL-7: no page is let go twice, or taken while a transfer uses it."""

from pagedkv.conformance.bench import Bench, Skip
from pagedkv.conformance.check import check
from pagedkv.conformance.violation import demand, expect
from pagedkv.reference.errors import UnknownRequestError, UnknownTransferError


@check("POOL-2", "POOL-7", needs=("host", "transfers"))
def pinned_pages_are_in_use(bench: Bench) -> None:
    """A page that nobody holds, and that a load still writes, counts among the pages in use."""
    driver = bench.with_chain_below(2)
    bench.has("get_num_used_pages")
    ctx = driver.claim(driver.request(bench.prompt(2)))
    driver.begin(ctx)
    driver.cancel(ctx)
    used, free = driver.manager.get_num_used_pages(0), driver.manager.num_free_blocks(0)
    expect("POOL-2", used, 8 - free, "pages in use, where pages are pinned")
    driver.land_all()
    expect("POOL-2", driver.manager.get_num_used_pages(0), 0, "pages in use in the end")


@check("POOL-6", "REL-1")
def nothing_is_released_twice(bench: Bench) -> None:
    """A second release is an error, and pages that are shared keep their other holder."""
    driver = bench.driver()
    first = driver.admit(bench.prompt(2))
    driver.forward(first)
    twin = driver.admit(bench.prompt(2))
    driver.release(first)
    for _ in range(2):
        driver.refused("POOL-6", UnknownRequestError, "release", first.request_id, 0)
    driver.evict_all()
    driver.forward(twin)
    driver.release(twin)
    driver.refused("POOL-6", UnknownRequestError, "release", twin.request_id, 0)
    live = [driver.admit(bench.prompt(4, start, more=0)) for start in (100, 200)]
    driver.forward(*live)


@check("POOL-6", "XFER-2", needs=("transfers", "host"))
def no_pin_is_taken_off_twice(bench: Bench) -> None:
    """A transfer that has landed or failed neither lands nor fails again."""
    driver = bench.with_chain_below(2)
    for end in ("land", "fail"):
        ctx = driver.claim(driver.request(bench.prompt(2)))
        driver.begin(ctx)
        for load in driver.loads():
            if end == "land":
                driver.land(load)
            else:
                driver.fail(load, "timeout")
            driver.refused("POOL-6", UnknownTransferError, "land", load.id)
            driver.refused("POOL-6", UnknownTransferError, "fail", load.id, "timeout")
        driver.finish(ctx)
        driver.release(ctx)
        driver.evict_all()


@check("POOL-7", needs=("transfers", "host"))
def a_page_that_is_being_offloaded_is_not_taken(bench: Bench) -> None:
    """Pages that an offload still reads are not free, although their request is gone."""
    driver = bench.controlled(host_pages=16, total_num_pages=4)
    driver.serve(bench.prompt(2, more=0))
    if not driver.in_flight():
        raise Skip("a committed page is not offloaded at once")
    expect("POOL-7", driver.manager.num_free_blocks(0), 2, "free pages during the offload")
    late = driver.claim(driver.request(bench.prompt(3, 50, more=0)))
    demand("POOL-7", not driver.begins(late), "three pages were taken, of which two are free")
    driver.land_all()
    demand("POOL-7", driver.begins(late), "pages are not free although the offload has landed")


@check("POOL-7", needs=("transfers", "host"))
def a_pinned_page_is_passed_over(bench: Bench) -> None:
    """Pages that an offload still reads are not taken, wherever they stand among the free ones."""
    for slow in range(3):
        driver = bench.controlled(host_pages=16)
        pinned: set[int] = set()
        for n in range(3):
            before = {transfer.id for transfer in driver.in_flight()}
            driver.serve(bench.prompt(2, 50 * n, more=0))
            for transfer in driver.in_flight():
                if n == slow:
                    pinned.update(transfer.pages)
                elif transfer.id not in before:
                    driver.land(transfer)
        if not pinned:
            raise Skip("a committed page is not offloaded at once")
        late = driver.claim(driver.request(bench.prompt(8 - len(pinned), 500, more=0)))
        taken = pinned.intersection(driver.begin(late).pages)
        expect("POOL-7", taken, set(), "pages that were taken while an offload still reads them")


@check("POOL-7", needs=("transfers", "host"))
def a_page_that_is_being_loaded_is_not_taken(bench: Bench) -> None:
    """Pages that a load still writes are not free, although its allocation was cancelled."""
    for lands in (True, False):
        driver = bench.with_chain_below(2, total_num_pages=4)
        ctx = driver.claim(driver.request(bench.prompt(2)))
        driver.begin(ctx)
        driver.cancel(ctx)
        expect("POOL-7", driver.manager.num_free_blocks(0), 2, "free pages during the load")
        late = driver.claim(driver.request(bench.prompt(3, 50, more=0)))
        demand("POOL-7", not driver.begins(late), "three pages were taken, of which two are free")
        for transfer in driver.in_flight():
            if lands:
                driver.land(transfer)
            else:
                driver.fail(transfer, "io_error")
        demand("POOL-7", driver.begins(late), "pages are not free although the load has settled")


@check("POOL-7", needs=("transfers", "host"))
def a_shared_page_is_pinned_until_all_is_over(bench: Bench) -> None:
    """A page that is both held and read is free only when both have ended, in either order."""
    for first in ("release", "land"):
        driver = bench.controlled(host_pages=16, total_num_pages=4)
        ctx = driver.admit(bench.prompt(2, more=0))
        driver.forward(ctx)
        if first == "land":
            driver.land_all()
        driver.release(ctx)
        driver.land_all()
        expect("POOL-7", driver.manager.num_free_blocks(0), 4, "free pages in the end")


@check("POOL-7", needs=("transfers", "replicas"))
def a_page_that_is_copied_to_a_peer_is_not_taken(bench: Bench) -> None:
    """Pages that another replica is being served from are not free while the copy runs."""
    driver = bench.controlled(replicas=2, total_num_pages=4)
    driver.serve(bench.prompt(2, more=0))
    ctx = driver.claim(driver.request(bench.prompt(2)), replica=1)
    driver.begin(ctx)
    if not any(transfer.source_pages for transfer in driver.in_flight()):
        raise Skip("replicas are not served from each other")
    expect("POOL-7", driver.manager.num_free_blocks(0), 2, "free pages during the copy")
    late = driver.claim(driver.request(bench.prompt(3, 50, more=0)))
    demand("POOL-7", not driver.begins(late), "three pages were taken, of which two are free")
    driver.land_all()
    demand("POOL-7", driver.begins(late), "pages are not free although the copy has landed")
    demand("ALLOC-13", driver.finish(ctx), "a load that has landed counts as failed")
