"""ALLOC-2 and ALLOC-14: neither a refusal nor a question makes anything younger."""

from collections.abc import Callable
from typing import Any

from pagedkv.conformance.bench import Bench
from pagedkv.conformance.check import check
from pagedkv.conformance.driver import Driver
from pagedkv.conformance.violation import demand


# Any: fields of a setup, which checks them.
def _makes_no_difference(
    bench: Bench, rule: str, aside: Callable[[Driver], None], what: str, **options: Any
) -> None:
    """Demand that something done between others changes neither tables nor hits after it."""

    def run(driver: Driver, extra: bool) -> object:
        for start in (0, 50, 100):
            driver.serve(bench.prompt(2, start, more=0))
        if extra:
            aside(driver)
        seen: list[object] = []
        for start in (200, 210):
            ctx = driver.admit(bench.prompt(1, start, more=0), request_id=f"after {start}")
            seen.append(driver.pages(ctx))
            driver.forward(ctx)
            driver.release(ctx)
        return seen, [driver.hit(bench.prompt(2, start)) for start in (0, 50, 100)]

    bench.makes_no_difference(rule, run, what, total_num_pages=6, **options)


@check("ALLOC-2", needs=("prefix",))
def a_refusal_makes_nobody_younger(bench: Bench) -> None:
    """What is evicted next does not depend on whether a request was refused before."""

    def refuse(driver: Driver) -> None:
        late = driver.claim(driver.request(bench.prompt(7), request_id="late"))
        demand("ALLOC-2", not driver.fits(late), "eight pages were found among six")
        driver.release(late)

    _makes_no_difference(bench, "ALLOC-2", refuse, "a refused allocation")


@check("ALLOC-2", needs=("host",))
def a_refusal_makes_nobody_younger_below(bench: Bench) -> None:
    """What the host tier gives up next does not depend on whether a request was refused before."""

    def refuse(driver: Driver) -> None:
        late = driver.claim(driver.request(bench.prompt(7), request_id="late"))
        demand("ALLOC-2", not driver.fits(late), "eight pages were found among six")
        driver.release(late)

    _makes_no_difference(bench, "ALLOC-2", refuse, "a refused allocation", host_pages=6)


@check("ALLOC-14", needs=("probes", "prefix"))
def a_look_up_makes_nobody_younger(bench: Bench) -> None:
    """What is evicted next does not depend on what was looked up before."""

    def look_up(driver: Driver) -> None:
        driver.probe(driver.request(bench.prompt(2), request_id="stranger"))

    _makes_no_difference(bench, "ALLOC-14", look_up, "a look-up")


@check("ALLOC-14", needs=("probes", "prefix"))
def a_share_of_pages_makes_nobody_younger(bench: Bench) -> None:
    """What is evicted next does not depend on whose share of pages was asked for before."""

    def ask(driver: Driver) -> None:
        late = driver.claim(driver.request(bench.prompt(2), request_id="late"))
        driver.fraction_after(late)
        driver.release(late)

    _makes_no_difference(bench, "ALLOC-14", ask, "a probe")


@check("ALLOC-14", needs=("probes", "host"))
def a_look_up_makes_nobody_younger_below(bench: Bench) -> None:
    """What the host tier gives up next does not depend on what was looked up before."""

    def look_up(driver: Driver) -> None:
        driver.probe(driver.request(bench.prompt(2), request_id="stranger"))

    _makes_no_difference(bench, "ALLOC-14", look_up, "a look-up", host_pages=6)
