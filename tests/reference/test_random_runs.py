"""Random calls, landings and failures: nothing is lost, no byte is wrong, refusals change nothing.

A model beside the manager knows what every token slot must hold: a value made of the whole prefix
up to that token, its namespace, the layer and the shard. Every forward writes it, and before every
forward the slots that the manager calls cached are read back.
"""

import hashlib
from collections.abc import Hashable, Iterator
from contextlib import contextmanager

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from tests.reference.conftest import Recorder

from pagedkv.reference import (
    DeviceRef,
    InferenceSession,
    InsufficientBlocksError,
    KVCacheBuffer,
    KVCacheBufferInterface,
    KVCacheParamInterface,
    KVCacheParams,
    KVCacheQuantizationConfig,
    KVConnectorConfig,
    KVLoadFailed,
    MultiKVCacheBuffer,
    MultiKVCacheParams,
    PagedKVCacheManager,
    TextContext,
    TokenBuffer,
    TokenHashOverride,
)
from pagedkv.reference.invariants import check
from pagedkv.reference.lengths import required_pages
from pagedkv.reference.page_bytes import PageBytes, read_page
from pagedkv.reference.state import State
from pagedkv.reference.tiers import Block

TIERS = ("null", "local", "tiered", "dkv", "dkv with host", "dkv with host and disk")
SHAPES = ("mha", "two shards", "mla", "replicated mla", "fp8", "tree")
REASONS = ("io_error", "corrupt", "missing", "no_space", "timeout", "unavailable")


def shape_options(shape: str) -> dict[str, object]:
    if shape == "fp8":
        return {
            "dtype": torch.float8_e4m3fn,
            "kvcache_quant_config": KVCacheQuantizationConfig(quantization_granularity=1),
        }
    if shape in ("mla", "replicated mla"):
        return {"is_mla": True, "num_q_heads": 2}
    return {}


def state_of(manager: PagedKVCacheManager) -> State:
    return manager._state


def fingerprint(manager: PagedKVCacheManager) -> object:
    """All bookkeeping, in order: two equal ones mean that nothing has changed."""
    state = state_of(manager)
    return (
        [
            (
                list(p.idle),
                list(p.holders),
                dict(p.pins),
                dict(p.page_of),
                dict(p.loading),
                set(p.dirty),
            )
            for p in state.pools
        ],
        [
            (name, [(b.name, b.pins, b.content is None) for b in t.blocks.values()], t.writes_left)
            for name, t in state.connector.tiers.items()
        ],
        dict(state.connector.uses),
        {
            request_id: (r.pages[:], r.committed, r.offered, r.counted, r.plan, set(r.avoided))
            for request_id, r in state.requests.items()
        },
        list(state.in_flight),
        manager.get_metrics_aggregated(),
    )


def leaves(buffer: KVCacheBufferInterface) -> Iterator[KVCacheBuffer]:
    if isinstance(buffer, MultiKVCacheBuffer):
        for child in buffer.children.values():
            yield from leaves(child)
    else:
        assert isinstance(buffer, KVCacheBuffer)
        yield buffer


def same(left: PageBytes, right: PageBytes) -> bool:
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


class Slots:
    """The model's view of device memory: what a token's slot must hold."""

    def __init__(self, manager: PagedKVCacheManager) -> None:
        self.page_size = manager.params.page_size
        self.weights: dict[Hashable, int] = {}
        """By request: the weights it runs with. A reset of the cache stands for new ones."""
        self.leaves = [
            list(leaves(manager.get_device_buffer(r)))
            for r in range(manager.params.data_parallel_degree)
        ]

    def expected(
        self, ctx: TextContext, position: int, tensor: torch.Tensor, n: int
    ) -> torch.Tensor:
        """The bytes of one slot of the n-th tensor; a replicated tensor is equal on all shards."""
        prefix = ctx.tokens.all[: position + 1].tobytes()
        overrides = repr([o for o in ctx.token_hash_overrides if o.token_idx <= position])
        weights = self.weights[ctx.request_id]
        seed = f"{weights}|{ctx.cache_salt}|{ctx.adapter}|{overrides}|{n}".encode() + prefix
        nbytes = tensor[0, :, :, 0].numel() * tensor.element_size()
        digest = hashlib.shake_128(seed).digest(nbytes)
        return torch.frombuffer(bytearray(digest), dtype=torch.uint8)

    def of(
        self, ctx: TextContext, replica: int, pages: list[int], positions: range
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """``(slot as bytes, expected bytes)`` of every position in every tensor."""
        for leaf_number, leaf in enumerate(self.leaves[replica]):
            kinds = [leaf.values] + ([leaf.scales] if leaf.scales is not None else [])
            for kind_number, shards in enumerate(kinds):
                for shard, tensor in enumerate(shards):
                    n = leaf_number * 100 + kind_number * 10
                    n += 0 if leaf.replicates_kv_across_tp else shard
                    raw = tensor.view(torch.uint8)
                    for position in positions:
                        page, slot = divmod(position, self.page_size)
                        yield (
                            raw[pages[page], :, :, slot],
                            self.expected(ctx, position, tensor, n),
                        )

    def write(self, ctx: TextContext, replica: int, pages: list[int], positions: range) -> None:
        for slot, expected in self.of(ctx, replica, pages, positions):
            slot.copy_(expected.view(slot.shape))

    def check(self, ctx: TextContext, replica: int, pages: list[int], positions: range) -> None:
        for slot, expected in self.of(ctx, replica, pages, positions):
            assert torch.equal(slot.reshape(-1), expected), f"wrong bytes for {ctx.request_id}"


class RandomRuns(RuleBasedStateMachine):
    @initialize(
        tiers=st.sampled_from(TIERS),
        shape=st.sampled_from(SHAPES),
        replicas=st.integers(1, 2),
        page_size=st.sampled_from([2, 2, 1, 3]),
        pages=st.integers(3, 9),
        host_pages=st.integers(1, 8),
        disk_pages=st.integers(1, 12),
        policy=st.sampled_from(["through", "write_back", "reuse"]),
        deduplication=st.sampled_from(["swap", "keep"]),
        method=st.sampled_from([None, None, "eagle", "dflash"]),
        warm_up=st.lists(st.tuples(st.integers(5, 9), st.integers(0, 9)), min_size=4, max_size=9),
    )
    def make_manager(
        self,
        tiers: str,
        shape: str,
        replicas: int,
        page_size: int,
        pages: int,
        host_pages: int,
        disk_pages: int,
        policy: str,
        deduplication: str,
        method: str | None,
        warm_up: list[tuple[int, int]],
    ) -> None:
        shards = 2 if shape in ("two shards", "replicated mla") else 1

        def params(**options: object) -> KVCacheParams:
            base: dict[str, object] = {
                "dtype": torch.float32,
                "n_kv_heads": shards,
                "head_dim": 1,
                "num_layers": 2,
                "devices": [DeviceRef.CPU()] * (replicas * shards),
                "data_parallel_degree": replicas,
                "page_size": page_size,
                "enable_prefix_caching": True,
                "deduplication": deduplication,
                "speculative_method": method,
                "num_draft_tokens": 1 if method else 0,
            }
            return KVCacheParams(**(base | shape_options(shape) | options))  # type: ignore[arg-type]

        def build(**options: object) -> KVCacheParamInterface:
            if shape == "tree":
                return MultiKVCacheParams.from_params(
                    target=params(**options), draft=params(num_layers=1, **options)
                )
            return params(**options)

        self.recorder = Recorder()
        with_host = tiers not in ("null", "dkv")
        with_disk = tiers in ("tiered", "dkv with host and disk")
        config = KVConnectorConfig.model_validate(
            {
                "disk_offload_dir": "/d" if with_disk else None,
                "disk_offload_max_gb": disk_pages * build().bytes_per_offloaded_block / 10**9,
                "block_store_endpoint": "s" if tiers.startswith("dkv") else None,
                "write_policy": policy,
            }
        )
        self.params = build(
            kv_connector=tiers.split()[0],
            kv_connector_config=config,
            host_kvcache_swap_space_gb=0.001,
        )
        self.manager = PagedKVCacheManager(
            self.params,
            InferenceSession(devices=self.params.devices),
            pages,
            host_pages if with_host else 0,
            max_batch_size=8,
            tracer=self.recorder,
            auto_land=False,
        )
        self.slots = Slots(self.manager)
        self.live: dict[Hashable, tuple[TextContext, int]] = {}
        self.waiting: dict[Hashable, tuple[TextContext, int]] = {}
        self.count = 0
        self.resets = 0
        self.content: dict[bytes, PageBytes] = {}
        self.damaged: list[Block] = []
        for length, variant in warm_up:
            self.serve(length, variant, False, 0)
            self.land_everything()

    # --- calls --------------------------------------------------------------------------------

    @contextmanager
    def changes_nothing(self) -> Iterator[None]:
        before = fingerprint(self.manager)
        yield
        assert fingerprint(self.manager) == before

    @rule(
        length=st.integers(1, 9),
        variant=st.integers(0, 9),
        salt=st.sampled_from([None, None, "a"]),
        image=st.booleans(),
        chunk=st.booleans(),
        replica=st.integers(0, 1),
    )
    def admit(
        self, length: int, variant: int, salt: str | None, image: bool, chunk: bool, replica: int
    ) -> None:
        self.new_request(length, variant, salt, image, chunk, replica)

    def new_request(
        self,
        length: int,
        variant: int,
        salt: str | None = None,
        image: bool = False,
        chunk: bool = False,
        replica: int = 0,
    ) -> Hashable:
        """Prompts share prefixes: they differ only from the token at position ``variant`` on."""
        tokens = np.zeros(length, dtype=np.int64)
        tokens[variant:] = 1
        ctx = TextContext(
            max_length=1000,
            tokens=TokenBuffer(tokens),
            request_id=f"r{self.count}",
            cache_salt=salt,
            token_hash_overrides=[TokenHashOverride(0, 5)] if image else [],
        )
        self.count += 1
        self.slots.weights[ctx.request_id] = self.resets
        if chunk and length > 2:
            ctx.chunk(length // 2)
        replica %= self.params.data_parallel_degree
        self.manager.claim(ctx.request_id, replica)
        self.live[ctx.request_id] = (ctx, replica)
        self.begin(ctx.request_id)
        return ctx.request_id

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def admit_twin(self, data: st.DataObject) -> None:
        """Equal tokens on the same replica while the loads of the first are in flight."""
        ctx, replica = self.waiting[data.draw(st.sampled_from(list(self.waiting)))]
        variant = int(np.count_nonzero(ctx.tokens.all == 0))
        self.new_request(len(ctx.tokens), variant, ctx.cache_salt, replica=replica)

    @rule(
        length=st.integers(5, 9),
        variant=st.integers(0, 9),
        image=st.booleans(),
        replica=st.integers(0, 1),
    )
    def serve(self, length: int, variant: int, image: bool, replica: int) -> None:
        """A whole request at once, so that there is something to hit."""
        name = self.new_request(length, variant, image=image, replica=replica)
        if name in self.waiting:
            self.finish_after_its_loads(name)
        if name in self.ready():
            self.forward(name, token=0)
        self.release(name)

    @precondition(lambda self: self.live)
    @rule(data=st.data(), hit_limit=st.none() | st.integers(0, 2))
    def alloc_again(self, data: st.DataObject, hit_limit: int | None) -> None:
        self.begin(data.draw(st.sampled_from(list(self.live))), hit_limit)

    @rule(length=st.integers(5, 9), variant=st.integers(0, 9))
    def prefetch(self, length: int, variant: int) -> None:
        """Whatever is loaded into host memory, no page of a device has to do with it."""
        tokens = np.zeros(length, dtype=np.int64)
        tokens[variant:] = 1
        ctx = TextContext(max_length=1000, tokens=TokenBuffer(tokens))
        pools = [pool.statistics() for pool in state_of(self.manager).pools]
        issued = self.manager.prefetch(ctx)
        loads = [t for t in self.manager.in_flight() if t.id in issued]
        assert [(t.target, t.replica, t.pages) for t in loads] == [("host", None, ())] * len(issued)
        assert [pool.statistics() for pool in state_of(self.manager).pools] == pools

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def finish_one(self, data: st.DataObject) -> None:
        self.finish_after_its_loads(data.draw(st.sampled_from(list(self.waiting))))

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(list(self.waiting)))
        self.live[name] = self.waiting.pop(name)
        self.manager.cancel_alloc(name, self.live[name][1])

    @precondition(lambda self: self.ready())
    @rule(data=st.data(), token=st.integers(0, 1))
    def forward_one(self, data: st.DataObject, token: int) -> None:
        self.forward(data.draw(st.sampled_from(self.ready())), token)

    @precondition(lambda self: self.live or self.waiting)
    @rule(data=st.data())
    def release_one(self, data: st.DataObject) -> None:
        self.release(data.draw(st.sampled_from([*self.live, *self.waiting])))

    def begin(self, name: Hashable, hit_limit: int | None = None) -> None:
        ctx, replica = self.live[name]
        before = fingerprint(self.manager), repr(ctx.tokens)
        try:
            plan = self.manager.begin_alloc(ctx, replica, hit_limit)
        except InsufficientBlocksError as error:
            assert (fingerprint(self.manager), repr(ctx.tokens)) == before
            assert error.needed > error.free
            return
        assert len(plan.pages) >= required_pages(ctx, self.params)
        assert hit_limit is None or len(plan.hits) <= hit_limit
        self.waiting[name] = self.live.pop(name)

    def finish_after_its_loads(self, name: Hashable) -> None:
        plan = state_of(self.manager).requests[name].plan
        assert plan is not None
        for transfer in self.manager.in_flight():
            if transfer.id in plan.transfers:
                self.manager.land(transfer.id)
        self.finish(name)

    def finish(self, name: Hashable) -> None:
        ctx, replica = self.live[name] = self.waiting.pop(name)
        processed = ctx.tokens.processed_length
        try:
            self.manager.finish_alloc(ctx, replica)
        except KVLoadFailed:
            assert ctx.tokens.processed_length == processed
            return
        # Everything before the window is cached: its bytes must be those of this very prefix.
        pages = self.manager.get_req_blocks(name, replica)
        self.slots.check(ctx, replica, pages, range(ctx.tokens.processed_length))

    def ready(self) -> list[Hashable]:
        """Requests that hold the pages of their next forward."""
        return [
            name
            for name, (ctx, replica) in self.live.items()
            if len(self.manager.get_req_blocks(name, replica)) >= required_pages(ctx, self.params)
        ]

    def forward(self, name: Hashable, token: int) -> None:
        ctx, replica = self.live[name]
        pages = self.manager.get_req_blocks(name, replica)
        batches: list[list[TextContext]] = [[] for _ in range(self.params.data_parallel_degree)]
        batches[replica].append(ctx)
        with self.changes_nothing():
            self.manager.runtime_inputs(batches)
        self.slots.check(ctx, replica, pages, range(ctx.tokens.processed_length))
        window = range(ctx.tokens.processed_length, ctx.tokens.current_position)
        self.slots.write(ctx, replica, pages, window)
        ctx.update(token)
        self.manager.step(batches)
        self.learn(name)
        with self.changes_nothing():
            self.manager.step(batches)

    def learn(self, name: Hashable) -> None:
        """What is committed under which identity, from pages whose bytes were checked."""
        state = state_of(self.manager)
        request = state.requests[name]
        if self.slots.weights[name] == self.resets:
            keys = state.keys(request.digests[: request.committed])
            for key, page in zip(keys, request.pages, strict=False):
                content = read_page(state.memories[request.replica], page)
                self.content.setdefault(key, tuple(row.clone() for row in content))

    def release(self, name: Hashable) -> None:
        replica = (self.live | self.waiting)[name][1]
        self.manager.release(name, replica)
        self.live.pop(name, None)
        self.waiting.pop(name, None)

    @rule()
    def probe(self) -> None:
        with self.changes_nothing():
            for name, (ctx, replica) in self.live.items():
                self.manager.get_prefix_cache_hit_counts(ctx)
                fraction = self.manager.get_pct_used_blocks_after_allocation(ctx, replica)
                assert 0 <= fraction <= 1, name

    @rule(replica=st.integers(0, 1), count=st.integers(1, 3))
    def clean(self, replica: int, count: int) -> None:
        self.manager.clean(replica % self.params.data_parallel_degree, count)

    @rule()
    def reset(self) -> None:
        self.manager.reset_prefix_cache()
        self.resets += 1
        for name, (_, replica) in self.live.items():
            if not self.manager.get_req_blocks(name, replica):
                self.slots.weights[name] = self.resets  # Nothing of it is old.
        self.content.clear()
        ctx = TextContext(max_length=99, tokens=TokenBuffer(np.zeros(9, dtype=np.int64)))
        assert all(h.total_blocks == 0 for h in self.manager.get_prefix_cache_hit_counts(ctx))

    # --- environment --------------------------------------------------------------------------

    @precondition(lambda self: self.manager.in_flight())
    @rule(data=st.data())
    def land(self, data: st.DataObject) -> None:
        transfers = self.manager.in_flight()
        self.manager.land(data.draw(st.sampled_from(transfers)).id)

    @precondition(lambda self: self.manager.in_flight())
    @rule(data=st.data())
    def submit(self, data: st.DataObject) -> None:
        transfer = data.draw(st.sampled_from(self.manager.in_flight()))
        if transfer.target == "device" and transfer.source != "peer" and not transfer.submitted:
            self.manager.submit(transfer.id)

    @precondition(lambda self: self.manager.in_flight())
    @rule()
    def land_everything(self) -> None:
        """In the order of issue."""
        while transfers := self.manager.in_flight():
            self.manager.land(transfers[0].id)

    @precondition(lambda self: self.manager.in_flight())
    @rule(data=st.data(), reason=st.sampled_from(REASONS))
    def fail(self, data: st.DataObject, reason: str) -> None:
        transfer = data.draw(st.sampled_from(self.manager.in_flight()))
        keys = data.draw(st.sets(st.sampled_from(transfer.keys), min_size=1))
        if not transfer.submitted:
            self.manager.fail(transfer.id, reason, keys)  # type: ignore[arg-type]

    @rule(data=st.data())
    def damage(self, data: st.DataObject) -> None:
        """A tier that lies: one byte of a block is not the one that was written."""
        tiers = state_of(self.manager).connector.tiers
        lying = [tier for name, tier in tiers.items() if name != "host"]
        landed = [b for tier in lying for b in tier.blocks.values() if b.content is not None]
        if landed:
            block = data.draw(st.sampled_from(landed))
            assert block.content is not None
            block.content[0][0] ^= 1
            self.damaged.append(block)

    # --- what always holds ----------------------------------------------------------------------

    @invariant()
    def everything_is_accounted_for(self) -> None:
        if hasattr(self, "manager"):
            check(state_of(self.manager))

    @invariant()
    def what_can_be_hit_is_right(self) -> None:
        """Every visible block, and every page that an offload reads, holds its identity's bytes."""
        if not hasattr(self, "manager"):
            return
        state = state_of(self.manager)
        for replica, pool in enumerate(state.pools):
            places = [*pool.page_of.items()]
            for t in self.manager.in_flight():
                if t.kind == "offload" and t.replica == replica and not t.fenced:
                    places += zip(t.keys, t.pages, strict=True)
            for key, page in places:
                assert same(read_page(state.memories[replica], page), self.content[key])
        for name, tier in state.connector.tiers.items():
            for block in tier.blocks.values():
                if block.content is None or not block.name.startswith(tier.prefix):
                    continue
                if block not in self.damaged:
                    assert same(block.content, self.content[block.key]), name

    def teardown(self) -> None:
        """When all requests are gone and all transfers have settled, every page may be taken."""
        if not hasattr(self, "manager"):
            return
        for name, (_, replica) in (self.live | self.waiting).items():
            self.manager.release(name, replica)
        self.land_everything()
        for replica in range(self.params.data_parallel_degree):
            assert self.manager.get_num_used_pages(replica) == 0
        self.manager.shutdown()


# A run is cheap and the space is large: more of them than of other properties.
RUNS = settings(max_examples=600, stateful_step_count=60)
RandomRuns.TestCase.settings = RUNS

TestRandomRuns = pytest.mark.rule(
    "POOL-2",
    "POOL-6",
    "POOL-7",
    "POOL-9",
    "ALLOC-2",
    "ALLOC-11",
    "ALLOC-12",
    "ALLOC-14",
    "ALLOC-15",
    "STEP-6",
    "REL-3",
    "TIER-3",
    "TIER-5",
    "TIER-6",
    "TIER-11",
    "XFER-1",
    "XFER-4",
    "RESET-2",
)(RandomRuns.TestCase)
