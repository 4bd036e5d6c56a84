"""What the runs of many worlds have come to together."""

from collections import Counter
from dataclasses import dataclass, field

from pagedkv.conformance.simulation.coverage import as_data
from pagedkv.conformance.simulation.many import Outcome, common_digest
from pagedkv.conformance.simulation.situations import Tried

FAULTS = ("TransferFailed", "AllocCancelled", "PrefixCacheReset", "ReplicaPoisoned")
"""Events of something that has gone wrong, or that somebody has given up."""

ENDINGS = ("crashed", "crashed under load", "closed under load")
"""And ends that nobody likes."""


@dataclass
class Campaign:
    """Totals over all runs so far, and the run that has failed."""

    implementation: str
    """How people ask for it."""
    digests: list[tuple[int, str]] = field(default_factory=list)
    """By seed: the digest of its run, as they have come."""
    seen: Counter[str] = field(default_factory=Counter)
    """What became of requests, and what managers have counted."""
    tried: Tried = field(default_factory=Tried)
    """What was tried."""
    events: int = 0
    """Events that were checked against the specification."""
    seconds: float = 0.0
    """How long it took."""
    failed: Outcome | None = None
    """The first run that has failed."""
    stopped: bool = False
    """Whether somebody has stopped it."""

    @property
    def runs(self) -> int:
        """How many there were."""
        return len(self.digests)

    @property
    def first_seed(self) -> int | None:
        """The lowest seed; ``None`` before the first run."""
        return min((seed for seed, _ in self.digests), default=None)

    @property
    def digest(self) -> str:
        """Of all runs, in whatever order they have come."""
        return common_digest(self.digests)

    @property
    def faults(self) -> int:
        """How many faults there were."""
        events = sum(self.tried.events[name] for name in FAULTS)
        return events + sum(self.seen[name] for name in ENDINGS)

    def add(self, outcome: Outcome) -> None:
        """Count a run."""
        self.digests.append((outcome.world.seed, outcome.digest))
        self.seen += outcome.seen
        self.tried.add(outcome.tried)
        self.events += outcome.events
        if outcome.failure is not None and self.failed is None:
            self.failed = outcome

    def as_data(self) -> dict[str, object]:
        """All of it, for programs."""
        failure = None if self.failed is None else self.failed.failure
        return {
            "implementation": self.implementation,
            "first_seed": self.first_seed,
            "runs": self.runs,
            "failed_seed": None if self.failed is None else self.failed.world.seed,
            "failure": None if failure is None else failure.as_data(),
            "stopped": self.stopped,
            "digest": self.digest,
            "seconds": round(self.seconds, 3),
            "events": self.events,
            "faults": self.faults,
            "seen": dict(sorted(self.seen.items())),
            "coverage": as_data(self.tried),
        }
