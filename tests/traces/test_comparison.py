"""What a comparison measures, and where its report goes."""

import json
import os
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pagedkv.implementations import reference_manager
from pagedkv.reference.interfaces import SyncKVCacheManager
from pagedkv.traces import GeneratorParameters, generate, write_workload
from pagedkv.traces.comparison.measure import Order, Task, measure
from pagedkv.traces.comparison.own_process import ProcessDiedError, in_own_process
from pagedkv.traces.comparison.report import Conditions, Measured, Unmeasured
from pagedkv.traces.comparison.report_folder import REPORT, ForeignFolderError, report_folder
from pagedkv.traces.comparison.sizes import Sizes, every_combination
from pagedkv.traces.manager_setup import ManagerFactory, ManagerSetup

CHORES = """
import os, sys

def doubles(number, progress):
    progress(1)
    print("noise that nobody wants")
    return 2 * number

def is_killed(number, progress):
    os.kill(os.getpid(), 9)

def gives_up(number, progress):
    print("nothing to do")
    print("no room for", number, file=sys.stderr)
    sys.exit(3)

def grows(nbytes, progress):
    from pagedkv.traces.comparison.peak_memory import MemoryGrowth
    freed_before = bytearray(2 * nbytes)
    del freed_before
    growth = MemoryGrowth()
    held = bytearray(b"x") * nbytes
    del held
    return growth.nbytes()
"""

pages = st.lists(st.integers(1, 9), min_size=1, max_size=3)
pages_or_none = st.lists(st.integers(0, 2), min_size=1, max_size=3)


@pytest.fixture
def chores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A module that another process can import."""
    (tmp_path / "chores.py").write_text(CHORES)
    monkeypatch.syspath_prepend(tmp_path)
    return import_module("chores")


@pytest.fixture
def order(tmp_path: Path) -> Callable[..., Order]:
    """Orders for a small workload on the reference, or on another factory."""
    trace = tmp_path / "trace.jsonl"
    write_workload(trace, *generate(GeneratorParameters(requests=40)))

    def make(factory: ManagerFactory = reference_manager, **sizes: int) -> Order:
        conditions = Conditions(
            page_size=128, concurrency=1, decode=False, limit=None, kv_bytes_per_token=1000
        )
        return Order(
            task=Task(trace, format=None, block_size=None, requests=40, conditions=conditions),
            implementation="tested",
            find_factory=lambda: factory,
            sizes=Sizes(**({"device_pages": 100} | sizes)),
            disk_dir=tmp_path,
        )

    return make


# Sizes


@given(pages, pages_or_none, pages_or_none)
def test_every_combination_that_can_be_comes_once(
    device: list[int], host: list[int], disk: list[int]
) -> None:
    found = every_combination(device, host, disk)
    assert len(found) == len(set(found))
    assert set(found) == {
        Sizes(device_pages=d, host_pages=h, disk_pages=k)
        for d in device
        for h in host
        for k in disk
        if h or not k
    }


def test_sizes_say_which_tiers_are_there() -> None:
    assert Sizes(device_pages=1).lower_tiers == "device only"
    assert Sizes(device_pages=1).tiers == ("device",)
    tiered = Sizes(device_pages=1, host_pages=2000, disk_pages=3)
    assert tiered.lower_tiers == "2,000 host and 3 disk pages"
    assert tiered.tiers == ("device", "host", "disk")


# One run


def test_a_run_reports_what_the_replay_did_and_what_was_moved(
    order: Callable[..., Order],
) -> None:
    progress: list[int] = []
    run = measure(order(host_pages=300, disk_pages=900), progress.append)
    assert isinstance(run, Measured)
    measurement = run.measurement
    assert measurement.replay.requests == 40
    assert measurement.requests_per_second == 40 / measurement.replay.seconds
    assert progress == list(range(1, 41))
    moved = measurement.pages_copied
    assert set(moved) == {"host_to_device", "device_to_host", "disk_to_host", "host_to_disk"}
    host_hits, disk_hits = (measurement.replay.hits_by_tier[tier] for tier in ("host", "disk"))
    assert moved["host_to_device"] == (host_hits or 0) + (disk_hits or 0)
    assert moved["disk_to_host"] == disk_hits
    for way, count in moved.items():
        assert count is not None
        assert measurement.bytes_copied[way] == count * 128 * 1000


def test_without_lower_tiers_nothing_is_moved(order: Callable[..., Order]) -> None:
    run = measure(order(), lambda done: None)
    assert isinstance(run, Measured)
    assert run.measurement.pages_copied == run.measurement.bytes_copied == {}


@pytest.mark.parametrize("refusal", [ValueError("no host tier"), NotImplementedError("nor disk")])
def test_a_factory_that_refuses_is_skipped_with_its_reason(
    order: Callable[..., Order], refusal: Exception
) -> None:
    def refuses(setup: ManagerSetup) -> SyncKVCacheManager:
        raise refusal

    run = measure(order(refuses), lambda done: None)
    assert isinstance(run, Unmeasured)
    assert (run.outcome, run.reason) == ("skipped", str(refusal))


def test_a_factory_that_breaks_has_failed(order: Callable[..., Order]) -> None:
    def breaks(setup: ManagerSetup) -> SyncKVCacheManager:
        raise ImportError("no such library")

    run = measure(order(breaks), lambda done: None)
    assert isinstance(run, Unmeasured)
    assert run.outcome == "failed"
    assert run.reason == "the factory raised ImportError: no such library"


class WithoutCounters:
    """A real manager that does not count copies and evictions."""

    def __init__(self, setup: ManagerSetup) -> None:
        self.manager = reference_manager(setup)

    # Any: it stands for whatever attribute the manager has.
    def __getattr__(self, name: str) -> Any:
        return getattr(self.manager, name)

    def get_metrics_aggregated(self) -> object:
        return object()


def test_what_is_not_counted_is_none_and_not_zero(order: Callable[..., Order]) -> None:
    run = measure(order(WithoutCounters, host_pages=10), lambda done: None)
    assert isinstance(run, Measured)
    assert run.measurement.hit_rate is None
    assert run.measurement.pages_copied == {"host_to_device": None, "device_to_host": None}
    assert run.measurement.bytes_copied == run.measurement.pages_copied
    assert run.measurement.replay.evictions is None


# Processes


def test_a_process_of_its_own_tells_progress_and_result(
    chores: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    progress: list[int] = []
    assert in_own_process(chores.doubles, 21, progress.append) == 42
    assert progress == [1]
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("chore", "end"),
    [
        ("is_killed", "ended by SIGKILL: it printed nothing"),
        ("gives_up", "ended with status 3: no room for 7"),
    ],
)
def test_a_process_that_dies_says_how(chores: Any, chore: str, end: str) -> None:
    with pytest.raises(ProcessDiedError, match=end):
        in_own_process(getattr(chores, chore), 7, lambda done: None)


def test_memory_growth_is_the_peak_since_the_beginning(chores: Any) -> None:
    nbytes = 2**26
    grown = in_own_process(chores.grows, nbytes, lambda done: None)
    assert nbytes * 0.9 < grown < nbytes * 1.5


# The folder


def write(folder: Path, **files: str) -> None:
    """Write a report that consists of such files."""
    names = [REPORT, *files]
    (folder / REPORT).write_text(json.dumps({"format": "pagedkv-comparison", "files": names}))
    for name, text in files.items():
        (folder / name).write_text(text)


def content(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir() if path.name != REPORT}


def test_a_report_replaces_an_earlier_one_completely(tmp_path: Path) -> None:
    target = tmp_path / "new" / "report"
    with report_folder(target) as folder:
        write(folder, page="first", plot="first")
        assert not target.exists(), "nothing is there before everything is"
    with report_folder(target) as folder:
        write(folder, page="second")
        assert content(target) == {"page": "first", "plot": "first"}
    assert content(target) == {"page": "second"}
    assert [path.name for path in target.parent.iterdir()] == ["report"]


def test_a_report_that_fails_leaves_the_earlier_one(tmp_path: Path) -> None:
    target = tmp_path / "report"
    with report_folder(target) as folder:
        write(folder, page="first")
    with pytest.raises(KeyboardInterrupt), report_folder(target) as folder:
        write(folder, page="second")
        raise KeyboardInterrupt
    assert content(target) == {"page": "first"}
    assert list(tmp_path.iterdir()) == [target]


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    link = tmp_path / "latest"
    (tmp_path / "report").mkdir()
    link.symlink_to("report")
    with report_folder(link) as folder:
        write(folder, page="first")
    assert link.is_symlink()
    assert content(tmp_path / "report") == {"page": "first"}


def put_a_note(folder: Path) -> None:
    (folder / "notes.txt").write_text("mine")


def put_another_json(folder: Path) -> None:
    (folder / REPORT).write_text('{"format": "invoice", "files": ["report.json"]}')


def put_a_note_beside_a_report(folder: Path) -> None:
    write(folder, page="first")
    put_a_note(folder)


@pytest.mark.parametrize("put", [put_a_note, put_another_json, put_a_note_beside_a_report])
def test_a_folder_with_something_else_is_refused_and_untouched(
    tmp_path: Path, put: Callable[[Path], None]
) -> None:
    target = tmp_path / "mine"
    target.mkdir()
    put(target)
    before = sorted((path.name, path.read_text()) for path in target.iterdir())
    with pytest.raises(ForeignFolderError, match="belongs to no report"), report_folder(target):
        pytest.fail("the report would have been written")
    assert sorted((path.name, path.read_text()) for path in target.iterdir()) == before


def test_what_comes_into_the_folder_meanwhile_is_kept(tmp_path: Path) -> None:
    target = tmp_path / "report"
    with pytest.raises(ForeignFolderError), report_folder(target):
        target.mkdir()
        put_a_note(target)
    assert [path.name for path in tmp_path.iterdir()] == ["report"]
    assert content(target) == {"notes.txt": "mine"}


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "report").write_text("mine")
    with pytest.raises(NotADirectoryError), report_folder(tmp_path / "report"):
        pytest.fail("the report would have been written")
    blocked = partial(report_folder, tmp_path / "report" / "below")
    with pytest.raises(OSError) as error, blocked():
        pytest.fail("the report would have been written")
    assert error.value.filename == os.fspath(tmp_path / "report" / "below")
