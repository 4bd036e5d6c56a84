"""``pagedkv streams check``: which accesses race, what orders them, and what was not checked."""

import gzip
import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pagedkv.conformance.stream_order import OrderLogWriter

Pagedkv = Callable[..., Any]


def log_of(path: Path, *enqueue: Callable[[OrderLogWriter], object]) -> Path:
    with path.open("w") as file:
        log = OrderLogWriter(file)
        for call in enqueue:
            call(log)
    return path


def forward(log: OrderLogWriter) -> None:
    log.launch("compute", writes={"blocks": [7]}, note="step 1")


def store(log: OrderLogWriter) -> None:
    log.copy("store", reads={"blocks": [7]}, writes={"slots": [0]})


def barrier(log: OrderLogWriter) -> None:
    log.wait_stream("store", "compute")


def test_ordered_log_is_clean(pagedkv: Pagedkv, tmp_path: Path) -> None:
    outcome = pagedkv("streams", "check", log_of(tmp_path / "log", forward, barrier, store))
    assert (outcome.status, outcome.err) == (0, "")


def test_race_names_both_accesses_and_the_missing_edge(pagedkv: Pagedkv, tmp_path: Path) -> None:
    outcome = pagedkv("streams", "check", log_of(tmp_path / "log", forward, store))
    assert outcome.status == 1
    assert "race 1: row 7 of blocks" in outcome.out
    assert "line 2, entry 0: launch on compute writes (step 1)" in outcome.out
    assert "line 3, entry 1: copy on store reads" in outcome.out
    told = " ".join(outcome.out.split())
    assert (
        "missing: record an event on compute behind entry 0, and let store wait for it before "
        "entry 1" in told
    )


def test_json_says_the_same(pagedkv: Pagedkv, tmp_path: Path) -> None:
    result = pagedkv("streams", "check", log_of(tmp_path / "log", forward, store), "--json").json
    (race,) = result["races"]
    assert (race["memory"], race["rows"], race["event"]) == ("blocks", [7], None)
    assert (race["earlier"]["line"], race["later"]["line"]) == (2, 3)
    assert race["earlier"]["note"] == "step 1"
    assert result["entries"] == {"launch": 1, "copy": 1}


@pytest.mark.parametrize(
    ("enqueue", "warning"),
    [
        ([], "names no rows, so nothing was checked"),
        ([lambda log: log.launch("compute")], "names no rows, so nothing was checked"),
        ([store], "names no launches"),
        ([forward, barrier, store, lambda log: log.launch("compute")], "1 of 2 launch entries"),
        ([forward], "no memory is used on two streams"),
    ],
)
def test_what_cannot_race_by_omission_is_warned_of(
    pagedkv: Pagedkv,
    tmp_path: Path,
    enqueue: list[Callable[[OrderLogWriter], object]],
    warning: str,
) -> None:
    outcome = pagedkv("streams", "check", log_of(tmp_path / "log", *enqueue))
    assert outcome.status == 0
    assert "warning" in outcome.err and warning in outcome.err


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('{"entry":"copied"}', "line 3: .*copied"),
        ("", "line 3: .*JSON"),
        ('{"entry":"wait","stream":"store","event":4}', "line 3: store waits for event 4, which"),
        ('{"entry":"launch","stream":"compute","reads":{"blocks":[[-1,1]]}}', "line 3: .*reads"),
    ],
)
def test_line_that_is_not_understood_is_named_with_its_number(
    pagedkv: Pagedkv, tmp_path: Path, line: str, problem: str
) -> None:
    log = log_of(tmp_path / "log", forward)
    log.write_text(f"{log.read_text()}{line}\n{log.read_text().splitlines()[1]}\n")
    outcome = pagedkv("streams", "check", log)
    assert outcome.status == 2
    assert outcome.out == ""
    assert re.search(problem, outcome.err), outcome.err


def test_log_may_be_packed(pagedkv: Pagedkv, tmp_path: Path) -> None:
    text = io.StringIO()
    forward(log := OrderLogWriter(text))
    store(log)
    packed = tmp_path / "log.gz"
    packed.write_bytes(gzip.compress(text.getvalue().encode()))
    assert pagedkv("streams", "check", packed).status == 1


def test_missing_log_is_an_error(pagedkv: Pagedkv, tmp_path: Path) -> None:
    outcome = pagedkv("streams", "check", tmp_path / "none")
    assert outcome.status == 2 and "does not exist" in outcome.err
