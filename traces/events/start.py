"""Where a run begins that is a part of a longer one: the state of its manager before it."""

from collections.abc import Hashable

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt

from pagedkv.reference.events import ContextSnapshot
from pagedkv.reference.snapshot import Snapshot


class RunStart(BaseModel):
    """All that has to be known of what happened before, to follow a run from there on."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, ser_json_bytes="hex", val_json_bytes="hex"
    )

    seq: NonNegativeInt
    """Number of the first event: events keep the numbers that they have in the whole run."""
    state: Snapshot
    """What the manager knew."""
    contexts: dict[Hashable, ContextSnapshot] = Field(default_factory=dict)
    """By request: the contexts of allocations that were planned, as the calls found them."""
