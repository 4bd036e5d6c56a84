"""What a recording is, and where they are collected."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pagedkv.conformance.recordings.stage import MakeStage, Stage
from pagedkv.traces.manager_setup import ManagerFactory, ManagerSetup

Scenario = Callable[[MakeStage], Stage]
"""Plays a scenario, and returns the stage whose events are the trace."""

DISK = Path("recorded")
"""Folder of simulated disks: a name, no place."""

SMALL: dict[str, Any] = {  # fields of a setup, whose types are its own
    "page_size": 4,
    "total_num_pages": 8,
    "max_batch_size": 4,
    "hash_algorithm": "sha256_64",
    "disk_dir": DISK,
    "auto_land": False,
}
"""What stages are like unless a scenario says otherwise; short identities keep traces small."""


@dataclass(frozen=True)
class Recording:
    """One recorded trace, and how it comes about."""

    name: str
    """Its file is called after it."""
    rules: tuple[str, ...]
    """The rules of SPEC.md that it shows."""
    shows: str
    """What happens in it, in a sentence."""
    scenario: Scenario
    """Plays it."""

    def play(self, factory: ManagerFactory) -> Stage:
        """Play the scenario on fresh managers; the stage has the events."""

        def make(**fields: Any) -> Stage:
            return Stage(factory, ManagerSetup(**SMALL | fields))

        return self.scenario(make)


RECORDINGS: dict[str, Recording] = {}
"""Every recording by name; filled by importing :mod:`.catalogue`."""


def recording(rules: str) -> Callable[[Scenario], Recording]:
    """Register a scenario as a recording that shows ``rules``, numbers with spaces between."""

    def register(scenario: Scenario) -> Recording:
        assert scenario.__doc__ is not None
        shows = " ".join(scenario.__doc__.split())
        name = scenario.__name__
        RECORDINGS[name] = Recording(name, tuple(rules.split()), shows, scenario)
        return RECORDINGS[name]

    return register
