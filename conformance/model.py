"""What a correct manager may and must do, whatever it chooses where the rules leave a choice.

The model predicts neither page ids nor victims. It learns both from the page tables that a manager
hands out, and so knows what each page holds. A block has *some* pages that hold it and perhaps one
that is *sure* to be visible; hits must reach as far as what is sure, and no further than what may
be. So managers that take pages and evict in any order, or keep duplicates visible, pass alike, and
one that always misses does not.
"""

from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from pagedkv.conformance.forward_inputs import WantedRow
from pagedkv.conformance.violation import Violation, demand, expect
from pagedkv.reference.context import Context
from pagedkv.reference.identity import page_digests
from pagedkv.reference.lengths import ceil_div, identifiable_tokens, written_tokens
from pagedkv.traces.manager_setup import ManagerSetup

Block = bytes
"""A block, by the digest of its whole prefix."""


@dataclass
class ModelRequest:
    """A claimed request."""

    replica: int
    """Where it lives."""
    dummy: bool = False
    """Whether it stands for nothing."""
    pages: list[int] = field(default_factory=list)
    """Its page table, as the manager last gave it."""
    committed: int = 0
    """Leading pages whose content is identified."""
    fenced: bool = False
    """Whether the cache was reset since."""
    counted: int = 0
    """Leading tokens that were counted."""
    repeated: int = 0
    """Leading tokens that it had when it was preempted."""
    admitted: bool = False
    """Whether an allocation has returned."""
    planned: tuple[int, ...] = ()
    """The page table that it is to get, while its allocation waits for loads."""


@dataclass
class Device:
    """What the pages of one replica hold."""

    content: dict[int, Block] = field(default_factory=dict)
    """By page: the block that it holds, if it was committed."""
    sure: dict[Block, int] = field(default_factory=dict)
    """By block: a page from which it can be hit for certain."""
    loading: dict[int, Block] = field(default_factory=dict)
    """By page: the block that is being loaded into it."""

    def holds(self, block: Block) -> bool:
        """Whether some page has the block."""
        return block in self.content.values() or block in self.loading.values()

    def put(self, page: int, block: Block) -> None:
        """A page got committed or loaded content."""
        self.content[page] = block
        self.sure.setdefault(block, page)

    def take(self, page: int, *, duplicates_visible: bool) -> None:
        """A page was taken for something else: what it held is there no more."""
        block = self.content.pop(page, None)
        if block is None:
            return
        # With visible duplicates nobody says which of them the look-up knew.
        if self.sure.get(block) == page or (duplicates_visible and self.holds(block)):
            self.sure.pop(block, None)


@dataclass
class Counts:
    """The token counters as they must be."""

    input_tokens: int = 0
    """Computed."""
    cache_tokens: int = 0
    """Served."""
    preempted_input_tokens: int = 0
    """Computed again after a preemption."""
    preempted_cache_tokens: int = 0
    """Served after a preemption."""


@dataclass(frozen=True)
class Found:
    """How many blocks after the committed ones a look-up must and may find."""

    must: int
    """At least so many."""
    may: int
    """At most so many."""


class Model:
    """Follows one manager.

    Args:
        setup: How the manager was set up.
        follows: SHOULD rules that it follows.
    """

    def __init__(self, setup: ManagerSetup, follows: frozenset[str]) -> None:
        self.setup = setup
        self.follows = follows
        self.requests: dict[Hashable, ModelRequest] = {}
        self.devices = [Device() for _ in range(setup.replicas)]
        self.counts = Counts()
        self.stored: set[Block] = set()  # offered to the tiers below since the last reset
        self.unsure_below: set[Block] = set()  # of those: perhaps dropped
        self.longest_chain = 0
        self.uncommitted: set[Block] = set()  # computed by somebody, as far as nobody knows
        self.broken: set[int] = set()  # replicas whose device has failed
        self.epoch = 0  # counts resets

    # --- what there is ------------------------------------------------------------------------

    @property
    def has_tiers(self) -> bool:
        """Whether there is anything below the devices."""
        return bool(self.setup.host_pages or self.setup.disk_pages or self.setup.store)

    def held(self, replica: int) -> set[int]:
        """Pages of the replica that requests hold."""
        return {
            page
            for request in self.requests.values()
            if request.replica == replica and not request.dummy
            for page in (*request.pages, *request.planned)
        }

    def digests(self, ctx: Context, count: int) -> list[Block]:
        """Identities of the first full pages of a request."""
        return page_digests(
            ctx,
            count=count,
            page_size=self.setup.page_size,
            algorithm=self.setup.hash_algorithm,
            seed=self.setup.hash_seed,
        )

    def row(self, ctx: Context) -> WantedRow:
        """What a forward has to be told of the request."""
        request = self.requests[ctx.request_id]
        if request.dummy:
            return WantedRow.of_dummy(ctx)
        return WantedRow.of(ctx, request.pages, self.required_pages(ctx), self.setup.page_size)

    def required_pages(self, ctx: Context) -> int:
        """Pages that the request needs for its next forward (LEN-1)."""
        drafts = self.setup.num_draft_tokens
        tokens = (
            ctx.tokens.current_position
            + len(ctx.spec_decoding_state.maybe_accepted_draft_tokens)
            + 2 * drafts
            + (self.setup.speculative_method == "dflash")
            + 1
            - max(1, ctx.pending_future_count)
        )
        return ceil_div(tokens, self.setup.page_size)

    def sure_below(self, block: Block) -> bool:
        """Whether a tier below must have the block: nothing can have pushed it out."""
        setup = self.setup
        if block not in self.stored or block in self.unsure_below:
            return False
        if setup.write_policy == "reuse" or not setup.auto_land:
            return False
        if setup.write_policy == "write_back" and (
            any(device.holds(block) for device in self.devices)  # It may be dirty there,
            or len(self.stored) > (setup.host_pages or len(self.stored))  # or have found no slot.
        ):
            return False
        host_takes_chains = self.longest_chain <= (setup.host_pages or self.longest_chain)
        return bool(
            (setup.host_pages and len(self.stored) <= setup.host_pages)
            or (
                setup.disk_pages
                and len(self.stored) <= setup.disk_pages
                and host_takes_chains
                and setup.disk_writes_per_day is None
            )
            or (setup.store and host_takes_chains)
        )

    def find(
        self, ctx: Context, replica: int, request: ModelRequest, hit_limit: int | None = None
    ) -> Found:
        """How long the hit after the committed pages must and may be (ALLOC-4, ALLOC-5, ALLOC-15).

        It has ``hit_limit`` blocks at most.
        """
        size, tokens = self.setup.page_size, ctx.tokens
        caching = self.setup.enable_prefix_caching and not request.fenced and not request.dummy
        if not caching or tokens.active_length == 1 or replica in self.broken:
            return Found(0, 0)
        limit = min(identifiable_tokens(ctx), tokens.current_position - 1) // size
        blocks = self.digests(ctx, max(limit, request.committed))[request.committed :]
        must = may = 0
        for n, block in enumerate(blocks, 1):
            sure, possible = self._visibility(block, replica)
            if must == n - 1 and sure:
                must = n
            if not possible:
                break
            may = n
        if hit_limit is not None:
            must, may = min(must, hit_limit), min(may, hit_limit)
        if self.setup.speculative_method in ("eagle", "mtp"):
            must, may = max(0, must - 1), max(0, may - 1)

        def useful(hits: int) -> int:
            return hits if (request.committed + hits) * size > tokens.processed_length else 0

        return Found(useful(must), useful(may))

    def find_fresh(self, ctx: Context, replica: int) -> Found:
        """The same for a request that nobody has claimed (ALLOC-14)."""
        return self.find(ctx, replica, ModelRequest(replica))

    def _visibility(self, block: Block, replica: int) -> tuple[bool, bool]:
        """Whether a block is surely, and whether it is possibly, visible from a replica."""
        device = self.devices[replica]
        peers = (
            [d for n, d in enumerate(self.devices) if n != replica]
            if self.setup.enable_dp_cross_replica_prefix_copy
            else []
        )
        sure = (
            block in device.sure
            or self.sure_below(block)
            or ("ALLOC-10" in self.follows and any(block in peer.sure for peer in peers))
        )
        possible = (
            sure
            or device.holds(block)
            or (self.has_tiers and block in self.stored)
            or any(peer.holds(block) for peer in peers)
        )
        return sure, possible

    def need(
        self, ctx: Context, request: ModelRequest, hits: int, pinned: Collection[int]
    ) -> tuple[int, int]:
        """Pages to take, and pages that may be taken, for a hit of that length (ALLOC-8)."""
        needed = self.required_pages(ctx)
        kept = request.committed if hits else len(request.pages)
        moved = max(0, min(len(request.pages) - kept, needed - kept - hits))
        device, taken = self.devices[request.replica], self.held(request.replica) | set(pinned)
        blocks = self.digests(ctx, request.committed + hits)[request.committed :]
        shared = [block for block in blocks if block in device.sure]
        idle = [block for block in shared if self._hit_pages(device, block) - taken]
        free = self.setup.total_num_pages - len(taken) - len(idle)
        return needed - kept - moved - len(shared), free

    def _hit_pages(self, device: Device, block: Block) -> set[int]:
        """Pages that a hit of the block may share: with visible duplicates, any that holds it."""
        if "STEP-4" in self.follows:
            return {device.sure[block]}
        return {page for page, held in device.content.items() if held == block}

    # --- what has happened --------------------------------------------------------------------

    def claimed(self, request_id: Hashable, replica: int, *, dummy: bool = False) -> None:
        """``claim`` or ``alloc_dummy`` returned."""
        demand("CLAIM-1", request_id not in self.requests, f"{request_id!r} was claimed twice")
        self.requests[request_id] = ModelRequest(replica, dummy)

    def allocated(self, ctx: Context, pages: Sequence[int], processed: int, found: Found) -> int:
        """``alloc`` returned; ``processed`` is the start of the window before. The blocks hit.

        Args:
            ctx: The context as it is now.
            pages: The request's page table now.
            processed: Start of its window before the call.
            found: What :meth:`find` said when it was planned.

        Raises:
            Violation: The manager must not do that.
        """
        name = ctx.request_id
        request = self.requests[name]
        before = list(request.pages)
        window, needed = ctx.tokens.processed_length, self.required_pages(ctx)
        if request.dummy:
            expect("CLAIM-4", set(pages), {self.setup.total_num_pages}, f"pages of dummy {name!r}")
            expect("CLAIM-4", window, processed, f"window of dummy {name!r}")
            return 0
        for page in pages:
            demand(
                "POOL-1",
                0 <= page < self.setup.total_num_pages,
                f"{name!r} got page {page}; there are pages 0 to {self.setup.total_num_pages - 1}",
            )
        demand("POOL-2", len(set(pages)) == len(pages), f"{name!r} has a page twice: {pages}")
        if needed <= len(before):
            expect("ALLOC-3", list(pages), before, f"pages of {name!r}, which needed no more")
            expect("ALLOC-3", window, processed, f"window of {name!r}, which needed no more")
            hits = 0
        else:
            expect("ALLOC-1", len(pages), needed, f"number of pages of {name!r}")
            hits = self._check_hits(ctx, request, processed, found)
        if request.fenced:  # What it gets was loaded before the reset, and is found by nobody.
            blocks: list[Block] = []
        else:
            blocks = self.digests(ctx, request.committed + hits)
        if not (request.fenced and hits):
            self._check_table(name, request, pages, blocks)
        self._take(request, pages, blocks)
        self._count_allocation(ctx, request, processed, hits)
        request.pages = list(pages)
        request.committed += hits
        if self.setup.enable_prefix_caching and ctx.given_digests is None and not request.fenced:
            full = identifiable_tokens(ctx) // self.setup.page_size
            blocks = self.digests(ctx, max(full, request.committed))
            self.uncommitted.update(blocks[request.committed :])
        return hits

    def planned(self, ctx: Context, pages: Sequence[int], loading: Mapping[int, Block]) -> None:
        """``begin_alloc`` returned: pages were taken, and loads into some of them were issued."""
        request = self.requests[ctx.request_id]
        device, old = self.devices[request.replica], set(request.pages)
        blocks = self.digests(ctx, len(ctx.tokens) // self.setup.page_size)
        request.planned = tuple(pages)
        for n, page in enumerate(pages):
            if page in loading:
                if device.loading.get(page) != loading[page]:
                    device.take(page, duplicates_visible="STEP-4" not in self.follows)
                device.loading[page] = loading[page]
            elif page not in old and (n >= len(blocks) or device.content.get(page) != blocks[n]):
                device.take(page, duplicates_visible="STEP-4" not in self.follows)

    def unplanned(self, request_id: Hashable) -> None:
        """A planned allocation is complete, or undone."""
        self.requests[request_id].planned = ()

    def arriving(self, replica: int, page: int, block: Block) -> None:
        """An allocation has returned whose load was submitted: it is still to land (XFER-8)."""
        device = self.devices[replica]
        if device.content.pop(page, None) is not None and device.sure.get(block) == page:
            del device.sure[block]
        device.loading[page] = block

    def landed(self, replica: int, page: int, block: Block | None, *, lost: bool) -> None:
        """A load into a page has settled: the block is there, or not."""
        device = self.devices[replica]
        device.loading.pop(page, None)
        if block is not None and not lost:
            device.put(page, block)

    def _check_hits(self, ctx: Context, request: ModelRequest, processed: int, found: Found) -> int:
        """The blocks hit, as the window shows them; they must be possible, and as many as sure."""
        name, size, window = ctx.request_id, self.setup.page_size, ctx.tokens.processed_length
        hits = window // size - request.committed if window != processed else 0
        demand(
            "ALLOC-5",
            window < ctx.tokens.current_position and window <= identifiable_tokens(ctx),
            f"nothing is left to compute for {name!r}: its window begins at {window}",
        )
        if window != processed:
            expect("ALLOC-1", window % size, 0, f"window of {name!r} inside a page, at {window}:")
        if hits > found.may:
            place = request.committed + found.may
            (*_, block) = self.digests(ctx, place + 1)
            demand(
                "STEP-2",
                block not in self.uncommitted,
                f"{name!r} has hit block {place}, which no step has committed",
            )
        if not found.must <= hits <= found.may:
            told = str(found.may) if found.may == found.must else f"{found.must} to {found.may}"
            raise Violation(
                "ALLOC-4",
                f"blocks of {name!r} that were hit after its {request.committed} committed ones",
                expected=told,
                seen=str(hits),
            )
        return hits

    def _check_table(
        self, name: Hashable, request: ModelRequest, pages: Sequence[int], blocks: Sequence[Block]
    ) -> None:
        """Committed pages stay, hit pages hold their block, all others are nobody else's."""
        device = self.devices[request.replica]
        kept = request.committed
        expect("ALLOC-1", list(pages[:kept]), request.pages[:kept], f"committed pages of {name!r}")
        users: dict[int, list[tuple[Hashable, int]]] = {}
        for other, r in self.requests.items():
            if other != name and r.replica == request.replica and not r.dummy:
                for n, page in (*enumerate(r.pages), *enumerate(r.planned)):
                    users.setdefault(page, []).append((other, n))
        for n, page in enumerate(pages):
            hit = kept <= n < len(blocks)
            if n < kept:
                continue
            is_shared = hit and blocks[n] in (device.content.get(page), device.loading.get(page))
            if page in users and not is_shared:
                other, place = users[page][0]
                raise Violation(
                    "POOL-2",
                    f"page {page} was given to {name!r}, and it is page number {place} of "
                    f"{other!r}, which still holds it",
                )
            if hit and blocks[n] in device.sure and not is_shared:
                raise Violation(
                    "ALLOC-4",
                    f"block {n} of {name!r} lies on page {device.sure[blocks[n]]}, but the table "
                    f"has page {page}",
                )

    def _take(self, request: ModelRequest, pages: Sequence[int], blocks: Sequence[Block]) -> None:
        """Learn from a table which contents are gone, and which were loaded."""
        device = self.devices[request.replica]
        visible = "STEP-4" not in self.follows
        old = set(request.pages)
        for n, page in enumerate(pages):
            if request.committed <= n < len(blocks):
                if device.content.get(page) != blocks[n]:
                    device.take(page, duplicates_visible=visible)
                    device.put(page, blocks[n])
            elif page not in old:
                device.take(page, duplicates_visible=visible)

    def _count_allocation(
        self, ctx: Context, request: ModelRequest, processed: int, hits: int
    ) -> None:
        if request.dummy:
            return
        if not request.admitted:
            request.admitted = True
            request.counted = processed
            request.repeated = len(ctx.tokens) if ctx.preempted else 0
        if hits:
            self._count(request, processed, served=False)
            self._count(request, ctx.tokens.processed_length, served=True)

    def _count(self, request: ModelRequest, position: int, *, served: bool) -> None:
        start, request.counted = request.counted, max(request.counted, position)
        again = max(0, min(request.counted, request.repeated) - start)
        new = request.counted - start - again
        if served:
            self.counts.cache_tokens += new
            self.counts.preempted_cache_tokens += again
        else:
            self.counts.input_tokens += new
            self.counts.preempted_input_tokens += again

    def refused(self, ctx: Context, pinned: Collection[int] = ()) -> None:
        """``alloc`` raised ``InsufficientBlocksError``; ``pinned`` pages were not to be taken.

        Raises:
            Violation: There were enough pages.
        """
        request = self.requests[ctx.request_id]
        found = self.find(ctx, request.replica, request)
        lengths = range(found.must, found.may + 1)
        needs = [self.need(ctx, request, hits, pinned) for hits in lengths]
        if any(needed > free for needed, free in needs):
            return
        needed, free = needs[-1]
        raise Violation(
            "ALLOC-1",
            f"alloc of {ctx.request_id!r} was refused, but it needed {needed} pages and {free} "
            "were free",
        )

    def stepped(self, ctx: Context, pages: Sequence[int], batch_chain: int) -> None:
        """``step`` returned; ``batch_chain`` is the length of all chains of its batches.

        Raises:
            Violation: The page table is not what it may be.
        """
        name, size = ctx.request_id, self.setup.page_size
        request = self.requests[name]
        if request.dummy:
            return
        device = self.devices[request.replica]
        expect("STEP-4", len(pages), len(request.pages), f"number of pages of {name!r} after step")
        self._count(request, ctx.tokens.processed_length, served=False)
        commits = self.setup.enable_prefix_caching and not request.fenced
        full = max(request.committed, written_tokens(ctx) // size) if commits else 0
        blocks = self.digests(ctx, full)
        for n, (own, page) in enumerate(zip(request.pages, pages, strict=True)):
            fresh = request.committed <= n < full
            if own != page:
                demand(
                    "STEP-4",
                    fresh and self._may_hold(request.replica, page, blocks[n]),
                    f"step put page {page} in place of page {own} of {name!r}, but page {page} "
                    "does not hold that block",
                )
                if device.content.get(page) != blocks[n]:
                    device.take(page, duplicates_visible="STEP-4" not in self.follows)
                    device.put(page, blocks[n])
            elif fresh:
                device.content[page] = blocks[n]
                device.sure.setdefault(blocks[n], page)
        self.uncommitted.difference_update(blocks)
        newly = full > request.committed
        request.pages, request.committed = list(pages), max(full, request.committed)
        if newly and self.has_tiers:
            self.stored.update(blocks)
            self.longest_chain = max(self.longest_chain, len(blocks))
            if batch_chain > (self.setup.host_pages or batch_chain):
                self.unsure_below.update(blocks)

    def _may_hold(self, replica: int, page: int, block: Block) -> bool:
        """Whether a page may have the block; what it really has, its bytes show.

        It has if it was seen to. An idle one may also have it from a load that landed although
        the allocation was undone, because other loads of it had failed: nobody says which.
        """
        if self.devices[replica].content.get(page) == block:
            return True
        below = self.has_tiers and block in self.stored
        elsewhere = any(d.holds(block) for n, d in enumerate(self.devices) if n != replica)
        return page not in self.held(replica) and (below or elsewhere)

    def released(self, request_id: Hashable) -> None:
        """``release`` returned."""
        del self.requests[request_id]

    def poisoned(self, replica: int) -> None:
        """The device of a replica has failed: nothing is read from it, not even to save it."""
        self.unsure_below.update(self.devices[replica].content.values())
        self.devices[replica] = Device()
        self.broken.add(replica)

    def inherit(self, other: "Model") -> None:
        """What another manager stores can be found here; for how long, nobody says."""
        self.stored, self.unsure_below = other.stored, set(other.stored)

    def may_find(self, blocks: Iterable[Block]) -> None:
        """A request may ask for blocks where this manager has not put them."""
        self.stored.update(blocks)
        self.unsure_below.update(blocks)

    def reset(self) -> None:
        """``reset_prefix_cache`` returned: nothing from before may be hit."""
        self.epoch += 1
        self.devices = [Device() for _ in self.devices]
        self.stored, self.unsure_below = set(), set()
        for request in self.requests.values():
            request.fenced = request.fenced or bool(request.pages or request.planned)
