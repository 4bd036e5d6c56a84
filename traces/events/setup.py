"""What has to be known of a manager to follow a run of it."""

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt, model_validator

from pagedkv.reference.params import DeduplicationPolicy, SpeculativeMethod


class RunSetup(BaseModel):
    """Sizes and policies of the manager that was recorded; content and devices do not matter."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    page_size: PositiveInt
    """Tokens per page."""
    total_num_pages: PositiveInt
    """Device pages per replica, without the null page."""
    replicas: PositiveInt = 1
    """Data-parallel replicas."""
    max_batch_size: PositiveInt = 1
    """Most requests of one replica in one batch."""
    host_pages: PositiveInt | None = None
    """Host pages, shared by the replicas; ``None`` without a host tier."""
    disk_pages: NonNegativeInt | None = None
    """Disk pages, shared by the replicas; ``None`` without a disk tier."""
    store: bool = False
    """Whether there is a block store."""
    enable_prefix_caching: bool = True
    """Whether requests reuse the pages of a common prefix."""
    enable_dp_cross_replica_prefix_copy: bool = True
    """Whether a hit on another replica is copied from device to device."""
    write_policy: Literal["through", "write_back", "reuse"] = "through"
    """When committed pages are offloaded."""
    disk_writes_per_day: PositiveInt | None = None
    """Blocks that the daily write budget of the disk allows; ``None`` without a budget."""
    deduplication: DeduplicationPolicy = "swap"
    """What ``step`` does with a page whose content is already cached."""
    speculative_method: SpeculativeMethod | None = None
    """How draft tokens are made."""
    num_draft_tokens: NonNegativeInt = 0
    """Draft tokens per speculative iteration."""

    @model_validator(mode="after")
    def _tiers_stand_behind_each_other(self) -> Self:
        if self.disk_pages is not None and self.host_pages is None:
            raise ValueError("disk_pages needs host_pages: disk stands behind host memory")
        return self


VERSION = 1
"""Version of the format that this program writes; it reads all up to this one."""


class EventTraceHeader(BaseModel):
    """The first line of an event trace."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal["pagedkv-events"] = "pagedkv-events"
    """Tells an event trace from a workload."""
    version: int = Field(default=VERSION, ge=1, le=VERSION)
    """Version of the format."""
    implementation: str = "unknown"
    """What was recorded, with its version."""
    setup: RunSetup
    """How it was set up."""
    origin: str | None = None
    """What drove it: a workload, a test, a server."""
