"""Requests in the middle of their prompt, for checks of what they hit and hold."""

from pagedkv.conformance.bench import Bench
from pagedkv.conformance.driver import Driver
from pagedkv.reference.context import TextContext


def window(ctx: TextContext) -> int:
    """Where the window of a request begins."""
    return ctx.tokens.processed_length


def begun(bench: Bench, driver: Driver, pages: int, tokens: int) -> TextContext:
    """``prompt(pages)``, of which a first chunk was computed, but not stepped."""
    ctx = driver.request(bench.prompt(pages))
    driver.chunk(ctx, tokens)
    driver.claim(ctx)
    driver.alloc(ctx)
    driver.compute(ctx)
    driver.update(ctx)
    return ctx
