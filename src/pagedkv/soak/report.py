"""What a soak has come to."""

from collections import Counter
from dataclasses import asdict, dataclass, field

from pagedkv.soak.memory_growth import MemoryGrowth, memory_growth
from pagedkv.soak.samples import Sample
from pagedkv.soak.settings import SoakSettings


@dataclass
class SoakReport:
    """Everything that was seen, and what was wrong."""

    settings: SoakSettings
    """What was asked for."""
    samples: list[Sample] = field(default_factory=list)
    """What was looked at again and again."""
    problems: list[str] = field(default_factory=list)
    """What was wrong: wrong bytes, leaks, hangs, divergences."""
    seconds: float = 0.0
    """How long it has served."""
    lives: int = 0
    """How often the engine was opened."""
    requests: Counter[str] = field(default_factory=Counter)
    """What has become of requests."""
    pages_checked: int = 0
    """Pages whose bytes were compared."""
    events: int = 0
    """Events that were checked against the specification."""
    failures: Counter[str] = field(default_factory=Counter)
    """Failed transfers by reason."""
    resets: int = 0
    """How often the prefix cache was reset."""
    survivors: int = 0
    """Blocks that were found on disk after restarts."""
    is_complete: bool = True
    """Whether it has lasted as long as it should; otherwise somebody has stopped it."""

    @property
    def memory(self) -> MemoryGrowth | None:
        """Whether memory grows; ``None``: there were too few samples to say."""
        return memory_growth([sample.resident_bytes for sample in self.samples])

    @property
    def is_right(self) -> bool:
        """Whether nothing was wrong."""
        return not self.all_problems

    @property
    def all_problems(self) -> list[str]:
        """What was wrong, growing memory included."""
        memory = self.memory
        if memory is None or not memory.is_leak:
            return self.problems
        mib = memory.grown_bytes / 2**20
        allowed = memory.allowed_bytes / 2**20
        growth = (
            f"memory has grown by {mib:.1f} MiB in the last quarter; {allowed:.1f} MiB are allowed"
        )
        return [*self.problems, growth]

    def as_data(self) -> dict[str, object]:
        """All of it, for programs."""
        memory = self.memory
        return {
            "right": self.is_right,
            "problems": self.all_problems,
            "complete": self.is_complete,
            "seconds": round(self.seconds, 3),
            "lives": self.lives,
            "requests": dict(self.requests),
            "pages_checked": self.pages_checked,
            "events": self.events,
            "failures": dict(self.failures),
            "resets": self.resets,
            "survivors": self.survivors,
            "memory": None if memory is None else asdict(memory) | {"is_leak": memory.is_leak},
            "settings": asdict(self.settings) | {"folder": str(self.settings.folder)},
            "samples": [sample.as_data() for sample in self.samples],
        }
