"""What a replay has measured."""

from array import array
from dataclasses import dataclass, field

from pagedkv.traces.percentile import percentile


@dataclass(frozen=True)
class CallTimes:
    """How long the calls of one name took."""

    count: int
    """Number of calls."""
    p50_us: float
    """Median duration in microseconds."""
    p99_us: float
    """99th percentile in microseconds: exact, the nearest rank of all recorded durations."""

    @classmethod
    def of(cls, durations_ns: "array[int]") -> "CallTimes":
        """Summarise durations in nanoseconds."""
        ordered = sorted(durations_ns)
        return cls(len(ordered), percentile(ordered, 50) / 1000, percentile(ordered, 99) / 1000)


@dataclass(frozen=True)
class ReplayReport:
    """The result of one replay. ``None`` stands for a number the manager does not count."""

    requests: int
    """Requests of the workload, refused ones included."""
    pages_referenced: int
    """Full pages of all their prompts."""
    pages_hit: int | None
    """Pages that came from the prefix cache, whatever the tier."""
    hits_by_tier: dict[str, int | None]
    """The same pages by the tier that served them."""
    tokens_total: int
    """Prompt tokens of all requests."""
    tokens_hit: int | None
    """Tokens that came from the prefix cache."""
    evictions: int | None
    """Committed pages of the device pools whose content was given up to make room."""
    refused: int
    """Requests that do not even fit an empty pool."""
    preemptions: int
    """How often a running request lost its pages to an older one."""
    pages_hit_again: int | None
    """Pages that readmitted requests found in the cache, which no other number includes."""
    tokens_generated: int
    """Tokens sampled, at least one per request that was served."""
    seconds: float
    """Wall-clock time of the replay, without building the manager."""
    calls: dict[str, CallTimes] = field(default_factory=dict)
    """Durations by the name of the call."""

    @property
    def hit_rate(self) -> float | None:
        """Share of ``pages_referenced`` that were hits, 0 to 1; 0.0 without any page."""
        if self.pages_hit is None:
            return None
        return self.pages_hit / self.pages_referenced if self.pages_referenced else 0.0
