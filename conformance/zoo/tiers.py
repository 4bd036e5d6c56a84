"""Host memory, disk and store that lose, damage or hide blocks, or stand in the way of requests."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from pagedkv.conformance.zoo.change import Edit, Swap
from pagedkv.conformance.zoo.specimen import Specimen
from pagedkv.reference.allocation import _load, finish_alloc
from pagedkv.reference.connector import TierConnector, gives_up
from pagedkv.reference.identity import PageKey
from pagedkv.reference.manager import PagedKVCacheManager
from pagedkv.reference.media import Media, _landed
from pagedkv.reference.page_bytes import write_page
from pagedkv.reference.params import KVCacheParams
from pagedkv.reference.reset import reset_prefix_cache
from pagedkv.reference.tier_names import FailReason, LowerTier
from pagedkv.reference.tier_setup import _open_disk
from pagedkv.reference.tiers import Block, Tier
from pagedkv.reference.transfer import Transfer
from pagedkv.reference.transfers import fail


@dataclass
class UnforgivingConnector(TierConnector):
    """Never again asks a store that was unavailable once."""

    gave_up: bool = False
    """Whether it was."""

    def lookup(
        self,
        keys: Sequence[PageKey],
        avoided: Collection[tuple[str, PageKey]] = (),
        further: Sequence[Tier] = (),
    ) -> list[LowerTier | None]:
        """See :meth:`TierConnector.lookup`."""
        found = super().lookup(keys, avoided, further)
        return [None if tier == "store" and self.gave_up else tier for tier in found]

    def fail(self, transfer: Transfer, reason: FailReason, keys: Sequence[PageKey]) -> None:
        """See :meth:`TierConnector.fail`."""
        self.gave_up |= reason == "unavailable"
        super().fail(transfer, reason, keys)


@dataclass
class RememberingConnector(TierConnector):
    """Believes that a block stays where it was once found."""

    seen: dict[PageKey, LowerTier] = field(default_factory=dict)
    """Where blocks were found."""

    def lookup(
        self,
        keys: Sequence[PageKey],
        avoided: Collection[tuple[str, PageKey]] = (),
        further: Sequence[Tier] = (),
    ) -> list[LowerTier | None]:
        """See :meth:`TierConnector.lookup`."""
        found = super().lookup(keys, avoided, further)
        self.seen |= {key: tier for key, tier in zip(keys, found, strict=True) if tier}
        return [tier or self.seen.get(key) for key, tier in zip(keys, found, strict=True)]


SPECIMENS = (
    Specimen(
        number=37,
        name="disk_believed",
        happens="blocks are not verified: a flipped bit or a foreign payload is good KV",
        source=("LMCache 0.5.6", "MAX, by its documentation"),
        changes=(Edit(Block.is_intact, {"return self.checksum is None or": "return True or"}),),
        expected=("tier_failures.a_damaged_block_on_disk_is_never_served",),
    ),
    Specimen(
        number=37,
        name="older_layout_believed",
        happens="blocks of another layout in the same directory are taken for blocks of this one",
        source=("LMCache 0.5.6", "MAX, by its documentation"),
        changes=(Edit(Media.open_disk, {"survivors and found.layout != layout": "False"}),),
        expected=("namespaces.a_disk_of_another_layout_is_refused",),
    ),
    Specimen(
        number=38,
        name="truncated_file_believed",
        happens="a file that has become too short is not verified, and read as far as it goes",
        source=("nixl#1696",),
        changes=(
            Edit(
                TierConnector.damaged,
                {
                    "if not b.is_intact()": "if not b.is_intact() "
                    "and len(b.content[0]) == self.memories[0][0].buffer.shape[1]"
                },
            ),
            Edit(write_page, {"buffer[page] = row": "buffer[page][: len(row)] = row"}),
        ),
        expected=("tier_failures.a_damaged_block_on_disk_is_never_served",),
    ),
    Specimen(
        number=38,
        name="short_write_done",
        happens="a write that stopped half way is done, checksum and all",
        source=("nixl#1696",),
        changes=(
            Edit(
                Tier.fill,
                {
                    "            block.checksum = checksum(block.key, content)\n": """\
            for row in block.content:
                row[len(row) // 2 :] = 0
            block.checksum = checksum(block.key, block.content)
"""
                },
            ),
        ),
        expected=("tiers.every_byte_of_every_layer_comes_back",),
    ),
    Specimen(
        number=39,
        name="pin_leaked_by_a_full_disk",
        happens="a write that finds the disk full never lets go of its source in host memory",
        source=("LMCache#3533",),
        changes=(
            Edit(
                TierConnector.fail,
                {
                    "            tier.unpin(block)\n": """\
            if reason != "no_space":
                tier.unpin(block)
"""
                },
            ),
        ),
        expected=("tier_failures.a_failed_disk_write_lets_go_of_what_it_reads",),
        claims=frozenset({"TIER-2"}),
    ),
    Specimen(
        number=40,
        name="budget_without_what_is_in_flight",
        happens="only landed blocks count against a tier's size: what is in flight comes on top",
        source=("MAX", "Mooncake#2419"),
        changes=(
            Edit(
                Tier.used,
                {
                    "len(self.blocks) + len(self.leaving)": (
                        "sum(block.content is not None for block in self.blocks.values())"
                    )
                },
            ),
        ),
        expected=("tiers.slots_in_flight_count",),
    ),
    Specimen(
        number=40,
        name="budget_for_each_replica",
        happens="every replica brings the whole disk budget along, though all share one disk",
        source=("MAX", "Mooncake#2419"),
        changes=(
            Edit(
                _open_disk,
                {
                    "compute_num_disk_blocks(params)": "compute_num_disk_blocks(params) "
                    "* params.data_parallel_degree"
                },
            ),
        ),
        expected=("tiers.one_disk_serves_all_replicas",),
    ),
    Specimen(
        number=41,
        name="failed_write_blocks_its_hash",
        happens="a block whose write failed counts as being written for ever: it is never stored",
        source=("MAX 26.5",),
        changes=(
            Edit(TierConnector._abandon, {"        self.tiers[name].drop(block)": "        pass"}),
        ),
        expected=("tier_failures.a_failed_write_does_not_block_the_next",),
    ),
    Specimen(
        number=42,
        name="reset_survived_in_flight",
        happens="a reset forgets what is there, and what is in flight brings the old blocks back",
        source=("MAX 26.5", "vLLM, test_reset_holds_promotions_until_flushed"),
        changes=(
            Edit(reset_prefix_cache, {"transfer.fenced = True": "pass"}),
            Edit(
                Tier.fill,
                {
                    "        if self.verifies:": """\
        self.blocks.setdefault(block.name, block)
        if self.verifies:"""
                },
            ),
        ),
        expected=("reset.an_offload_from_before_does_not_bring_its_blocks_back",),
    ),
    Specimen(
        number=43,
        name="warm_start_beyond_the_budget",
        happens="a restart with a smaller disk budget keeps all that is there",
        source=("MAX 26.5",),
        changes=(Edit(_open_disk, {"len(image.blocks) > capacity": "False"}),),
        expected=("tiers.a_smaller_disk_holds_fewer_blocks",),
    ),
    Specimen(
        number=43,
        name="warm_start_with_another_shape",
        happens="a restart with pages of another shape takes the old blocks for its own",
        source=("MAX 26.5",),
        changes=(Edit(KVCacheParams.layout_fingerprint, {": self.shape_per_block": ": None"}),),
        expected=("namespaces.a_disk_of_another_layout_is_refused",),
    ),
    Specimen(
        number=43,
        name="warm_start_with_another_hash",
        happens="a restart with another hash algorithm counts the old blocks as its own",
        source=("MAX 26.5",),
        changes=(Edit(KVCacheParams.layout_fingerprint, {": self.kv_hash_algo": ": None"}),),
        expected=("namespaces.a_disk_of_another_layout_is_refused",),
    ),
    Specimen(
        number=43,
        name="index_lost_on_restart",
        happens="after a restart nothing is found of what the disk holds",
        source=("LMCache#562",),
        changes=(Edit(_landed, {"if block.content is not None": "if False"}),),
        expected=("namespaces.a_restart_finds_what_was_written",),
    ),
    Specimen(
        number=45,
        name="slow_tier_waited_for",
        happens="a load that has timed out is waited for nevertheless: its request never goes on",
        source=("vllm#49545", "vllm#50984"),
        changes=(
            Edit(
                fail,
                {
                    "    # MOVE: nothing": """\
    if reason == "timeout":
        return
    # MOVE: nothing"""
                },
            ),
        ),
        expected=("tier_failures.a_failed_load_is_a_miss",),
    ),
    Specimen(
        number=45,
        name="dead_store_never_asked_again",
        happens="a store that was unavailable once is never asked again, although it is back",
        source=("vllm#49545", "vllm#50984"),
        changes=(Swap(TierConnector, UnforgivingConnector),),
        expected=("tier_failures.a_store_that_failed_once_is_asked_again",),
    ),
    Specimen(
        number=46,
        name="failed_load_not_recomputed",
        happens="after a failed load the window still begins where the load would have ended",
        source=("vllm#49250",),
        changes=(
            Edit(
                finish_alloc,
                {
                    "        _undo(state, request)": """\
        ctx.tokens.skip_processing(plan.processed - ctx.tokens.processed_length)
        _undo(state, request)"""
                },
            ),
        ),
        expected=("alloc_loads.after_a_failed_load_the_request_is_as_before",),
    ),
    Specimen(
        number=47,
        name="shutdown_drops_writes",
        happens="what is in flight at shutdown is lost",
        source=(),
        changes=(
            Edit(
                PagedKVCacheManager.shutdown,
                {"        transfers.land_all(self._state)\n        # One": "        # One"},
            ),
        ),
        expected=("close.what_is_in_flight_arrives_in_the_store",),
    ),
    Specimen(
        number=47,
        name="shutdown_drops_dirty_pages",
        happens="pages that were to be written back later are lost at shutdown",
        source=(),
        changes=(Edit(PagedKVCacheManager.shutdown, {"while pool.dirty:": "while False:"}),),
        expected=("close.what_is_dirty_is_saved",),
    ),
    Specimen(
        number=49,
        name="damaged_block_kept",
        happens="a damaged block stays, and no write replaces it, because it is there",
        source=("DingoCache#76",),
        changes=(
            Edit(
                gives_up,
                {
                    'return reason == "corrupt" if': "return False if",
                    "in BLOCK_IS_LOST": 'in BLOCK_IS_LOST - {"corrupt"}',
                },
            ),
        ),
        expected=("tier_failures.a_damaged_block_on_disk_is_never_served",),
    ),
    Specimen(
        number=50,
        name="gone_since_it_was_found",
        happens="a block that was found, and is gone when it is to be loaded, is an error in alloc",
        source=("LMCache#4133", "LMCache#1467"),
        changes=(
            Swap(TierConnector, RememberingConnector),
            Edit(_load, {"except KVLoadRefused:": "except KVLoadRefused:\n                raise"}),
        ),
        expected=("failures.a_damaged_disk_does_not_fail_a_request",),
    ),
)
