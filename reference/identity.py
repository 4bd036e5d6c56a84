"""Identity of a full page: a hash chained over everything its KV depends on.

Rules ID-1 to ID-8. The byte strings that are hashed are part of the specification, so that
programs in other languages get the same identities.
"""

import hashlib
import struct
from collections.abc import Callable, Sequence

import xxhash

from pagedkv.reference.context import Context
from pagedkv.reference.params import HashAlgorithm
from pagedkv.reference.tokens import TokenArray, TokenHashOverride

PageKey = bytes
"""Identity of one page: 32 bytes (sha256), 16 (xxh3_128) or 8 (sha256_64)."""

ROOT_TAG = b"pagedkv root 1"
PAGE_TAG = b"pagedkv page 1"


def digest_function(algorithm: HashAlgorithm) -> Callable[[bytes], bytes]:
    """The hash behind an algorithm's name (ID-1).

    ``sha256_64`` chains on the full digest too; only its keys are short.
    """
    if algorithm == "xxh3_128":
        return xxhash.xxh3_128_digest
    return lambda data: hashlib.sha256(data).digest()


def page_key(digest: bytes, algorithm: HashAlgorithm) -> PageKey:
    """The key under which a page with this digest is found (ID-1)."""
    return digest[:8] if algorithm == "sha256_64" else digest


def root_digest(algorithm: HashAlgorithm, seed: bytes | None, salt: str | None) -> bytes:
    """The digest that the first page of a request chains on (ID-3, ID-4)."""
    return digest_function(algorithm)(
        ROOT_TAG + _optional(seed) + _optional(None if salt is None else salt.encode())
    )


def page_digest(
    algorithm: HashAlgorithm,
    parent: bytes,
    tokens: TokenArray,
    overrides: Sequence[tuple[int, int, str]] = (),
    adapter: str | None = None,
) -> bytes:
    """The digest of one full page (ID-2, ID-5, ID-6).

    Args:
        algorithm: The hash.
        parent: Digest of the page before it, or of the root.
        tokens: The page's tokens, ``[page_size]`` int64.
        overrides: ``(offset in page, hash, source)`` of content behind placeholder tokens.
        adapter: Identity of the adapter's weights.
    """
    parts = [PAGE_TAG, parent, struct.pack("<I", len(tokens)), tokens.astype("<i8").tobytes()]
    parts.append(struct.pack("<I", len(overrides)))
    for offset, value, source in sorted(overrides, key=lambda o: (o[0], o[2], o[1])):
        parts += [struct.pack("<I", offset), _sized(str(value).encode()), _sized(source.encode())]
    parts.append(_optional(None if adapter is None else adapter.encode()))
    return digest_function(algorithm)(b"".join(parts))


def page_digests(
    ctx: Context,
    *,
    count: int,
    page_size: int,
    algorithm: HashAlgorithm,
    seed: bytes | None,
    known: Sequence[bytes] = (),
) -> list[bytes]:
    """Digests of the first ``count`` pages of a request, each over the one before it (ID-8).

    The ``known`` leading ones are not computed again, and none of those that the context brings.

    Raises:
        ValueError: The context brings digests, but fewer than ``count`` (ID-9).
    """
    if ctx.given_digests is not None:
        if len(ctx.given_digests) < count:
            raise ValueError(
                f"request {ctx.request_id!r} brings {len(ctx.given_digests)} digests, {count} are "
                "needed: given_digests has one for every full page, or is None"
            )
        return list(ctx.given_digests[:count])
    digests = list(known[:count])
    if len(digests) == count:
        return digests
    tokens = ctx.tokens.all
    by_page = _overrides_by_page(ctx.hash_overrides, page_size)
    parent = digests[-1] if digests else root_digest(algorithm, seed, ctx.cache_salt)
    for page in range(len(digests), count):
        page_tokens = tokens[page * page_size : (page + 1) * page_size]
        parent = page_digest(algorithm, parent, page_tokens, by_page.get(page, ()), ctx.adapter)
        digests.append(parent)
    return digests


def _overrides_by_page(
    overrides: Sequence[TokenHashOverride], page_size: int
) -> dict[int, list[tuple[int, int, str]]]:
    by_page: dict[int, list[tuple[int, int, str]]] = {}
    for o in overrides:
        page, offset = divmod(o.token_idx, page_size)
        by_page.setdefault(page, []).append((offset, o.token_hash, o.source))
    return by_page


def _sized(data: bytes) -> bytes:
    return struct.pack("<I", len(data)) + data


def _optional(data: bytes | None) -> bytes:
    """Absent and empty differ: 0, or 1 and the sized bytes."""
    return b"\x00" if data is None else b"\x01" + _sized(data)
