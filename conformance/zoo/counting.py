"""Counters and estimates that say what is not so."""

from pagedkv.conformance.zoo.change import Edit
from pagedkv.conformance.zoo.specimen import Specimen
from pagedkv.reference.allocation import _record
from pagedkv.reference.manager import PagedKVCacheManager
from pagedkv.reference.matching import _match, hit_counts

SPECIMENS = (
    Specimen(
        number=13,
        name="hit_beyond_the_gap",
        happens="blocks behind the first gap are used as if they followed on",
        source=("MAX, usage estimate",),
        changes=(Edit(_match, {"            break": "            continue"}),),
        expected=("alloc.nothing_behind_a_gap_is_hit",),
    ),
    Specimen(
        number=13,
        name="estimate_beyond_the_gap",
        happens="a look-up for routing counts blocks behind the first gap",
        source=("MAX, usage estimate",),
        changes=(
            Edit(
                hit_counts,
                {
                    "need_of(state, stranger, ctx, replica, digests).hits": (
                        "[hit for key in state.keys(digests) "
                        "if (hit := _find(state, replica, key, None, {}))]"
                    )
                },
            ),
        ),
        expected=("alloc.nothing_behind_a_gap_is_hit",),
    ),
    Specimen(
        number=14,
        name="repeated_alloc_counted",
        happens="an alloc that needs nothing new counts the request's cached tokens once more",
        source=("MAX 26.5",),
        changes=(
            Edit(
                _record,
                {
                    "    request.looked_up =": """\
    if not plan.added:
        state.count(cache_tokens=ctx.cached_prefix_length or 0)
    request.looked_up ="""
                },
            ),
        ),
        expected=("alloc.a_second_alloc_changes_nothing",),
    ),
    Specimen(
        number=14,
        name="preemption_counted_as_hits",
        happens="what a preempted request hits when it comes back raises the hit rate",
        source=("vllm#25780",),
        changes=(Edit(_record, {"len(ctx.tokens) if ctx.preempted else 0": "0"}),),
        expected=("metrics.what_is_served_again_is_kept_apart",),
    ),
    Specimen(
        number=48,
        name="shared_tier_added_up",
        happens="the one host tier of all replicas is reported once for each, and added up",
        source=("MAX 26.5",),
        changes=(
            Edit(
                PagedKVCacheManager._capacity,
                {"num_blocks(tier)": "num_blocks(tier) * len(self._state.pools)"},
            ),
            Edit(
                PagedKVCacheManager._used,
                {"num_used_blocks(tier)": "num_used_blocks(tier) * len(self._state.pools)"},
            ),
        ),
        expected=("tiers.one_host_tier_serves_all_replicas",),
    ),
)
