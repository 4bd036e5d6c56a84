"""DRAFT: where draft KV depends on the token that follows, a hit stops a block early."""

from typing import Any

from pagedkv.conformance.bench import Bench
from pagedkv.conformance.check import check
from pagedkv.conformance.violation import expect

# Any, below: fields of setups, which check them.

LOOK_AHEAD: tuple[dict[str, Any], ...] = (
    {"speculative_method": "eagle", "num_draft_tokens": 1},
    {"speculative_method": "mtp", "num_draft_tokens": 1},
)
"""Methods whose drafts look at the token after."""

OTHERS: tuple[dict[str, Any], ...] = (
    {},
    {"speculative_method": "standalone", "num_draft_tokens": 1},
    {"speculative_method": "dflash", "num_draft_tokens": 1},
)
"""Methods whose drafts do not."""


@check("DRAFT-1", needs=("speculative", "prefix"))
def the_last_block_of_a_hit_is_not_used(bench: Bench) -> None:
    """Under ``eagle`` and ``mtp`` one block less than is cached is hit, wherever prompts part."""
    for method in LOOK_AHEAD:
        driver = bench.driver(total_num_pages=12, **method)
        holder = driver.hold(bench.prompt(3))
        cached = driver.pages(holder)
        for agree, hits in ((3, 2), (2, 1), (1, 0), (0, 0)):
            tokens = [*bench.prompt(agree, more=0), *bench.prompt(2, 50)]
            ctx = driver.admit(tokens)
            window = ctx.tokens.processed_length
            expect("DRAFT-1", window, hits * bench.size, f"tokens hit of {agree} blocks")
            own = [page for page in driver.pages(ctx) if page not in cached]
            expect("DRAFT-1", len(own), len(driver.pages(ctx)) - hits, "pages of its own")
            driver.forward(ctx)
            driver.release(ctx)


@check("DRAFT-1", needs=("speculative", "prefix"))
def other_methods_use_the_whole_hit(bench: Bench) -> None:
    """Where drafts do not look ahead, every block that is cached is hit."""
    for method in OTHERS:
        driver = bench.driver(total_num_pages=12, **method)
        driver.hold(bench.prompt(3))
        expect("DRAFT-1", driver.hit(bench.prompt(3)), 3, f"blocks hit with {method}")


@check("DRAFT-1", needs=("speculative", "prefix"))
def exactly_full_prompts_are_hit_a_block_less(bench: Bench) -> None:
    """Of a prompt of exactly n pages the last one is not hit anyway, nor is the one before it."""
    for method in LOOK_AHEAD:
        driver = bench.driver(total_num_pages=12, **method)
        driver.hold(bench.prompt(4))
        for pages in (1, 2, 3, 4):
            hits = driver.hit(bench.prompt(pages, more=0))
            expect("DRAFT-1", hits, max(0, pages - 2), f"blocks hit of {pages} pages")


@check("DRAFT-1", needs=("speculative", "prefix"))
def a_later_look_up_stops_early_too(bench: Bench) -> None:
    """A request in the middle of its prompt does not use the last block it finds, either."""
    for method in LOOK_AHEAD:
        driver = bench.driver(total_num_pages=16, **method)
        ctx = driver.request(bench.prompt(5))
        driver.chunk(ctx, bench.size)
        driver.alloc(driver.claim(ctx))
        driver.forward(ctx)
        driver.hold(bench.prompt(4))
        driver.alloc(ctx)
        expect("DRAFT-1", ctx.tokens.processed_length, 3 * bench.size, "tokens that are cached")
        driver.forward(ctx)


@check("DRAFT-1", needs=("speculative", "prefix"))
def a_decoded_chain_is_hit_but_for_its_end(bench: Bench) -> None:
    """Blocks that were decoded are hit up to the last but one, and their request goes on."""
    for method in LOOK_AHEAD:
        driver = bench.driver(total_num_pages=16, **method)
        ctx = driver.admit(bench.prompt(3, more=-2))
        for n in range(4):
            driver.forward(ctx, token=500 + n)
            driver.alloc(ctx)
        expect("DRAFT-1", driver.hit(ctx.tokens.all.tolist()), 2, "blocks hit of three")
        driver.forward(ctx)


@check("DRAFT-1", "ALLOC-8", needs=("speculative", "transfers", "host"))
def the_last_block_is_not_loaded(bench: Bench) -> None:
    """The block that would not be used is not loaded from below, either."""
    for method in LOOK_AHEAD:
        driver = bench.with_chain_below(3, **method)
        ctx = driver.claim(driver.request(bench.prompt(3)))
        driver.begin(ctx)
        loaded = [key for transfer in driver.in_flight() for key in transfer.keys]
        expect("DRAFT-1", len(loaded), 2, "blocks that are loaded")
        driver.land_all()
        driver.finish(ctx)
        expect("DRAFT-1", ctx.tokens.processed_length, 2 * bench.size, "tokens that are cached")
        driver.forward(ctx)


@check("DRAFT-1", "ALLOC-14", needs=("speculative", "probes"))
def look_ups_stop_early_too(bench: Bench) -> None:
    """``get_prefix_cache_hit_counts`` does not count the block that would not be used."""
    for method in LOOK_AHEAD:
        driver = bench.driver(total_num_pages=12, **method)
        driver.hold(bench.prompt(3))
        for pages, hits in ((3, 2), (1, 0), (0, 0)):
            [told] = driver.probe(driver.request(bench.prompt(pages)))
            expect("DRAFT-1", told.total_blocks, hits, f"blocks that {pages} pages would hit")


@check("DRAFT-1", "STEP-4", needs=("speculative", "prefix"))
def a_page_with_another_successor_is_not_swapped_in(bench: Bench) -> None:
    """Where drafts look ahead, requests that part after a block keep pages of their own for it."""
    for method in LOOK_AHEAD:
        driver = bench.driver(total_num_pages=12, **method)
        one, other = (driver.admit([*bench.prompt(1, more=0), last, last]) for last in (901, 902))
        driver.compute(one, other)
        tables = [driver.pages(ctx) for ctx in (one, other)]
        for ctx in (one, other):
            driver.update(ctx)
        driver.step(one, other)
        seen = [driver.pages(ctx) for ctx in (one, other)]
        expect("DRAFT-1", seen, tables, "pages after the step")
