"""ID: what identifies a page. Only what has the same identity is shared."""

from collections.abc import Iterable
from itertools import product
from typing import Any

from pagedkv.conformance.bench import Bench
from pagedkv.conformance.check import check
from pagedkv.conformance.driver import Driver
from pagedkv.conformance.violation import demand, expect
from pagedkv.reference.context import FUTURE_TOKEN, ImageMetadata, TextContext
from pagedkv.reference.events import Stepped
from pagedkv.reference.identity import page_digest, page_key, root_digest
from pagedkv.reference.params import HashAlgorithm
from pagedkv.reference.tokens import TokenHashOverride

# Any, below: options of contexts and of setups, which check them.

ALGORITHMS: tuple[HashAlgorithm, ...] = ("sha256", "sha256_64", "xxh3_128")


def _digests(driver: Driver, tokens: Iterable[int], **options: Any) -> list[bytes]:
    """Digests of the full pages of a prompt, as ID-2 has them."""
    ctx = driver.request(tokens, **options)
    return driver.model.digests(ctx, len(ctx.tokens) // driver.setup.page_size)


def _decoded(driver: Driver, prompt: Iterable[int], count: int, **options: Any) -> list[int]:
    """Serve a prompt with ``count`` forwards; all its tokens in the end."""
    ctx = driver.admit(prompt, **options)
    for n in range(count):
        driver.alloc(ctx)
        driver.forward(ctx, token=500 + n)
    driver.release(ctx)
    tokens: list[int] = ctx.tokens.all.tolist()
    return tokens


@check("ID-1", "ID-9", needs=("prefix",))
def each_algorithm_is_its_hash(bench: Bench) -> None:
    """Pages that were committed by their tokens are hit by the digests of the named hash."""
    for algorithm in ALGORITHMS:
        driver = bench.driver(hash_algorithm=algorithm)
        driver.serve(bench.prompt(3))
        digests = _digests(driver, bench.prompt(3))
        hits = driver.hit(bench.prompt(3), given_digests=digests)
        expect("ID-1", hits, 3, f"blocks that are hit by their {algorithm} digests")


@check("ID-1", needs=("transfers", "host"))
def a_block_below_goes_by_the_key_of_its_algorithm(bench: Bench) -> None:
    """Transfers name blocks by their keys: the digest, or 8 bytes of it for ``sha256_64``."""
    for algorithm in ALGORITHMS:
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
    for algorithm, seed in product(ALGORITHMS, (None, bytes(range(32)))):
        driver, recording = bench.recorded(hash_algorithm=algorithm, hash_seed=seed)
        driver.serve(bench.prompt(3), **options)
        [stepped] = [event for event in recording if isinstance(event, Stepped)]
        digests = _digests(driver, bench.prompt(3), **options)
        keys = tuple(page_key(digest, algorithm) for digest in digests)
        expect("ID-1", stepped.context.keys, keys, f"keys under {algorithm}, seed {seed!r}")


@check("ID-1", "ID-2", needs=("prefix",))
def a_page_has_one_identity_however_it_was_filled(bench: Bench) -> None:
    """Pages filled by decoding, in chunks or at once have the same identity, in every algorithm."""
    for algorithm in ALGORITHMS:
        driver = bench.driver(hash_algorithm=algorithm)
        tokens = _decoded(driver, bench.prompt(3, more=-1), 2)
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
    digests = [root_digest("sha256", None, None)]
    for n, overrides in enumerate(pages):
        own = driver.request(tokens).tokens.all[n * size : (n + 1) * size]
        digests.append(page_digest("sha256", digests[-1], own, overrides, "adapter 7"))
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
        tokens = _decoded(driver, bench.prompt(2, more=-1), 2, **tenant)
        driver.hold(tokens, **tenant)
        for other in tenants:
            hits = 2 if tenants.index(other) <= tenants.index(tenant) else 0
            expect("ID-4", driver.hit(tokens, **other), hits, f"blocks that {other} hits")


@check("ID-5", needs=("prefix",))
def what_a_placeholder_stands_for_counts(bench: Bench) -> None:
    """Equal tokens that stand for other content share only the pages before it."""
    driver, size = bench.driver(total_num_pages=16), bench.size
    prompt = [*bench.prompt(3)]
    original = TokenHashOverride(size + size // 2, 5, "image")
    driver.serve(prompt, token_hash_overrides=[original])
    expect("ID-5", driver.hit(prompt, token_hash_overrides=[original]), 3, "blocks of the same")
    others = {
        "none": [],
        "another hash": [TokenHashOverride(original.token_idx, 6, "image")],
        "the hash negated": [TokenHashOverride(original.token_idx, -5, "image")],
        "a longer hash": [TokenHashOverride(original.token_idx, 5 + 2**64, "image")],
        "another source": [TokenHashOverride(original.token_idx, 5, "audio")],
        "one more": [original, TokenHashOverride(2 * size - 1, 5, "image")],
    }
    for what, overrides in others.items():
        hits = driver.hit(prompt, token_hash_overrides=overrides)
        expect("ID-5", hits, 1, f"blocks that are hit with {what}")


@check("ID-5", needs=("prefix",))
def where_content_stands_counts(bench: Bench) -> None:
    """The same content at another position of the page, or in another page, is another page."""
    driver, size = bench.driver(total_num_pages=16), bench.size
    prompt = [7] * (3 * size + 1)
    for place in sorted({0, size - 1, size, 2 * size, 3 * size - 1}):
        overrides = [TokenHashOverride(place, 5)]
        hits = driver.hit(prompt, token_hash_overrides=overrides)
        demand("ID-5", hits <= place // size, f"{hits} blocks are hit with content at {place}")
        driver.serve(prompt, token_hash_overrides=overrides)
        expect("ID-5", driver.hit(prompt, token_hash_overrides=overrides), 3, "blocks of the same")
    expect("ID-5", driver.hit(prompt), 2, "blocks hit without any content")


@check("ID-5", needs=("prefix",))
def the_parts_of_content_are_told_apart(bench: Bench) -> None:
    """What ends in one part and begins in the next is other content, however it reads in a row."""
    driver, size = bench.driver(), bench.size
    first, last = 0, size - 1
    for one, other in (
        ([TokenHashOverride(first, 12, "3")], [TokenHashOverride(first, 1, "23")]),
        ([TokenHashOverride(first, 1, "a")], [TokenHashOverride(first, 1, "")]),
        (
            [TokenHashOverride(first, 1, "a"), TokenHashOverride(last, 2, "b")],
            [TokenHashOverride(first, 2, "b"), TokenHashOverride(last, 1, "a")],
        ),
    ):
        ctx = driver.hold(bench.prompt(1), token_hash_overrides=one)
        hits = driver.hit(bench.prompt(1), token_hash_overrides=other)
        expect("ID-5", hits, 0, f"blocks of {one} that {other} hits")
        driver.release(ctx)


@check("ID-5", needs=("prefix",))
def content_beyond_the_full_pages_does_not_matter(bench: Bench) -> None:
    """Content in the page that is not full leaves the full pages as they are."""
    driver, size = bench.driver(), bench.size
    driver.serve(bench.prompt(2))
    overrides = [TokenHashOverride(2 * size, 5)]
    hits = driver.hit(bench.prompt(2), token_hash_overrides=overrides)
    expect("ID-5", hits, 2, "blocks before the content")


@check("ID-5", needs=("prefix",))
def overrides_have_one_order(bench: Bench) -> None:
    """In which order a request lists its content does not matter; what stands where does."""
    driver, size = bench.driver(), bench.size
    first, last = 0, size - 1
    a = [TokenHashOverride(first, 9, "b"), TokenHashOverride(first, 10, "b")]
    b = [TokenHashOverride(first, 10, "a"), TokenHashOverride(last, 1, "a")]
    driver.serve(bench.prompt(2), token_hash_overrides=a + b)
    hits = driver.hit(bench.prompt(2), token_hash_overrides=b[::-1] + a[::-1])
    expect("ID-5", hits, 2, "blocks that are hit by the same content in another order")


@check("ID-5", needs=("prefix",))
def an_image_is_content_at_its_first_position(bench: Bench) -> None:
    """An image counts as an override with source ``image`` where it begins, and nowhere else."""
    driver, size = bench.driver(total_num_pages=16), bench.size
    prompt = [*bench.prompt(1), *[9] * (2 * size)]
    image = ImageMetadata(size, 2 * size + 1, image_hash=5)
    driver.serve(prompt, images=[image])
    expect("ID-5", driver.hit(prompt, images=[image]), 3, "blocks of the same image")
    same = [TokenHashOverride(size, 5, "image")]
    expect("ID-5", driver.hit(prompt, token_hash_overrides=same), 3, "blocks of the same override")
    shorter = ImageMetadata(size, size + 1, image_hash=5)
    expect("ID-5", driver.hit(prompt, images=[shorter]), 3, "blocks, wherever the image ends")
    other = ImageMetadata(size, 2 * size + 1, image_hash=6)
    expect("ID-5", driver.hit(prompt, images=[other]), 1, "blocks before another image")
    expect("ID-5", driver.hit(prompt), 1, "blocks before the image, without it")


@check("ID-5", needs=("prefix",))
def images_in_a_decoded_request_count(bench: Bench) -> None:
    """Pages decoded after an image are hit after the same image only."""
    driver = bench.driver(total_num_pages=16)
    for page in (0, 1):
        start = page * bench.size
        images, other = ([ImageMetadata(start, start + 1, image_hash=n)] for n in (5, 6))
        tokens = _decoded(driver, bench.prompt(2, 9 * page, more=-1), 2, images=images)
        expect("ID-5", driver.hit(tokens, images=images), 2, "blocks hit after the same image")
        expect("ID-5", driver.hit(tokens, images=other), page, "blocks hit after another image")
        expect("ID-5", driver.hit(tokens), page, "blocks hit without an image")


@check("ID-5", needs=("prefix",))
def an_image_without_a_hash_is_refused(bench: Bench) -> None:
    """With prefix caching on, an image needs a hash, also in a prompt that fills no page."""
    driver = bench.driver()
    for tokens in (bench.prompt(2), range(2)):
        ctx = driver.claim(driver.request(tokens, images=[ImageMetadata(0, 1)]))
        driver.refused("ID-5", ValueError, "alloc", ctx, 0)


@check("ID-5")
def without_a_cache_an_image_needs_no_hash(bench: Bench) -> None:
    """With prefix caching off, nobody asks for the hash of an image."""
    driver = bench.driver(enable_prefix_caching=False)
    ctx = driver.admit(bench.prompt(2), images=[ImageMetadata(0, 1)])
    driver.update(ctx)
    driver.step(ctx)


@check("ID-6", needs=("prefix",))
def new_weights_under_a_new_identity_share_nothing(bench: Bench) -> None:
    """An adapter that was loaded anew, and says so, hits nothing of its former weights."""
    driver = bench.driver()
    driver.hold(bench.prompt(2), adapter="sql, revision 1")
    expect("ID-6", driver.hit(bench.prompt(2), adapter="sql, revision 2"), 0, "blocks hit")
    expect("ID-6", driver.hit(bench.prompt(2), adapter="sql, revision 1"), 2, "blocks hit")


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


def _with_digests(driver: Driver, bench: Bench, digests: list[bytes]) -> TextContext:
    """A request of exactly two pages, of which only the first is looked up."""
    ctx = driver.request(bench.prompt(2, more=0), given_digests=digests)
    driver.claim(ctx)
    driver.alloc(ctx)
    return ctx


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
