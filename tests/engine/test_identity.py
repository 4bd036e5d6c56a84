"""The engine's identities are those of the specification, to the byte."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pagedkv.engine.identity import PageHasher
from pagedkv.reference import ImageMetadata, TextContext, TokenBuffer, TokenHashOverride
from pagedkv.reference.identity import page_digests, page_key
from pagedkv.reference.params import HashAlgorithm

ALGORITHMS: tuple[HashAlgorithm, ...] = ("sha256", "sha256_64", "xxh3_128")
OVERRIDES = st.lists(
    st.builds(
        TokenHashOverride,
        token_idx=st.integers(0, 19),
        token_hash=st.integers(-(2**70), 2**70),
        source=st.sampled_from(("media", "audio", "")),
    ),
    max_size=4,
    unique_by=lambda o: (o.token_idx, o.source),
)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@given(
    tokens=st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=40),
    page_size=st.integers(1, 7),
    known=st.integers(0, 3),
    salt=st.none() | st.text(max_size=3),
    adapter=st.none() | st.text(max_size=3),
    seed=st.none() | st.binary(min_size=32, max_size=32),
    overrides=OVERRIDES,
    image=st.booleans(),
)
def test_digests_are_those_of_the_specification(
    algorithm: HashAlgorithm,
    tokens: list[int],
    page_size: int,
    known: int,
    salt: str | None,
    adapter: str | None,
    seed: bytes | None,
    overrides: list[TokenHashOverride],
    image: bool,
) -> None:
    ctx = TextContext(
        max_length=1000,
        tokens=TokenBuffer(np.array(tokens, dtype=np.int64)),
        cache_salt=salt,
        adapter=adapter,
        token_hash_overrides=[o for o in overrides if o.token_idx < len(tokens)],
        images=[ImageMetadata(0, 1, image_hash=5)] if image else [],
    )
    count = len(tokens) // page_size
    expected = page_digests(ctx, count=count, page_size=page_size, algorithm=algorithm, seed=seed)
    hasher = PageHasher(page_size, algorithm, seed)
    digests: list[bytes] = []
    hasher.extend(ctx, digests, min(known, count))
    hasher.extend(ctx, digests, count)
    assert digests == expected
    assert hasher.keys(digests) == [page_key(digest, algorithm) for digest in expected]


@given(given=st.lists(st.binary(min_size=32, max_size=32), max_size=6), data=st.data())
def test_digests_that_a_request_brings_are_its_digests(
    given: list[bytes], data: st.DataObject
) -> None:
    tokens = TokenBuffer(np.arange(4 * len(given) + 1, dtype=np.int64))
    ctx = TextContext(max_length=1000, tokens=tokens, given_digests=given)
    digests: list[bytes] = []
    for count in sorted(data.draw(st.lists(st.integers(0, len(given))))):
        PageHasher(4, "sha256", None).extend(ctx, digests, count)
        assert digests == page_digests(
            ctx, count=count, page_size=4, algorithm="sha256", seed=None, known=digests
        )
