"""What has to be known of a manager to follow a run of it."""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt, model_validator

from pagedkv.reference.params import DeduplicationPolicy, HashAlgorithm, SpeculativeMethod
from pagedkv.traces.events.start import RunStart


class RunSetup(BaseModel):
    """Sizes, policies and shape of a manager, whatever implements it."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, ser_json_bytes="hex", val_json_bytes="hex"
    )

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
    cache: Literal["mha", "mla", "fp8", "tree"] = "mha"
    """What a page holds: keys and values; one latent (equal on all shards); values with scales; or
    pages of two caches, of a target and a draft model."""
    shards: PositiveInt = 1
    """Tensor-parallel shards per replica."""
    layers: PositiveInt = 1
    """Layers of the model."""
    head_dim: PositiveInt = 1
    """Values per token, layer, shard, key and value; one byte each."""
    hash_algorithm: HashAlgorithm = "sha256"
    """How pages are identified (ID-1)."""
    hash_seed: Annotated[bytes, Field(min_length=32, max_length=32)] | None = None
    """Root of all identities, besides the salt (ID-3)."""
    model_fingerprint: str | None = None
    """The caller's name for the weights (NS-2)."""

    @model_validator(mode="after")
    def _tiers_stand_behind_each_other(self) -> Self:
        if self.disk_pages is not None and self.host_pages is None:
            raise ValueError("disk_pages needs host_pages: disk stands behind host memory")
        return self


VERSION = 1
"""Version of the format that this program writes; it reads all up to this one."""


class EventTraceHeader(BaseModel):
    """The first line of an event trace."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, ser_json_bytes="hex", val_json_bytes="hex"
    )

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
    start: RunStart | None = None
    """Where the manager stood before the first event; ``None``: it had just been made."""

    @property
    def first_seq(self) -> int:
        """Number of the first event."""
        return 0 if self.start is None else self.start.seq
