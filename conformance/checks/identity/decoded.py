"""Prompts that a request has decoded, for checks of what its pages are known by."""

from collections.abc import Iterable
from typing import Any

from pagedkv.conformance.driver import Driver


# Any: options of a context, which checks them.
def decoded(driver: Driver, prompt: Iterable[int], count: int, **options: Any) -> list[int]:
    """Serve a prompt with ``count`` forwards; all its tokens in the end."""
    ctx = driver.admit(prompt, **options)
    for n in range(count):
        driver.alloc(ctx)
        driver.forward(ctx, token=500 + n)
    driver.release(ctx)
    tokens: list[int] = ctx.tokens.all.tolist()
    return tokens
