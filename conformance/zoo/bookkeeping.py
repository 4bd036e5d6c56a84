"""Pages and requests that are counted, held or given back wrongly: bugs 1 to 6."""

from pagedkv.conformance.zoo.change import Edit
from pagedkv.conformance.zoo.specimen import Specimen
from pagedkv.reference.allocation import begin_alloc
from pagedkv.reference.commit import _commit
from pagedkv.reference.matching import Need
from pagedkv.reference.pool import PagePool
from pagedkv.reference.requests import claim, release
from pagedkv.reference.state import State

SPECIMENS = (
    Specimen(
        number=1,
        name="refused_alloc_keeps_its_hit",
        happens="an alloc that is refused after a hit leaves the hit with the request",
        source=("MAX 26.4", "MAX 26.5"),
        changes=(
            Edit(
                begin_alloc,
                {
                    "        _refuse(": """\
        for page in need.shared:
            pool.hold(page)
        request.pages += need.shared
        request.committed += len(need.shared)
        request.digests = digests[: request.committed]
        _refuse("""
                },
            ),
        ),
        expected=("alloc.a_refused_alloc_changes_nothing",),
    ),
    Specimen(
        number=1,
        name="refused_alloc_counts_its_hit",
        happens="an alloc that is refused after a hit has counted the hit",
        source=("MAX 26.4", "MAX 26.5"),
        changes=(
            Edit(
                begin_alloc,
                {
                    "        _refuse(": """\
        state.count(device_blocks_served=len(need.shared))
        _refuse("""
                },
            ),
        ),
        expected=(
            "metrics.refused_allocations_count_nothing",
            "alloc.a_refused_alloc_changes_nothing",
        ),
    ),
    Specimen(
        number=2,
        name="alloc_of_a_stranger",
        happens="alloc of an id that nobody has claimed succeeds, and its pages never come back",
        source=("MAX 26.4", "MAX 26.5"),
        changes=(
            Edit(
                State.settled_request,
                {
                    "= self.request(request_id, replica_idx)": "= "
                    "self.requests.setdefault(request_id, Request(replica_idx))"
                },
            ),
        ),
        expected=("claim.an_unclaimed_id_gets_no_page",),
    ),
    Specimen(
        number=3,
        name="one_id_on_two_replicas",
        happens="an id that lives on one replica can be claimed on another as well",
        source=("MAX 26.5",),
        changes=(
            Edit(
                claim,
                {"if known is not None:": "if known is not None and known.replica == replica_idx:"},
            ),
        ),
        expected=("claim.an_id_is_claimed_on_one_replica",),
    ),
    Specimen(
        number=4,
        name="released_ids_are_remembered",
        happens="a released request stays among the known ones for ever",
        source=("MAX 26.5",),
        changes=(Edit(release, {"del state.requests[request_id]": "request.pages.clear()"}),),
        expected=("claim.a_released_id_is_free_again",),
    ),
    Specimen(
        number=5,
        name="double_free_accepted",
        happens="a second release of a request gives its pages back again, whoever has them now",
        source=("vllm#42571",),
        changes=(
            Edit(release, {"    del state.requests[request_id]\n": ""}),
            Edit(PagePool.release, {"        raise": "        return\n            raise"}),
        ),
        expected=("pool.nothing_is_released_twice",),
    ),
    Specimen(
        number=5,
        name="duplicate_freed_twice",
        happens="a page that step has swapped for a cached one is given back at step, and again at "
        "release: it ends up in two requests",
        source=("vllm#42571",),
        changes=(
            Edit(_commit, {"            request.pages[n] = cached\n": ""}),
            Edit(PagePool.release, {"        raise": "        return\n            raise"}),
        ),
        expected=("pool.twins_in_one_batch_end_independently",),
    ),
    Specimen(
        number=6,
        name="hits_counted_as_free",
        happens="cached pages count as a hit and as free pages: more is taken than there is",
        source=("vLLM, test_evictable_cached_blocks_not_double_allocated",),
        changes=(Edit(Need.free_for, {"excluding=self.shared": ""}),),
        expected=("alloc.what_is_hit_does_not_count_as_free",),
    ),
)
