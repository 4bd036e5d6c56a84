"""The example that documentation points at does what it says."""

import json
import subprocess
import sys
from pathlib import Path


def test_observed_server_explains_itself_and_leaves_a_timeline(tmp_path: Path) -> None:
    script = Path(__file__).parents[2] / "examples" / "observed_server.py"
    run = subprocess.run(
        [sys.executable, "-W", "error", str(script), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    assert "chat 0, turn 1 on replica 0: 0 of 13 blocks hit" in run.stdout
    assert 'pagedkv_hit_blocks_total{tier="disk"}' in run.stdout
    assert "under compute" in run.stdout
    assert json.loads((tmp_path / "timeline.json").read_text())["traceEvents"]
