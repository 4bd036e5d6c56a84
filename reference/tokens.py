"""The tokens of one request, and the window of them that the next forward processes."""

from dataclasses import dataclass
from typing import overload

import numpy as np
import numpy.typing as npt

from pagedkv.reference.param_interface import check_type, whole_number

TokenArray = npt.NDArray[np.int64]
"""A one-dimensional int64 array of token ids."""


@dataclass(frozen=True, slots=True)
class TokenHashOverride:
    """What identifies the content at one position when its token id does not (ID-5).

    Image, audio and video inputs stand in the token stream as equal placeholder ids; the
    override makes pages with different content differ. The tokens themselves stay as they are.
    """

    token_idx: int
    """Position in the request, counted from 0."""
    token_hash: int
    """Hash of the content: any integer."""
    source: str = "media"
    """What the hash was taken of, for example ``"image"``; part of the identity."""

    def __post_init__(self) -> None:
        """Raises ``ValueError`` for a negative position, or a field of the wrong type."""
        whole_number("token_idx", self.token_idx, 0)
        whole_number("token_hash", self.token_hash)
        check_type("source", self.source, str, "name what the hash was taken of, as text")


class TokenBuffer:
    """Prompt and generated tokens of a request, with the active window of the next forward.

    ``[0, processed_length)`` is computed, ``[processed_length, current_position)`` is active,
    and what follows waits for a later chunk. At least one token is active at all times (LEN-5).

    Source: the surface is that of MAX's token buffer.

    Args:
        array: The prompt, ``[prompt_length]`` int64, not empty. The buffer keeps a copy.

    Raises:
        ValueError: It is no array, has another shape or dtype, or is empty.
    """

    def __init__(self, array: TokenArray) -> None:
        remedy = "give a numpy array: np.array(..., dtype=np.int64)"
        check_type("tokens", array, np.ndarray, remedy)
        if array.ndim != 1:
            raise ValueError(f"tokens must be one-dimensional, got shape {array.shape}")
        if array.dtype != np.int64:
            raise ValueError(f"tokens must be int64, got {array.dtype}: use array.astype(np.int64)")
        if len(array) == 0:
            raise ValueError("tokens must not be empty: a request has at least one token")
        self._storage: TokenArray = array.copy()
        self._length = len(array)
        self._prompt_length = len(array)
        self._processed = 0
        self._end = len(array)

    def __len__(self) -> int:
        """Number of tokens, placeholders included."""
        return self._length

    @overload
    def __getitem__(self, index: int) -> np.int64: ...
    @overload
    def __getitem__(self, index: slice) -> TokenArray: ...
    def __getitem__(self, index: int | slice) -> np.int64 | TokenArray:
        """One token, or a view of several."""
        return self.all[index]

    @property
    def all(self) -> TokenArray:
        """Every token: a view, valid until the next token is added."""
        return self._storage[: self._length]

    @property
    def array(self) -> TokenArray:
        """The same as :attr:`all`."""
        return self.all

    @property
    def prompt(self) -> TokenArray:
        """A view of the tokens that the request came with."""
        return self._storage[: self._prompt_length]

    @property
    def generated(self) -> TokenArray:
        """A view of the tokens that were added later."""
        return self._storage[self._prompt_length : self._length]

    @property
    def active(self) -> TokenArray:
        """A view of the tokens that the next forward processes."""
        return self._storage[self._processed : self._end]

    @property
    def prompt_length(self) -> int:
        """Number of tokens that the request came with."""
        return self._prompt_length

    @property
    def generated_length(self) -> int:
        """Number of tokens that were added later."""
        return self._length - self._prompt_length

    @property
    def processed_length(self) -> int:
        """Number of tokens whose KV is written: the start of the active window."""
        return self._processed

    @property
    def active_length(self) -> int:
        """Number of tokens that the next forward processes; at least one."""
        return self._end - self._processed

    @property
    def current_position(self) -> int:
        """End of the active window: ``processed_length + active_length``."""
        return self._end

    @property
    def actively_chunked(self) -> bool:
        """Whether :meth:`chunk` has cut the window short of the tokens that are there."""
        return self._end < self._length

    def skip_processing(self, n: int) -> None:
        """Move the start of the window forward over ``n`` tokens whose KV is already there.

        Raises:
            ValueError: ``n`` is negative or no whole number, or no active token would stay.
        """
        n = whole_number("n", n)
        if not 0 <= n < self.active_length:
            raise ValueError(
                f"cannot skip {n} of {self.active_length} active tokens: n must be at least 0 and "
                "leave one active token"
            )
        self._processed += n

    def rewind_processing(self, n: int) -> None:
        """Move the start of the window back over ``n`` tokens, to be processed again.

        Raises:
            ValueError: ``n`` is negative, no whole number, or larger than ``processed_length``.
        """
        n = whole_number("n", n)
        if not 0 <= n <= self._processed:
            raise ValueError(
                f"cannot rewind {n} tokens: n must be between 0 and the {self._processed} processed"
            )
        self._processed -= n

    def chunk(self, n: int) -> None:
        """Let the next forward process only the first ``n`` active tokens (chunked prefill).

        Raises:
            ValueError: ``n`` is no whole number between 1 and ``active_length - 1``.
        """
        n = whole_number("n", n)
        if not 0 < n < self.active_length:
            raise ValueError(
                f"chunk size is {n}; with {self.active_length} active tokens it must be between 1 "
                f"and {self.active_length - 1}"
            )
        self._end = self._processed + n

    def advance_chunk(self) -> None:
        """Count the chunk as processed and open the window to all remaining tokens.

        Raises:
            ValueError: The buffer is not chunked.
        """
        if not self.actively_chunked:
            raise ValueError("advance_chunk() without chunk(): no tokens wait behind the window")
        self._processed, self._end = self._end, self._length

    def advance_with_token(self, token: int) -> None:
        """Count the window as processed, and add ``token`` as the one active token.

        Raises:
            ValueError: The buffer is chunked: prompt tokens still wait. Or ``token`` is no int64.
        """
        token = _token(token)
        if self.actively_chunked:
            raise ValueError("cannot add a token to a chunked buffer: advance_chunk() first")
        if self._length == len(self._storage):
            self._storage = np.concatenate([self._storage, np.zeros_like(self._storage)])
        self._storage[self._length] = token
        self._length += 1
        self._processed, self._end = self._end, self._length

    def overwrite_token_at_offset_from_end(self, offset_from_end: int, token: int) -> None:
        """Replace the token ``offset_from_end`` places before the end; 1 is the last one.

        Raises:
            ValueError: The offset is no whole number between 1 and ``len(self)``, or ``token`` no
                int64.
        """
        offset_from_end = whole_number("offset_from_end", offset_from_end)
        token = _token(token)
        if not 1 <= offset_from_end <= self._length:
            raise ValueError(
                f"offset_from_end is {offset_from_end}; it must be between 1 and {self._length}"
            )
        self._storage[self._length - offset_from_end] = token

    def overwrite_last_token(self, token: int) -> None:
        """Replace the last token."""
        self.overwrite_token_at_offset_from_end(1, token)

    def reset_as_new_prompt(self, num_trailing_tokens_to_delete: int = 0) -> None:
        """Make all tokens an unprocessed prompt, less some at the end.

        Raises:
            ValueError: No token would stay, or the number is negative or not whole.
        """
        num_trailing_tokens_to_delete = whole_number(
            "num_trailing_tokens_to_delete", num_trailing_tokens_to_delete
        )
        if not 0 <= num_trailing_tokens_to_delete < self._length:
            raise ValueError(
                f"cannot delete {num_trailing_tokens_to_delete} of {self._length} tokens: "
                "one must stay"
            )
        self._length -= num_trailing_tokens_to_delete
        self._prompt_length = self._end = self._length
        self._processed = 0

    def __repr__(self) -> str:
        return (
            f"TokenBuffer(len={self._length}, prompt={self._prompt_length}, "
            f"processed={self._processed}, active={self.active_length})"
        )


def _token(token: int) -> int:
    """The token as a plain ``int``, if it is one that fits int64."""
    token = whole_number("token", token)
    if not -(2**63) <= token < 2**63:
        raise ValueError(f"token is {token}; token ids are int64")
    return token
