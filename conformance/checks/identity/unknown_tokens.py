"""ID-7: what is not known for good is not hashed."""

from pagedkv.conformance.bench import Bench
from pagedkv.conformance.check import check
from pagedkv.conformance.violation import expect
from pagedkv.reference.context import FUTURE_TOKEN


@check("ID-7", needs=("prefix",))
def a_repeated_prompt_leaves_a_token_to_compute(bench: Bench) -> None:
    """Of a prompt of exactly n pages n-1 are hit, and n if there is one token more."""
    size = bench.size
    for length in sorted({1, 2, size - 1, size, size + 1, 2 * size, 2 * size + 1, 3 * size} - {0}):
        driver = bench.driver()
        driver.serve(range(length))
        ctx = driver.admit(range(length))
        expect("ID-7", ctx.tokens.processed_length, (length - 1) // size * size, "tokens cached")
        driver.forward(ctx)


@check("ID-7", needs=("prefix",))
def the_sampled_token_is_not_hashed(bench: Bench) -> None:
    """A page whose last token was only just sampled is not cached: its KV was not computed."""
    driver, size = bench.driver(), bench.size
    ctx = driver.admit(bench.prompt(1, more=size - 1))
    driver.forward(ctx, token=77)
    tokens = [*bench.prompt(1, more=size - 1), 77, 78]
    expect("ID-7", driver.hit(tokens), 1, "blocks before the last token was computed")
    driver.alloc(ctx)
    driver.forward(ctx, token=78)
    expect("ID-7", driver.hit(tokens), 2, "blocks once the last token was computed")


@check("ID-7", "LEN-2", needs=("prefix",))
def a_placeholder_is_not_hashed(bench: Bench) -> None:
    """A page with a token that is not known yet is cached once it is, and under that token."""
    driver, known = bench.driver(), [*bench.prompt(1, more=bench.size - 1)]
    ctx = driver.admit(known)
    for pending in (1, 2):
        driver.compute(ctx)
        driver.update_later(ctx, pending)
        driver.step(ctx)
        driver.alloc(ctx)
    for token in (FUTURE_TOKEN, 77):
        expect("ID-7", driver.hit([*known, token, 0]), 1, "blocks while the token is not known")
    driver.realize(ctx, 77)
    driver.step(ctx)
    expect("ID-7", driver.hit([*known, FUTURE_TOKEN, 0]), 1, "blocks with a placeholder")
    expect("ID-7", driver.hit([*known, 77, 0]), 2, "blocks with the token that was sampled")


@check("ID-7", "STEP-2", needs=("speculative", "prefix"))
def a_draft_is_not_hashed(bench: Bench) -> None:
    """Drafts to be verified fill no page, and are found under no identity."""
    driver, size = bench.driver(speculative_method="standalone", num_draft_tokens=2), bench.size
    ctx = driver.claim(driver.request(bench.prompt(1, more=size - 1)))
    driver.bring_drafts(ctx, [77, 78])
    driver.alloc(ctx)
    driver.compute(ctx)
    driver.step(ctx)
    driver.bring_drafts(ctx, [], [77, 78])
    driver.update(ctx, 79)
    driver.step(ctx)
    for token in (77, 79):
        tokens = [*bench.prompt(1, more=size - 1), token, 78]
        expect("ID-7", driver.hit(tokens), 1, "blocks that a draft would have filled")
