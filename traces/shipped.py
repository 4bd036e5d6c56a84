"""The workload that comes with the package."""

from pathlib import Path

DEMO_WORKLOAD = Path(__file__).parent / "data" / "demo.jsonl.gz"
"""2,000 requests of generated mixed traffic; ``traces/data/README.md`` says how it was made."""
