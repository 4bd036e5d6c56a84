"""``pagedkv soak``: all right, or what is wrong, with a report and a picture of how it went."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.cli.conftest import Pagedkv
from tests.conformance.simulation.broken_engine import BROKEN

from pagedkv.engine.streams.threads import ThreadStreams
from pagedkv.soak.memory_growth import FEWEST, SLACK_BYTES, memory_growth

SHORT = 0.1
"""Minutes."""


# Any: a report as JSON.
def soaked(pagedkv: Pagedkv, folder: Path, minutes: float = SHORT) -> tuple[int, Any, str]:
    """Exit status, report and complaints."""
    outcome = pagedkv("soak", "--minutes", minutes, "--seed", 1, "--out", folder, "--json")
    assert json.loads((folder / "soak.json").read_text()) == outcome.json
    return outcome.status, outcome.json, outcome.err


def test_all_is_right_and_every_tier_is_used(pagedkv: Pagedkv, tmp_path: Path) -> None:
    status, report, complaints = soaked(pagedkv, tmp_path)
    assert (status, report["problems"], complaints) == (0, [], "")
    assert report["lives"] > 1 and report["survivors"] and report["pages_checked"]
    last = report["samples"][-1]
    assert all(last["served"].values())
    assert last["resident_bytes"] > 2**20
    assert report["events"] > last["validated"] > 0
    assert len({sample["trouble"] for sample in report["samples"]}) > 1
    assert (tmp_path / "soak.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("bug", "complaint"),
    [
        ("loads the wrong rows", "would read wrong bytes"),
        ("gives pages back head first", "AllocPlanned: pages: expected"),
    ],
)
def test_a_bug_is_told(pagedkv: Pagedkv, tmp_path: Path, bug: str, complaint: str) -> None:
    with BROKEN[bug]().broken():
        status, report, complaints = soaked(pagedkv, tmp_path)
    assert status == 1
    assert complaint in complaints
    assert any(complaint in problem for problem in report["problems"])
    assert report["seconds"] < 60


async def _never_wakes(*_: object) -> None:
    await asyncio.get_running_loop().create_future()


def test_a_hang_is_told(pagedkv: Pagedkv, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pagedkv.soak.soak.STANDSTILL_S", 2.0)
    monkeypatch.setattr("pagedkv.soak.soak.ENDING_S", 2.0)
    monkeypatch.setattr(ThreadStreams, "finished", _never_wakes)
    status, _, complaints = soaked(pagedkv, tmp_path, minutes=10)
    assert status == 1
    assert "no request has ended for 2 s" in complaints


def test_ctrl_c_ends_it_with_a_report(tmp_path: Path) -> None:
    command = ["soak", "--minutes", "10", "--out", str(tmp_path), "--json"]
    process = subprocess.Popen(
        [sys.executable, "-m", "pagedkv", *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=12)
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, "pagedkv: interrupted\n")
    report = json.loads(out)
    assert not report["complete"] and report["right"]
    assert (tmp_path / "soak.png").exists() == bool(report["samples"])


@pytest.mark.parametrize("minutes", ["0", "soon"])
def test_bad_input_ends_with_2(pagedkv: Pagedkv, minutes: str) -> None:
    outcome = pagedkv("soak", "--minutes", minutes)
    assert outcome.status == 2
    assert "is no number from" in outcome.err


MIB = 2**20

noise = st.lists(st.integers(-2 * MIB, 2 * MIB), min_size=FEWEST, max_size=300)


@given(noise, st.integers(100, 4_000))
def test_memory_that_only_wavers_is_no_leak(wavering: list[int], mib: int) -> None:
    growth = memory_growth([mib * MIB + wave for wave in wavering])
    assert growth is not None and not growth.is_leak


@given(noise, st.integers(100, 4_000))
def test_memory_that_grows_by_a_tenth_in_each_quarter_is_a_leak(
    wavering: list[int], mib: int
) -> None:
    step = (mib * MIB // 10 + SLACK_BYTES) * 4 / len(wavering)
    growth = memory_growth([mib * MIB + round(n * step) + wave for n, wave in enumerate(wavering)])
    assert growth is not None and growth.is_leak


@given(noise, st.integers(100, 4_000))
def test_what_is_taken_in_the_first_half_is_no_leak(wavering: list[int], mib: int) -> None:
    warm = [0 if n < len(wavering) // 2 else mib * MIB for n in range(len(wavering))]
    growth = memory_growth([mib * MIB + more for more in warm])
    assert growth is not None and not growth.is_leak


def test_few_samples_say_nothing() -> None:
    assert memory_growth([MIB] * (FEWEST - 1)) is None
