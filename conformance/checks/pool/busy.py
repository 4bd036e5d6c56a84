"""POOL-9: a server that does everything at once loses no page."""

from collections.abc import Collection

from pagedkv.conformance.bench import Bench
from pagedkv.conformance.check import check
from pagedkv.conformance.driver import Driver
from pagedkv.conformance.violation import demand, expect
from pagedkv.reference.context import TextContext


def _serve_all(bench: Bench, driver: Driver, resets: Collection[int] = ()) -> None:
    """Serve requests that together need far more pages than there are, as a scheduler does."""
    replicas = range(driver.setup.replicas)
    waiting = [driver.request(bench.prompt(1 + n % 3, n % 2, more=-(n % 3))) for n in range(8)]
    done = {ctx.request_id: len(ctx) + 8 for ctx in waiting}
    running: dict[TextContext, int] = {}
    for turn in range(2_000):
        if turn in resets:
            driver.reset()
        if waiting:
            _admit_next(driver, waiting, running, turn % len(replicas))
        for ctx in list(running):
            if ctx in running and not driver.fits(ctx):
                _preempt_youngest(driver, waiting, running, running[ctx])
        ready = [ctx for ctx in running if driver.fits(ctx)]
        if ready:
            driver.forward(*ready, token=turn % 5)
        for ctx in [ctx for ctx in running if len(ctx) >= done[ctx.request_id]]:
            driver.release(ctx)
            del running[ctx]
        if not waiting and not running:
            break
    demand("POOL-9", not waiting and not running, "requests that fit one by one are never served")
    for replica in replicas:
        expect("POOL-9", driver.manager.num_free_blocks(replica), 6, "free pages in the end")


def _admit_next(
    driver: Driver, waiting: list[TextContext], running: dict[TextContext, int], replica: int
) -> None:
    ctx = driver.claim(waiting[0], replica)
    if driver.fits(ctx):
        running[waiting.pop(0)] = replica
    else:
        driver.release(ctx)


def _preempt_youngest(
    driver: Driver, waiting: list[TextContext], running: dict[TextContext, int], replica: int
) -> None:
    youngest = [ctx for ctx in running if running[ctx] == replica][-1]
    del running[youngest]
    driver.release(youngest)
    driver.start_over(youngest)
    waiting.insert(0, youngest)


@check("POOL-9")
def a_busy_server_loses_no_page(bench: Bench) -> None:
    """Requests that share, grow, are preempted and come back: after every call pages add up."""
    _serve_all(bench, bench.driver(total_num_pages=6))


@check("POOL-9")
def a_busy_server_without_a_cache_loses_no_page(bench: Bench) -> None:
    """The same without prefix caching."""
    _serve_all(bench, bench.driver(total_num_pages=6, enable_prefix_caching=False))


@check("POOL-9", "RESET-2", needs=("reset",))
def a_busy_server_that_is_reset_loses_no_page(bench: Bench) -> None:
    """The same with resets in the middle of it."""
    _serve_all(bench, bench.driver(total_num_pages=6), resets=(5, 6, 15))


@check("POOL-9", needs=("host",))
def a_busy_server_with_tiers_loses_no_page(bench: Bench) -> None:
    """The same with a host tier too small for all of it."""
    _serve_all(bench, bench.driver(total_num_pages=6, host_pages=4))


@check("POOL-9", needs=("replicas",))
def busy_replicas_lose_no_page(bench: Bench) -> None:
    """The same on two replicas."""
    _serve_all(bench, bench.driver(total_num_pages=6, replicas=2))
