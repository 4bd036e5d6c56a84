"""Identities of full pages, fast: the byte strings of rules ID-1 to ID-9, hashed page by page."""

import hashlib
import struct
from collections.abc import Callable, Sequence

import xxhash

from pagedkv.reference.context import Context
from pagedkv.reference.params import HashAlgorithm
from pagedkv.reference.tokens import TokenHashOverride

TOKEN_NBYTES = 8
"""A token is hashed as a little-endian int64."""


class PageHasher:
    """Computes the chained digests of requests' leading pages.

    Args:
        page_size: Tokens per page.
        algorithm: The hash.
        seed: Root of every chain, or ``None``.
    """

    def __init__(self, page_size: int, algorithm: HashAlgorithm, seed: bytes | None) -> None:
        self._page_size = page_size
        self._seed = seed
        self._hash: Callable[[bytes], bytes] = (
            xxhash.xxh3_128_digest if algorithm == "xxh3_128" else _sha256
        )
        self._before_tokens = struct.pack("<I", page_size)
        tokens = f"{page_size * TOKEN_NBYTES}s"
        self._rows = struct.Struct(tokens).iter_unpack
        digest, before = len(self._hash(b"")), len(self._before_tokens)
        self._layout = f"{len(_PAGE_TAG)}s{digest}s{before}s{tokens}"
        self._key_nbytes = 8 if algorithm == "sha256_64" else None

    def extend(self, ctx: Context, digests: list[bytes], count: int) -> None:
        """Make ``digests`` cover at least the first ``count`` pages of ``ctx``, in place.

        Raises:
            ValueError: The context brings digests, but fewer than ``count`` (ID-9).
        """
        given = ctx.given_digests
        if given is not None:
            if len(given) < count:
                raise ValueError(
                    f"request {ctx.request_id!r} brings {len(given)} digests, {count} are needed: "
                    "given_digests has one for every full page, or is None"
                )
            digests.extend(given[len(digests) : count])
            return
        start = len(digests)
        if start >= count:
            return
        size, by_page = self._page_size, self._overrides(ctx)
        digest_of, before = self._hash, self._before_tokens
        parent = digests[-1] if digests else self._root(ctx.cache_salt)
        plain = _NO_OVERRIDES + _optional(ctx.adapter)
        # Takes a quarter less than adding up the byte strings.
        page_of = struct.Struct(f"{self._layout}{len(plain)}s").pack
        data = ctx.tokens.all[start * size : count * size].astype("<i8", copy=False).tobytes()
        for page, (tokens,) in enumerate(self._rows(data), start):
            if page in by_page:
                after = self._after_tokens(by_page[page], ctx.adapter)
                parent = digest_of(b"".join((_PAGE_TAG, parent, before, tokens, after)))
            else:
                parent = digest_of(page_of(_PAGE_TAG, parent, before, tokens, plain))
            digests.append(parent)

    def keys(self, digests: Sequence[bytes]) -> list[bytes]:
        """The keys under which pages with these digests are found."""
        if self._key_nbytes is None:
            return list(digests)
        return [digest[: self._key_nbytes] for digest in digests]

    def _root(self, salt: str | None) -> bytes:
        seed = b"\x00" if self._seed is None else b"\x01" + _sized(self._seed)
        return self._hash(_ROOT_TAG + seed + _optional(salt))

    def _overrides(self, ctx: Context) -> dict[int, list[TokenHashOverride]]:
        by_page: dict[int, list[TokenHashOverride]] = {}
        for override in ctx.hash_overrides:
            by_page.setdefault(override.token_idx // self._page_size, []).append(override)
        return by_page

    def _after_tokens(self, overrides: Sequence[TokenHashOverride], adapter: str | None) -> bytes:
        """What follows the tokens of a page: its overrides by position and source, the adapter."""
        parts = [struct.pack("<I", len(overrides))]
        for o in sorted(overrides, key=lambda o: (o.token_idx, o.source, o.token_hash)):
            offset = struct.pack("<I", o.token_idx % self._page_size)
            parts += [offset, _sized(str(o.token_hash).encode()), _sized(o.source.encode())]
        return b"".join((*parts, _optional(adapter)))


_ROOT_TAG = b"pagedkv root 1"
_PAGE_TAG = b"pagedkv page 1"
_NO_OVERRIDES = struct.pack("<I", 0)


def _sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def _sized(data: bytes) -> bytes:
    return struct.pack("<I", len(data)) + data


def _optional(text: str | None) -> bytes:
    """Absent and empty differ: 0, or 1 and the sized bytes."""
    return b"\x00" if text is None else b"\x01" + _sized(text.encode())
