"""Transfers that are seen too early, counted though they failed, or never let go."""

from pagedkv.conformance.zoo.change import Edit
from pagedkv.conformance.zoo.specimen import Specimen
from pagedkv.reference.allocation import _undo
from pagedkv.reference.commit import step
from pagedkv.reference.connector import TierConnector
from pagedkv.reference.matching import _find
from pagedkv.reference.page_bytes import write_page
from pagedkv.reference.params import KVCacheParams
from pagedkv.reference.tiers import Tier
from pagedkv.reference.transfers import _settle, _tell_waiting, fail, issue

SPECIMENS = (
    Specimen(
        number=19,
        name="page_reused_while_it_is_read",
        happens="pages that an offload still reads are free as soon as their request is gone",
        source=("vllm#31210",),
        changes=(
            Edit(issue, {"pool.pin(": 'transfer.kind == "onload" and pool.pin('}),
            Edit(_settle, {"pool.unpin(": 'transfer.kind == "onload" and pool.unpin('}),
        ),
        expected=("pool.a_page_that_is_being_offloaded_is_not_taken",),
    ),
    Specimen(
        number=20,
        name="visible_before_it_has_landed",
        happens="a page that is being loaded is hit by others before its bytes are there",
        source=(),
        changes=(Edit(issue, {"pool.begin_load(page, key)": "pool.commit(page, key)"}),),
        expected=("alloc_loads.a_block_on_its_way_is_no_source",),
    ),
    Specimen(
        number=21,
        name="failed_load_counted_as_loaded",
        happens="an allocation returns as if its load had not failed",
        source=("dynamo#15079",),
        changes=(Edit(_tell_waiting, {"request.failed.add(transfer.id)": "pass"}),),
        expected=("tier_failures.a_failed_load_is_a_miss",),
    ),
    Specimen(
        number=21,
        name="failed_load_published",
        happens="the pages of a failed load are hit by others",
        source=("vLLM, test_invalid_blocks_evicted_prevents_cache_pollution",),
        changes=(Edit(fail, {"visible=False": "visible=True"}),),
        expected=("transfers.a_failed_load_shows_nothing",),
    ),
    Specimen(
        number=22,
        name="failed_store_visible",
        happens="a block whose offload failed is found, with whatever its slot holds",
        source=("LMCache#4991",),
        changes=(
            Edit(
                TierConnector.fail,
                {
                    "self._abandon(_lower(transfer.target), block)": (
                        "self.tiers[_lower(transfer.target)].unpin(block); "
                        "self.tiers[_lower(transfer.target)].fill("
                        "block, read_page(self.memories[0], -1))"
                    )
                },
            ),
        ),
        expected=("transfers.a_failed_offload_gives_its_slots_back",),
    ),
    Specimen(
        number=23,
        name="partial_load_counted_as_whole",
        happens="a load that failed for some of its blocks returns all of them",
        source=("LMCache#3022",),
        changes=(
            Edit(
                fail,
                {
                    "visible=False": "visible=len(at_fault) < len(transfer.keys)",
                    'transfer.kind == "onload"': 'transfer.kind == "onload" and '
                    "len(at_fault) == len(transfer.keys)",
                },
            ),
        ),
        expected=("alloc_loads.only_the_blocks_at_fault_are_avoided",),
    ),
    Specimen(
        number=24,
        name="cancelled_load_leaks",
        happens="a request that ends while its pages are being loaded leaves them held by nobody",
        source=("vllm#46283", "sglang#40360", "LMCache#4185"),
        changes=(
            Edit(
                _undo,
                {
                    "in sorted(request.plan.added,": "in sorted("
                    "set(request.plan.added) - state.pools[request.replica].pins.keys(),"
                },
            ),
        ),
        expected=("alloc_loads.an_allocation_is_cancelled_at_any_time",),
    ),
    Specimen(
        number=25,
        name="pin_leaked_by_a_failed_load",
        happens="a host block whose load failed stays pinned, until host memory has no room left",
        source=("LMCache#3855", "LMCache#2942"),
        changes=(Edit(TierConnector.fail, {"            tier.unpin(block)\n": ""}),),
        expected=("tier_failures.failures_leak_nothing",),
    ),
    Specimen(
        number=26,
        name="twins_load_twice",
        happens="two requests load the same block into two pages, and one forgets the other's",
        source=(),
        changes=(Edit(_find, {"if key in pool.loading:": "if False:"}),),
        expected=("alloc_loads.a_block_on_its_way_is_joined",),
    ),
    Specimen(
        number=27,
        name="hit_evicted_before_its_load",
        happens="a block that is about to be loaded is evicted, and the load finds its slot taken",
        source=("vLLM, test_toctou_cpu_hit_evicted_between_phases_no_crash",),
        changes=(
            Edit(
                Tier.reserve,
                {
                    "            del self.blocks[victim.name]\n": """\
            del self.blocks[victim.name]
            for row in victim.content or ():
                row.zero_()
"""
                },
            ),
            Edit(Tier._victim, {"if not block.pins": "if block.content is not None"}),
        ),
        expected=("transfers.a_block_that_is_being_read_is_no_victim",),
    ),
    Specimen(
        number=28,
        name="orphans_stored",
        happens="a block is stored although its parent was dropped: nobody can ever reach it",
        source=(),
        changes=(Edit(TierConnector._has_parent, {"parent is None or": "parent or True or"}),),
        expected=("tiers.a_block_without_its_parent_is_not_taken",),
    ),
    Specimen(
        number=29,
        name="last_forward_not_offloaded",
        happens="each step offloads what the one before has committed: the last is never offloaded",
        source=("MAX 26.5",),
        changes=(
            Edit(
                step,
                {
                    "            _commit(state, request, len(digests))\n": "",
                    "            issued = _offload(state, request)\n": """\
            issued = _offload(state, request)
            _commit(state, request, len(digests))
""",
                },
            ),
        ),
        expected=("step.what_was_computed_is_found_below",),
    ),
    Specimen(
        number=33,
        name="failed_load_tried_again",
        happens="a request whose load failed asks the same source for it again, and again",
        source=("vllm#49176",),
        changes=(Edit(_tell_waiting, {"if not lost:": "if False:"}),),
        expected=("alloc_loads.a_source_that_failed_is_not_asked_again",),
    ),
    Specimen(
        number=35,
        name="aborted_load_frees_its_pages",
        happens="pages that a load still writes are free as soon as their request is aborted",
        source=("sglang#35049",),
        changes=(
            Edit(issue, {"pool.pin(": 'transfer.kind != "onload" and pool.pin('}),
            Edit(_settle, {"pool.unpin(": 'transfer.kind != "onload" and pool.unpin('}),
        ),
        expected=("pool.a_page_that_is_being_loaded_is_not_taken",),
    ),
    Specimen(
        number=36,
        name="only_the_root_restored",
        happens="replicated content comes back to the first shard only",
        source=(),
        changes=(Edit(write_page, {"in unit.all_buffers": "in [unit.buffer]"}),),
        expected=("tiers.every_byte_of_a_latent_comes_back",),
    ),
    Specimen(
        number=36,
        name="every_copy_stored",
        happens="replicated content is stored once per shard: the disk holds less than it could",
        source=(),
        changes=(
            Edit(
                KVCacheParams.bytes_per_offloaded_block,
                {"self._bytes_per_shard if self.replicates_kv_across_tp else ": ""},
            ),
        ),
        expected=("tiers.a_replicated_latent_takes_the_room_of_one_shard",),
    ),
)
