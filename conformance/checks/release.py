"""REL: a request gives back its pages, and is forgotten."""

from itertools import permutations

from pagedkv.conformance.bench import Bench
from pagedkv.conformance.check import check
from pagedkv.conformance.violation import demand, expect
from pagedkv.reference.errors import UnknownRequestError


@check("REL-1")
def a_release_commits_nothing(bench: Bench) -> None:
    """What was computed and not stepped is not found when its request is released."""
    driver = bench.driver()
    ctx = driver.admit(bench.prompt(2))
    driver.compute(ctx)
    driver.update(ctx)
    driver.release(ctx)
    expect("REL-1", driver.hit(bench.prompt(2)), 0, "blocks found of a request without a step")


@check("REL-1", needs=("prefix",))
def only_what_was_stepped_is_found(bench: Bench) -> None:
    """Of a request released in the middle of its prompt, what it had stepped is found."""
    driver = bench.driver()
    ctx = driver.claim(driver.request(bench.prompt(3)))
    driver.chunk(ctx, bench.size)
    driver.alloc(ctx)
    driver.forward(ctx)
    driver.alloc(ctx)
    driver.compute(ctx)
    driver.release(ctx)
    expect("REL-1", driver.hit(bench.prompt(3)), 1, "blocks found of an aborted request")


@check("REL-1", needs=("host",))
def a_release_offloads_nothing_that_was_not_committed(bench: Bench) -> None:
    """A request without a step leaves nothing below the device."""
    driver = bench.driver(host_pages=8)
    ctx = driver.admit(bench.prompt(2))
    driver.compute(ctx)
    driver.update(ctx)
    driver.release(ctx)
    driver.evict_all()
    expect("REL-1", driver.used("host"), 0, "host pages in use")
    expect("REL-1", driver.hit(bench.prompt(2)), 0, "blocks found below")


@check("REL-1", "POOL-6")
def a_second_release_is_refused(bench: Bench) -> None:
    """Releasing a request twice is an error, and its pages are not given back twice."""
    driver = bench.driver()
    first = driver.admit(bench.prompt(2))
    driver.forward(first)
    second = driver.admit(bench.prompt(2))
    driver.release(first)
    driver.refused("REL-1", UnknownRequestError, "release", first.request_id, 0)
    fresh = driver.admit(bench.prompt(2, 50))
    driver.forward(second, fresh)


@check("REL-1", "POOL-2", needs=("prefix",))
def shared_pages_are_given_back_by_their_last_holder(bench: Bench) -> None:
    """Requests that share a prefix are released in any order; the others go on undisturbed."""
    for order in permutations(range(3)):
        driver = bench.driver()
        driver.serve(bench.prompt(2))
        sharing = [driver.admit(bench.prompt(2)) for _ in order]
        for n, leaving in enumerate(order):
            driver.release(sharing[leaving])
            driver.evict_all()
            for staying in order[n + 1 :]:
                driver.alloc(sharing[staying])
                driver.forward(sharing[staying])
        expect("REL-1", driver.hit(bench.prompt(2)), 0, "blocks found when all was evicted")


@check("REL-1", "POOL-2")
def twins_of_one_batch_are_given_back_one_by_one(bench: Bench) -> None:
    """Requests that have computed the same content side by side give back each its pages."""
    for order in ((0, 1), (1, 0)):
        driver = bench.driver()
        twins = [driver.admit(bench.prompt(2)) for _ in order]
        driver.forward(*twins)
        for leaving in order:
            driver.release(twins[leaving])
            driver.hit(bench.prompt(2))
        driver.evict_all()
        expect("REL-1", driver.hit(bench.prompt(2)), 0, "blocks found when all was evicted")


@check("REL-1", needs=("prefix",))
def an_id_begins_anew(bench: Bench) -> None:
    """A released id that is claimed again has nothing of its former life."""
    driver = bench.driver()
    for start in (0, 50, 0):
        ctx = driver.admit(bench.prompt(2, start), request_id="again")
        driver.forward(ctx)
        driver.alloc(ctx)
        driver.release(ctx)
    ctx = driver.claim(driver.request(bench.prompt(1, 90), request_id="again"))
    expect("REL-1", list(driver.manager.get_req_blocks("again", 0)), [], "pages of a new request")
    driver.alloc(ctx)
    driver.forward(ctx)
    expect("REL-1", driver.hit(bench.prompt(1, 90)), 1, "blocks found of the new request")


@check("REL-1", needs=("replicas",))
def a_released_id_may_move(bench: Bench) -> None:
    """A released id can be claimed on another replica, and is unknown on the old one."""
    driver = bench.driver(replicas=2)
    driver.serve(bench.prompt(2), request_id="moves")
    ctx = driver.admit(bench.prompt(2, 50), 1, request_id="moves")
    driver.refused("REL-1", UnknownRequestError, "release", "moves", 0)
    driver.forward(ctx)


@check("REL-1")
def many_requests_leave_nothing_behind(bench: Bench) -> None:
    """After requests of many lengths, each served and released, every page may be taken."""
    driver = bench.driver()
    for n in range(4 * bench.size):
        driver.serve(range(1000 * n, 1000 * n + n + 1))
    driver.admit(range(10**6, 10**6 + 8 * bench.size))


@check("REL-2", "POOL-8")
def a_chain_is_given_back_tail_first(bench: Bench) -> None:
    """When pages run short after a release, a chain loses its leaf and keeps its root."""
    bench.follows("POOL-3", "POOL-4", "POOL-5")
    driver = bench.driver()
    driver.serve(bench.prompt(4))
    for left in (3, 2, 1):
        driver.release(driver.admit(range(10**6, 10**6 + (8 - left) * bench.size)))
        expect("REL-2", driver.probe(driver.request(bench.prompt(4)))[0].total_blocks, left, "left")


@check("REL-2", "POOL-5")
def uncommitted_pages_are_taken_in_the_order_of_their_release(bench: Bench) -> None:
    """Pages that hold nothing reusable are taken again from the root of their request on."""
    bench.follows("POOL-3", "POOL-5")
    driver = bench.driver()
    ctx = driver.admit(bench.prompt(2))
    table = driver.pages(ctx)
    driver.release(ctx)
    again = driver.admit(bench.prompt(2, 50))
    taken = driver.pages(again)
    expect("REL-2", taken, table, "pages that a request gets after another one's release")


@check("REL-3", "POOL-7", needs=("host", "transfers"))
def pages_of_an_offload_outlive_their_request(bench: Bench) -> None:
    """Pages that an offload still reads are not taken, whoever asks, and arrive unchanged."""
    bench.writes("through")
    driver = bench.controlled(host_pages=8, write_policy="through")
    driver.serve(bench.prompt(2))
    reading = {page for transfer in driver.in_flight() for page in transfer.pages}
    demand("REL-3", bool(reading), "nothing is offloaded of what was committed")
    for start in (50, 60):
        other = driver.admit(bench.prompt(2, start))
        table = driver.pages(other)
        demand("REL-3", not reading & set(table), "a page that is being read was given to another")
        driver.compute(other)
    driver.land_all()
    for ctx in list(driver.contexts.values()):
        driver.release(ctx)
    expect("REL-3", driver.hit_below(bench.prompt(2)), 2, "blocks that have arrived below")


@check("REL-3", "POOL-7", needs=("host", "transfers"))
def a_failed_transfer_frees_its_pages_too(bench: Bench) -> None:
    """Pages whose offload fails after their request was released may be taken again."""
    driver = bench.controlled(host_pages=8)
    driver.serve(bench.prompt(2))
    for transfer in driver.in_flight():
        driver.fail(transfer, "io_error")
    driver.admit(range(10**6, 10**6 + 8 * bench.size))


@check("REL-3", "REL-4", needs=("host", "transfers"))
def pages_of_a_load_outlive_their_request(bench: Bench) -> None:
    """A load goes on when its request is gone: its pages are taken by nobody until it lands."""
    driver = bench.with_chain_below(2)
    ctx = driver.claim(driver.request(bench.prompt(2)))
    driver.begin(ctx)
    written = {page for transfer in driver.in_flight() for page in transfer.pages}
    driver.release(ctx)
    other = driver.admit(bench.prompt(4, 50))
    table = driver.pages(other)
    demand("REL-3", not written & set(table), "a page that is being written was given to another")
    driver.land_all()
    driver.forward(other)
    expect("REL-3", driver.hit(bench.prompt(2)), 2, "blocks that have landed for nobody")


@check("REL-4", needs=("host", "transfers"))
def a_release_cancels_a_pending_allocation(bench: Bench) -> None:
    """Releasing a request that waits for loads gives back all that its plan has taken."""
    driver = bench.with_chain_below(2)
    ctx = driver.claim(driver.request(bench.prompt(3)))
    driver.begin(ctx)
    driver.release(ctx)
    for method in ("finish_alloc", "cancel_alloc"):
        given = ctx if method == "finish_alloc" else ctx.request_id
        driver.refused("REL-4", UnknownRequestError, method, given, 0)
    expect("REL-4", ctx.tokens.processed_length, 0, "start of the window")
    driver.land_all()
    driver.admit(range(10**6, 10**6 + 8 * bench.size))


@check("REL-4", "ALLOC-12", needs=("host", "transfers"))
def a_release_cancels_nobody_elses_allocation(bench: Bench) -> None:
    """Another request that waits for the same load gets it."""
    driver = bench.with_chain_below(2)
    leaving, staying = (driver.claim(driver.request(bench.prompt(2))) for _ in range(2))
    driver.begin(leaving)
    driver.begin(staying)
    driver.release(leaving)
    driver.land_all()
    demand("REL-4", driver.finish(staying), "a load failed because another request was released")
    expect("REL-4", staying.tokens.processed_length, 2 * bench.size, "start of the window")
    driver.forward(staying)


@check("REL-4", needs=("host", "transfers"))
def an_id_whose_allocation_was_pending_begins_anew(bench: Bench) -> None:
    """The id of a request that was released while it waited can be claimed again at once."""
    driver = bench.with_chain_below(2)
    driver.begin(driver.claim(driver.request(bench.prompt(2), request_id="again")))
    driver.release(driver.contexts["again"])
    ctx = driver.admit(bench.prompt(1, 50), request_id="again")
    driver.land_all()
    driver.forward(ctx)
