"""ID-1, -2, -3, -8 and -9: what is hashed, and how."""

from collections.abc import Iterable
from itertools import product
from typing import Any

from pagedkv.conformance.bench import Bench
from pagedkv.conformance.check import check
from pagedkv.conformance.checks.identity.decoded import decoded
from pagedkv.conformance.driver import Driver
from pagedkv.conformance.violation import expect
from pagedkv.reference.context import ImageMetadata, TextContext
from pagedkv.reference.events import Stepped
from pagedkv.reference.identity import page_digest, page_key, root_digest
from pagedkv.reference.tokens import TokenHashOverride

# Any, below: options of contexts and of setups, which check them.


def _digests(driver: Driver, tokens: Iterable[int], **options: Any) -> list[bytes]:
    """Digests of the full pages of a prompt, as ID-2 has them."""
    ctx = driver.request(tokens, **options)
    return driver.model.digests(ctx, len(ctx.tokens) // driver.setup.page_size)


def _with_digests(driver: Driver, bench: Bench, digests: list[bytes]) -> TextContext:
    """A request of exactly two pages, of which only the first is looked up."""
    ctx = driver.request(bench.prompt(2, more=0), given_digests=digests)
    driver.claim(ctx)
    driver.alloc(ctx)
    return ctx


@check("ID-1", "ID-9", needs=("prefix",))
def each_algorithm_is_its_hash(bench: Bench) -> None:
    """Pages that were committed by their tokens are hit by the digests of the named hash."""
    for algorithm in bench.implementation.hash_algorithms:
        driver = bench.driver(hash_algorithm=algorithm)
        driver.serve(bench.prompt(3))
        digests = _digests(driver, bench.prompt(3))
        hits = driver.hit(bench.prompt(3), given_digests=digests)
        expect("ID-1", hits, 3, f"blocks that are hit by their {algorithm} digests")


@check("ID-1", needs=("transfers", "host"))
def a_block_below_goes_by_the_key_of_its_algorithm(bench: Bench) -> None:
    """Transfers name blocks by their keys: the digest, or 8 bytes of it for ``sha256_64``."""
    for algorithm in bench.implementation.hash_algorithms:
        driver = bench.with_chain_below(3, hash_algorithm=algorithm)
        ctx = driver.claim(driver.request(bench.prompt(3)))
        driver.begin(ctx)
        seen = [key for t in driver.in_flight() if t.kind == "onload" for key in t.keys]
        keys = [page_key(digest, algorithm) for digest in _digests(driver, bench.prompt(3))]
        expect("ID-1", sorted(seen), sorted(keys), f"keys of the blocks under {algorithm}")


@check("ID-1", "ID-2", "ID-3", needs=("events", "prefix"))
def a_step_reports_the_keys_of_what_it_committed(bench: Bench) -> None:
    """The keys in an event are those of the named hash over tokens, salt, adapter and seed."""
    options: dict[str, Any] = {"cache_salt": "tenant ü", "adapter": "adapter 7"}
    algorithms = bench.implementation.hash_algorithms
    for algorithm, seed in product(algorithms, (None, bytes(range(32)))):
        driver, recording = bench.recorded(hash_algorithm=algorithm, hash_seed=seed)
        driver.serve(bench.prompt(3), **options)
        [stepped] = [event for event in recording if isinstance(event, Stepped)]
        digests = _digests(driver, bench.prompt(3), **options)
        keys = tuple(page_key(digest, algorithm) for digest in digests)
        expect("ID-1", stepped.context.keys, keys, f"keys under {algorithm}, seed {seed!r}")


@check("ID-1", "ID-2", needs=("prefix",))
def a_page_has_one_identity_however_it_was_filled(bench: Bench) -> None:
    """Pages filled by decoding, in chunks or at once have the same identity, in every algorithm."""
    for algorithm in bench.implementation.hash_algorithms:
        driver = bench.driver(hash_algorithm=algorithm)
        tokens = decoded(driver, bench.prompt(3, more=-1), 2)
        expect("ID-1", driver.hit(tokens), 3, f"decoded blocks that are hit under {algorithm}")
        driver.reset() if driver.can("reset") else driver.evict_all()
        ctx = driver.request(tokens)
        driver.chunk(ctx, bench.size + 1)
        driver.claim(ctx)
        for _ in range(2):
            driver.alloc(ctx)
            driver.forward(ctx)
        driver.release(ctx)
        expect("ID-1", driver.hit(tokens), 3, f"chunked blocks that are hit under {algorithm}")


@check("ID-2", needs=("prefix",))
def every_token_counts(bench: Bench) -> None:
    """A prompt that differs in one token shares only the pages before that token."""
    driver, size = bench.driver(), bench.size
    driver.hold(bench.prompt(3))
    places = {0, 1, size - 1, size, 2 * size - 1, 2 * size, 3 * size - 1, 3 * size}
    for place in sorted(places):
        tokens = [*bench.prompt(3)]
        tokens[place] += 1000
        expect("ID-2", driver.hit(tokens), place // size, f"blocks hit if token {place} differs")


@check("ID-2", needs=("prefix",))
def tokens_are_wide_numbers_in_order(bench: Bench) -> None:
    """Tokens that agree in 32 bits, in absolute value, as text or as a set are others."""
    driver, size = bench.driver(), bench.size
    padding = [7] * size
    for one, other in (
        ([5], [5 + 2**32]),
        ([5], [5 - 2**63]),
        ([5], [-5]),
        ([2**63 - 1], [-(2**63)]),
        ([0], [2**62]),
        ([0], [2**61 - 1]),
        ([-1], [-2]),
        ([1, 23], [12, 3]),
        ([1, 2], [2, 1]),
    ):
        prompt, changed = ([*[*tokens, *padding][:size], 7] for tokens in (one, other))
        if prompt == changed:
            continue
        ctx = driver.hold(prompt)
        expect("ID-2", driver.hit(changed), 0, f"blocks of {prompt} that {changed} hits")
        expect("ID-2", driver.hit(prompt), 1, f"blocks of {prompt} that it hits itself")
        driver.release(ctx)


@check("ID-2", "ID-5", "ID-6", needs=("prefix",))
def a_digest_is_over_what_the_rule_says(bench: Bench) -> None:
    """Tokens, overrides in their order, and adapter: the digests of the rule hit what these did."""
    driver, size = bench.driver(), bench.size
    options: dict[str, Any] = {
        "adapter": "adapter 7",
        "token_hash_overrides": [
            TokenHashOverride(size, 9, "video"),
            TokenHashOverride(0, -(10**20), "media"),
            TokenHashOverride(size, 10, "audio"),
            TokenHashOverride(size, 10, "video"),
        ],
        "images": [ImageMetadata(0, 1, image_hash=77)],
    }
    tokens = [*bench.prompt(2)]
    driver.serve(tokens, **options)
    pages: list[list[tuple[int, int, str]]] = [
        [(0, 77, "image"), (0, -(10**20), "media")],
        [(0, 10, "audio"), (0, 9, "video"), (0, 10, "video")],
    ]
    algorithm = driver.setup.hash_algorithm
    digests = [root_digest(algorithm, None, None)]
    for n, overrides in enumerate(pages):
        own = driver.request(tokens).tokens.all[n * size : (n + 1) * size]
        digests.append(page_digest(algorithm, digests[-1], own, overrides, "adapter 7"))
    hits = driver.hit(tokens, given_digests=digests[1:], **options)
    expect("ID-2", hits, 2, "blocks that are hit by the digests of the rule")


@check("ID-3", needs=("prefix",))
def nothing_else_enters_an_identity(bench: Bench) -> None:
    """Request id, longest length, prompt length, order and company make no difference."""
    driver = bench.driver()
    driver.hold(bench.prompt(2), request_id="one", model_name="one")
    expect("ID-3", driver.hit(bench.prompt(2), request_id="two", model_name="two"), 2, "blocks hit")
    expect("ID-3", driver.hit(bench.prompt(5)), 2, "blocks that a longer prompt hits")
    company = driver.admit(bench.prompt(1, 50))
    expect("ID-3", driver.hit(bench.prompt(2), preempted=True), 2, "blocks hit beside others")
    driver.forward(company)


@check("ID-3", "ID-9", needs=("prefix",))
def seed_and_salt_are_the_root(bench: Bench) -> None:
    """The root is the hash of the seed and the salt, each of which may be absent."""
    for seed, salt in product((None, bytes(range(32))), (None, "", "tenant ü")):
        driver = bench.driver(hash_seed=seed)
        driver.serve(bench.prompt(2), cache_salt=salt)
        digests = _digests(driver, bench.prompt(2), cache_salt=salt)
        hits = driver.hit(bench.prompt(2), cache_salt=salt, given_digests=digests)
        expect("ID-3", hits, 2, f"blocks that are hit by their digests, salt {salt!r}")


@check("ID-3", needs=("transfers", "host"))
def equal_managers_give_equal_identities(bench: Bench) -> None:
    """Two managers of one setup name the same blocks alike."""
    seen = []
    for _ in range(2):
        driver = bench.with_chain_below(2)
        driver.begin(driver.claim(driver.request(bench.prompt(2))))
        seen.append([key for transfer in driver.in_flight() for key in transfer.keys])
    expect("ID-3", seen[1], seen[0], "keys of the same blocks")


@check("ID-8", needs=("prefix",))
def equal_pages_after_different_prefixes_differ(bench: Bench) -> None:
    """A page is hit only after all the pages before it, wherever its tokens occur."""
    driver, size = bench.driver(total_num_pages=16), bench.size
    a, b, c = ([*bench.prompt(1, start, more=0)] for start in (0, 10, 20))
    driver.hold([*a, *b, *c])
    driver.hold([*b, *a])
    for tokens, hits in (
        ([*b, *c], 1),
        ([*c], 0),
        ([*a, *c], 1),
        ([*b, *a, *c], 2),
        ([*a, *b, *c], 3),
        ([*a, *a], 1),
    ):
        expect("ID-8", driver.hit([*tokens, 0]), hits, f"blocks of pages of {size} tokens {tokens}")


@check("ID-8", needs=("prefix",))
def every_page_of_a_long_prompt_knows_its_first_token(bench: Bench) -> None:
    """Two long prompts that differ in nothing but their first token share no page."""
    pages = 70
    driver = bench.driver(total_num_pages=2 * pages + 4)
    prompts = [[first, *bench.prompt(pages)[1:]] for first in (8_000, 9_000)]
    live = [driver.hold(tokens) for tokens in prompts]
    shared = {*driver.pages(live[0])} & {*driver.pages(live[1])}
    expect("ID-8", shared, set(), "pages that both requests hold")
    for tokens in prompts:
        expect("ID-8", driver.hit(tokens), pages, "blocks that are hit, which are checked by byte")


@check("ID-8", needs=("prefix",))
def a_monotonous_prompt_has_different_pages(bench: Bench) -> None:
    """Pages of equal tokens in one request are different blocks on different pages."""
    driver, size = bench.driver(), bench.size
    ctx = driver.admit([7] * (3 * size))
    driver.forward(ctx, token=7)
    driver.alloc(ctx)
    pages = driver.pages(ctx)
    expect("ID-8", len(set(pages)), 4, "different pages of a request of equal tokens")
    driver.forward(ctx, token=7)
    for length in (size, 2 * size, 3 * size):
        hits = driver.hit([7] * (length + 1))
        expect("ID-8", hits, length // size, f"blocks that {length} equal tokens hit")


@check("ID-9", needs=("prefix",))
def given_digests_are_used_as_they_are(bench: Bench) -> None:
    """Pages are known by the digests that were brought, and by no hash of their tokens."""
    driver = bench.driver()
    mine = [b"first".ljust(32), b"second".ljust(32)]
    driver.hold(bench.prompt(2), given_digests=mine)
    expect("ID-9", driver.hit(bench.prompt(2)), 0, "blocks hit by their tokens")
    expect("ID-9", driver.hit(bench.prompt(2), given_digests=mine), 2, "blocks hit by digests")
    half = [mine[0], bytes(32)]
    expect("ID-9", driver.hit(bench.prompt(2), given_digests=half), 1, "blocks hit by one digest")


@check("ID-9", needs=("prefix",))
def digests_and_tokens_find_each_other(bench: Bench) -> None:
    """What was committed by digests is hit by tokens, if they are the digests of ID-2."""
    driver = bench.driver()
    driver.serve(bench.prompt(2), given_digests=_digests(driver, bench.prompt(2)))
    expect("ID-9", driver.hit(bench.prompt(2)), 2, "blocks hit by their tokens")


@check("ID-9", needs=("prefix",))
def too_few_digests_are_refused(bench: Bench) -> None:
    """A request that brings digests brings one for every page that is looked up."""
    driver = bench.driver()
    driver.serve(bench.prompt(3))
    for count in (0, 2):
        digests = _digests(driver, bench.prompt(3))[:count]
        ctx = driver.claim(driver.request(bench.prompt(3), given_digests=digests))
        driver.refused("ID-9", ValueError, "alloc", ctx, 0)
    exact = bench.prompt(3, more=0)
    ctx = driver.admit(exact, given_digests=_digests(driver, exact)[:2])
    expect("ID-9", ctx.tokens.processed_length, 2 * bench.size, "tokens of a full hit")


@check("ID-9", "STEP-1", needs=("prefix",))
def a_page_without_a_digest_is_not_committed(bench: Bench) -> None:
    """A step that lacks a digest is refused and commits nothing; with the digest it succeeds."""
    driver = bench.driver()
    digests = _digests(driver, bench.prompt(2))
    ctx = _with_digests(driver, bench, digests[:1])
    other = driver.admit(bench.prompt(1, 50))
    driver.compute(ctx, other)
    driver.update(ctx)
    driver.update(other)
    driver.refused("ID-9", ValueError, "step", [[other, ctx]])
    expect("ID-9", driver.hit(bench.prompt(1, 50)), 0, "blocks committed by a refused step")
    ctx.given_digests = digests
    driver.step(other, ctx)
    expect("ID-9", driver.hit(bench.prompt(2)), 2, "blocks committed with all digests")
