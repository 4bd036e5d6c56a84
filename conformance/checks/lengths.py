"""LEN: how many tokens a request has room for, and which of them may be identified."""

from collections.abc import Iterable
from itertools import product

from pagedkv.conformance.bench import Bench
from pagedkv.conformance.check import check
from pagedkv.conformance.driver import Driver
from pagedkv.conformance.forward_inputs import inputs_per_device
from pagedkv.conformance.refusals import raises
from pagedkv.conformance.violation import expect
from pagedkv.reference.context import FUTURE_TOKEN, TextContext


def _lengths(bench: Bench) -> list[int]:
    """Lengths around the borders of the first two pages."""
    size = bench.size
    return sorted({1, 2, size - 1, size, size + 1, 2 * size - 1, 2 * size, 2 * size + 1} - {0})


def _expect_room(bench: Bench, driver: Driver, ctx: TextContext, tokens: int) -> None:
    """Demand that a request holds pages for so many tokens, and no page more."""
    what = f"pages for {tokens} tokens of {ctx.request_id!r}"
    expect("LEN-1", len(driver.pages(ctx)), -(-tokens // bench.size), what)


@check("LEN-1")
def a_prompt_gets_pages_for_its_tokens(bench: Bench) -> None:
    """n tokens get pages for n tokens: a prompt of exactly full pages gets no page more."""
    for length in _lengths(bench):
        driver = bench.driver()
        _expect_room(bench, driver, driver.admit(range(length)), length)


@check("LEN-1")
def a_page_is_taken_when_the_last_one_is_full(bench: Bench) -> None:
    """A decoding request takes a page when it needs one, and keeps those it has."""
    driver = bench.driver()
    ctx = driver.admit(bench.prompt(1, more=-1))
    for _ in range(min(2 * bench.size, 8) + 1):
        before = driver.pages(ctx)
        driver.forward(ctx)
        driver.alloc(ctx)
        _expect_room(bench, driver, ctx, len(ctx))
        expect("LEN-1", driver.pages(ctx)[: len(before)], before, "pages that it had before")


@check("LEN-1")
def a_chunk_gets_pages_up_to_its_end(bench: Bench) -> None:
    """A chunked prompt gets pages for the chunks so far, not for all of it."""
    driver, size = bench.driver(), bench.size
    for ends in ((1, size, 2 * size + 1), (size + 1, 3 * size), (2 * size,)):
        ctx = driver.request(bench.prompt(4))
        driver.claim(ctx)
        for end in ends:
            driver.chunk(ctx, end - ctx.tokens.processed_length)
            driver.alloc(ctx)
            _expect_room(bench, driver, ctx, end)
            driver.compute(ctx)
            driver.update(ctx)
        driver.alloc(ctx)
        _expect_room(bench, driver, ctx, len(ctx))
        driver.release(ctx)


@check("LEN-1", needs=("speculative",))
def drafts_have_room(bench: Bench) -> None:
    """There is room to verify the drafts and to write as many, and one more for block drafts."""
    for method, drafts in product(("standalone", "eagle", "mtp", "dflash"), (1, 3)):
        for length in _lengths(bench):
            driver = bench.driver(speculative_method=method, num_draft_tokens=drafts)
            ctx = driver.admit(range(length))
            tokens = length + 2 * drafts + (method == "dflash")
            _expect_room(bench, driver, ctx, tokens)


@check("LEN-1", needs=("speculative",))
def drafts_that_may_be_accepted_have_room(bench: Bench) -> None:
    """Drafts that a forward in flight verifies count on top; those to be verified do not."""
    for length, verified in product(_lengths(bench), (0, 2)):
        driver = bench.driver(speculative_method="standalone", num_draft_tokens=2)
        ctx = driver.claim(driver.request(range(length)))
        driver.bring_drafts(ctx, [1] * verified, maybe_accepted=[2, 3])
        driver.alloc(ctx)
        _expect_room(bench, driver, ctx, length + 2 + 2 * 2)


@check("LEN-1")
def placeholders_but_one_need_no_room_yet(bench: Bench) -> None:
    """With k placeholders, there is room for all tokens but the last k-1."""
    for length, pending in product(_lengths(bench), (1, 2, 3)):
        driver = bench.driver()
        ctx = _with_placeholders(driver, range(length), pending)
        driver.claim(ctx)
        driver.alloc(ctx)
        _expect_room(bench, driver, ctx, length + 1)
        for left in range(pending - 1, -1, -1):
            driver.realize(ctx, 5)
            driver.alloc(ctx)
            _expect_room(bench, driver, ctx, len(ctx) - max(0, left - 1))


def _with_placeholders(driver: Driver, known: Iterable[int], pending: int) -> TextContext:
    """A request with placeholders behind its tokens, of which nothing is computed yet."""
    ctx = driver.request(known)
    for n in range(pending):
        driver.update_later(ctx, n + 1)
    driver.rewind(ctx, ctx.tokens.processed_length)
    return ctx


@check("LEN-2", "ALLOC-5", needs=("prefix",))
def placeholders_are_not_looked_up(bench: Bench) -> None:
    """A page with a placeholder is no hit, not even of one with a token of the same number."""
    size = bench.size
    for pending in (1, 2, 3):
        driver = bench.driver()
        known = [*bench.prompt(3, more=1 - pending)]
        driver.serve([*known, *[FUTURE_TOKEN] * pending, 7])
        ctx = driver.claim(_with_placeholders(driver, known, pending))
        driver.alloc(ctx)
        cached = len(known) // size * size
        expect("LEN-2", ctx.tokens.processed_length, cached, "tokens found before placeholders")


@check("LEN-2", "STEP-2", needs=("prefix",))
def placeholders_are_not_committed(bench: Bench) -> None:
    """A page is committed when the last of its tokens is known and its KV written, not before."""
    size = bench.size
    driver = bench.driver()
    ctx = driver.claim(driver.request(bench.prompt(2, more=-2)))
    for pending in (1, 2, 3):
        driver.alloc(ctx)
        driver.compute(ctx)
        driver.update_later(ctx, pending)
        driver.step(ctx)
    for token, committed in ((501, 1), (502, 2), (503, 2)):
        driver.realize(ctx, token)
        driver.step(ctx)
        tokens = [*ctx.tokens.all[: 2 * size].tolist(), 0]
        expect("LEN-2", driver.hit(tokens), committed, f"blocks when {token} is known")


@check("LEN-3", "STEP-2", needs=("prefix",))
def nothing_is_written_before_the_window_moves(bench: Bench) -> None:
    """A step after an allocation commits nothing of what has still to be computed."""
    driver = bench.driver()
    ctx = driver.admit(bench.prompt(3))
    driver.step(ctx)
    expect("LEN-3", driver.hit(bench.prompt(3)), 0, "blocks hit that nobody has computed")
    driver.compute(ctx)
    driver.step(ctx)
    expect("LEN-3", driver.hit(bench.prompt(3)), 0, "blocks hit before the window has moved")
    driver.update(ctx)
    expect("LEN-3", driver.hit(bench.prompt(3)), 0, "blocks hit before the step")
    driver.step(ctx)
    expect("LEN-3", driver.hit(bench.prompt(3)), 3, "blocks hit after the step")


@check("LEN-3", "LEN-5", needs=("prefix",))
def a_chunk_is_written_when_the_window_has_moved_past_it(bench: Bench) -> None:
    """Of a chunked prompt those pages are committed that its chunks have filled so far."""
    driver, size = bench.driver(), bench.size
    ctx = driver.claim(driver.request(bench.prompt(4)))
    for chunk, committed in ((size, 1), (size - 1, 1), (1, 2), (2 * size, 4)):
        if not chunk:
            continue
        driver.chunk(ctx, chunk)
        driver.alloc(ctx)
        driver.forward(ctx)
        hits = driver.hit(bench.prompt(4))
        expect("LEN-3", hits, committed, f"blocks hit after {ctx.tokens.processed_length} tokens")


@check("LEN-3", needs=("prefix",))
def who_moves_the_window_says_that_tokens_are_written(bench: Bench) -> None:
    """Tokens that a server skips, their KV being there, are committed like computed ones."""
    driver, size = bench.driver(), bench.size
    ctx = driver.admit(bench.prompt(3))
    driver.compute(ctx)  # or whatever else has brought the KV
    driver.skip(ctx, 2 * size)
    driver.step(ctx)
    expect("LEN-3", driver.hit(bench.prompt(3)), 2, "blocks hit that were skipped")
    driver.forward(ctx)
    expect("LEN-3", driver.hit(bench.prompt(3)), 3, "blocks hit in the end")


@check("LEN-3", "STEP-6", needs=("prefix",))
def tokens_that_are_computed_again_stay_what_they_are(bench: Bench) -> None:
    """A window that is moved back takes no page, loses no hit and counts nothing twice."""
    driver, size = bench.driver(), bench.size
    ctx = driver.admit(bench.prompt(3))
    driver.forward(ctx)
    for back in (1, size, 3 * size + 1):
        driver.rewind(ctx, back)
        driver.alloc(ctx)
        driver.step(ctx)
        expect("LEN-3", driver.hit(bench.prompt(3)), 3, f"blocks hit {back} tokens back")
        driver.compute(ctx)
        driver.skip(ctx, ctx.tokens.active_length - 1)
        driver.step(ctx)
    expect("LEN-3", driver.hit(bench.prompt(3)), 3, "blocks hit in the end")


def _shape(driver: Driver, ctx: TextContext) -> tuple[int, int, int]:
    """Cached tokens, longest query and longest valid cache of a forward of one request."""
    inputs = driver.manager.runtime_inputs(driver.batches([ctx]))
    device = next(inputs_per_device(inputs))
    return (
        int(device.cache_lengths[0]),
        int(device.max_prompt_length[0]),
        int(device.max_cache_length[0]),
    )


@check("LEN-4", "INPUT-5", needs=("inputs",))
def a_forward_computes_the_window(bench: Bench) -> None:
    """Prompt, chunk and decode step: what is before the window is cached, the window computed."""
    driver, size = bench.driver(), bench.size
    ctx = driver.request(bench.prompt(2))
    driver.chunk(ctx, size - 1 or 1)
    driver.claim(ctx)
    for _ in range(4):
        driver.alloc(ctx)
        start, end = ctx.tokens.processed_length, ctx.tokens.current_position
        expect("LEN-4", _shape(driver, ctx), (start, end - start, end), "shape of a forward")
        driver.forward(ctx)


@check("LEN-4", "INPUT-5", needs=("inputs", "speculative"))
def a_forward_verifies_drafts(bench: Bench) -> None:
    """Drafts to verify are computed, those in flight are cached, and as many more are written."""
    driver = bench.driver(speculative_method="standalone", num_draft_tokens=2)
    ctx = driver.admit(bench.prompt(1))
    driver.forward(ctx)
    for verified, maybe_accepted in ((0, 0), (2, 0), (1, 2), (0, 2), (2, 2)):
        driver.bring_drafts(ctx, [1] * verified, maybe_accepted=[2] * maybe_accepted)
        driver.alloc(ctx)
        cached = ctx.tokens.processed_length + maybe_accepted
        expected = (cached, 1 + verified, cached + 1 + verified + 2)
        expect("LEN-4", _shape(driver, ctx), expected, f"{verified} drafts, {maybe_accepted} more")


@check("LEN-5", needs=("vocabulary",))
def a_context_keeps_one_active_token(bench: Bench) -> None:
    """Skipping and chunking that would leave no active token are refused, and move nothing."""
    length = 2 * bench.size
    ctx = bench.driver().request(range(length))
    for n in (-1, length, length + 1):
        with raises("LEN-5", ValueError, f"skip_processing({n}) of {length} active tokens"):
            ctx.skip_processing(n)
    for n in (-1, 0, length, length + 1):
        with raises("LEN-5", ValueError, f"chunk({n}) of {length} active tokens"):
            ctx.chunk(n)
    expect("LEN-5", (ctx.processed_length, ctx.active_length), (0, length), "the window")
    ctx.skip_processing(length - 1)
    expect("LEN-5", ctx.active_length, 1, "active tokens that are left")
    with raises("LEN-5", ValueError, "chunk(1) of one active token"):
        ctx.chunk(1)


@check("LEN-5", needs=("vocabulary",))
def an_update_of_a_chunk_opens_the_rest(bench: Bench) -> None:
    """``update`` after a chunk drops the token, and the window goes on to the end of the prompt."""
    length = 2 * bench.size
    ctx = bench.driver().request(range(length))
    ctx.chunk(1)
    ctx.update(99)
    expect("LEN-5", len(ctx), length, "tokens after the update")
    expect("LEN-5", (ctx.processed_length, ctx.current_position), (1, length), "the window")
    ctx.update(99)
    expect("LEN-5", ctx.tokens.all.tolist()[length:], [99], "tokens behind the prompt")
    expect("LEN-5", (ctx.processed_length, ctx.active_length), (length, 1), "the window")


@check("LEN-5", "ALLOC-5", needs=("prefix",))
def a_hit_leaves_one_active_token(bench: Bench) -> None:
    """However much is cached, and wherever a chunk ends, a token of the window stays active."""
    driver, size = bench.driver(), bench.size
    driver.hold(bench.prompt(4))
    for end in (1, size, size + 1, 2 * size, 3 * size + 1, 4 * size):
        whole = driver.request(range(end))
        chunked = driver.request(bench.prompt(4))
        driver.chunk(chunked, end)
        for ctx in (whole, chunked):
            driver.claim(ctx)
            driver.alloc(ctx)
            window = (ctx.tokens.processed_length, ctx.tokens.current_position)
            expect("LEN-5", window, ((end - 1) // size * size, end), "the window")
            driver.release(ctx)


@check("LEN-1", "ALLOC-4", needs=("prefix",))
def pages_may_have_other_sizes(bench: Bench) -> None:
    """Pages of 1, 3 and 16 tokens, as far as they can be had, are filled, hit and grown alike."""
    for size in (1, 3, 16):
        try:
            driver = bench.driver(page_size=size)
        except Exception:  # What a manager cannot build, it may refuse.
            continue
        for length in (3 * size, 3 * size + 1):
            for hits in (0, (length - 1) // size):
                ctx = driver.admit(range(length))
                expect("ALLOC-4", ctx.tokens.processed_length, hits * size, f"hit of {size} each")
                for token in range(size + 1):
                    driver.forward(ctx, token=token)
                    driver.alloc(ctx)
                    pages = -(-len(ctx) // size)
                    expect("LEN-1", len(driver.pages(ctx)), pages, f"pages of {size} tokens")
                driver.release(ctx)
            driver.evict_all()
