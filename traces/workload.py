"""The workload format: a header line, then one request per line, as JSON.

A workload says when requests arrive, how long they are, and which of them share a prefix. It
holds no tokens: a block of the prompt is named by a *hash id*, and two equal ids stand for
equal blocks after equal prefixes.
"""

from typing import Annotated, Literal

from pydantic import ConfigDict, Field, NonNegativeInt

from pagedkv.traces.ceil_div import ceil_div
from pagedkv.traces.errors import InvalidFieldError
from pagedkv.traces.record import Record

VERSION = 1
"""The version of the format that this package writes, and the newest one it reads."""

MAX_MS = 2.0**63
"""Later than this is a mistake in the file, not an arrival; even nanoseconds since 1970 fit."""

Milliseconds = Annotated[float, Field(ge=0, le=MAX_MS, allow_inf_nan=False)]
"""A time since the start of the trace."""

MAX_TOKENS = 100_000_000
"""More tokens than this in one request are a mistake in the file, not a prompt."""

TokenCount = Annotated[int, Field(ge=0, le=MAX_TOKENS)]
"""A number of prompt or generated tokens."""


class WorkloadHeader(Record):
    """The first line of a workload file."""

    model_config = ConfigDict(extra="forbid")

    format: Literal["pagedkv-workload"] = "pagedkv-workload"
    """The word ``pagedkv-workload``."""
    version: Annotated[int, Field(ge=1, le=VERSION)] = VERSION
    """The number 1, the only version of the format so far."""
    block_size: Annotated[int, Field(ge=1, le=MAX_TOKENS)]
    """Tokens per block that a hash id names, 1 or more."""
    origin: str | None = None
    """Where the workload comes from, in words."""


class WorkloadRequest(Record):
    """One request of a workload."""

    model_config = ConfigDict(extra="forbid")

    arrival_ms: Milliseconds
    """Arrival time in milliseconds since the start of the trace, 0 or more."""
    input_length: Annotated[int, Field(ge=1, le=MAX_TOKENS)]
    """Number of prompt tokens, 1 or more."""
    output_length: TokenCount
    """Number of generated tokens, 0 or more."""
    hash_ids: tuple[NonNegativeInt, ...]
    """One id per block of the prompt, the last block perhaps partly filled; 0 or more each."""
    session: str | None = None
    """What the turns of one conversation or agent run have in common."""
    type: str | None = None
    """Kind of request, such as chat or rag."""

    def check(self, block_size: int) -> None:
        """Check what a parser has computed, and what depends on the block size.

        Raises:
            InvalidFieldError: An arrival out of range, too many or too few ids for the prompt,
                or an id so large that the token ids made up from it would not fit 64 bits.
        """
        if not 0 <= self.arrival_ms <= MAX_MS:
            raise InvalidFieldError(
                "is no arrival time",
                field="arrival_ms",
                value=self.arrival_ms,
                remedy=f"give times and delays that add up to 0 to {MAX_MS:g} milliseconds",
            )
        wanted = ceil_div(self.input_length, block_size)
        if len(self.hash_ids) != wanted:
            raise InvalidFieldError(
                f"has {len(self.hash_ids)} ids, but {self.input_length} prompt tokens in blocks of "
                f"{block_size} need {wanted}",
                field="hash_ids",
                value=list(self.hash_ids),
                remedy="give one id per block, the last one partly filled, or correct the block "
                "size (--block-size for formats without a header)",
            )
        largest = max(self.hash_ids)
        if largest >= 2**62 // block_size:
            raise InvalidFieldError(
                f"is too large: token ids are made up as id * {block_size} + offset and must stay "
                "below 2**62",
                field="hash_ids",
                value=largest,
                remedy="number the blocks densely from 0",
            )
