"""What identifies a page, byte for byte.

`traces/data/golden_identities.json` has examples for programs in any language. They were computed
by :func:`keys_by_the_book`, which follows the text of the rules and shares no code with the
manager. `python -m tests.reference.test_identity` adds new ones; those that are there never change.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st
from tests.reference.conftest import Making, Recorder

from pagedkv.reference import (
    HashAlgorithm,
    ImageMetadata,
    TokenHashOverride,
    page_digests,
    page_key,
)
from pagedkv.reference.events import Stepped
from pagedkv.traces.events.shipped import GOLDEN_IDENTITIES

HASHES: dict[HashAlgorithm, Callable[[bytes], bytes]] = {
    "sha256": lambda data: hashlib.sha256(data).digest(),
    "sha256_64": lambda data: hashlib.sha256(data).digest(),
    "xxh3_128": lambda data: xxhash.xxh3_128_intdigest(data).to_bytes(16, "big"),
}


@dataclass(frozen=True)
class Identified:
    """A request, as far as the identity of its pages depends on it."""

    algorithm: HashAlgorithm = "sha256"
    page_size: int = 4
    tokens: tuple[int, ...] = (1, 2, 3, 4, 5, 6, 7, 8)
    seed: bytes | None = None
    salt: str | None = None
    overrides: tuple[tuple[int, int, str], ...] = ()
    """``(position, hash, source)``."""
    adapter: str | None = None

    def context_options(self) -> dict[str, Any]:
        """Arguments of ``make.context``; their types are those of its fields."""
        return {
            "cache_salt": self.salt,
            "adapter": self.adapter,
            "token_hash_overrides": [TokenHashOverride(*o) for o in self.overrides],
        }


def u32(number: int) -> bytes:
    return number.to_bytes(4, "little")


def sized(data: bytes) -> bytes:
    return u32(len(data)) + data


def optional(data: bytes | None) -> bytes:
    return b"\0" if data is None else b"\1" + sized(data)


def keys_by_the_book(request: Identified) -> list[bytes]:
    """The keys of all full pages, as the rules ID-1 to ID-6 describe them."""
    hashed, size = HASHES[request.algorithm], request.page_size
    salt, adapter = (
        None if text is None else text.encode() for text in (request.salt, request.adapter)
    )
    digest = hashed(b"pagedkv root 1" + optional(request.seed) + optional(salt))
    keys: list[bytes] = []
    for start in range(0, len(request.tokens) // size * size, size):
        overrides = sorted(
            (position - start, source, number)
            for position, number, source in request.overrides
            if position in range(start, start + size)
        )
        page = b"pagedkv page 1" + digest + u32(size)
        for token in request.tokens[start : start + size]:
            page += token.to_bytes(8, "little", signed=True)
        page += u32(len(overrides))
        for offset, source, number in overrides:
            page += u32(offset) + sized(str(number).encode()) + sized(source.encode())
        digest = hashed(page + optional(adapter))
        keys.append(digest[:8] if request.algorithm == "sha256_64" else digest)
    return keys


SEED = bytes(range(32))
REQUESTS = {
    "plain": Identified(),
    "less than two pages": Identified(tokens=(1, 2, 3, 4, 5, 6, 7)),
    "one token a page": Identified(page_size=1, tokens=(0, -1, 2**40)),
    "seed": Identified(seed=SEED),
    "salt": Identified(salt="tenant ü"),
    "empty salt": Identified(salt=""),
    "adapter": Identified(adapter="adapter-7 at revision 3"),
    "image": Identified(overrides=((5, 77, "image"),)),
    "overrides": Identified(
        overrides=((6, 9, "video"), (1, -(10**20), "media"), (6, 8, "video"), (6, 10, "audio"))
    ),
    "everything": Identified(
        page_size=3,
        tokens=tuple(range(100, 110)),
        seed=SEED,
        salt="a",
        overrides=((0, 1, "image"), (3, 0, "audio")),
        adapter="b",
    ),
}
VECTORS = {
    f"{name}, {algorithm}": replace(request, algorithm=algorithm)
    for name, request in REQUESTS.items()
    for algorithm in HASHES
}


def golden_text() -> str:
    """The file: one vector a line, with bytes as hex and hashes as decimal text."""
    lines: list[str] = []
    for name, request in VECTORS.items():
        vector = asdict(request) | {
            "seed": request.seed and request.seed.hex(),
            "overrides": [[p, str(number), source] for p, number, source in request.overrides],
            "keys": [key.hex() for key in keys_by_the_book(request)],
        }
        lines.append(f"{json.dumps(name)}: {json.dumps(vector)}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


@pytest.mark.rule("ID-1", "ID-2", "ID-3", "ID-5", "ID-6")
def test_the_golden_identities_are_those_of_the_book() -> None:
    assert GOLDEN_IDENTITIES.read_text(encoding="utf-8") == golden_text()


@pytest.mark.rule("ID-1", "ID-2", "ID-3", "ID-5", "ID-6")
@pytest.mark.parametrize("name", VECTORS)
def test_a_manager_commits_the_golden_identities(
    make: Making, recorder: Recorder, name: str
) -> None:
    vector = json.loads(GOLDEN_IDENTITIES.read_text(encoding="utf-8"))[name]
    seed = vector["seed"] and bytes.fromhex(vector["seed"])
    params = make.params(
        page_size=vector["page_size"], kv_hash_algo=vector["algorithm"], kv_hash_seed=seed
    )
    make.serve(
        make.manager(params, tracer=recorder),
        vector["tokens"],
        cache_salt=vector["salt"],
        adapter=vector["adapter"],
        token_hash_overrides=[
            TokenHashOverride(position, int(number), source)
            for position, number, source in vector["overrides"]
        ],
    )
    (stepped,) = recorder.of_kind(Stepped)
    assert [key.hex() for key in stepped.context.keys] == vector["keys"]


identified = st.builds(
    Identified,
    algorithm=st.sampled_from(list(HASHES)),
    page_size=st.integers(1, 5),
    tokens=st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=12).map(tuple),
    seed=st.none() | st.binary(min_size=32, max_size=32),
    salt=st.none() | st.text(max_size=3),
    overrides=st.lists(
        st.tuples(st.integers(0, 11), st.integers(), st.text(max_size=3)), max_size=4
    ).map(tuple),
    adapter=st.none() | st.text(max_size=3),
).map(lambda r: replace(r, overrides=tuple(o for o in r.overrides if o[0] < len(r.tokens))))


@pytest.mark.rule("ID-1", "ID-2", "ID-3", "ID-5", "ID-6")
@given(identified, st.integers(0, 3))
def test_identities_follow_the_book(request: Identified, known: int) -> None:
    ctx = Making().context(request.tokens, **request.context_options())
    count = len(request.tokens) // request.page_size

    def digests(count: int, known: list[bytes]) -> list[bytes]:
        return page_digests(
            ctx,
            count=count,
            page_size=request.page_size,
            algorithm=request.algorithm,
            seed=request.seed,
            known=known,
        )

    found = digests(count, known=digests(min(known, count), known=[]))
    assert [page_key(digest, request.algorithm) for digest in found] == keys_by_the_book(request)


@pytest.mark.rule("ID-1")
def test_sha256_is_the_default(make: Making) -> None:
    assert make.params().kv_hash_algo == "sha256"


@pytest.mark.rule("ID-3")
def test_neither_the_model_nor_the_request_enters_an_identity(
    make: Making, recorder: Recorder
) -> None:
    small = make.manager(tracer=recorder)
    large = make.manager(
        make.params(replicas=2, num_layers=3, head_dim=8), pages=20, tracer=recorder
    )
    make.serve(small, range(8), request_id="a", model_name="one")
    make.serve(large, range(8), replica=1, request_id="b", model_name="another")
    first, second = recorder.of_kind(Stepped)
    assert first.context.keys == second.context.keys


@pytest.mark.rule("ID-4")
@pytest.mark.parametrize("mine", [None, "", "a"])
@pytest.mark.parametrize("yours", [None, "", "a", "b"])
def test_only_equal_salts_share(make: Making, mine: str | None, yours: str | None) -> None:
    manager = make.manager()
    make.serve(manager, range(9), cache_salt=mine)
    hits = make.hits(manager, range(9), cache_salt=yours)
    assert hits.total_blocks == (2 if mine == yours else 0)


@pytest.mark.rule("ID-5")
def test_pages_behind_equal_placeholders_differ_by_what_they_stand_for(make: Making) -> None:
    manager = make.manager()
    prompt = [0, 1, 2, 3, *[-1] * 4, 8]

    def image(image_hash: int) -> list[ImageMetadata]:
        return [ImageMetadata(4, 8, image_hash=image_hash)]

    make.serve(manager, prompt, images=image(7))
    assert make.hits(manager, prompt, images=image(7)).total_blocks == 2
    assert make.hits(manager, prompt, images=image(8)).total_blocks == 1
    assert make.hits(manager, prompt).total_blocks == 1


@pytest.mark.rule("ID-5")
def test_an_image_is_an_override_at_its_first_position(make: Making) -> None:
    manager = make.manager()
    make.serve(manager, range(13), images=[ImageMetadata(2, 11, image_hash=7)])
    same = [TokenHashOverride(2, 7, "image")]
    assert make.hits(manager, range(13), token_hash_overrides=same).total_blocks == 3


@pytest.mark.rule("ID-5")
def test_an_image_needs_a_hash_where_prefixes_are_cached(make: Making) -> None:
    anonymous = [ImageMetadata(2, 4)]
    with pytest.raises(ValueError, match="image at token 2 has no image_hash"):
        make.admit(make.manager(), range(9), images=anonymous)
    make.admit(make.manager(make.params(enable_prefix_caching=False)), range(9), images=anonymous)


@pytest.mark.rule("ID-6")
def test_pages_of_another_adapter_are_not_hit(make: Making) -> None:
    manager = make.manager()
    make.serve(manager, range(9), adapter="a")
    found = {a: make.hits(manager, range(9), adapter=a).total_blocks for a in (None, "", "a", "b")}
    assert found == {None: 0, "": 0, "a": 2, "b": 0}


@pytest.mark.rule("ID-7", "ALLOC-5")
@given(st.integers(1, 20), st.integers(1, 5))
def test_at_least_one_token_of_a_repeated_prompt_is_computed(length: int, page_size: int) -> None:
    make = Making()
    manager = make.manager(make.params(page_size=page_size), pages=50)
    make.serve(manager, range(length))
    ctx = make.admit(manager, range(length))
    assert ctx.processed_length == (length - 1) // page_size * page_size < length


@pytest.mark.rule("ID-7", "STEP-2", "LEN-2")
def test_a_page_is_identified_once_its_placeholders_are_known(make: Making) -> None:
    manager = make.manager()
    ctx = make.admit(manager, range(3))
    for _ in range(2):
        ctx.update_with_future_token(max_pending_futures=2)
        manager.alloc(ctx, 0)
    manager.step([[ctx]])
    assert ctx.processed_length == 4
    assert manager.get_metrics_aggregated().input_tokens == 4
    assert make.hits(manager, range(5)).total_blocks == 0
    ctx.realize_future_token(3)
    manager.step([[ctx]])
    assert make.hits(manager, range(5)).total_blocks == 1


@pytest.mark.rule("ID-8")
def test_equal_pages_after_different_prefixes_differ(make: Making) -> None:
    manager = make.manager()
    make.serve(manager, [*range(4), *range(50, 54)])
    make.serve(manager, range(4, 8))
    assert make.hits(manager, [*range(4, 8), *range(50, 55)]).total_blocks == 1
    assert make.hits(manager, range(50, 55)).total_blocks == 0


@pytest.mark.rule("ID-9")
def test_digests_that_a_context_brings_stand_in_for_its_tokens(make: Making) -> None:
    manager = make.manager()
    make.serve(manager, range(12), given_digests=[b"one", b"two", b"three"])
    assert make.hits(manager, range(12)).total_blocks == 0
    assert (
        make.hits(manager, range(50, 62), given_digests=[b"one", b"two", b"other"]).total_blocks
        == 2
    )


@pytest.mark.rule("ID-9", "ALLOC-2")
def test_bringing_too_few_digests_is_an_error(make: Making) -> None:
    manager = make.manager()
    with pytest.raises(ValueError, match="brings 1 digests, 2 are needed"):
        make.admit(manager, range(12), given_digests=[b"one"])


@pytest.mark.rule("ID-5")
@pytest.mark.parametrize("length", [1, 3])
def test_an_image_without_a_hash_is_refused_however_short_the_prompt(
    make: Making, length: int
) -> None:
    manager = make.manager()
    with pytest.raises(ValueError, match="image_hash"):
        make.admit(manager, range(length), images=[ImageMetadata(0, 1)])


if __name__ == "__main__":
    GOLDEN_IDENTITIES.write_text(golden_text(), encoding="utf-8")
