"""ID-5: what stands behind placeholder tokens."""

from pagedkv.conformance.bench import Bench
from pagedkv.conformance.check import check
from pagedkv.conformance.checks.identity.decoded import decoded
from pagedkv.conformance.violation import demand, expect
from pagedkv.reference.context import ImageMetadata
from pagedkv.reference.tokens import TokenHashOverride


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
        tokens = decoded(driver, bench.prompt(2, 9 * page, more=-1), 2, images=images)
        expect("ID-5", driver.hit(tokens, images=images), 2, "blocks hit after the same image")
        expect("ID-5", driver.hit(tokens, images=other), page, "blocks hit after another image")
        expect("ID-5", driver.hit(tokens), page, "blocks hit without an image")


@check("ID-5", needs=("prefix",))
def an_image_without_a_hash_is_refused(bench: Bench) -> None:
    """With prefix caching on, an image needs a hash, also in a prompt of one token."""
    driver = bench.driver()
    for tokens in (bench.prompt(2), range(2), range(1)):
        ctx = driver.claim(driver.request(tokens, images=[ImageMetadata(0, 1)]))
        driver.refused("ID-5", ValueError, "alloc", ctx, 0)


@check("ID-5")
def without_a_cache_an_image_needs_no_hash(bench: Bench) -> None:
    """With prefix caching off, nobody asks for the hash of an image."""
    driver = bench.driver(enable_prefix_caching=False)
    ctx = driver.admit(bench.prompt(2), images=[ImageMetadata(0, 1)])
    driver.update(ctx)
    driver.step(ctx)
