"""What each page must hold: bytes made of the whole prefix up to its last token."""

import hashlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from pagedkv.conformance.violation import demand
from pagedkv.reference.buffers import KVCacheBufferInterface
from pagedkv.reference.context import TextContext


class PageStamps:
    """The device memory of an engine on the CPU, written and read page by page.

    Args:
        buffers: By replica: its memory.
        page_size: Tokens per page.
    """

    def __init__(self, buffers: Sequence[KVCacheBufferInterface], page_size: int) -> None:
        self._rows = [[unit.buffer for unit in buffer.to_memory()] for buffer in buffers]
        self._size = page_size

    def write(self, replica: int, page: int, digest: bytes) -> None:
        """A forward has filled a page, or a part of it, after the prefix of that digest."""
        for number, rows in enumerate(self._rows[replica]):
            rows[page].copy_(_stamp(digest, number, rows.shape[1]))

    def check(self, replica: int, page: int, digest: bytes, request_id: str) -> None:
        """A forward is about to read a page.

        Raises:
            Violation: It holds something else.
        """
        for number, rows in enumerate(self._rows[replica]):
            demand(
                "TIER-3",
                torch.equal(rows[page], _stamp(digest, number, rows.shape[1])),
                f"request {request_id!r} would read wrong bytes: page {page} of replica {replica} "
                "does not hold its KV",
            )


class PrefixDigests:
    """The digests of the pages of one request, taken as it grows."""

    def __init__(self, ctx: TextContext, page_size: int) -> None:
        self._ctx = ctx
        self._size = page_size
        self._full: list[bytes] = []

    def of_page(self, number: int, written: int) -> bytes:
        """Of the tokens up to the end of a page, as far as they are ``written``."""
        tokens = self._ctx.tokens.all
        while len(self._full) < min(number, written // self._size):
            self._full.append(self._digest(tokens, len(self._full), written))
        return self._digest(tokens, number, written)

    def _digest(self, tokens: npt.NDArray[np.int64], number: int, written: int) -> bytes:
        before = self._full[number - 1] if number else repr(self._ctx.cache_salt).encode()
        own = tokens[number * self._size : min((number + 1) * self._size, written)]
        return hashlib.sha256(before + own.tobytes()).digest()


def _stamp(digest: bytes, unit: int, nbytes: int) -> torch.Tensor:
    data = hashlib.shake_128(digest + bytes([unit])).digest(nbytes)
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)
