"""CLOSE: the end of a manager."""

from typing import Any

from pagedkv.conformance.bench import Bench, Skip
from pagedkv.conformance.check import check
from pagedkv.conformance.refusals import raises
from pagedkv.conformance.violation import demand, expect
from pagedkv.reference.context import TextContext
from pagedkv.reference.errors import ManagerClosedError

NAMED: dict[str, Any] = {"model_fingerprint": "weights"}
"""Makes what is on disk and in a store outlive the manager."""


def calls_on(ctx: TextContext) -> list[tuple[str, tuple[Any, ...]]]:
    """Every method of the interface but ``shutdown``, with arguments for it."""
    name = ctx.request_id
    return [
        ("claim", ("new", 0)),
        ("alloc", (ctx, 0)),
        ("alloc_dummy", ("padding", 0)),
        ("release", (name, 0)),
        ("contains", (name, 0)),
        ("get_req_blocks", (name, 0)),
        ("begin_alloc", (ctx, 0)),
        ("prefetch", (ctx,)),
        ("finish_alloc", (ctx, 0)),
        ("cancel_alloc", (name, 0)),
        ("reserve", ([[ctx]],)),
        ("reserve", ([[]],)),
        ("runtime_inputs", ([[ctx]],)),
        ("runtime_inputs_for_leaf", ([[ctx]],)),
        ("step", ([[ctx]],)),
        ("step", ([[]],)),
        ("land", ("onload-1",)),
        ("fail", ("onload-1", "timeout")),
        ("in_flight", ()),
        ("poison", (0, "late")),
        ("poll_transfers", ()),
        ("pending_transfers_exist", (0,)),
        ("get_prefix_cache_hit_counts", (ctx,)),
        ("get_pct_used_blocks_after_allocation", (ctx, 0)),
        ("num_free_blocks", (0,)),
        ("total_num_blocks", (0,)),
        ("get_num_pages", (0,)),
        ("get_num_used_pages", (0,)),
        ("get_num_host_pages", (0,)),
        ("get_num_used_host_pages", (0,)),
        ("get_num_disk_pages", (0,)),
        ("get_num_used_disk_pages", (0,)),
        ("get_device_buffer", (0,)),
        ("get_metrics_aggregated", ()),
        ("reset_metrics", ()),
        ("reset_prefix_cache", ()),
    ]


@check("CLOSE-1", needs=("shutdown",))
def after_the_end_every_call_is_refused(bench: Bench) -> None:
    """Whatever is asked of a manager that was shut down, the answer is that."""
    driver = bench.driver()
    ctx = driver.admit(bench.prompt(1))
    offered = {
        method for method, _ in calls_on(ctx) if callable(getattr(driver.manager, method, None))
    }
    driver.shutdown()
    for method, arguments in calls_on(ctx):
        if method in offered:
            with raises("CLOSE-1", ManagerClosedError, f"manager.{method} after shutdown"):
                result = getattr(driver.manager, method)(*arguments)
                if hasattr(result, "__enter__"):
                    with result:
                        pass
    expect("CLOSE-1", ctx.tokens.processed_length, 0, "start of a window after refused calls")


@check("CLOSE-1", needs=("shutdown",))
def a_second_end_is_harmless(bench: Bench) -> None:
    """Shutting down twice is no error, with and without live requests."""
    for live in (False, True):
        driver = bench.driver()
        if live:
            driver.admit(bench.prompt(2))
        driver.shutdown()
        driver.manager.shutdown()
        driver.manager.shutdown()


@check("CLOSE-1", "STORE-2", needs=("shutdown", "store", "transfers"))
def what_is_in_flight_arrives_in_the_store(bench: Bench) -> None:
    """Offloads that were issued before the end are complete after it."""
    driver = bench.controlled(store=True, **NAMED)
    driver.serve(bench.prompt(2))
    demand("CLOSE-1", bool(driver.in_flight()), "nothing is offloaded")
    restarted = bench.restart(driver, auto_land=True)
    expect("CLOSE-1", restarted.hit(bench.prompt(2)), 2, "blocks that have arrived")


@check("CLOSE-1", "NS-4", needs=("shutdown", "disk", "transfers"))
def what_is_in_flight_arrives_on_disk(bench: Bench) -> None:
    """Offloads on their way into host memory go on to the disk, and so do writes."""
    bench.writes("through")
    for landed in (True, False):
        driver = bench.controlled(host_pages=8, disk_pages=8, write_policy="through", **NAMED)
        driver.serve(bench.prompt(2))
        for transfer in driver.in_flight() if landed else ():
            driver.land(transfer)
        if landed and not driver.in_flight():
            raise Skip("what lands in host memory is not written to disk at once")
        demand("CLOSE-1", bool(driver.in_flight()), "nothing is offloaded")
        restarted = bench.restart(driver, auto_land=True)
        expect("CLOSE-1", restarted.hit(bench.prompt(2)), 2, "blocks that have arrived")


@check("CLOSE-1", "XFER-2", needs=("shutdown", "host", "transfers"))
def an_end_waits_for_no_request(bench: Bench) -> None:
    """A manager with live requests and loads in flight is shut down like any other."""
    driver = bench.with_chain_below(2)
    driver.admit(bench.prompt(1, 50))
    driver.begin(driver.claim(driver.request(bench.prompt(2))))
    demand("CLOSE-1", bool(driver.in_flight()), "nothing is loaded")
    driver.shutdown()


@check("CLOSE-1", "TIER-7", needs=("shutdown", "host", "store"))
def what_is_dirty_is_saved(bench: Bench) -> None:
    """Under ``write_back`` the next manager finds what this one had not offloaded yet."""
    bench.writes("write_back")
    driver = bench.driver(host_pages=8, store=True, write_policy="write_back", **NAMED)
    driver.serve(bench.prompt(2))
    live = driver.admit(bench.prompt(2, 50))
    driver.forward(live)
    restarted = bench.restart(driver)
    for start in (0, 50):
        expect("CLOSE-1", restarted.hit(bench.prompt(2, start)), 2, "blocks that were saved")


@check("CLOSE-1", "TIER-7", needs=("shutdown", "disk"))
def what_is_dirty_is_saved_to_disk(bench: Bench) -> None:
    """Under ``write_back`` dirty pages are on disk after the end, of all requests and replicas."""
    bench.writes("write_back")
    replicas = 2 if "replicas" in bench.implementation.capabilities else 1
    driver = bench.driver(
        host_pages=8, disk_pages=8, write_policy="write_back", replicas=replicas, **NAMED
    )
    for n in range(2):
        driver.serve(bench.prompt(2, 50 * n), n % replicas)
    restarted = bench.restart(driver)
    for n in range(2):
        found = restarted.hit(bench.prompt(2, 50 * n), n % replicas)
        expect("CLOSE-1", found, 2, "blocks that were saved")


@check("CLOSE-1", "TIER-7", needs=("shutdown", "disk"))
def more_is_saved_than_fits_host_memory(bench: Bench) -> None:
    """Dirty pages pass through a small host memory on their way to disk at the end."""
    bench.writes("write_back")
    bench.follows("TIER-2")
    driver = bench.driver(host_pages=1, disk_pages=8, write_policy="write_back", **NAMED)
    driver.serve(bench.prompt(4))
    restarted = bench.restart(driver)
    expect("CLOSE-1", restarted.hit(bench.prompt(4)), 4, "blocks that were saved")
