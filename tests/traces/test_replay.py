"""The replay drives a manager as documented, and reports what the manager did."""

from array import array
from collections.abc import Callable
from itertools import groupby
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pagedkv.implementations import (
    UnknownImplementationError,
    reference_manager,
    resolve_implementation,
)
from pagedkv.reference.errors import InsufficientBlocksError
from pagedkv.reference.interfaces import SyncKVCacheManager
from pagedkv.traces import Workload, WorkloadRequest, summarise
from pagedkv.traces.manager_call import ManagerCallError
from pagedkv.traces.manager_setup import ManagerSetup
from pagedkv.traces.percentile import percentile
from pagedkv.traces.replay import ReplayOptions, replay
from pagedkv.traces.replay_report import CallTimes, ReplayReport

PAGE = 4
LIFECYCLE = ("claim", "alloc", "runtime_inputs", "step", "release")


def request(*ids: int, length: int | None = None, output: int = 1) -> WorkloadRequest:
    """A prompt of whole pages, unless ``length`` cuts the last one."""
    return WorkloadRequest(
        arrival_ms=0, input_length=length or len(ids) * PAGE, output_length=output, hash_ids=ids
    )


class Recorder:
    """A real manager that writes down the calls of a request's life and how they went."""

    def __init__(self, manager: SyncKVCacheManager) -> None:
        self.manager = manager
        self.calls: list[tuple[str, Any]] = []
        self.in_flight: set[str] = set()
        self.most_in_flight = 0
        self.used_at_shutdown = -1

    # Any: it stands for whatever attribute the manager has.
    def __getattr__(self, name: str) -> Any:
        method = getattr(self.manager, name)
        if name not in LIFECYCLE:
            return method

        def recorded(*args: Any) -> Any:
            self.calls.append((name, args))
            if name == "claim":
                self.in_flight.add(args[0])
            if name == "release":
                self.in_flight.discard(args[0])
            self.most_in_flight = max(self.most_in_flight, len(self.in_flight))
            return method(*args)

        return recorded

    def shutdown(self) -> None:
        self.used_at_shutdown = self.manager.get_num_used_pages(0)
        self.manager.shutdown()

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self.calls]

    def claims(self) -> list[tuple[str, int]]:
        return [args for name, args in self.calls if name == "claim"]


def run(
    *requests: WorkloadRequest, pages: int = 100, **options: Any
) -> tuple[ReplayReport, Recorder]:
    """Replay on a recorded reference manager."""
    recorders: list[Recorder] = []

    def factory(setup: ManagerSetup) -> SyncKVCacheManager:
        recorders.append(Recorder(reference_manager(setup)))
        return cast("SyncKVCacheManager", recorders[0])

    replicas = options.pop("replicas", 1)
    asked = ReplayOptions(**options)
    setup = ManagerSetup(
        page_size=PAGE,
        total_num_pages=pages,
        replicas=replicas,
        max_batch_size=asked.concurrency,
    )
    return replay(requests, PAGE, factory, setup, asked), recorders[0]


def test_one_by_one_each_request_is_claimed_allocated_stepped_and_released() -> None:
    report, recorder = run(request(0, 1), request(0, 2), request(3))
    assert recorder.names == ["claim", "alloc", "step", "release"] * 3
    assert recorder.claims() == [("0", 0), ("1", 0), ("2", 0)]
    assert {name: times.count for name, times in report.calls.items()} == {
        "claim": 3,
        "alloc": 3,
        "step": 3,
        "release": 3,
    }


def test_runtime_inputs_are_asked_for_only_on_demand() -> None:
    _, recorder = run(request(0), runtime_inputs=True)
    assert recorder.names == ["claim", "alloc", "runtime_inputs", "step", "release"]


def test_the_report_counts_full_pages_and_hits() -> None:
    report, _ = run(request(0, 1, 2), request(0, 1, 3, length=11), request(0, 1, 2))
    assert (report.requests, report.tokens_total) == (3, 12 + 11 + 12)
    assert report.pages_referenced == 3 + 2 + 3
    assert report.pages_hit == 2 + 2, "the last token of a prompt is always computed"
    assert report.tokens_hit == 4 * PAGE
    assert report.hits_by_tier == {"device": 4, "peer": 0, "host": 0, "disk": 0, "store": 0}
    assert report.evictions == 0


def test_a_request_that_can_never_fit_is_refused_and_the_others_are_served() -> None:
    report, recorder = run(request(0), request(*range(1, 7)), request(0), pages=5)
    assert report.refused == 1
    assert recorder.names.count("step") == 2
    assert recorder.used_at_shutdown == 0


def test_lower_tiers_bring_back_what_the_device_gave_up(tmp_path: Path) -> None:
    rounds = [request(*range(start, start + 4)) for start in (0, 4, 8)] * 3

    def hits(host: int, disk: int) -> dict[str, int | None]:
        setup = ManagerSetup(
            page_size=PAGE,
            total_num_pages=5,
            host_pages=host or None,
            disk_pages=disk or None,
            disk_dir=tmp_path / f"{disk}",
        )
        return replay(rounds, PAGE, reference_manager, setup).hits_by_tier

    device = hits(0, 0)
    with_host = hits(12, 0)
    with_disk = hits(4, 12)
    assert sum(v or 0 for v in device.values()) == 0
    assert with_host["host"] == 6 * 3
    assert (with_disk["disk"] or 0) > 0
    assert sum(v or 0 for v in with_disk.values()) == 6 * 3


@pytest.mark.parametrize("pages", [1, 3, 7, 999, 123_457])
@pytest.mark.parametrize("page_size", [1, 16, 700])
def test_the_disk_tier_has_exactly_the_pages_that_were_asked_for(
    tmp_path: Path, page_size: int, pages: int
) -> None:
    manager = reference_manager(
        ManagerSetup(
            page_size=page_size,
            total_num_pages=1,
            host_pages=1,
            disk_pages=pages,
            disk_dir=tmp_path,
        )
    )
    assert manager.get_num_disk_pages(0) == pages
    assert manager.get_num_host_pages(0) == 1
    manager.shutdown()


def test_no_more_requests_are_in_flight_than_asked_and_they_come_in_file_order() -> None:
    report, recorder = run(*[request(i, output=3) for i in range(10)], concurrency=4, decode=True)
    assert recorder.most_in_flight == 4
    assert [name for name, _ in recorder.claims()] == [str(i) for i in range(10)]
    assert report.tokens_generated == 30


def test_requests_in_flight_step_together() -> None:
    _, recorder = run(*[request(i) for i in range(4)], concurrency=4)
    assert recorder.names == ["claim", "alloc"] * 4 + ["step"] + ["release"] * 4


def test_who_waits_for_pages_is_not_overtaken() -> None:
    # The first leaves room for the third, but not for the second, which is ahead of it.
    _, recorder = run(
        request(0, 1, 2, output=2), request(3, 4), request(5), pages=4, concurrency=3, decode=True
    )
    batches = [args[0][0] for name, args in recorder.calls if name == "step"]
    admitted = [[context.request_id for context in batch] for batch in batches]
    assert admitted == [["0"], ["0"], ["1", "2"]]


def test_the_youngest_is_preempted_and_comes_back_first() -> None:
    report, recorder = run(
        request(0, output=2 * PAGE),
        request(1, output=2 * PAGE),
        request(2),
        pages=4,
        concurrency=2,
        decode=True,
    )
    assert report.preemptions == 1
    order = [name for name, _ in groupby(name for name, _ in recorder.claims())]
    assert order == ["0", "1", "2"]
    assert report.tokens_generated == 2 * 2 * PAGE + 1, "no token is sampled twice"
    assert recorder.used_at_shutdown == 0


def test_a_readmission_says_that_it_is_one() -> None:
    _, recorder = run(
        *[request(i, output=2 * PAGE) for i in range(2)], pages=4, concurrency=2, decode=True
    )
    again = [args[0] for name, args in recorder.calls if name == "alloc" and args[0].preempted]
    assert {context.request_id for context in again} == {"1"}
    assert again[0].prompt_length > PAGE, "the tokens generated before belong to the new prompt"


def test_what_a_readmission_finds_again_is_no_hit_of_the_workload() -> None:
    report, _ = run(
        *[request(i, output=2 * PAGE) for i in range(2)], pages=4, concurrency=2, decode=True
    )
    assert report.pages_hit_again is not None
    assert report.pages_hit_again > 0
    assert (report.pages_hit, report.tokens_hit) == (0, 0), "nothing repeats in this workload"


def test_a_hopeless_request_is_refused_at_once_not_when_the_others_are_done() -> None:
    _, recorder = run(
        request(0, output=9), request(*range(1, 9)), request(9), pages=4, concurrency=2, decode=True
    )
    refused = recorder.names.index("release")
    assert recorder.calls[refused][1][0] == "1"
    assert "step" not in recorder.names[:refused]


def test_an_answer_that_outgrows_the_whole_pool_is_refused() -> None:
    report, recorder = run(request(0, output=100), request(1, output=2), pages=3, decode=True)
    assert report.refused == 1
    assert recorder.used_at_shutdown == 0


def test_a_request_goes_to_the_replica_that_has_its_prefix() -> None:
    ours, theirs = (0, 1, 2), (3, 4, 5)
    _, recorder = run(
        request(*ours, 6),
        request(*theirs, 7),
        request(*ours, 8),
        request(*theirs, 9),
        concurrency=2,
        replicas=2,
    )
    first, second, third, fourth = [replica for _, replica in recorder.claims()]
    assert {first, second} == {0, 1}, "without a prefix, the replica with more free pages"
    assert (third, fourth) == (first, second)


@settings(max_examples=40)
@given(
    st.lists(
        st.tuples(st.lists(st.integers(0, 5), min_size=1, max_size=4), st.integers(0, 20)),
        max_size=12,
    ),
    st.integers(1, 5),
    st.integers(9, 14),
    st.integers(1, 3),
    st.booleans(),
)
def test_every_request_is_served_once_and_leaves_nothing_behind(
    prompts: list[tuple[list[int], int]],
    concurrency: int,
    pages: int,
    replicas: int,
    decode: bool,
) -> None:
    requests = [request(*ids, output=output) for ids, output in prompts]
    report, recorder = run(
        *requests, pages=pages, concurrency=concurrency, decode=decode, replicas=replicas
    )
    assert (report.requests, report.refused) == (len(requests), 0)
    assert report.tokens_generated == sum(
        max(1, each.output_length) if decode else 1 for each in requests
    )
    assert recorder.most_in_flight <= concurrency
    assert not recorder.in_flight
    assert recorder.used_at_shutdown == 0


def test_a_counter_that_an_implementation_lacks_is_null_not_zero() -> None:
    class Sparse(Recorder):
        def get_metrics_aggregated(self) -> SimpleNamespace:
            return SimpleNamespace(device_blocks_served=0)

    def factory(setup: ManagerSetup) -> SyncKVCacheManager:
        return cast("SyncKVCacheManager", Sparse(reference_manager(setup)))

    report = replay([request(0)], PAGE, factory, ManagerSetup(page_size=PAGE, total_num_pages=5))
    assert (report.evictions, report.tokens_hit, report.pages_hit_again) == (None, None, None)
    assert report.hits_by_tier["device"] == 0
    assert report.hits_by_tier["host"] is None
    assert report.pages_hit == 0


def replay_broken(methods: dict[str, Callable[..., Any]], patience_s: float = 60) -> ReplayReport:
    """Replay one request on a real manager of which some methods are replaced."""

    def factory(setup: ManagerSetup) -> SyncKVCacheManager:
        manager = Recorder(reference_manager(setup))
        vars(manager).update(methods)
        return cast("SyncKVCacheManager", manager)

    options = ReplayOptions(patience_s=patience_s)
    return replay(
        [request(0)], PAGE, factory, ManagerSetup(page_size=PAGE, total_num_pages=5), options
    )


def fail(error: BaseException) -> Any:
    raise error


@pytest.mark.parametrize("name", ["claim", "alloc", "step", "release", "get_metrics_aggregated"])
@pytest.mark.parametrize("error", [OSError("full"), BrokenPipeError(), SystemExit(0), KeyError(1)])
def test_whatever_a_manager_raises_is_told_as_the_failure_of_that_call(
    name: str, error: BaseException
) -> None:
    with pytest.raises(ManagerCallError, match=f"^{name} raised {type(error).__name__}: ") as told:
        replay_broken({name: lambda *_: fail(error)})
    assert told.value.call == name
    assert told.value.__cause__ is error


def test_an_interrupt_is_nobodys_failure() -> None:
    with pytest.raises(KeyboardInterrupt):
        replay_broken({"alloc": lambda *_: fail(KeyboardInterrupt())})


def test_the_first_failure_is_told_not_that_of_the_shutdown_after_it() -> None:
    with pytest.raises(ManagerCallError, match="first"):
        replay_broken(
            {
                "alloc": lambda *_: fail(OSError("first")),
                "shutdown": lambda: fail(OSError("second")),
            }
        )


def test_an_asynchronous_method_is_told_as_that() -> None:
    async def claim(*_: Any) -> None: ...

    with pytest.raises(ManagerCallError, match="claim is asynchronous: a replay needs"):
        replay_broken({"claim": claim})


def test_a_counter_that_is_no_whole_number_is_a_failure() -> None:
    metrics = SimpleNamespace(device_blocks_served=float("nan"))
    with pytest.raises(ManagerCallError, match="get_metrics_aggregated raised TypeError"):
        replay_broken({"get_metrics_aggregated": lambda: metrics})


def test_transfers_that_never_end_are_waited_for_no_longer_than_asked() -> None:
    refusal = InsufficientBlocksError(needed=1, free=0, total=5)
    with pytest.raises(ManagerCallError, match="still says so after 0 s without progress"):
        replay_broken(
            {"alloc": lambda *_: fail(refusal), "pending_transfers_exist": lambda replica: True},
            patience_s=0,
        )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"page_size": 0}, "page_size"),
        ({"total_num_pages": 0}, "total_num_pages"),
        ({"host_pages": -1}, "host_pages"),
        ({"disk_pages": 1, "disk_dir": "somewhere"}, "disk_pages needs host_pages"),
        ({"host_pages": 1, "disk_pages": 1}, "give disk_dir"),
        ({"total_num_host_pages": 1}, "total_num_host_pages"),
    ],
)
def test_setups_that_cannot_be_are_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ManagerSetup.model_validate({"page_size": 1, "total_num_pages": 1} | fields)


def test_percentiles_are_recorded_values_of_the_nearest_rank() -> None:
    assert [percentile(range(1, 101), p) for p in (1, 50, 99, 100)] == [1, 50, 99, 100]
    assert [percentile([7], p) for p in (1, 50, 99)] == [7, 7, 7]
    assert percentile([], 50) == 0
    times = CallTimes.of(array("q", [3000, 1000, 2000]))
    assert (times.count, times.p50_us, times.p99_us) == (3, 2.0, 3.0)


def test_implementations_are_found_by_name() -> None:
    assert resolve_implementation("reference").make is reference_manager
    found = resolve_implementation("pagedkv.implementations:reference_manager")
    assert found.make is reference_manager


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", "is no implementation: use 'reference', 'engine' or"),
        ("os", "has no function 'implementation'"),
        (":factory", "is no implementation"),
        (".relative:factory", "is no implementation"),
        ("no_such_module:factory", "cannot be imported .* install it, or add its folder"),
        ("os:no_such_factory", "has no function 'no_such_factory'"),
        ("os:sep", "has no function 'sep'"),
    ],
)
def test_implementations_that_do_not_exist_are_told_apart(name: str, message: str) -> None:
    with pytest.raises(UnknownImplementationError, match=message):
        resolve_implementation(name)


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("raise RuntimeError('boom')", "RuntimeError: boom"),
        ("def (", "SyntaxError: invalid syntax"),
        ("raise SystemExit(3)", "SystemExit: 3"),
    ],
)
def test_a_module_that_cannot_be_imported_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, problem: str
) -> None:
    (tmp_path / "broken_implementation.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UnknownImplementationError, match=f"{problem}.*; correct the module"):
        resolve_implementation("broken_implementation:factory")


@pytest.mark.parametrize(
    ("pages", "hit_rate"),
    [(1_000, 0.0470), (10_000, 0.2242), (50_000, 0.3715)],
)
def test_mooncake_hits_as_least_recently_used_eviction_has_to(
    mooncake: Workload, pages: int, hit_rate: float
) -> None:
    report = replay(
        mooncake, 512, reference_manager, ManagerSetup(page_size=512, total_num_pages=pages)
    )
    assert report.hit_rate == pytest.approx(hit_rate, abs=0.00005)


def test_mooncake_without_bound_hits_all_that_repeats(mooncake: Workload) -> None:
    summary = summarise(mooncake)
    assert (summary.requests, summary.pages_referenced) == (12_031, 276_491)
    assert summary.infinite_cache_hit_rate == pytest.approx(0.3819, abs=0.00005)
