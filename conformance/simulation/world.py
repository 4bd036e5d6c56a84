"""A world that a manager lives in, as data: its sizes, its clients, and what goes wrong when.

Everything that happens in a run follows from its world. Chance is drawn from seeds that belong to
the parts it decides on, so that a part can be taken away, and the rest still draws the same.
"""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
)

from pagedkv.reference.events import Tracer
from pagedkv.traces.events.setup import RunSetup
from pagedkv.traces.manager_setup import ManagerSetup

SIMULATED_FOLDER = Path("simulated")
"""What the folder of a simulated disk is called; nobody opens it."""

Share = Annotated[float, Field(ge=0.0, le=1.0)]
"""A probability from 0 to 1, drawn anew each time."""

Ending = Literal["closed", "closed under load", "crashed", "crashed under load"]
"""How the life of a manager ends: when its clients are done, or in the middle of their requests."""


class Plain(BaseModel):
    """Data of a world: frozen, and without fields that nobody knows."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class DiskTrouble(Plain):
    """What goes wrong on a disk while it is used."""

    delay_s: NonNegativeFloat = 0.0
    """A call takes up to this long, so that calls overtake each other."""
    stuck: Share = 0.0
    """Share of the calls that take a hundred times as long."""
    read_errors: Share = 0.0
    """Share of the reads that fail, or come back too short."""
    write_errors: Share = 0.0
    """Share of the writes that fail."""
    no_space: Share = 0.0
    """Share of the writes for which there is no space."""
    torn: Share = 0.0
    """Share of the writes that claim to be complete although only a half was written."""
    flipped: Share = 0.0
    """Share of the calls in which one bit changes on its way."""
    misplaced_after_s: PositiveFloat | None = None
    """Again and again after so long, two blocks change places behind everybody's back."""


class DeviceFailure(Plain):
    """A device that fails."""

    device: NonNegativeInt
    """Which one; counted on from the first if there are fewer."""
    after_s: NonNegativeFloat
    """When, in seconds of the life."""


class Life(Plain):
    """One manager, from its opening to its end."""

    seed: int
    """Decides on what its requests are and do, and on when copies land."""
    clients: tuple[tuple[int, ...], ...]
    """By client: the numbers of the requests that it sends, one after the other."""
    num_prompts: int | None = None
    """So many different prompts come again and again; ``None``: each is a new one."""
    max_pages: PositiveInt = 6
    """Most full pages of a prompt."""
    cancel_share: Share = 0.0
    """Share of the requests that are cancelled somewhere on their way."""
    withdraw_share: Share = 0.0
    """Share of the other requests that somebody else releases while they are served."""
    reset_share: Share = 0.0
    """Share of the requests after which the prefix cache is reset."""
    prefetch_share: Share = 0.0
    """Share of the requests that are prefetched before they are claimed."""
    chunk_share: Share = 0.0
    """Share of the requests whose prompt is computed in chunks."""
    preempt_share: Share = 0.0
    """Share of the requests that are preempted once, and admitted again."""
    nap_share: Share = 0.0
    """Share of the steps before and after which a request sleeps a while, holding its pages."""
    interrupt_share: Share = 0.0
    """Share of the allocations that are cancelled, and made again."""
    patient_share: Share = 0.0
    """Share of the allocations that wait for pages in a queue, instead of trying again."""
    again_share: Share = 0.0
    """Share of the allocations that are made twice, and the second time find everything there."""
    batches: bool = False
    """Whether a forward is made for all requests that are ready, or one for each."""
    steps_first_share: Share = 0.0
    """Share of those for all that are launched after their step, if the manager allows it."""
    pads: bool = False
    """Whether in those for all a replica without requests gets a dummy."""
    wait_s: NonNegativeFloat = 60.0
    """How long those wait; longer than a life: for ever."""
    defers: bool = False
    """Whether those go on before what they load has landed, as far as the manager knows that."""
    reads: Literal["both", "early", "late"] = "late"
    """When copies read their source: as early or as late as the order allows, or at both times."""
    queued_forwards: bool = False
    """Whether forwards wait for their turn on their stream, as on a GPU."""
    landing_mean_s: PositiveFloat = 0.001
    """How long it takes on average until the next copy or forward lands."""
    device_failure: DeviceFailure | None = None
    """A device that fails on the way."""
    polls: bool = False
    """Whether those look from time to time whether they may go on, and do not wait."""
    flush_after_s: PositiveFloat | None = None
    """The disk is flushed again and again after so long."""
    reset_counters_after_s: PositiveFloat | None = None
    """The counters are set to zero again and again after so long."""
    renew_after_s: PositiveFloat | None = None
    """The disk's write budget is renewed again and again after so long."""
    end: Ending = "closed"
    """How it ends."""
    end_after_s: NonNegativeFloat = 0.0
    """When it ends, under load."""
    decay: bool = False
    """Whether, after the end, a bit flips on the disk and two blocks change places."""


class World(Plain):
    """All that decides on a run."""

    seed: int
    """What it was drawn from; decides on the faults of its disk."""
    setup: RunSetup
    """Sizes, policies and shape of the managers."""
    slow_tier_policy: Literal["wait", "timeout", "best_effort"] = "wait"
    """What an allocation does about blocks below host memory (ALLOC-15)."""
    slow_tier_timeout_s: PositiveFloat = 0.004
    """How long it waits for them under ``timeout``."""
    disk: DiskTrouble = DiskTrouble()
    """What goes wrong on the disk, if there is one."""
    lives: tuple[Life, ...]
    """The managers that use it, one after the other."""

    @property
    def num_requests(self) -> int:
        """How many requests are sent, over all lives."""
        return sum(len(requests) for life in self.lives for requests in life.clients)

    def manager_setup(self, tracer: Tracer) -> ManagerSetup:
        """How its managers are to be made, with a tracer each."""
        fields = self.setup.model_dump() | {
            "slow_tier_policy": self.slow_tier_policy,
            "slow_tier_timeout_s": self.slow_tier_timeout_s,
            "tracer": tracer,
        }
        if self.setup.disk_pages is not None:
            fields["disk_dir"] = SIMULATED_FOLDER
        return ManagerSetup.model_validate(fields)
