"""Running generated tests as their readers do: by pytest, in a process of their own."""

import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def run_test(test: Path, *, plugin: str | None = None) -> tuple[int, str]:
    """The exit status of pytest, and what it prints."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", os.devnull]
    options = [] if plugin is None else ["-p", plugin]
    run = subprocess.run(
        [*command, "--rootdir", str(test.parent), *options, str(test)],
        env=os.environ
        | {"PYTHONPATH": os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])},
        capture_output=True,
        text=True,
        timeout=240,
    )
    return run.returncode, run.stdout + run.stderr
