"""STEP: what forwards have written enters the cache, once, and is offered to the tiers below."""

import copy

from pagedkv.conformance.bench import Bench
from pagedkv.conformance.check import check
from pagedkv.conformance.checks.identity.decoded import decoded
from pagedkv.conformance.driver import Driver
from pagedkv.conformance.violation import demand, expect
from pagedkv.reference.context import TextContext
from pagedkv.reference.errors import (
    AllocPendingError,
    BatchesError,
    BlocksNotAllocatedError,
    UnknownRequestError,
)


def computed(driver: Driver, tokens: range, replica: int = 0) -> TextContext:
    """A request whose forward has run, and which has not been stepped."""
    ctx = driver.admit(tokens, replica)
    driver.compute(ctx)
    driver.update(ctx)
    return ctx


def outgrown(driver: Driver, tokens: range) -> TextContext:
    """A request that says of more tokens than its pages hold that they are written."""
    ctx = driver.admit(tokens)
    for _ in range(2 + driver.setup.page_size):
        ctx.update(7)
    return ctx


# --- STEP-1: checked before anything changes ------------------------------------------------------


@check("STEP-1", "INPUT-1")
def a_step_has_one_batch_per_replica(bench: Bench) -> None:
    """Too few or too many batches are refused, and nothing of them is committed."""
    driver = bench.driver()
    ctx = computed(driver, bench.prompt(2))
    for batches in ([], [[ctx], []], [[], [ctx]]):
        driver.refused("STEP-1", BatchesError, "step", batches)
    driver.hit(bench.prompt(2))


@check("STEP-1", "INPUT-2")
def a_step_names_a_request_once(bench: Bench) -> None:
    """A request that stands in a batch twice is refused, and nothing of it is committed."""
    driver = bench.driver()
    first, second = computed(driver, bench.prompt(1)), computed(driver, bench.prompt(1, 50))
    driver.refused("STEP-1", BatchesError, "step", [[second, first, second]])
    driver.refused("STEP-1", BatchesError, "step", [[first, first]])
    driver.hit(bench.prompt(1))
    driver.hit(bench.prompt(1, 50))


@check("STEP-1")
def an_unknown_request_stops_the_whole_step(bench: Bench) -> None:
    """One unclaimed request in a batch: nothing of the others is committed or counted."""
    driver = bench.driver()
    ctx = computed(driver, bench.prompt(2))
    stranger = driver.request(bench.prompt(1, 50))
    driver.refused("STEP-1", UnknownRequestError, "step", [[ctx, stranger]])
    driver.hit(bench.prompt(2))
    driver.step(ctx)
    driver.hit(bench.prompt(2))


@check("STEP-1", needs=("replicas",))
def a_request_is_stepped_on_its_own_replica(bench: Bench) -> None:
    """A request in the batch of another replica stops the whole step."""
    driver = bench.driver(replicas=2)
    here, there = computed(driver, bench.prompt(2)), computed(driver, bench.prompt(2, 50), 1)
    driver.refused("STEP-1", UnknownRequestError, "step", [[here, there], []])
    driver.refused("STEP-1", BatchesError, "step", [[here], [here, there]])
    for replica in range(2):
        driver.hit(bench.prompt(2), replica)
        driver.hit(bench.prompt(2, 50), replica)


@check("STEP-1", "LEN-3")
def no_more_is_written_than_is_held(bench: Bench) -> None:
    """A request that says of more tokens than its pages hold that they are written is refused."""
    driver = bench.driver()
    ctx = computed(driver, bench.prompt(2))
    greedy = outgrown(driver, bench.prompt(1, 50, more=0))
    driver.refused("STEP-1", BlocksNotAllocatedError, "step", [[ctx, greedy]])
    driver.hit(bench.prompt(2))


@check("STEP-1", "LEN-3")
def exactly_full_pages_are_not_too_many(bench: Bench) -> None:
    """What exactly fills the pages of a request is committed; one token more is refused."""
    driver = bench.driver()
    ctx = driver.admit(bench.prompt(2, more=0))
    driver.forward(ctx)
    driver.hit([*ctx.tokens.all.tolist(), 0])
    ctx.update(7)
    driver.refused("STEP-1", BlocksNotAllocatedError, "step", [[ctx]])


@check("STEP-1", "ALLOC-13", needs=("transfers", "host"))
def a_request_that_waits_for_loads_is_not_stepped(bench: Bench) -> None:
    """While its allocation waits, a request can be no part of a step; the others wait with it."""
    driver = bench.with_chain_below(2)
    ctx = computed(driver, bench.prompt(1, 50))
    waiting = driver.claim(driver.request(bench.prompt(2)))
    driver.begin(waiting)
    driver.refused("STEP-1", AllocPendingError, "step", [[ctx, waiting]])
    driver.hit(bench.prompt(1, 50))


# --- STEP-2: which pages --------------------------------------------------------------------------


@check("STEP-2", needs=("prefix",))
def a_prompt_is_committed_page_by_page(bench: Bench) -> None:
    """Of a prompt of any length the full pages are found, and nothing after them."""
    driver = bench.driver()
    for n, length in enumerate((1, bench.size - 1, bench.size, bench.size + 1, 2 * bench.size)):
        if length:
            tokens = range(1000 * n, 1000 * n + length)
            driver.serve(tokens)
            found = driver.hit([*tokens, 7, *range(bench.size)])
            expect("STEP-2", found, length // bench.size, f"full pages of {length} tokens")


@check("STEP-2", "LEN-3", needs=("prefix",))
def the_token_just_sampled_is_not_committed(bench: Bench) -> None:
    """Decoding commits a page when its last token is written, not when it is sampled."""
    driver = bench.driver()
    ctx = driver.admit(bench.prompt(0))
    for token in range(2 * bench.size + 1):
        written = ctx.tokens.current_position
        driver.alloc(ctx)
        driver.forward(ctx, token=token)
        found = driver.hit([*ctx.tokens.all.tolist(), 0])
        expect("STEP-2", found, written // bench.size, f"pages found when {written} are written")


@check("STEP-2", needs=("prefix",))
def a_long_answer_is_committed_to_its_end(bench: Bench) -> None:
    """The page that a hundredth generated token fills is found like the first one."""
    pages = -(-100 // bench.size)
    driver = bench.driver(total_num_pages=pages + 1)
    tokens = decoded(driver, range(pages * bench.size - 99), 100)
    expect("STEP-2", driver.hit(tokens), pages, "pages found of a prompt and its long answer")


@check("STEP-2", "LEN-5", needs=("prefix",))
def a_chunk_commits_what_it_has_written(bench: Bench) -> None:
    """Under chunked prefill, pages are found as the chunks are computed, and no sooner."""
    driver = bench.driver()
    ctx = driver.claim(driver.request(bench.prompt(3)))
    for written in (1, bench.size + 1, 2 * bench.size, 3 * bench.size + 1):
        if written <= ctx.tokens.processed_length:
            continue
        if written < len(ctx.tokens):
            driver.chunk(ctx, written - ctx.tokens.processed_length)
        driver.alloc(ctx)
        driver.forward(ctx)
        found = driver.hit(bench.prompt(3))
        expect("STEP-2", found, written // bench.size, f"pages found when {written} are written")


@check("STEP-2", "ID-7", needs=("prefix",))
def a_placeholder_is_not_committed(bench: Bench) -> None:
    """A page with a token that is not known yet is committed once it is known, under its name."""
    driver = bench.driver()
    ctx = driver.admit(bench.prompt(1, more=-1))
    driver.compute(ctx)
    driver.update_later(ctx)
    driver.step(ctx)
    driver.alloc(ctx)
    known = copy.deepcopy(ctx)  # The device knows the token that the host still waits for.
    known.realize_future_token(7)
    driver.compute(known)
    ctx.update_with_future_token(max_pending_futures=2)
    driver.step(ctx)
    expect("STEP-2", driver.hit([*bench.prompt(1, more=-1), -999, 1]), 0, "pages with placeholders")
    expect("STEP-2", driver.hit([*bench.prompt(1, more=-1), 7, 1]), 0, "pages not known yet")
    driver.realize(ctx, 7)
    driver.step(ctx)
    expect("STEP-2", driver.hit([*bench.prompt(1, more=-1), 7, 1]), 1, "pages that are known now")


@check("STEP-2", needs=("speculative",))
def drafts_are_not_committed(bench: Bench) -> None:
    """Draft tokens fill no page, neither those to verify nor those that may be accepted."""
    driver = bench.driver(speculative_method="standalone", num_draft_tokens=2, total_num_pages=16)
    ctx = driver.admit(bench.prompt(1, more=-1))
    driver.compute(ctx)
    driver.update(ctx)
    driver.bring_drafts(ctx, [1, 2], maybe_accepted=[1, 2])
    driver.alloc(ctx)
    driver.step(ctx)
    drafted = [*bench.prompt(1, more=-1), 7, 1, 2, 0]
    expect("STEP-2", driver.hit(drafted), 0, "pages that drafts have filled")


@check("STEP-2", needs=("prefix",))
def requests_of_one_batch_commit_each_their_own(bench: Bench) -> None:
    """Requests of different lengths that are stepped together are each committed as far as due."""
    driver = bench.driver()
    batch = [driver.admit(bench.prompt(n, 50 * n, more=n)) for n in (0, 1, 2) if n]
    driver.forward(*batch)
    for n in (1, 2):
        expect("STEP-2", driver.hit(bench.prompt(n, 50 * n, more=n)), n, "pages of the batch found")


@check("STEP-2", needs=("replicas",))
def requests_of_all_replicas_are_stepped_at_once(bench: Bench) -> None:
    """One step commits on each replica what was computed there, equal content included."""
    driver = bench.driver(replicas=2, enable_dp_cross_replica_prefix_copy=False)
    batch = [driver.admit(bench.prompt(n + 1), replica) for n in (0, 1) for replica in (0, 1)]
    driver.forward(*batch)
    for ctx in batch:
        driver.release(ctx)
    for replica in range(2):
        expect("STEP-2", driver.hit(bench.prompt(3), replica), 2, f"pages on replica {replica}")


# --- STEP-3: what is never committed --------------------------------------------------------------


@check("STEP-3")
def without_prefix_caching_nothing_is_committed(bench: Bench) -> None:
    """With prefix caching off nothing is found, and all tokens are counted as computed."""
    driver = bench.driver(enable_prefix_caching=False)
    for _ in range(2):
        driver.serve(bench.prompt(2))
    expect("STEP-3", driver.hit(bench.prompt(2)), 0, "blocks found without prefix caching")


@check("STEP-3", "CLAIM-4", needs=("dummy",))
def dummies_commit_nothing(bench: Bench) -> None:
    """A dummy request in a batch commits nothing and counts nothing; the others do."""
    driver = bench.driver()
    dummy, ctx = driver.claim_dummy("padding"), driver.admit(bench.prompt(1, 50))
    dummy.tokens.advance_with_token(1)
    for _ in range(2 * bench.size):
        driver.update(dummy)
    driver.compute(ctx)
    driver.update(ctx)
    driver.step(dummy, ctx)
    expect("STEP-3", driver.hit([*dummy.tokens.all.tolist(), 0]), 0, "blocks of a dummy found")
    expect("STEP-3", driver.hit(bench.prompt(1, 50)), 1, "blocks found of a request beside it")


@check("STEP-3", "RESET-2", needs=("reset",))
def who_lived_through_a_reset_commits_no_more(bench: Bench) -> None:
    """A request from before a reset is counted, but what it goes on to compute is never found."""
    driver = bench.driver()
    ctx = driver.admit(bench.prompt(1))
    driver.reset()
    for token in range(bench.size + 1):
        driver.alloc(ctx)
        driver.forward(ctx, token=token)
    expect("STEP-3", driver.hit(ctx.tokens.all.tolist()), 0, "blocks found of before a reset")
    driver.release(ctx)
    expect("STEP-3", driver.hit(ctx.tokens.all.tolist()), 0, "blocks found of before a reset")


@check("STEP-3", "STEP-5", needs=("host", "reset"))
def what_is_not_committed_is_not_offered(bench: Bench) -> None:
    """Requests that may not commit leave nothing in the tiers below."""
    driver = bench.driver(host_pages=8)
    ctx = driver.admit(bench.prompt(2))
    driver.reset()
    driver.forward(ctx)
    driver.release(ctx)
    driver.evict_all()
    expect("STEP-3", driver.used("host"), 0, "host pages in use")
    expect("STEP-3", driver.hit(bench.prompt(2)), 0, "blocks found below")


# --- STEP-4: doubles ------------------------------------------------------------------------------


def doubles(bench: Bench, deduplication: str, **options: object) -> tuple[Driver, list[list[int]]]:
    """Two requests that have computed the same in pages of their own; tables before and after."""
    driver = bench.driver(deduplication=deduplication, **options)
    twins = [driver.admit(bench.prompt(2)) for _ in range(2)]
    before = [driver.pages(ctx) for ctx in twins]
    driver.forward(*twins)
    return driver, [*before, *(driver.pages(ctx) for ctx in twins)]


@check("STEP-4")
def under_swap_twins_end_up_on_the_same_pages(bench: Bench) -> None:
    """Under ``swap`` a request gets the cached pages for its own, which are free again."""
    driver, (first, second, *after) = doubles(bench, "swap")
    expect("STEP-4", after, [first, [*first[:2], second[2]]], "page tables after the step")
    expect("STEP-4", driver.manager.num_free_blocks(0), 4, "free pages after the step")


@check("STEP-4")
def under_keep_tables_stay_and_doubles_are_not_found(bench: Bench) -> None:
    """Under ``keep`` a double stays where it is, and is not found when the first one is gone."""
    driver, tables = doubles(bench, "keep")
    expect("STEP-4", tables[2:], tables[:2], "page tables after the step")
    first, second = driver.contexts.values()
    driver.release(first)
    expect(
        "STEP-4", driver.hit_below(bench.prompt(2)), 0, "blocks found when only a double is left"
    )
    driver.release(second)
    expect("STEP-4", driver.hit(bench.prompt(2)), 0, "blocks found when the double is free")


@check("STEP-4", "DRAFT-1", needs=("speculative",))
def where_drafts_look_ahead_doubles_keep_their_pages(bench: Bench) -> None:
    """Under ``eagle`` a request keeps its own pages: draft KV of the cached ones may differ."""
    _, tables = doubles(
        bench, "swap", speculative_method="eagle", num_draft_tokens=1, total_num_pages=12
    )
    expect("STEP-4", tables[2:], tables[:2], "page tables after the step")


# --- STEP-5: offers to the tiers below ------------------------------------------------------------


@check("STEP-5", needs=("host",))
def what_was_computed_is_found_below(bench: Bench) -> None:
    """What has left the device is found in host memory, up to what the last forward wrote."""
    driver = bench.driver(host_pages=8)
    driver.serve(bench.prompt(2, more=0))
    expect("STEP-5", driver.hit_below(bench.prompt(2)), 2, "blocks found below")


@check("STEP-5", needs=("host",))
def what_was_decoded_is_found_below(bench: Bench) -> None:
    """Pages that decoding and chunked prefill have filled are offered like all the rest."""
    driver = bench.driver(host_pages=8)
    ctx = driver.claim(driver.request(bench.prompt(2)))
    driver.chunk(ctx, bench.size)
    for token in range(bench.size + 2):
        driver.alloc(ctx)
        driver.forward(ctx, token=token)
    driver.release(ctx)
    expect("STEP-5", driver.hit_below(ctx.tokens.all.tolist()), 3, "blocks found below")


@check("STEP-5", needs=("host", "transfers"))
def a_chain_is_offered_root_first(bench: Bench) -> None:
    """The offload of a chain begins with its root, and leaves no block out."""
    bench.writes("through")
    driver = bench.controlled(host_pages=8, write_policy="through")
    ctx = driver.serve(bench.prompt(3))
    offered = [key for transfer in driver.in_flight() for key in transfer.keys]
    blocks = [driver.block_of(key, ctx) for key in offered]
    expect("STEP-5", blocks, driver.model.digests(ctx, 3), "blocks that are offloaded, in order")


@check("STEP-5", "TIER-9", needs=("host", "transfers"))
def each_commit_offers_the_whole_chain(bench: Bench) -> None:
    """What a tier did not get is offered with the next commit, also by who has only hit it."""
    bench.writes("through")
    driver = bench.controlled(host_pages=8, write_policy="through")
    ctx = driver.admit(bench.prompt(1))
    driver.forward(ctx)
    for transfer in driver.in_flight():
        driver.fail(transfer, "no_space")
    for token in range(bench.size):
        driver.alloc(ctx)
        driver.forward(ctx, token=token)
    offered = [key for transfer in driver.in_flight() for key in transfer.keys]
    expect("STEP-5", len(offered), 2, "blocks offered when the second page is committed")
    for transfer in driver.in_flight():
        driver.fail(transfer, "no_space")
    driver.serve(ctx.tokens.all.tolist())
    again = [key for transfer in driver.in_flight() for key in transfer.keys]
    expect("STEP-5", again[:2], offered, "blocks offered by a request that has hit them")


# --- STEP-6: nothing new --------------------------------------------------------------------------


@check("STEP-6")
def a_second_step_changes_nothing(bench: Bench) -> None:
    """Stepping again what was stepped changes nothing, nor does an empty batch."""
    driver = bench.driver()
    ctx, idle = driver.admit(bench.prompt(2)), driver.admit(bench.prompt(1, 50))
    driver.forward(ctx)
    before = driver.observe()
    driver.step(ctx)
    driver.step(idle)
    driver.step()
    driver.same(before, "STEP-6", "a step of nothing new was made")


@check("STEP-6")
def a_step_of_nothing_new_leaves_no_trace(bench: Bench) -> None:
    """Idle steps of a live request make no difference to what is evicted later."""

    def run(driver: Driver, extra: bool) -> object:
        old = driver.admit(bench.prompt(1))
        driver.forward(old)
        driver.serve(bench.prompt(1, 50))
        driver.serve(bench.prompt(1, 60))
        if extra:
            driver.step(old)
        driver.release(old)
        if extra:
            driver.step()
        driver.release(driver.admit(bench.prompt(5, 500)))
        return [driver.hit(bench.prompt(1, start)) for start in (0, 50, 60)]

    bench.makes_no_difference("STEP-6", run, "steps of nothing new")


@check("STEP-6", "TIER-8", needs=("host",))
def a_step_of_nothing_new_uses_no_block(bench: Bench) -> None:
    """Under ``reuse`` a second step of one request is no second use of its blocks."""
    bench.writes("reuse")
    driver = bench.driver(host_pages=8, write_policy="reuse")
    ctx = driver.admit(bench.prompt(2))
    driver.forward(ctx)
    for token in range(3):
        driver.step(ctx)
        driver.alloc(ctx)
        driver.forward(ctx, token=token)
    used = driver.used("host")
    demand("STEP-6", used == 0, f"{used} blocks of one request were taken for blocks used twice")


@check("STEP-2", "LEN-3", needs=("prefix",))
def a_step_may_come_when_the_next_chunk_is_cut(bench: Bench) -> None:
    """What a chunk has written is committed, although the window ends short of the prompt again."""
    driver, size = bench.driver(), bench.size
    ctx = driver.claim(driver.request(bench.prompt(4)))
    driver.chunk(ctx, size)
    for chunks in (1, 2, 3):
        driver.alloc(ctx)
        driver.compute(ctx)
        driver.update(ctx)
        driver.chunk(ctx, size)
        driver.alloc(ctx)
        driver.step(ctx)
        expect("STEP-2", driver.hit(bench.prompt(4)), chunks, f"blocks hit after {chunks} chunks")
