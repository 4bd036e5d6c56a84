"""Runs that nobody has thought of, in which every rule has to hold that the driver watches."""

from hypothesis import HealthCheck, Phase, given, settings

from pagedkv.conformance.bench import Bench
from pagedkv.conformance.check import check
from pagedkv.conformance.generated import Move, Options, Player, runs


@check("POOL-2", "ALLOC-4", "ALLOC-2", "TIER-3", "METRIC-1", "STEP-2")
def any_calls(bench: Bench) -> None:
    """Whatever is called in whatever order: pages add up, hits are right, and no byte is wrong."""
    _play_runs(bench, controlled=False)


@check("XFER-4", "ALLOC-12", "REL-3", "TIER-6", needs=("transfers",))
def any_calls_and_landings(bench: Bench) -> None:
    """Whenever transfers land or fail: pages add up, and no byte is wrong."""
    _play_runs(bench, controlled=True)


def _play_runs(bench: Bench, *, controlled: bool) -> None:
    @settings(
        max_examples=bench.examples,
        deadline=None,
        database=None,
        derandomize=True,
        print_blob=False,
        report_multiple_bugs=False,
        phases=(Phase.generate, Phase.shrink),
        # Its metaclass iterates over values of a wrong type.
        suppress_health_check=list(HealthCheck),  # pyright: ignore[reportArgumentType]
    )
    @given(runs(bench.implementation, controlled=controlled))
    def play(run: tuple[Options, list[Move]]) -> None:
        options, moves = run
        with bench.fresh() as inner:
            driver = inner.driver(auto_land=not controlled, **options)
            Player(driver, controlled).play(moves)
            inner.all_clear()

    play()
