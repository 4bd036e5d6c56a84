"""What is found on disk after a restart is right, whatever has happened before.

``PAGEDKV_KILLS`` says how many engines are killed.
"""

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.engine.stage import TIERED, staged

from pagedkv.conformance.bench import Recording
from pagedkv.engine import PagedKVCacheManager
from pagedkv.engine.simulated import clock
from pagedkv.reference.events import Event, TransferLanded

ROOT = Path(__file__).parents[2]

KILLS = int(os.environ.get("PAGEDKV_KILLS", "10"))


@pytest.mark.timeout(300 + 10 * KILLS)
def test_an_engine_serves_from_what_a_killed_one_has_left(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.engine.killed_engine", tmp_path / "tier", str(KILLS)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{KILLS} kills" in done.stdout


class ResetBeforeEveryWrite(Recording):
    """Resets the cache behind each landing that issues a write: before the write has begun."""

    manager: PagedKVCacheManager

    def emit(self, event: Event) -> None:
        """Take one event."""
        super().emit(event)
        if isinstance(event, TransferLanded) and event.issued:
            asyncio.get_running_loop().call_soon(self.manager.reset_prefix_cache)


def test_a_write_that_begins_after_a_reset_does_not_survive() -> None:
    async def scenario() -> None:
        events = ResetBeforeEveryWrite()
        async with staged(**TIERED, tracer=events) as stage:
            events.manager = stage.manager
            await stage.serve(stage.request("a"))
            assert any(isinstance(e, TransferLanded) and e.issued for e in events)
            await stage.manager.aclose()
            assert stage.disk is not None
            assert stage.disk.restarted().survivors == []

    clock.run(scenario())
