"""Runs that nobody has thought of, in which every rule has to hold that the driver watches."""

from pagedkv.conformance.bench import Bench
from pagedkv.conformance.check import check
from pagedkv.conformance.generated import play_runs, runs


@check("POOL-2", "ALLOC-4", "ALLOC-2", "TIER-3", "METRIC-1", "STEP-2")
def any_calls(bench: Bench) -> None:
    """Whatever is called in whatever order: pages add up, hits are right, and no byte is wrong."""
    play_runs(bench, runs(bench.implementation, controlled=False), controlled=False)


@check("XFER-4", "ALLOC-12", "REL-3", "TIER-6", needs=("transfers",))
def any_calls_and_landings(bench: Bench) -> None:
    """Whenever transfers land or fail: pages add up, and no byte is wrong."""
    play_runs(bench, runs(bench.implementation, controlled=True), controlled=True)
