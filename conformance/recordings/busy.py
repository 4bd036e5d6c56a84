"""A busy server: everything at once, as chance has it."""

import hashlib
from collections.abc import Sequence
from itertools import count
from typing import TypeVar

from pagedkv.conformance.recordings.recording import recording
from pagedkv.conformance.recordings.stage import MakeStage, Stage
from pagedkv.reference.context import TextContext
from pagedkv.reference.errors import InsufficientBlocksError, KVLoadFailed
from pagedkv.reference.tier_names import FailReason

T = TypeVar("T")


class Chance:
    """Numbers that look like chance and are the same everywhere, whatever Python's version."""

    def __init__(self, seed: str) -> None:
        self._numbers = (
            int.from_bytes(hashlib.sha256(f"{seed} {n}".encode()).digest()[:8]) for n in count()
        )

    def below(self, limit: int) -> int:
        """A number from 0 to ``limit - 1``."""
        return next(self._numbers) % limit

    def one_of(self, things: Sequence[T]) -> T:
        """Any of them."""
        return things[self.below(len(things))]


class Server:
    """A server that does what chance says: admits, computes, gives up; transfers land or fail."""

    def __init__(self, stage: Stage, chance: Chance) -> None:
        self.stage = stage
        self.chance = chance
        self.waiting: list[TextContext] = []
        self.running: list[TextContext] = []
        self._names = (f"request {n}" for n in count())

    def act(self) -> None:
        """One thing happens."""
        actions = [self.admit, self.admit, self.finish, self.compute, self.compute, self.release]
        actions += [self.land, self.land, self.land, self.fail]
        self.chance.one_of(actions)()

    def admit(self) -> None:
        """A prompt that shares its beginning with others, on any replica."""
        start = 100 * self.chance.below(4)
        tokens = [*range(start, start + 4 * self.chance.below(4)), *range(50, 50 + 1 + start // 50)]
        replica = self.chance.below(self.stage.setup.replicas)
        self.begin(self.stage.claim(next(self._names), tokens, replica))

    def begin(self, ctx: TextContext) -> None:
        """Plan an allocation; whoever does not fit goes away."""
        try:
            self.stage.begin(ctx)
        except InsufficientBlocksError:
            self.stage.release(ctx)
        else:
            self.waiting.append(ctx)

    def finish(self) -> None:
        """Some allocation is finished, its loads having landed, or cancelled."""
        if not self.waiting:
            return
        ctx = self.waiting.pop(self.chance.below(len(self.waiting)))
        if self.chance.below(6) == 0:
            self.stage.cancel(ctx)
            self.begin(ctx)
            return
        for transfer in self.stage.in_flight(target="device"):
            self.stage.manager.land(transfer)
        try:
            self.stage.finish(ctx)
        except KVLoadFailed:
            self.begin(ctx)
        else:
            self.running.append(ctx)

    def compute(self) -> None:
        """A forward of everything that runs; each request then needs room for one token more."""
        batch, self.running = self.running, []
        if batch:
            self.stage.forward(*batch)
        for ctx in batch:
            self.begin(ctx)

    def release(self) -> None:
        """Some request is done, or is given up while it waits."""
        for requests in (self.running, self.waiting):
            if requests:
                self.stage.release(requests.pop(self.chance.below(len(requests))))
                return

    def land(self) -> None:
        """Some transfer lands."""
        if transfers := self.stage.in_flight():
            self.stage.manager.land(self.chance.one_of(transfers))

    def fail(self) -> None:
        """Some transfer fails."""
        reasons: tuple[FailReason, ...] = ("timeout", "corrupt", "no_space")
        if (transfers := self.stage.in_flight()) and self.chance.below(3) == 0:
            self.stage.manager.fail(self.chance.one_of(transfers), self.chance.one_of(reasons))

    def close(self) -> None:
        """Everything ends."""
        self.stage.release(*self.running, *self.waiting)
        self.stage.manager.shutdown()


def _stage(make: MakeStage) -> Stage:
    return make(
        total_num_pages=10, max_batch_size=16, replicas=2, host_pages=8, disk_pages=12, store=True
    )


@recording("XFER-1 XFER-3 XFER-4 ALLOC-11 ALLOC-12 TIER-2 TIER-4 TIER-6 TIER-9 EVENT-1 CLOSE-1")
def busy(make: MakeStage) -> Stage:
    """A server with two replicas and all tiers, where requests come and go and transfers land and
    fail as chance has it."""
    server = Server(_stage(make), Chance("busy"))
    for _ in range(250):
        server.act()
    server.close()
    return server.stage


@recording("XFER-1 XFER-3 ALLOC-4 STEP-5 EVENT-1")
def from_the_middle(make: MakeStage) -> Stage:
    """The end of a longer run: the trace begins with the state of the manager before it."""
    server = Server(_stage(make), Chance("from the middle"))
    while len(server.stage.events) < 250 or server.waiting:
        server.act()
    server.stage.begin_trace()
    for _ in range(80):
        server.act()
    return server.stage
