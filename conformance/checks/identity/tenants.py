"""ID-4 and ID-6: salts and adapters keep requests apart."""

from itertools import product
from typing import Any

from pagedkv.conformance.bench import Bench
from pagedkv.conformance.check import check
from pagedkv.conformance.checks.identity.decoded import decoded
from pagedkv.conformance.violation import expect
from pagedkv.reference.tokens import TokenHashOverride

# Any, below: options of contexts and of setups, which check them.

TENANTS: tuple[dict[str, Any], ...] = tuple(
    {"cache_salt": salt, "adapter": adapter}
    for salt, adapter in product((None, "", "a", "b"), (None, "", "a", "b"))
)
"""Everybody of whom nobody shares with another."""


@check("ID-4", "ID-6", needs=("prefix",))
def tenants_share_nothing(bench: Bench) -> None:
    """Salts and adapters that differ, an absent one and an empty one too, share no page."""
    driver = bench.driver(total_num_pages=4 * len(TENANTS))
    for n, tenant in enumerate(TENANTS):
        expect("ID-4", driver.hit(bench.prompt(2), **tenant), 0, f"blocks that {tenant} hits first")
        driver.hold(bench.prompt(2), **tenant)
        for earlier in TENANTS[: n + 1]:
            hits = driver.hit(bench.prompt(2), **earlier)
            expect("ID-4", hits, 2, f"blocks that {earlier} hits after {tenant}")


@check("ID-4", needs=("prefix",))
def salts_are_compared_as_they_are(bench: Bench) -> None:
    """Salts that differ in case, spaces, accents or late in a long text are different salts."""
    driver = bench.driver(total_num_pages=4)
    long = "tenant" * 20
    for one, other in (
        ("tenant", "Tenant"),
        ("tenant", "tenant "),
        ("tenant", "tenant\0"),
        ("é", "e\u0301"),
        ("é", "e"),
        (f"{long} 1", f"{long} 2"),
        ("None", None),
    ):
        ctx = driver.hold(bench.prompt(1), cache_salt=one)
        hits = driver.hit(bench.prompt(1), cache_salt=other)
        expect("ID-4", hits, 0, f"blocks of {one!r} that {other!r} hits")
        driver.release(ctx)


@check("ID-4", "ID-6", needs=("prefix",))
def tenants_in_one_batch_share_nothing(bench: Bench) -> None:
    """Equal prompts of different tenants, computed and stepped together, stay apart."""
    driver = bench.driver()
    tenants = TENANTS[0], TENANTS[1], TENANTS[4]
    twins = [driver.admit(bench.prompt(1), **tenant) for tenant in tenants]
    driver.forward(*twins)
    tables = [page for ctx in twins for page in driver.pages(ctx)]
    expect("ID-4", len(set(tables)), len(tables), "different pages of different tenants")


@check("ID-4", "ID-6", needs=("prefix",))
def decoded_pages_belong_to_their_tenant(bench: Bench) -> None:
    """Pages that a tenant has decoded are hit by that tenant alone."""
    driver = bench.driver(total_num_pages=16)
    tenants: list[dict[str, Any]] = [{}, {"cache_salt": "a"}, {"adapter": "a"}]
    for tenant in tenants:
        tokens = decoded(driver, bench.prompt(2, more=-1), 2, **tenant)
        driver.hold(tokens, **tenant)
        for other in tenants:
            hits = 2 if tenants.index(other) <= tenants.index(tenant) else 0
            expect("ID-4", driver.hit(tokens, **other), hits, f"blocks that {other} hits")


@check("ID-4", "ID-5", "ID-6", needs=("prefix",))
def a_first_page_that_was_decoded_belongs_to_its_tenant(bench: Bench) -> None:
    """What identifies a page enters it as well if its prompt was shorter than a page."""
    own: tuple[dict[str, Any], ...] = (
        {"cache_salt": "tenant"},
        {"adapter": "adapter"},
        {"token_hash_overrides": [TokenHashOverride(0, 5)]},
    )
    for options in own:
        driver = bench.driver()
        for _ in range(2):
            ctx = driver.admit(range(1), **options)
            for token in range(bench.size):
                driver.forward(ctx, token=token)
                driver.alloc(ctx)
            driver.release(ctx)
        tokens = [0, *range(bench.size)]
        expect("ID-4", driver.hit(tokens, **options), 1, f"blocks that {options} hits")
        expect("ID-4", driver.hit(tokens), 0, "blocks that others hit")


@check("ID-6", needs=("prefix",))
def new_weights_under_a_new_identity_share_nothing(bench: Bench) -> None:
    """An adapter that was loaded anew, and says so, hits nothing of its former weights."""
    driver = bench.driver()
    driver.hold(bench.prompt(2), adapter="sql, revision 1")
    expect("ID-6", driver.hit(bench.prompt(2), adapter="sql, revision 2"), 0, "blocks hit")
    expect("ID-6", driver.hit(bench.prompt(2), adapter="sql, revision 1"), 2, "blocks hit")


@check("ID-6", needs=("prefix",))
def adapters_are_compared_as_they_are(bench: Bench) -> None:
    """Adapters that differ in case, spaces, accents or late in a long text are different ones."""
    driver = bench.driver(total_num_pages=4)
    long = "adapter" * 20
    for one, other in (
        ("adapter", "Adapter"),
        ("adapter", "adapter "),
        ("é", "ü"),
        (f"{long} 1", f"{long} 2"),
        ("None", None),
    ):
        ctx = driver.hold(bench.prompt(1), adapter=one)
        hits = driver.hit(bench.prompt(1), adapter=other)
        expect("ID-6", hits, 0, f"blocks of {one!r} that {other!r} hits")
        driver.release(ctx)
