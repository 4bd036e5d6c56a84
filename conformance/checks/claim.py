"""CLAIM: requests live on one replica, and ids are forgotten when they are released."""

from pagedkv.conformance.bench import Bench
from pagedkv.conformance.check import check
from pagedkv.conformance.violation import demand, expect
from pagedkv.reference.errors import AlreadyClaimedError, ReplicaIndexError, UnknownRequestError


@check("CLAIM-1")
def an_id_is_claimed_once(bench: Bench) -> None:
    """A second claim on the same replica is refused and changes nothing."""
    driver = bench.driver()
    ctx = driver.admit(bench.prompt(2))
    driver.refused("CLAIM-1", AlreadyClaimedError, "claim", ctx.request_id, 0)
    driver.forward(ctx)


@check("CLAIM-1", needs=("replicas",))
def an_id_is_claimed_on_one_replica(bench: Bench) -> None:
    """A claim of the same id on another replica is refused; the request stays where it is."""
    driver = bench.driver(replicas=2)
    ctx = driver.admit(bench.prompt(2), replica=1)
    driver.refused("CLAIM-1", AlreadyClaimedError, "claim", ctx.request_id, 0)
    driver.refused("CLAIM-2", UnknownRequestError, "get_req_blocks", ctx.request_id, 0)
    driver.forward(ctx)


@check("CLAIM-2")
def an_unclaimed_id_gets_no_page(bench: Bench) -> None:
    """``alloc`` of an id that nobody has claimed is refused, and takes no page."""
    driver = bench.driver()
    stranger = driver.request(bench.prompt(2))
    driver.refused("CLAIM-2", UnknownRequestError, "alloc", stranger, 0)


@check("CLAIM-2")
def unclaimed_ids_are_unknown_everywhere(bench: Bench) -> None:
    """``step``, ``release`` and ``get_req_blocks`` know only claimed ids."""
    driver = bench.driver()
    stranger = driver.request(bench.prompt(1))
    released = driver.serve(bench.prompt(1), request_id="gone")
    for ctx in (stranger, released):
        driver.refused("CLAIM-2", UnknownRequestError, "step", [[ctx]])
        driver.refused("CLAIM-2", UnknownRequestError, "release", ctx.request_id, 0)
        driver.refused("CLAIM-2", UnknownRequestError, "get_req_blocks", ctx.request_id, 0)


@check("CLAIM-2", "REL-1")
def a_released_id_is_free_again(bench: Bench) -> None:
    """A released id can be claimed anew and has nothing of its former life."""
    driver = bench.driver()
    for _ in range(3):
        driver.serve(bench.prompt(1), request_id="again")
        if callable(getattr(driver.manager, "contains", None)):
            demand("REL-1", not driver.manager.contains("again", 0), "a released id is contained")
    ctx = driver.claim(driver.request(bench.prompt(3, 50), request_id="again"))
    expect("REL-1", list(driver.manager.get_req_blocks("again", 0)), [], "pages of a new request")
    driver.alloc(ctx)
    driver.forward(ctx)


@check("CLAIM-3")
def replicas_that_do_not_exist_are_refused(bench: Bench) -> None:
    """A replica index out of range is an error, also a negative one."""
    driver = bench.driver()
    for replica in (1, -1, 99):
        driver.refused("CLAIM-3", ReplicaIndexError, "claim", "nowhere", replica)
