"""CLAIM: requests live on one replica, and ids are forgotten when they are released."""

from pagedkv.conformance.bench import Bench
from pagedkv.conformance.check import check
from pagedkv.conformance.forward_inputs import inputs_per_device
from pagedkv.conformance.refusals import raises
from pagedkv.conformance.violation import demand, expect
from pagedkv.reference.errors import (
    AlreadyClaimedError,
    BatchesError,
    InsufficientBlocksError,
    ReplicaIndexError,
    UnknownRequestError,
)


@check("CLAIM-1")
def an_id_is_claimed_once(bench: Bench) -> None:
    """A second claim on the same replica is refused and changes nothing."""
    driver = bench.driver()
    ctx = driver.admit(bench.prompt(2))
    driver.refused("CLAIM-1", AlreadyClaimedError, "claim", ctx.request_id, 0)
    driver.forward(ctx)


@check("CLAIM-1", needs=("replicas",))
def an_id_is_claimed_on_one_replica(bench: Bench) -> None:
    """A claim of the same id on another replica is refused; the request stays where it is."""
    driver = bench.driver(replicas=2)
    ctx = driver.admit(bench.prompt(2), replica=1)
    driver.refused("CLAIM-1", AlreadyClaimedError, "claim", ctx.request_id, 0)
    driver.refused("CLAIM-2", UnknownRequestError, "get_req_blocks", ctx.request_id, 0)
    driver.forward(ctx)


@check("CLAIM-1")
def an_id_without_pages_is_claimed_too(bench: Bench) -> None:
    """An id that has no page yet, or whose allocation was refused, is not claimed a second time."""
    driver = bench.driver()
    fresh = driver.claim(driver.request(bench.prompt(1)))
    too_large = driver.claim(driver.request(bench.prompt(8)))
    demand("ALLOC-1", not driver.fits(too_large), "9 pages were found among 8")
    for ctx in (fresh, too_large):
        driver.refused("CLAIM-1", AlreadyClaimedError, "claim", ctx.request_id, 0)


@check("CLAIM-2")
def an_unclaimed_id_gets_no_page(bench: Bench) -> None:
    """``alloc`` of an id that nobody has claimed is refused, and takes no page."""
    driver = bench.driver()
    driver.serve(bench.prompt(2))
    for tokens in (bench.prompt(2), bench.prompt(2, 50), range(1)):
        driver.refused("CLAIM-2", UnknownRequestError, "alloc", driver.request(tokens), 0)


@check("CLAIM-2")
def an_unclaimed_id_is_unknown_before_it_is_too_large(bench: Bench) -> None:
    """Of an unclaimed id nobody says that it does not fit: that would invite to try again."""
    driver = bench.driver()
    stranger = driver.request(bench.prompt(8))
    driver.refused("CLAIM-2", UnknownRequestError, "alloc", stranger, 0)


@check("CLAIM-2")
def unclaimed_ids_are_unknown_everywhere(bench: Bench) -> None:
    """``step``, ``release`` and ``get_req_blocks`` know only claimed ids."""
    driver = bench.driver()
    stranger = driver.request(bench.prompt(1))
    released = driver.serve(bench.prompt(1), request_id="gone")
    for ctx in (stranger, released):
        driver.refused("CLAIM-2", UnknownRequestError, "alloc", ctx, 0)
        driver.refused("CLAIM-2", UnknownRequestError, "step", [[ctx]])
        driver.refused("CLAIM-2", UnknownRequestError, "release", ctx.request_id, 0)
        driver.refused("CLAIM-2", UnknownRequestError, "get_req_blocks", ctx.request_id, 0)


@check("CLAIM-2", needs=("inputs",))
def unclaimed_ids_get_no_inputs(bench: Bench) -> None:
    """``runtime_inputs`` knows only claimed ids, whoever else is in the batch."""
    driver = bench.driver()
    ctx, stranger = driver.admit(bench.prompt(1)), driver.request(bench.prompt(1, 50))
    driver.refused("CLAIM-2", UnknownRequestError, "runtime_inputs", [[ctx, stranger]])
    driver.forward(ctx)


@check("CLAIM-2", needs=("probes",))
def unclaimed_ids_have_no_share_of_pages(bench: Bench) -> None:
    """``get_pct_used_blocks_after_allocation`` knows only claimed ids; hits anybody may count."""
    driver = bench.driver()
    driver.serve(bench.prompt(2))
    stranger = driver.request(bench.prompt(2))
    method = "get_pct_used_blocks_after_allocation"
    driver.refused("CLAIM-2", UnknownRequestError, method, stranger, 0)
    driver.probe(stranger)


@check("CLAIM-2", needs=("transfers",))
def unclaimed_ids_have_no_allocation(bench: Bench) -> None:
    """``begin_alloc``, ``finish_alloc`` and ``cancel_alloc`` know only claimed ids."""
    driver = bench.controlled()
    stranger = driver.request(bench.prompt(1))
    driver.refused("CLAIM-2", UnknownRequestError, "begin_alloc", stranger, 0)
    driver.refused("CLAIM-2", UnknownRequestError, "finish_alloc", stranger, 0)
    driver.refused("CLAIM-2", UnknownRequestError, "cancel_alloc", stranger.request_id, 0)


@check("CLAIM-2", needs=("replicas",))
def a_request_is_unknown_on_other_replicas(bench: Bench) -> None:
    """Calls that name another replica than the request's own are refused, and change neither."""
    driver = bench.driver(replicas=2)
    ctx = driver.admit(bench.prompt(2), replica=1)
    driver.refused("CLAIM-2", UnknownRequestError, "alloc", ctx, 0)
    driver.refused("CLAIM-2", UnknownRequestError, "release", ctx.request_id, 0)
    driver.refused("CLAIM-2", UnknownRequestError, "step", [[ctx], []])
    driver.forward(ctx)


@check("CLAIM-2", "CLAIM-1")
def a_request_is_contained_where_it_lives(bench: Bench) -> None:
    """``contains`` says yes from the claim to the release, on the request's own replica only."""
    replicas = 2 if "replicas" in bench.implementation.capabilities else 1
    driver = bench.driver(replicas=replicas)
    bench.has("contains")

    def contained() -> list[bool]:
        return [driver.manager.contains("request", replica) for replica in range(replicas)]

    nowhere = [False] * replicas
    expect("CLAIM-2", contained(), nowhere, "an id that was never claimed, by replica")
    ctx = driver.claim(driver.request(bench.prompt(1), request_id="request"), replicas - 1)
    expect("CLAIM-2", contained(), [*nowhere[1:], True], "a claimed id, by replica")
    driver.alloc(ctx)
    expect("CLAIM-2", contained(), [*nowhere[1:], True], "an id with pages, by replica")
    driver.release(ctx)
    expect("CLAIM-2", contained(), nowhere, "a released id, by replica")


@check("CLAIM-2", "REL-1")
def a_released_id_is_free_again(bench: Bench) -> None:
    """A released id can be claimed anew and has nothing of its former life."""
    driver = bench.driver()
    for _ in range(3):
        driver.serve(bench.prompt(1), request_id="again")
        if callable(getattr(driver.manager, "contains", None)):
            demand("REL-1", not driver.manager.contains("again", 0), "a released id is contained")
    ctx = driver.claim(driver.request(bench.prompt(3, 50), request_id="again"))
    expect("REL-1", driver.pages(ctx), [], "pages of a new request")
    driver.alloc(ctx)
    driver.forward(ctx)


@check("CLAIM-3")
def replicas_that_do_not_exist_are_refused(bench: Bench) -> None:
    """A replica index out of range is an error, also a negative one."""
    driver = bench.driver()
    for replica in (1, -1, 99):
        driver.refused("CLAIM-3", ReplicaIndexError, "claim", "nowhere", replica)
    driver.claim(driver.request(bench.prompt(1), request_id="nowhere"))


@check("CLAIM-3")
def no_method_knows_replicas_that_do_not_exist(bench: Bench) -> None:
    """A claimed request is not found by counting replicas from the end, nor is a pool."""
    driver = bench.driver()
    ctx = driver.admit(bench.prompt(1))
    for replica in (1, -1):
        driver.refused("CLAIM-3", ReplicaIndexError, "alloc", ctx, replica)
        driver.refused("CLAIM-3", ReplicaIndexError, "release", ctx.request_id, replica)
        driver.refused("CLAIM-3", ReplicaIndexError, "get_req_blocks", ctx.request_id, replica)
        driver.refused("CLAIM-3", ReplicaIndexError, "num_free_blocks", replica)
    driver.forward(ctx)


@check("CLAIM-3", needs=("dummy",))
def no_dummy_lives_on_a_replica_that_does_not_exist(bench: Bench) -> None:
    """``alloc_dummy`` checks the replica as ``claim`` does, and claims nothing."""
    driver = bench.driver()
    driver.refused("CLAIM-3", ReplicaIndexError, "alloc_dummy", "dummy", 1)
    driver.claim_dummy("dummy")


@check("CLAIM-4", needs=("dummy",))
def dummies_take_no_page(bench: Bench) -> None:
    """However many dummies there are, each is mapped to the null page, and every page is free."""
    driver = bench.driver()
    dummies = [driver.claim_dummy(f"dummy {n}") for n in range(12)]
    for dummy in dummies:
        expect("CLAIM-4", set(driver.pages(dummy)), {8}, "pages of a dummy")
    expect("CLAIM-4", driver.manager.num_free_blocks(0), 8, "free pages beside dummies")
    driver.admit(bench.prompt(8, more=0))
    for dummy in dummies:
        driver.release(dummy)


@check("CLAIM-4", "CLAIM-1", needs=("dummy",))
def a_dummy_is_claimed(bench: Bench) -> None:
    """The id of a dummy is claimed like any other, until it is released."""
    driver = bench.driver()
    dummy = driver.claim_dummy("dummy")
    driver.refused("CLAIM-1", AlreadyClaimedError, "claim", "dummy", 0)
    driver.refused("CLAIM-1", AlreadyClaimedError, "alloc_dummy", "dummy", 0)
    driver.release(dummy)
    driver.refused("CLAIM-2", UnknownRequestError, "release", "dummy", 0)
    request = driver.claim(driver.request(bench.prompt(1), request_id="dummy"))
    expect("CLAIM-4", driver.pages(request), [], "pages of a request that is no dummy any more")
    driver.alloc(request)


@check("CLAIM-4", needs=("dummy",))
def a_dummy_hits_nothing(bench: Bench) -> None:
    """``alloc`` of a dummy takes nothing and finds nothing, whatever its tokens are."""
    driver = bench.driver()
    driver.serve(bench.prompt(3))
    driver.claim_dummy("dummy")
    driver.alloc(driver.request(bench.prompt(3), request_id="dummy"))
    driver.alloc(driver.request(bench.prompt(20), request_id="dummy"))


@check("CLAIM-4", needs=("dummy",))
def a_dummy_commits_nothing_and_counts_nothing(bench: Bench) -> None:
    """What a dummy has computed is not cached, and its tokens are not counted."""
    driver = bench.driver()
    driver.claim_dummy("dummy")
    dummy = driver.request(bench.prompt(1, more=0), request_id="dummy")
    driver.forward(dummy)
    driver.step(dummy)
    driver.release(dummy)
    expect("CLAIM-4", driver.hit(bench.prompt(1)), 0, "blocks of a dummy that are hit")


@check("CLAIM-4", needs=("dummy", "inputs"))
def a_dummy_pads_a_batch(bench: Bench) -> None:
    """Beside requests in a batch a dummy's row is the null page, and theirs are their own."""
    driver = bench.driver()
    first, second = driver.admit(bench.prompt(1)), driver.admit(bench.prompt(2, 50))
    dummy = driver.claim_dummy("dummy")
    driver.forward(first, dummy, second)
    driver.release(dummy)
    driver.alloc(first)
    driver.forward(first, second)


@check("CLAIM-5", needs=("reserve",))
def a_reservation_holds_pages_and_gives_them_back(bench: Bench) -> None:
    """Inside, every context has its pages and cached prefix; afterwards nothing of it is left."""
    driver = bench.driver()
    driver.serve(bench.prompt(2))
    first, second = driver.request(bench.prompt(2)), driver.request(bench.prompt(1, 50))
    for _ in range(2):
        with driver.reserve([first, second]):
            driver.compute(first, second)
        for ctx in (first, second):
            driver.refused("CLAIM-2", UnknownRequestError, "get_req_blocks", ctx.request_id, 0)
    expect("CLAIM-5", driver.manager.num_free_blocks(0), 8, "free pages after a reservation")
    driver.alloc(driver.claim(first))


@check("CLAIM-5", needs=("reserve", "replicas"))
def a_reservation_has_one_batch_per_replica(bench: Bench) -> None:
    """The contexts of the n-th batch are claimed on the n-th replica."""
    driver = bench.driver(replicas=2)
    here, there = driver.request(bench.prompt(1)), driver.request(bench.prompt(1))
    with driver.reserve([], [here, there]):
        expect("CLAIM-5", driver.manager.num_free_blocks(0), 8, "free pages of replica 0")
    ctx = driver.request(bench.prompt(1, 50))
    for batches in ([[ctx]], [[ctx], [], []]):
        driver.refused("CLAIM-5", BatchesError, "reserve", batches)
    driver.claim(ctx)


@check("CLAIM-5", "METRIC-3", needs=("reserve",))
def all_contexts_are_reserved_or_none(bench: Bench) -> None:
    """If the last context does not fit, the others are let go, and nothing was counted."""
    driver = bench.driver()
    driver.serve(bench.prompt(2, more=0))
    contexts = [driver.request(bench.prompt(2)) for _ in range(2)]
    contexts.append(driver.request(bench.prompt(6, 50)))
    driver.refused("CLAIM-5", InsufficientBlocksError, "reserve", [contexts])
    for ctx in contexts:
        driver.claim(ctx)
    for ctx in contexts[:2]:
        driver.alloc(ctx)


@check("CLAIM-5", needs=("reserve",))
def a_reservation_of_a_claimed_id_leaves_that_one_alone(bench: Bench) -> None:
    """If one id is claimed already, the reservation is refused, and the owner keeps its pages."""
    driver = bench.driver()
    owner, other = driver.admit(bench.prompt(2)), driver.request(bench.prompt(1, 50))
    driver.refused("CLAIM-5", AlreadyClaimedError, "reserve", [[other, owner]])
    driver.refused("CLAIM-5", AlreadyClaimedError, "reserve", [[other, other]])
    driver.forward(owner)
    driver.alloc(driver.claim(other))


@check("CLAIM-5", needs=("reserve",))
def a_reservation_ends_however_its_body_ends(bench: Bench) -> None:
    """An exception inside goes through, and everything is released and put back."""

    class Interruption(Exception):
        pass

    driver = bench.driver()
    driver.serve(bench.prompt(2))
    ctx = driver.request(bench.prompt(3))

    def interrupt() -> None:
        with driver.reserve([ctx]):
            raise Interruption

    with raises("CLAIM-5", Interruption, "a reservation that is interrupted"):
        interrupt()
    expect("CLAIM-5", ctx.tokens.processed_length, 0, "start of the window afterwards")
    driver.alloc(driver.claim(ctx))


@check("CLAIM-5", "REL-1", needs=("reserve",))
def a_reservation_commits_nothing(bench: Bench) -> None:
    """What was computed in reserved pages is not cached when the reservation ends."""
    driver = bench.driver()
    ctx = driver.request(bench.prompt(2))
    with driver.reserve([ctx]):
        driver.compute(ctx)
    expect("CLAIM-5", driver.hit(bench.prompt(2)), 0, "blocks of a reservation that are hit")


@check("CLAIM-3")
def no_question_is_answered_for_a_replica_that_does_not_exist(bench: Bench) -> None:
    """Whether a request lives there, and how many pages there are, is refused as well."""
    driver = bench.driver()
    ctx = driver.admit(bench.prompt(1))
    questions: dict[str, tuple[object, ...]] = {
        "contains": (ctx.request_id,),
        "get_pct_used_blocks_after_allocation": (ctx,),
        "total_num_blocks": (),
        "get_num_pages": (),
        "get_num_used_pages": (),
        "get_device_buffer": (),
        "pending_transfers_exist": (),
    }
    for method, about in questions.items():
        if callable(getattr(driver.manager, method, None)):
            for replica in (1, -1):
                driver.refused("CLAIM-3", ReplicaIndexError, method, *about, replica)


@check("CLAIM-5", needs=("reserve", "replicas"))
def all_replicas_are_reserved_or_none(bench: Bench) -> None:
    """If the last context of the last replica does not fit, the others are let go everywhere."""
    driver = bench.driver(replicas=2)
    here, there, large = (driver.request(bench.prompt(n, 50 * n)) for n in (1, 2, 8))
    driver.refused("CLAIM-5", InsufficientBlocksError, "reserve", [[here], [there, large]])
    driver.claim(large, 1)
    for replica, ctx in enumerate((here, there)):
        driver.alloc(driver.claim(ctx, replica))


@check("CLAIM-5", needs=("reserve",))
def a_window_that_has_moved_in_a_reservation_is_put_back(bench: Bench) -> None:
    """The window of a context that was computed begins where it began, with or without a hit."""
    driver = bench.driver()
    driver.serve(bench.prompt(1))
    for tokens in (bench.prompt(2), bench.prompt(2, 50)):
        ctx = driver.request(tokens)
        with driver.reserve([ctx]):
            driver.compute(ctx)
            driver.update(ctx)
        driver.alloc(driver.claim(ctx))
        driver.release(ctx)


@check("CLAIM-1", "CLAIM-2")
def any_text_is_an_id(bench: Bench) -> None:
    """Ids are told apart as they are, an empty one and similar ones too."""
    driver = bench.driver()
    ids = ("", " ", "0", "00", "a", "A", "\u00e9", "e\u0301")
    live = [driver.admit([n], request_id=name) for n, name in enumerate(ids)]
    for name in ids:
        driver.refused("CLAIM-1", AlreadyClaimedError, "claim", name, 0)
    for ctx in live:
        driver.release(ctx)
        driver.refused("CLAIM-2", UnknownRequestError, "release", ctx.request_id, 0)


@check("CLAIM-4", needs=("dummy", "inputs"))
def a_long_dummy_needs_no_more_than_a_short_one(bench: Bench) -> None:
    """However many tokens a dummy has, it widens no table, and is computed and stepped."""
    driver = bench.driver()
    driver.claim_dummy("dummy")
    dummy, ctx = driver.request(bench.prompt(20), request_id="dummy"), driver.admit(range(2))
    inputs = driver.manager.runtime_inputs([[dummy, ctx]])
    for device in inputs_per_device(inputs):
        expect("CLAIM-4", device.lookup_table.tolist()[0], [8], "row of a dummy beside one page")
    driver.forward(dummy, ctx)


@check("CLAIM-5", "REL-1", needs=("reserve",))
def who_is_released_in_a_reservation_stays_released(bench: Bench) -> None:
    """The reservation ends without it; its window is put back like those of the others."""
    driver = bench.driver()
    driver.serve(bench.prompt(2))
    gone, other = driver.request(bench.prompt(2)), driver.request(bench.prompt(1, 50))
    with driver.reserve([gone, other]):
        driver.release(gone)
    for ctx in (gone, other):
        driver.refused("CLAIM-5", UnknownRequestError, "release", ctx.request_id, 0)
    expect("CLAIM-5", driver.manager.num_free_blocks(0), 8, "free pages after the reservation")


@check("CLAIM-6")
def a_table_that_was_told_is_the_callers_own(bench: Bench) -> None:
    """Whatever a caller does to the list that ``get_req_blocks`` gave, no page is lost."""
    driver = bench.driver()
    ctx = driver.admit(bench.prompt(2))
    told = driver.manager.get_req_blocks(ctx.request_id, 0)
    expected = list(told)
    told.clear()
    expect("CLAIM-6", driver.pages(ctx), expected, "pages of a request whose table was changed")
    driver.forward(ctx)
