"""Runs every benchmark that this machine can, one after the other, and keeps the results.

    python -m benchmarks [--quick] [--trace FILE] [--results FOLDER]

Peers are measured where they are installed in the same environment; docs/peers.md says how.
"""

import subprocess
import sys
from argparse import ArgumentParser
from datetime import UTC, datetime
from pathlib import Path

RUNS: dict[str, list[str]] = {
    "host_cost": ["--requests", "1000"],
    "inputs": [],
    "tracer": [],
    "growth": ["--pages", "10000", "100000", "1000000", "10000000"],
    "loop_stalls": ["--seconds", "15"],
    "disk": [],
    "restart": [],
    "gpu": [],
}
"""By module: its arguments."""

QUICK: dict[str, list[str]] = {
    "host_cost": ["--requests", "200"],
    "growth": ["--pages", "10000", "100000"],
    "loop_stalls": ["--seconds", "4"],
    "disk": ["--blocks", "128", "--rounds", "3"],
    "restart": ["--blocks", "100000"],
    "gpu": ["--mib", "128", "--rounds", "5"],
}
"""Arguments of a run that takes a minute in all."""


def main() -> None:
    """Run them."""
    parser = ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="smaller sizes: about a minute")
    parser.add_argument("--trace", help="the Mooncake conversation trace, to replay that as well")
    parser.add_argument("--results", type=Path, help="folder for the results as JSON")
    options = parser.parse_args()
    runs = RUNS | QUICK if options.quick else RUNS
    if options.trace:
        runs = runs | {"mooncake": [options.trace]}
    today = datetime.now(UTC).date().isoformat()
    for name, arguments in runs.items():
        command = [sys.executable, "-m", f"benchmarks.{name}", *arguments]
        if options.results:
            options.results.mkdir(parents=True, exist_ok=True)
            command += ["--json", str(options.results / f"{today}-{name}.json")]
        print(f"$ python -m benchmarks.{name} {' '.join(arguments)}", flush=True)
        subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
