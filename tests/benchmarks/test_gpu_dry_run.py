"""The benchmark for GPUs runs from its beginning to its end where there is none."""

import json
import sys
from pathlib import Path

import pytest
import torch
from benchmarks import gpu


def test_dry_run_measures_everything_and_says_that_it_means_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = tmp_path / "gpu.json"
    monkeypatch.setattr(sys, "argv", ["gpu", "--dry-run", "--json", str(result)])
    gpu.main()
    found = json.loads(result.read_text())
    assert "mean nothing" in found["title"] and "mean nothing" in capsys.readouterr().out
    assert all(ratio["ratio"] is not None for ratio in found["ratios"])
    for direction in gpu.WAYS:
        for layout in gpu.LAYOUTS:
            for kib in gpu.TINY.page_kib:
                rate, unit = found["values"][gpu.copied(kib, layout, "batched", direction)]
                assert rate > 0 and unit == "GiB/s"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_it_says_so_and_writes_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = tmp_path / "gpu.json"
    monkeypatch.setattr(sys, "argv", ["gpu", "--json", str(result)])
    gpu.main()
    assert capsys.readouterr().out.count("\n") == 1
    assert not result.exists()
