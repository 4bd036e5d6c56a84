"""The recorded runs that come with the package, and examples of how pages are identified."""

import tomllib
from pathlib import Path

from pydantic import BaseModel, ConfigDict

DATA = Path(__file__).parent.parent / "data"

GOLDEN_IDENTITIES = DATA / "golden_identities.json"
"""Identities of pages for programs in any language; docs/event-traces.md explains the format."""

RECORDED_RUNS = DATA / "events"
"""Folder of the recorded runs, and of their index."""


class RecordedRun(BaseModel):
    """What the index says of one recorded run."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    """Its name."""
    origin: str
    """Where the scenario is that was played."""
    sha256: str
    """Digest of the unpacked file, hexadecimal."""
    events: int
    """How many events it has."""
    rules: tuple[str, ...]
    """The rules of SPEC.md that it shows."""
    shows: str
    """What happens in it."""

    @property
    def path(self) -> Path:
        """The event trace."""
        return RECORDED_RUNS / f"{self.name}.jsonl.gz"


def recorded_runs() -> dict[str, RecordedRun]:
    """Every recorded run by name."""
    index = tomllib.loads((RECORDED_RUNS / "index.toml").read_text(encoding="utf-8"))
    return {entry["name"]: RecordedRun.model_validate(entry) for entry in index["trace"]}
