"""``pagedkv replay --record`` and ``pagedkv trace check|snapshot|cut|minimise|anonymise``."""

import gzip
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pagedkv.traces import Workload
from pagedkv.traces.events.shipped import recorded_runs

Pagedkv = Callable[..., Any]

SIZES = "--pages 300 --host-pages 400 --disk-pages 900 --replicas 2 --concurrency 3"


def unpacked(name: str, folder: Path) -> Path:
    """A recorded run, as text."""
    path = folder / f"{name}.jsonl"
    path.write_bytes(gzip.decompress(recorded_runs()[name].path.read_bytes()))
    return path


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with all tiers."""
    return unpacked("busy", tmp_path)


@pytest.fixture
def forged(run: Path) -> tuple[Path, int]:
    """The same with one event changed, and the number of its line."""
    lines = run.read_text().splitlines()
    line = max(n for n, text in enumerate(lines) if '"event":"alloc_returned"' in text)
    lines[line] = lines[line].replace('"processed":', '"processed":1')
    run.write_text("\n".join(lines))
    return run, line + 1


def test_a_recorded_replay_is_allowed(pagedkv: Pagedkv, workload: Path, tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    options = (*SIZES.split(), "--limit", 40, "--record", path)
    assert pagedkv("replay", workload, *options).status == 0
    result = pagedkv("trace", "check", path, "--json").json
    lines = path.read_text().splitlines()
    assert result == {
        "trace": str(path),
        "implementation": "reference",
        "allowed": True,
        "events": len(lines) - 1,
        "reason": None,
        "state": None,
    }
    assert sum('"event":"alloc_planned"' in line for line in lines) >= 40


def test_a_forged_result_is_named_with_its_line(pagedkv: Pagedkv, forged: tuple[Path, int]) -> None:
    path, line = forged
    outcome = pagedkv("trace", "check", path)
    assert outcome.status == 1
    assert f"line {line}: AllocReturned: processed: expected" in outcome.err
    assert "Traceback" not in outcome.err


def test_pages_may_have_other_numbers_if_that_is_said(pagedkv: Pagedkv, tmp_path: Path) -> None:
    path = unpacked("prefixes", tmp_path)
    lines = path.read_text().splitlines()
    last = json.loads(lines[0])["setup"]["total_num_pages"] - 1

    def other(found: re.Match[str]) -> str:
        pages = [last - int(page) for page in found[1].split(",") if page]
        return f'"pages":{json.dumps(pages)}'

    path.write_text(re.sub(r'"pages":\[([0-9,]*)\]', other, "\n".join(lines)))
    outcome = pagedkv("trace", "check", path)
    assert (outcome.status, "with --up-to-renaming" in outcome.err) == (1, True)
    assert pagedkv("trace", "check", path, "--up-to-renaming").status == 0
    path.write_text(path.read_text().replace(f'"pages":[{last}', '"pages":[0', 1))
    outcome = pagedkv("trace", "check", path, "--up-to-renaming")
    assert (outcome.status, "before the first that is not" in outcome.out) == (1, True)


def test_a_divergence_shows_the_state_before_it(pagedkv: Pagedkv, forged: tuple[Path, int]) -> None:
    path, line = forged
    request = json.loads(path.read_text().splitlines()[line - 1])["request_id"]
    outcome = pagedkv("trace", "check", path)
    assert "pages may be taken" in outcome.out
    assert f"{request} " in outcome.out and "is to get" in outcome.out
    state = pagedkv("trace", "check", path, "--json").json["state"]
    assert state["seq"] == line - 2
    assert list(state["requests"]) == [request]
    assert len(state["free_pages"]) == 2


def test_a_run_that_breaks_off_in_a_call_shows_the_state_before_the_call(
    pagedkv: Pagedkv, tmp_path: Path
) -> None:
    path = unpacked("broken_device", tmp_path)
    lines = path.read_text().splitlines()
    call = next(n for n, line in enumerate(lines) if "replica_poisoned" in line)
    path.write_text("\n".join(lines[: call + 1]))
    result = pagedkv("trace", "check", path, "--json").json
    assert result["reason"] == "TransferFailed is missing at the end"
    assert (result["events"], result["state"]["seq"]) == (call, call - 1)


def test_a_recording_is_packed_if_its_name_says_so(
    pagedkv: Pagedkv, workload: Path, tmp_path: Path
) -> None:
    path = tmp_path / "run.jsonl.gz"
    assert pagedkv("replay", workload, "--limit", 3, "--record", path).status == 0
    assert gzip.decompress(path.read_bytes()).startswith(b'{"format":"pagedkv-events"')
    assert pagedkv("trace", "check", path).status == 0


def test_what_is_no_event_trace_cannot_be_checked(pagedkv: Pagedkv, workload: Path) -> None:
    outcome = pagedkv("trace", "check", workload)
    assert outcome.status == 2
    assert "does not begin with the header of an event trace" in outcome.err


def test_a_recording_replaces_neither_the_trace_nor_the_json(
    pagedkv: Pagedkv, workload: Path, tmp_path: Path
) -> None:
    before = workload.read_bytes()
    outcome = pagedkv("replay", workload, "--record", workload)
    assert (outcome.status, workload.read_bytes()) == (2, before)
    assert "--record" in outcome.err
    both = tmp_path / "both"
    outcome = pagedkv("replay", workload, "--record", both, "--json", both)
    assert (outcome.status, both.exists()) == (2, False)


def test_a_diverging_run_is_made_short(
    pagedkv: Pagedkv, forged: tuple[Path, int], tmp_path: Path
) -> None:
    path, _ = forged
    short, same = tmp_path / "short.jsonl", tmp_path / "same.jsonl"
    outcome = pagedkv("trace", "check", path, "--minimise", short)
    assert outcome.status == 1
    assert "short.jsonl shows the same in" in outcome.err
    result = pagedkv("trace", "minimise", path, "-o", same, "--json").json
    assert same.read_bytes() == short.read_bytes()
    assert result["shortest"] and result["events"] < 10
    assert "minimised from busy.jsonl" in short.read_text()
    again = pagedkv("trace", "check", short)
    assert again.status == 1
    assert "AllocReturned: processed: expected" in again.err


def test_a_part_of_a_run_can_be_checked_by_itself(
    pagedkv: Pagedkv, run: Path, tmp_path: Path
) -> None:
    part = tmp_path / "part.jsonl.gz"
    outcome = pagedkv("trace", "cut", run, "--from", 100, "--to", 149, "-o", part, "--json")
    assert outcome.json == {"output": str(part), "first": 100, "events": 50}
    assert pagedkv("trace", "check", part, "--json").json["events"] == 50
    inner = tmp_path / "inner.jsonl"
    assert pagedkv("trace", "cut", part, "--from", 120, "-o", inner).status == 0
    assert '{"seq":120,' in inner.read_text()
    assert pagedkv("trace", "check", inner).status == 0


def test_a_snapshot_says_how_a_run_stands(pagedkv: Pagedkv, run: Path) -> None:
    shown = pagedkv("trace", "snapshot", run, "--at", 100).out.split()
    assert {"event", "100", "replica", "host", "disk", "store", "flight"} <= set(shown)
    result = pagedkv("trace", "snapshot", run, "--at", 100, "--json").json
    assert result["seq"] == 100
    assert len(result["state"]["pools"]) == 2
    end = pagedkv("trace", "snapshot", run, "--json").json
    assert end["seq"] == len(run.read_text().splitlines()) - 1
    assert end["state"]["closed"]


def test_more_events_can_be_added_to_a_snapshot(
    pagedkv: Pagedkv, run: Path, tmp_path: Path
) -> None:
    start = tmp_path / "start.jsonl"
    assert pagedkv("trace", "snapshot", run, "--at", 100, "-o", start).status == 0
    assert pagedkv("trace", "check", start, "--json").json["events"] == 0
    later = run.read_text().splitlines(keepends=True)[101:]
    start.write_text(start.read_text() + "".join(later))
    assert pagedkv("trace", "check", start, "--json").json["events"] == len(later)


def test_a_disk_is_checked_against_the_run_before(
    pagedkv: Pagedkv, run: Path, tmp_path: Path
) -> None:
    warm = unpacked("warm_disk", tmp_path)
    outcome = pagedkv("trace", "check", warm, "--after", run)
    assert outcome.status == 1
    assert "DiskOpened: the weights were None and then 'weights'" in outcome.err
    outcome = pagedkv("trace", "check", unpacked("prefixes", tmp_path), "--after", run)
    assert outcome.status == 2
    assert "opens no disk" in outcome.err


def test_an_anonymised_run_is_still_a_run(pagedkv: Pagedkv, run: Path, tmp_path: Path) -> None:
    outputs = [tmp_path / f"{n}.jsonl" for n in range(4)]
    for output, options in zip(outputs, ([], [], ["--seed", 1], ["--seed", 1]), strict=True):
        assert pagedkv("trace", "anonymise", run, "-o", output, *options).status == 0
        assert pagedkv("trace", "check", output).status == 0
        assert "request 1" not in output.read_text()
    contents = [output.read_text() for output in outputs]
    assert contents[2] == contents[3]
    assert len(set(contents)) == 3, "without a seed, each has a secret of its own"


def test_an_anonymised_workload_is_still_a_workload(
    pagedkv: Pagedkv, workload: Path, tmp_path: Path
) -> None:
    output = tmp_path / "w.jsonl"
    options = ("--coarsen-ms", 60_000, "--json")
    outcome = pagedkv("trace", "anonymise", workload, "-o", output, *options)
    assert outcome.json == {"output": str(output), "requests": 200}
    assert all(request.arrival_ms % 60_000 == 0 for request in Workload(output))
    assert "chat" not in output.read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("check", "absent"), "does not exist"),
        (("snapshot", "run", "--at", 9999), "there is no event 9999"),
        (("cut", "run", "--from", 9, "--to", 8, "-o", "part"), "--to 8 comes before --from 9"),
        (("cut", "run", "--from", 9999, "-o", "part"), "there is no event 9999"),
        (("cut", "run"), "--output"),
        (("minimise", "run", "-o", "short"), "the run is allowed"),
        (("anonymise", "absent", "-o", "other"), "does not exist"),
    ],
)
def test_wrong_requests_are_told_in_one_line(
    pagedkv: Pagedkv,
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[object, ...],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    run.rename("run")
    outcome = pagedkv("trace", *arguments)
    assert outcome.status == 2
    assert message in outcome.err
    assert outcome.err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize("command", ["cut", "minimise", "snapshot", "anonymise"])
def test_no_command_replaces_what_it_reads(pagedkv: Pagedkv, run: Path, command: str) -> None:
    before = run.read_bytes()
    outcome = pagedkv("trace", command, run, "-o", run)
    assert (outcome.status, run.read_bytes()) == (2, before)
    assert "itself; give it a file of its own" in outcome.err


def test_a_setup_that_cannot_be_is_told_in_one_line(pagedkv: Pagedkv, run: Path) -> None:
    run.write_text(run.read_text().replace('"head_dim":1', '"head_dim":1000000000000', 1))
    outcome = pagedkv("trace", "check", run)
    assert (outcome.status, outcome.err.count("\n")) == (2, 1)
