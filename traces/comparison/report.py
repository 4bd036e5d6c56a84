"""What a comparison has found, as data: the content of ``report.json``."""

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import BaseModel, Field, PositiveInt, computed_field

from pagedkv.traces.comparison.sizes import Sizes
from pagedkv.traces.replay_report import ReplayReport

FORMAT: Literal["pagedkv-comparison"] = "pagedkv-comparison"
"""Tells a report from other JSON files."""

VERSION = 1
"""Version of the schema that this program writes."""


class Conditions(BaseModel, frozen=True):
    """What is the same in all runs."""

    page_size: PositiveInt
    """Tokens per page."""
    concurrency: PositiveInt
    """Most requests in flight."""
    decode: bool
    """Whether answers were generated to their full length, or ended with their first token."""
    limit: PositiveInt | None
    """Only so many requests of the trace were replayed; ``None``: all."""
    kv_bytes_per_token: PositiveInt
    """Assumed bytes of keys and values per token, all layers together, of the model served."""

    @property
    def page_nbytes(self) -> int:
        """Bytes of one page of that model."""
        return self.page_size * self.kv_bytes_per_token


class WorkloadFacts(BaseModel):
    """What was replayed."""

    name: str
    """Name of the file."""
    sha256: str
    """Digest of the file, in hexadecimal."""
    format: str
    """Format of the file."""
    block_size: int
    """Tokens per hash id."""
    requests: int
    """Number of requests."""
    tokens: int
    """Tokens of all prompts."""
    pages_referenced: int
    """Full pages of all prompts."""
    distinct_pages: int
    """How many of them differ."""
    infinite_cache_hits: int
    """Pages that a cache without bound would hit."""

    @property
    def infinite_cache_hit_rate(self) -> float:
        """The same as a share of ``pages_referenced``, 0 to 1."""
        return self.rate(self.infinite_cache_hits)

    def rate(self, pages: int) -> float:
        """``pages`` as a share of ``pages_referenced``; 0.0 without any."""
        return pages / self.pages_referenced if self.pages_referenced else 0.0


class Machine(BaseModel):
    """Where it was measured."""

    system: str
    """Operating system and architecture."""
    processor: str
    """Model of the CPU."""
    cores: int
    """Cores that the process may use."""
    memory_bytes: int
    """Memory of the machine."""


class Bound(BaseModel):
    """What no cache of some sizes can exceed."""

    sizes: Sizes
    """The sizes."""
    belady_hits: int
    """Most pages that any replacement policy could hit, see :mod:`pagedkv.traces.belady_bound`."""


class Measurement(BaseModel):
    """What one run has measured. ``None`` stands for what the implementation does not count."""

    replay: ReplayReport
    """Hits, evictions, durations."""
    pages_copied: dict[str, int | None]
    """Pages moved between the tiers that are there, by way, such as ``device_to_host``; what
    moves only when the manager is shut down is not among them."""
    bytes_copied: dict[str, int | None]
    """The same in bytes of the assumed model."""
    memory_growth_bytes: int
    """Peak resident memory of the process, less what it had before the manager was built."""

    @computed_field  # type: ignore[prop-decorator]  # mypy knows no decorated properties
    @property
    def hit_rate(self) -> float | None:
        """Share of the prompt pages that were hits, 0 to 1."""
        return self.replay.hit_rate

    @computed_field  # type: ignore[prop-decorator]
    @property
    def requests_per_second(self) -> float | None:
        """Requests by the wall-clock time of the replay; ``None`` if it took no time."""
        return self.replay.requests / self.replay.seconds if self.replay.seconds else None


class Measured(BaseModel):
    """A run that came to its end."""

    outcome: Literal["measured"] = "measured"
    """The word ``measured``."""
    implementation: str
    """What ran."""
    sizes: Sizes
    """On which sizes."""
    measurement: Measurement
    """What came out."""


class Unmeasured(BaseModel):
    """A run without a result."""

    outcome: Literal["skipped", "failed"]
    """Whether the implementation cannot build such a manager, or broke in the middle."""
    implementation: str
    """What should have run."""
    sizes: Sizes
    """On which sizes."""
    reason: str
    """What it said."""


Run = Annotated[Measured | Unmeasured, Field(discriminator="outcome")]
"""One implementation on one choice of sizes."""


class Report(BaseModel):
    """A whole comparison."""

    format: Literal["pagedkv-comparison"] = FORMAT
    """The word ``pagedkv-comparison``."""
    version: Annotated[int, Field(ge=1, le=VERSION)] = VERSION
    """Version of the schema."""
    finished: str
    """Date and time of the end, in UTC and ISO 8601."""
    implementations: list[str]
    """What was compared, in the order that was asked for."""
    versions: dict[str, str]
    """Versions of the implementations that say theirs, and of what they run on."""
    machine: Machine
    """Where it was measured."""
    workload: WorkloadFacts
    """What was replayed."""
    conditions: Conditions
    """How."""
    bounds: list[Bound]
    """The bound of every choice of sizes."""
    runs: list[Run]
    """Every implementation on every choice of sizes, in the order in which they ran."""
    files: list[str] = []
    """Names of all files in the report's folder."""

    @property
    def measured(self) -> list[Measured]:
        """The runs that came to their end."""
        return [run for run in self.runs if isinstance(run, Measured)]

    @property
    def unmeasured(self) -> list[Unmeasured]:
        """The others."""
        return [run for run in self.runs if isinstance(run, Unmeasured)]

    def by_lower_tiers(self) -> Iterator["Report"]:
        """The parts of the report that differ in nothing but implementation and device pages."""
        for lower_tiers in dict.fromkeys(run.sizes.lower_tiers for run in self.runs):
            yield self.model_copy(
                update={
                    "runs": [r for r in self.runs if r.sizes.lower_tiers == lower_tiers],
                    "bounds": [b for b in self.bounds if b.sizes.lower_tiers == lower_tiers],
                }
            )
