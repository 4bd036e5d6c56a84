"""``pagedkv compare`` from the outside."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Pagedkv = Callable[..., Any]

IMPLEMENTATIONS = """
from pagedkv.implementations import reference_manager

def without_host(setup):
    if setup.host_pages:
        raise ValueError("host_pages: there is no host tier here")
    return reference_manager(setup)

def breaking(setup):
    manager = reference_manager(setup)
    alloc = manager.alloc

    def breaks_at_the_tenth(ctx, replica_idx):
        if ctx.request_id == "10":
            raise IndexError("page 7")
        return alloc(ctx, replica_idx)

    manager.alloc = breaks_at_the_tenth
    return manager

class Bare:
    def __init__(self, setup):
        pass

    def claim(self, request_id, replica_idx):
        pass

def refusing(setup):
    raise ValueError("not today")
"""


@pytest.fixture
def implementations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module of implementations besides the reference."""
    folder = tmp_path / "modules"
    folder.mkdir()
    (folder / "compared_implementations.py").write_text(IMPLEMENTATIONS)
    monkeypatch.syspath_prepend(folder)
    return "compared_implementations"


def test_the_reference_alone_makes_a_report(
    pagedkv: Pagedkv, workload: Path, tmp_path: Path
) -> None:
    out = tmp_path / "new" / "report"
    options = ["--limit", 30, "--page-size", 64, "--kv-bytes-per-token", 1000, "--out", out]
    outcome = pagedkv("compare", workload, "--pages", "400,200", *options)
    assert (outcome.status, outcome.err) == (0, "")
    assert f"report:{out / 'report.html'}" in "".join(outcome.out.split())
    report = json.loads((out / "report.json").read_text())
    assert (report["format"], report["version"]) == ("pagedkv-comparison", 1)
    assert [run["sizes"]["device_pages"] for run in report["runs"]] == [200, 400]
    assert report["conditions"] == {
        "page_size": 64,
        "concurrency": 1,
        "decode": False,
        "limit": 30,
        "kv_bytes_per_token": 1000,
    }
    replayed = pagedkv(
        *("replay", workload, "--limit", 30, "--page-size", 64, "--pages", 400, "--json")
    ).json
    [_, run] = [run["measurement"] for run in report["runs"]]
    same = ("requests", "pages_referenced", "pages_hit", "hits_by_tier", "evictions", "refused")
    assert {key: run["replay"][key] for key in same} == {key: replayed[key] for key in same}
    assert run["hit_rate"] == replayed["hit_rate"]
    [low, high] = [bound["belady_hits"] for bound in report["bounds"]]
    assert replayed["pages_hit"] <= high <= report["workload"]["infinite_cache_hits"]
    assert low <= high
    assert sorted(report["files"]) == sorted(path.name for path in out.iterdir())


def test_one_implementation_cannot_kill_the_others(
    pagedkv: Pagedkv, workload: Path, tmp_path: Path, implementations: str
) -> None:
    names = ["reference", f"{implementations}:without_host", f"{implementations}:breaking"]
    options = ["--pages", "200", "--host-pages", "0,100", "--limit", 30, "--out", tmp_path / "r"]
    impls = [word for name in names for word in ("--impl", name)]
    outcome = pagedkv("compare", workload, *impls, *options)
    report = json.loads((tmp_path / "r" / "report.json").read_text())
    assert [(run["implementation"], run["outcome"]) for run in report["runs"]] == [
        (names[0], "measured"),
        (names[1], "measured"),
        (names[2], "failed"),
        (names[0], "measured"),
        (names[1], "skipped"),
        (names[2], "failed"),
    ]
    assert report["runs"][4]["reason"] == "host_pages: there is no host tier here"
    assert report["runs"][2]["reason"] == "alloc raised IndexError: page 7"
    assert outcome.status == 1
    assert outcome.err.startswith("pagedkv: 2 of 6 runs have failed, see ")
    assert outcome.err.endswith("breaking on 200 device pages: alloc raised IndexError: page 7\n")
    assert "skipped" in outcome.out


def test_where_nobody_can_run_there_is_no_report(
    pagedkv: Pagedkv, workload: Path, tmp_path: Path, implementations: str
) -> None:
    options = ["--impl", f"{implementations}:refusing", "--pages", "9", "--out", tmp_path / "r"]
    outcome = pagedkv("compare", workload, *options)
    assert (outcome.status, outcome.out) == (2, "")
    assert outcome.err.endswith("refusing cannot be compared: not today\n")
    assert not (tmp_path / "r").exists()


def test_what_a_replay_calls_must_be_there_before_anything_runs(
    pagedkv: Pagedkv, workload: Path, tmp_path: Path, implementations: str
) -> None:
    bare = f"{implementations}:Bare"
    options = ["--impl", "reference", "--impl", bare, "--pages", "9", "--out", tmp_path / "r"]
    outcome = pagedkv("compare", workload, *options)
    assert (outcome.status, outcome.out) == (2, "")
    assert f"--impl {bare}: its factory built a Bare, which lacks alloc, step" in outcome.err
    told = pagedkv("conformance", "--impl", bare)
    assert f"--impl {bare}: its factory built a Bare, which lacks alloc, step" in told.err
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("", "'--pages'"),
        ("--pages 0", "--pages: '0' is no whole number from 1"),
        ("--pages 5,", "--pages: '' is no whole number"),
        ("--pages 5;6", "--pages: '5;6' is no whole number"),
        ("--pages 5 --host-pages -1", "--host-pages"),
        ("--pages 5 --disk-pages 3", "--disk-pages: a disk tier needs a host tier"),
        ("--pages 5 --concurrency 0", "--concurrency"),
        ("--pages 5 --kv-bytes-per-token 0", "--kv-bytes-per-token"),
        ("--pages 5 --impl reference --impl reference", "--impl: names an implementation twice"),
        ("--pages 5 --impl nobody:make", "module 'nobody' cannot be imported"),
    ],
)
def test_wrong_options_are_told_in_one_line(
    pagedkv: Pagedkv, workload: Path, tmp_path: Path, options: str, message: str
) -> None:
    outcome = pagedkv("compare", workload, "--out", tmp_path / "r", *options.split())
    assert (outcome.status, outcome.out) == (2, "")
    assert message in outcome.err
    assert outcome.err.count("\n") == 1
    assert not (tmp_path / "r").exists()


def test_a_folder_with_something_else_is_refused_before_anything_runs(
    pagedkv: Pagedkv, workload: Path, tmp_path: Path
) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    outcome = pagedkv("compare", workload, "--pages", "9", "--out", tmp_path)
    assert (outcome.status, outcome.out) == (2, "")
    assert f"--out: {tmp_path} holds thesis.tex, which belongs to no report" in outcome.err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_without_matplotlib_it_says_what_to_install(
    pagedkv: Pagedkv, workload: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    outcome = pagedkv("compare", workload, "--pages", "9", "--out", tmp_path / "r")
    assert (outcome.status, outcome.out) == (2, "")
    assert "pip install 'pagedkv[compare]'" in outcome.err
