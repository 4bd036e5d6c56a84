"""The workload that comes with the package."""

from pathlib import Path

from pagedkv.traces.generator import GeneratorParameters

DEMO_WORKLOAD = Path(__file__).parent / "data" / "demo.jsonl.gz"
"""Mixed traffic, about 90 KiB."""

DEMO_PARAMETERS = GeneratorParameters(requests=2000, rate=5.0)
"""What it was generated with."""
