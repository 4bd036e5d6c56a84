"""Pages and blocks that are given up too early, in the wrong order, or not entirely."""

from pagedkv.conformance.zoo.change import Edit
from pagedkv.conformance.zoo.specimen import Specimen
from pagedkv.reference.allocation import begin_alloc
from pagedkv.reference.connector import TierConnector
from pagedkv.reference.pool import PagePool
from pagedkv.reference.requests import release
from pagedkv.reference.tiers import Tier

SPECIMENS = (
    Specimen(
        number=7,
        name="own_hit_evicted",
        happens="an allocation takes the very pages that it has just hit",
        source=("vLLM, test_computed_blocks_not_evicted",),
        changes=(
            Edit(
                begin_alloc,
                {
                    "    for page in need.shared:\n        pool.hold(page)\n": "",
                    "    _note_evicted(state, evicted)\n": """\
    _note_evicted(state, evicted)
    for page in need.shared:
        pool.hold(page)
""",
                },
            ),
        ),
        expected=("alloc.what_is_hit_is_not_evicted_for_what_is_computed",),
    ),
    Specimen(
        number=8,
        name="reused_page_keeps_its_hash",
        happens="a page that was taken for something else is still found under its old content",
        source=("vLLM, test_hash_block_correct_reuse",),
        changes=(
            Edit(PagePool.take, {"                self.forget(page)": "                pass"}),
        ),
        expected=("pool.a_taken_page_has_lost_its_content",),
    ),
    Specimen(
        number=9,
        name="head_freed_before_tail",
        happens="pages are given back head first, so that chains lose their roots first",
        source=(),
        changes=(Edit(release, {"reversed(request.pages)": "request.pages"}),),
        expected=("release.a_chain_is_given_back_tail_first",),
        claims=frozenset({"POOL-3", "POOL-4", "POOL-5", "REL-2"}),
    ),
    Specimen(
        number=10,
        name="garbage_pages_kept_longest",
        happens="pages that hold nothing are taken last, after everything that is cached",
        source=("MAX 26.5",),
        changes=(
            Edit(
                PagePool.release,
                {"            self.idle.move_to_end(page, last=False)": "            pass"},
            ),
        ),
        expected=("pool.a_page_with_nothing_reusable_is_taken_next",),
        claims=frozenset({"POOL-3", "POOL-4", "POOL-5"}),
    ),
    Specimen(
        number=44,
        name="host_is_first_in_first_out",
        happens="a hit in host memory does not renew the block: what is called LRU is FIFO",
        source=("MAX, local connector",),
        changes=(Edit(TierConnector.touch, {"tiers[name].refresh(chain)": "tiers[name]"}),),
        expected=("tiers.a_host_hit_renews_what_it_hits",),
        claims=frozenset({"TIER-4"}),
    ),
    Specimen(
        number=53,
        name="roots_evicted_before_leaves",
        happens="recency follows the copies: leaves outlive the roots that lead to them",
        source=(),
        changes=(Edit(Tier.refresh, {"reversed(chain)": "chain"}),),
        expected=("tiers.a_chain_loses_its_leaf_first",),
        claims=frozenset({"TIER-4"}),
    ),
)
