"""``pagedkv replay`` from the outside."""

import json
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Pagedkv = Callable[..., Any]

DOCUMENTED_KEYS = {
    "requests",
    "pages_referenced",
    "pages_hit",
    "hits_by_tier",
    "tokens_total",
    "tokens_hit",
    "evictions",
    "refused",
    "seconds",
    "calls",
}


def test_json_has_every_documented_key(pagedkv: Pagedkv, workload: Path) -> None:
    result = pagedkv("replay", workload, "--json").json
    assert set(result) >= DOCUMENTED_KEYS
    assert set(result["hits_by_tier"]) == {"device", "peer", "host", "disk", "store"}
    assert set(result["calls"]) == {"claim", "alloc", "step", "release"}
    assert set(result["calls"]["alloc"]) == {"count", "p50_us", "p99_us"}
    assert result["requests"] == result["calls"]["alloc"]["count"] == 200


def test_by_default_nothing_is_evicted_and_all_repetition_hits(
    pagedkv: Pagedkv, workload: Path
) -> None:
    result = pagedkv("replay", workload, "--json").json
    bound = pagedkv("trace", "info", workload, "--json").json
    assert result["parameters"]["page_size"] == 128
    assert (result["evictions"], result["refused"]) == (0, 0)
    assert result["pages_referenced"] == bound["pages_referenced"]
    assert result["pages_hit"] == bound["infinite_cache_hits"]


def test_every_option_arrives(pagedkv: Pagedkv, workload: Path) -> None:
    options = "--page-size 32 --pages 2000 --host-pages 500 --disk-pages 900 --replicas 2"
    more = "--concurrency 4 --decode --runtime-inputs --limit 20 --impl reference --json -"
    result = pagedkv("replay", workload, *options.split(), *more.split()).json
    assert result["parameters"] == {
        "page_size": 32,
        "pages": 2000,
        "host_pages": 500,
        "disk_pages": 900,
        "replicas": 2,
        "concurrency": 4,
        "decode": True,
        "runtime_inputs": True,
        "limit": 20,
    }
    assert result["requests"] == 20
    assert result["tokens_generated"] > 20
    assert "runtime_inputs" in result["calls"]


def test_the_table_is_for_people_and_the_file_for_programs(
    pagedkv: Pagedkv, workload: Path, tmp_path: Path
) -> None:
    outcome = pagedkv("replay", workload, "--limit", 5, "--json", tmp_path / "result.json")
    assert outcome.status == 0
    assert "prompt pages" in outcome.out
    assert json.loads((tmp_path / "result.json").read_text())["requests"] == 5
    assert list(tmp_path.iterdir()) == [tmp_path / "result.json"]


@pytest.mark.parametrize("columns", ["40", "80", "120"])
def test_no_line_is_wider_than_the_terminal(
    pagedkv: Pagedkv, workload: Path, monkeypatch: pytest.MonkeyPatch, columns: str
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    outcome = pagedkv("replay", workload, "--limit", 5)
    assert max(map(len, outcome.out.splitlines())) <= int(columns)
    assert "…" not in outcome.out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--page-size 0", "'--page-size': '0' is no whole number from 1 to 100000000."),
        ("--page-size 1.5", "'--page-size': '1.5' is no whole number"),
        ("--pages 0", "'--pages': '0' is no number from 1 to 1000000000 and not 'unbounded'"),
        ("--pages many", "'--pages'"),
        ("--host-pages -1", "'--host-pages'"),
        ("--disk-pages -1", "'--disk-pages'"),
        ("--disk-pages 5", "--disk-pages: a disk tier needs a host tier"),
        ("--replicas 0", "'--replicas'"),
        ("--concurrency 0", "'--concurrency'"),
        ("--limit 0", "'--limit'"),
        ("--limit 9999999999999999999999", "'--limit'"),
        ("--format parquet", "'--format': 'parquet' is not one of pagedkv, bailian"),
        ("--block-size 7", "leave --block-size out"),
        ("--impl nobody", "'nobody' cannot be imported"),
        ("--impl nobody:make", "module 'nobody' cannot be imported"),
        ("--impl json:dumps", "--impl json:dumps cannot build a manager"),
        ("--impl builtins:str", "its factory built a str, which lacks claim, alloc"),
        ("--pages 900000000", "total_num_pages needs"),
        ("--json /no/such/folder/file", "'--json': '/no/such/folder/file': its folder does"),
        ("--impl .nobody:make", "'.nobody:make' is no implementation"),
        ("--colour red", "--colour"),
    ],
)
def test_wrong_options_are_told_in_one_line(
    pagedkv: Pagedkv, workload: Path, options: str, message: str
) -> None:
    outcome = pagedkv("replay", workload, *options.split())
    assert outcome.status == 2
    assert message in outcome.err
    assert outcome.err.count("\n") == 1
    assert outcome.out == ""


IMPLEMENTATION = """
from pagedkv.implementations import reference_manager

class Odd(Exception):
    def format_message(self):
        return "an option is wrong"

def raises(error):
    def alloc(ctx, replica_idx):
        raise error

    def factory(setup):
        manager = reference_manager(setup)
        manager.alloc = alloc
        return manager

    return factory

disk_full = raises(OSError(28, "No space left on device"))
pipe = raises(BrokenPipeError(32, "Broken pipe"))
leaves = raises(SystemExit(0))
odd = raises(Odd("odd"))

def unbuilt(setup):
    raise SystemExit(0)

async def later(setup):
    pass
"""


@pytest.fixture
def implementation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module of implementations that fail in ways a command might take for its own."""
    (tmp_path / "failing_implementations.py").write_text(IMPLEMENTATION)
    monkeypatch.syspath_prepend(tmp_path)
    return "failing_implementations"


@pytest.mark.parametrize(
    ("factory", "exception"),
    [
        ("disk_full", "OSError: [Errno 28] No space left on device"),
        ("pipe", "BrokenPipeError: [Errno 32] Broken pipe"),
        ("leaves", "SystemExit: 0"),
        ("odd", "Odd: odd"),
    ],
)
def test_a_failing_implementation_is_told_in_one_line_with_the_call(
    pagedkv: Pagedkv, workload: Path, implementation: str, factory: str, exception: str
) -> None:
    name = f"{implementation}:{factory}"
    outcome = pagedkv("replay", workload, "--impl", name)
    complaint = f"pagedkv: --impl {name}: alloc raised {exception}\n"
    assert (outcome.status, outcome.out, outcome.err) == (1, "", complaint)
    outcome = pagedkv("replay", workload, "--impl", name, "--traceback")
    assert outcome.err.startswith("Traceback")
    assert 'failing_implementations.py", line' in outcome.err
    assert outcome.err.endswith(complaint)


@pytest.mark.parametrize(
    ("factory", "problem"),
    [("unbuilt", "raised SystemExit: 0"), ("later", "is asynchronous")],
)
def test_a_failing_factory_is_a_wrong_option(
    pagedkv: Pagedkv, workload: Path, implementation: str, factory: str, problem: str
) -> None:
    outcome = pagedkv("replay", workload, "--impl", f"{implementation}:{factory}")
    assert (outcome.status, outcome.err.count("\n")) == (2, 1)
    assert f"cannot build a manager of this size: the factory {problem}" in outcome.err


def test_a_trace_without_requests_is_told_as_that(pagedkv: Pagedkv, tmp_path: Path) -> None:
    (tmp_path / "w").write_text('{"format":"pagedkv-workload","version":1,"block_size":4}\n')
    outcome = pagedkv("replay", tmp_path / "w")
    assert (outcome.status, outcome.out) == (2, "")
    assert "the trace holds no request" in outcome.err


def test_a_damaged_line_is_found_before_the_replay(pagedkv: Pagedkv, tmp_path: Path) -> None:
    (tmp_path / "w").write_text(
        '{"timestamp": 0, "input_length": 3, "output_length": 1, "hash_ids": [0]}\n{"timest'
    )
    outcome = pagedkv("replay", tmp_path / "w", "--json")
    assert (outcome.status, outcome.out) == (2, "")
    assert "line 2: is not valid JSON" in outcome.err


def test_oddities_are_warned_of_and_recorded(pagedkv: Pagedkv, tmp_path: Path) -> None:
    line = '{{"timestamp": {}, "input_length": 3, "output_length": 1, "hash_ids": [0]}}\n'
    (tmp_path / "w").write_text(line.format(5) + line.format(4))
    outcome = pagedkv("replay", tmp_path / "w", "--json")
    assert outcome.status == 0
    assert outcome.err.startswith("pagedkv: warning: arrival times go backwards")
    assert len(outcome.json["warnings"]) == 1


def test_what_a_command_does_wrong_is_said_of_the_command(pagedkv: Pagedkv, workload: Path) -> None:
    hello = {
        **{"version": 1, "name": "mute", "implementation_version": "1", "page_size": 4},
        **{"capabilities": ["device"], "follows": [], "write_policies": ["through"]},
    }
    answers = [json.dumps({"result": hello}), '{"result":{"calls":["claim"],"slot_nbytes":null}}']
    script = f"import sys\nfor answer in {answers!r}:\n  input()\n  print(answer, flush=True)"
    command = shlex.join([sys.executable, "-c", script])
    outcome = pagedkv("replay", workload, "--impl-cmd", command)
    assert outcome.status == 2
    assert "--impl-cmd" in outcome.err and "--impl cmd" not in outcome.err
    assert "its factory built a RemoteManager, which lacks alloc, step" in outcome.err
