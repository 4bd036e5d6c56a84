"""Runs that nobody has thought of: calls and environment events, drawn by Hypothesis.

A run is a setup and a list of moves. A move names requests and transfers by their place among those
that there are, so that every list of moves is a run, and Hypothesis can shrink one that fails to
the shortest that still does.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import numpy as np
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from pagedkv.conformance.bench import Bench
from pagedkv.conformance.driver import Driver
from pagedkv.conformance.implementation import Capability, Implementation
from pagedkv.reference.context import SpecDecodingState, TextContext
from pagedkv.reference.tier_names import FailReason
from pagedkv.reference.tokens import TokenHashOverride

# Any: fields of ManagerSetup.
Options = dict[str, Any]

REASONS: tuple[FailReason, ...] = (
    "io_error",
    "corrupt",
    "missing",
    "no_space",
    "timeout",
    "unavailable",
)


@dataclass(frozen=True)
class Admit:
    """A fresh request is claimed and allocated; prompts that differ late share a long prefix."""

    length: int
    """Tokens of the prompt."""
    differs_at: int
    """Where the prompt departs from all zeros."""
    replica: int = 0
    """Where."""
    salt: bool = False
    """Whether it is of another tenant."""
    adapter: bool = False
    """Whether it uses an adapter."""
    image: bool = False
    """Whether the first token stands for an image."""
    chunk: bool = False
    """Whether its prompt is computed in two forwards."""
    hit_limit: int | None = None
    """Most blocks of its hit to wait for, where allocations wait."""


@dataclass(frozen=True)
class Serve:
    """A whole request at once, so that there is something to hit and to evict."""

    length: int
    """Tokens of the prompt."""
    differs_at: int
    """Where the prompt departs from all zeros."""
    replica: int = 0
    """Where."""


@dataclass(frozen=True)
class Forward:
    """Requests that have their pages run through one forward, and are stepped together."""

    which: int
    """The requests, as bits."""
    token: int = 0
    """What is sampled."""
    late: bool = False
    """Whether the sampled token is not known yet: a placeholder stands in for it."""


@dataclass(frozen=True)
class Grow:
    """A live request asks for the pages of its next forward, perhaps once more."""

    which: int
    """Its place."""
    drafts: bool = False
    """Whether it brings draft tokens, under speculative decoding."""


@dataclass(frozen=True)
class Release:
    """A live request ends."""

    which: int
    """Its place."""


@dataclass(frozen=True)
class Preempt:
    """A live request loses its pages, and begins again with all its tokens."""

    which: int
    """Its place."""


@dataclass(frozen=True)
class Probe:
    """A router looks up a prompt."""

    length: int
    """Tokens of the prompt."""
    differs_at: int
    """Where the prompt departs from all zeros."""


@dataclass(frozen=True)
class Prefetch:
    """A request that nobody has claimed yet has its prefix loaded into host memory."""

    length: int
    """Tokens of the prompt."""
    differs_at: int
    """Where the prompt departs from all zeros."""
    crowded: bool = False
    """Whether another request has taken every page before: what is cached is below, or nowhere."""


@dataclass(frozen=True)
class Reset:
    """The prefix cache is reset."""


@dataclass(frozen=True)
class Finish:
    """A waiting allocation is completed, after its loads have landed if ``land`` is set."""

    which: int
    """Its place among those that wait."""
    land: bool = True
    """Whether its loads land now."""


@dataclass(frozen=True)
class Cancel:
    """A waiting allocation is cancelled."""

    which: int
    """Its place among those that wait."""


@dataclass(frozen=True)
class Submit:
    """A load in flight is submitted, where the manager knows that."""

    which: int
    """Its place among the loads from below that are not."""


@dataclass(frozen=True)
class Land:
    """A transfer in flight lands."""

    which: int
    """Its place."""


@dataclass(frozen=True)
class LandAll:
    """Whatever is in flight lands, and what follows from it."""


@dataclass(frozen=True)
class Fail:
    """A transfer in flight fails."""

    which: int
    """Its place."""
    reason: FailReason = "io_error"
    """Why."""


Move = (
    Admit
    | Serve
    | Forward
    | Grow
    | Release
    | Preempt
    | Probe
    | Prefetch
    | Reset
    | Finish
    | Cancel
    | Submit
    | Land
    | LandAll
    | Fail
)


def setups(implementation: Implementation) -> st.SearchStrategy[Options]:
    """Small setups that an implementation with these capabilities can have."""
    can = implementation.capabilities.__contains__

    @st.composite
    def draw_setup(draw: st.DrawFn) -> Options:
        options: Options = {
            "page_size": implementation.page_size,
            "total_num_pages": draw(st.integers(3, 9)),
            "write_policy": draw(st.sampled_from(implementation.write_policies)),
            "deduplication": draw(st.sampled_from(["swap", "keep"])),
        }
        shapes = ["mha", *(shape for shape, needs in SHAPES.items() if can(needs))]
        options["cache"] = draw(st.sampled_from(shapes))
        if can("replicas"):
            options["replicas"] = draw(st.sampled_from([1, 1, 2]))
        if can("speculative"):
            options["speculative_method"] = draw(
                st.sampled_from([None, None, None, "eagle", "dflash"])
            )
            options["num_draft_tokens"] = 1 if options["speculative_method"] else 0
        if can("host") and draw(st.integers(0, 3)):
            options["host_pages"] = draw(st.integers(1, 12))
            if can("disk") and draw(st.booleans()):
                options["disk_pages"] = draw(st.integers(1, 12))
        if can("store") and draw(st.integers(0, 3)) == 0:
            options["store"] = True
        if not can("prefix") or draw(st.integers(0, 9)) == 0:
            without = ("host_pages", "disk_pages", "store")  # tiers need prefix caching
            options = {name: value for name, value in options.items() if name not in without}
            options["enable_prefix_caching"] = False
        return options

    return draw_setup()


SHAPES: dict[str, Capability] = {"mla": "mla", "fp8": "fp8", "tree": "multi"}


def moves(implementation: Implementation, *, controlled: bool) -> st.SearchStrategy[list[Move]]:
    """Lists of moves; with landings and failures if the environment is ours."""
    size = implementation.page_size
    place = st.integers(0, 7)
    length = st.integers(1, 5 * size)
    # Few prompts, so that what was evicted is asked for again; most depart inside a page.
    differs_at = st.sampled_from([0, 1, size + 1, 2 * size, 3 * size + 1, 5 * size])
    flag = st.integers(0, 5).map(lambda n: n == 5)
    admit = st.builds(Admit, length, differs_at, st.integers(0, 1), flag, flag, flag, flag)
    serve = st.builds(Serve, st.integers(2 * size, 4 * size + 1), differs_at, st.integers(0, 1))
    kinds: list[st.SearchStrategy[Move]] = [
        admit,
        serve,
        serve,
        serve,
        st.builds(Forward, st.integers(1, 255), st.integers(0, 1), flag),
        st.builds(Forward, st.just(255)),
        st.builds(Grow, place, st.booleans()),
        st.builds(Release, place),
        st.builds(Release, place),
        st.builds(Preempt, place),
    ]
    offered = implementation.capabilities
    if "prefetch" in offered:
        kinds.append(st.builds(Prefetch, length, differs_at))
        if controlled:
            limit = st.integers(0, 3)
            kinds.append(st.builds(Admit, length, differs_at, st.integers(0, 1), hit_limit=limit))
    if "probes" in offered:
        kinds.append(st.builds(Probe, length, differs_at))
    if "reset" in offered:
        kinds.append(st.integers(0, 3).flatmap(lambda n: st.builds(Reset) if n == 0 else admit))
    if controlled:
        kinds += [
            st.builds(Finish, place, st.booleans()),
            st.builds(Finish, place),
            st.builds(Cancel, place),
            st.builds(Submit, place),
            st.builds(Land, place),
            st.builds(Land, place),
            st.builds(LandAll),
            st.builds(Fail, place, st.sampled_from(REASONS)),
        ]
    # Hypothesis keeps lists short; several of them make runs long enough to fill the pool.
    warm_up: st.SearchStrategy[list[Move]] = st.lists(serve, max_size=10)
    if controlled:
        warm_up = warm_up.map(lambda served: [m for serve in served for m in (serve, LandAll())])
    part = st.lists(st.one_of(kinds), max_size=14)
    return st.tuples(warm_up, part, part, part, part).map(lambda parts: [*chain(*parts)])


@dataclass
class Player:
    """Makes moves on a driver."""

    driver: Driver
    """The manager."""
    controlled: bool = False
    """Whether transfers land when the moves say so."""
    live: list[TextContext] = field(default_factory=list)
    """Requests that wait for nothing."""
    waiting: list[TextContext] = field(default_factory=list)
    """Requests whose allocation waits for loads."""

    def play(self, moves: Sequence[Move]) -> None:
        """Make all moves, and let everything go."""
        for move in moves:
            self.make(move)
        for ctx in [*self.live, *self.waiting]:
            self.driver.release(ctx)
        if self.controlled:
            self.driver.land_all()

    def make(self, move: Move) -> None:
        """Make one move, if there is anything to make it with."""
        match move:
            case Admit():
                self._admit(move)
            case Serve(length, differs_at, replica):
                self._serve(length, differs_at, replica)
            case Forward(which, token, late):
                ready = [c for n, c in enumerate(self.live) if which >> n & 1 and self._ready(c)]
                if ready:
                    self._forward(ready, token, late)
            case Grow(which, drafts):
                if ctx := _at(self.live, which):
                    self._bring_drafts(ctx, drafts)
                    self._alloc(ctx)
            case Release(which):
                if ctx := _at([*self.live, *self.waiting], which):
                    (self.live if ctx in self.live else self.waiting).remove(ctx)
                    self.driver.release(ctx)
            case Preempt(which):
                if ctx := _at(self.live, which):
                    self._preempt(ctx)
            case Probe(length, differs_at):
                ctx = self.driver.request(_prompt(length, differs_at), request_id="probe")
                self.driver.probe(ctx)
            case Prefetch(length, differs_at, crowded):
                if crowded:
                    self.driver.evict_all()
                ctx = self.driver.request(_prompt(length, differs_at), request_id="waits")
                self.driver.prefetch(ctx)
            case Reset():
                self.driver.reset()
            case Finish(which, land):
                if ctx := _at(self.waiting, which):
                    self._finish(ctx, land)
            case Cancel(which):
                if ctx := _at(self.waiting, which):
                    self.driver.cancel(ctx)
                    self.waiting.remove(ctx)
                    self.live.append(ctx)
            case Submit(which):
                if transfer := _at(self._deferrable(), which):
                    self.driver.submit(transfer)
            case Land(which):
                if transfer := _at(self.driver.in_flight(), which):
                    self.driver.land(transfer)
            case LandAll():
                self.driver.land_all()
            case Fail(which, reason):
                unsure = [t for t in self.driver.in_flight() if t.id not in self.driver.submitted]
                if transfer := _at(unsure, which):
                    self.driver.fail(transfer, reason)

    def _admit(self, move: Admit) -> TextContext:
        driver = self.driver
        ctx = driver.request(
            _prompt(move.length, move.differs_at),
            cache_salt="tenant" if move.salt else None,
            adapter="adapter" if move.adapter else None,
            token_hash_overrides=[TokenHashOverride(0, 5)] if move.image else [],
        )
        if move.chunk and move.length > 2:
            driver.chunk(ctx, move.length // 2)
        driver.claim(ctx, move.replica % driver.setup.replicas)
        self.live.append(ctx)
        self._alloc(ctx, move.hit_limit)
        return ctx

    def _serve(self, length: int, differs_at: int, replica: int) -> None:
        ctx = self._admit(Admit(length, differs_at, replica))
        if ctx in self.waiting:
            self._finish(ctx, land=True)
        if self._ready(ctx):
            self._forward([ctx], token=0, late=False)
        self.live.remove(ctx)
        self.driver.release(ctx)

    def _alloc(self, ctx: TextContext, hit_limit: int | None = None) -> None:
        if not self.controlled:
            self.driver.fits(ctx)
        elif self.driver.begins(ctx, hit_limit):
            self.live.remove(ctx)
            self.waiting.append(ctx)

    def _ready(self, ctx: TextContext) -> bool:
        """Whether it has the pages of its next forward, and its last token is known."""
        request = self.driver.model.requests[ctx.request_id]
        return len(request.pages) >= self.driver.model.required_pages(ctx)

    def _forward(self, ready: list[TextContext], token: int, late: bool) -> None:
        driver = self.driver
        for ctx in ready:
            if ctx.pending_future_count:
                driver.realize(ctx, token)
        driver.compute(*ready)
        for ctx in ready:
            ctx.spec_decoding_state = SpecDecodingState()
            if late:
                driver.update_later(ctx)
            else:
                driver.update(ctx, token)
        driver.step(*ready)

    def _bring_drafts(self, ctx: TextContext, drafts: bool) -> None:
        if drafts and self.driver.setup.num_draft_tokens:
            self.driver.bring_drafts(ctx, [1] * self.driver.setup.num_draft_tokens)

    def _preempt(self, ctx: TextContext) -> None:
        replica = self.driver.model.requests[ctx.request_id].replica
        self.driver.release(ctx)
        self.driver.start_over(ctx)
        self.driver.claim(ctx, replica)
        self._alloc(ctx)

    def _finish(self, ctx: TextContext, land: bool) -> None:
        waits_for = self.driver.pending[ctx.request_id].transfers
        for transfer in self.driver.in_flight():
            if transfer.id in waits_for and transfer.id not in self.driver.submitted:
                if not land:
                    return
                self.driver.land(transfer)
        self.driver.finish(ctx)
        self.waiting.remove(ctx)
        self.live.append(ctx)

    # Any: transfers of whatever class the implementation has; see ControlledManager.
    def _deferrable(self) -> list[Any]:
        """Loads that can be submitted and are not."""
        if not self.driver.can("deferral"):
            return []
        submitted = self.driver.submitted
        return [t for t in self.driver.loads() if t.source != "peer" and t.id not in submitted]


def _prompt(length: int, differs_at: int) -> list[int]:
    tokens = np.zeros(length, dtype=np.int64)
    tokens[differs_at:] = 1
    return tokens.tolist()


# Any: a place among requests or transfers.
def _at(things: Sequence[Any], place: int) -> Any:
    """The thing at a place, counted round; ``None`` if there is none."""
    return things[place % len(things)] if things else None


Run = tuple[Options, list[Move]]
"""A setup and what happens on it."""


def runs(implementation: Implementation, *, controlled: bool) -> st.SearchStrategy[Run]:
    """Setups with moves on them."""
    return st.tuples(setups(implementation), moves(implementation, controlled=controlled))


def slow_tier_runs(implementation: Implementation, *, controlled: bool) -> st.SearchStrategy[Run]:
    """Runs in which much is on disk or in a store alone, and loaded ahead of time or left there."""
    offered, size, place = implementation.capabilities, implementation.page_size, st.integers(0, 7)
    below: list[Options] = [
        tiers
        for tiers, needs in (
            ({"disk_pages": 6}, {"disk"}),
            ({"disk_pages": 16}, {"disk"}),
            ({"store": True}, {"store"}),
            ({"disk_pages": 6, "store": True}, {"disk", "store"}),
        )
        if needs <= offered
    ]
    tiers = st.builds(
        lambda tiers, pages: {"host_pages": pages, "write_policy": "through"} | tiers,
        st.sampled_from(below),
        st.integers(1, 3),
    )
    prompt = (st.integers(2 * size, 5 * size), st.sampled_from([0, 1, 2 * size, 3 * size + 1]))
    serve = st.builds(Serve, *prompt, st.integers(0, 1))
    prefetch = st.builds(Prefetch, *prompt, st.booleans())
    limit = st.none() | st.integers(0, 3)
    kinds: list[st.SearchStrategy[Move]] = [
        *(serve, prefetch, prefetch),
        st.builds(Admit, *prompt, st.integers(0, 1), hit_limit=limit),
        st.builds(Forward, st.just(255)),
        st.builds(Release, place),
    ]
    if controlled:
        kinds += [
            *(
                st.builds(Finish, place),
                st.builds(Submit, place),
                st.builds(Land, place),
                st.builds(LandAll),
            ),
            st.builds(Fail, place, st.sampled_from(REASONS)),
        ]
    if "reset" in offered:
        kinds.append(st.builds(Reset))
    warm_up = st.lists(serve, min_size=3, max_size=6).map(
        lambda served: [m for s in served for m in ((s, LandAll()) if controlled else (s,))]
    )
    parts = st.tuples(warm_up, *(st.lists(st.one_of(kinds), max_size=14) for _ in range(3)))
    setup = st.tuples(setups(implementation), tiers).map(
        lambda both: both[0] | {"disk_pages": None, "enable_prefix_caching": True} | both[1]
    )
    return st.tuples(setup, parts.map(lambda parts: [*chain(*parts)]))


def play_runs(bench: Bench, runs: st.SearchStrategy[Run], *, controlled: bool) -> None:
    """Play generated runs, each on a manager of its own, and shrink one that fails.

    Raises:
        Violation: A rule that the driver watches is broken.
    """

    @settings(
        max_examples=bench.examples,
        deadline=None,
        database=None,
        derandomize=True,
        print_blob=False,
        report_multiple_bugs=False,
        phases=(Phase.generate, Phase.shrink),
        # Its metaclass iterates over values of a wrong type.
        suppress_health_check=list(HealthCheck),  # pyright: ignore[reportArgumentType]
    )
    @given(runs)
    def play(run: Run) -> None:
        options, moves = run
        with bench.fresh() as inner:
            driver = inner.driver(auto_land=not controlled, **options)
            Player(driver, controlled).play(moves)
            inner.all_clear()

    play()
