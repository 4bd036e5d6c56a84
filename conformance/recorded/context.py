"""A request as a trace knows it: lengths and identities, no tokens."""

from collections.abc import Hashable, Sequence
from dataclasses import replace

import numpy as np

from pagedkv.reference.context import SpecDecodingState
from pagedkv.reference.events import ContextSnapshot
from pagedkv.reference.tokens import TokenArray, TokenHashOverride


class RecordedContext:
    """The context of a recorded request: what the latest call that was given it saw."""

    def __init__(self, request_id: Hashable) -> None:
        self.request_id = request_id
        """Its name in the trace."""
        self.snapshot = ContextSnapshot(length=1, processed=0, position=1)
        """What the latest call saw."""
        self.cached_prefix_length: int | None = None
        """As for any context."""
        self.cache_salt: str | None = None
        """In the identities already, as the next two are."""
        self.adapter: str | None = None
        """See above."""
        self.hash_overrides: Sequence[TokenHashOverride] = ()
        """See above."""

    @property
    def tokens(self) -> "RecordedContext":
        """The context is its own window."""
        return self

    @property
    def given_digests(self) -> Sequence[bytes]:
        """Identities in place of hashes."""
        return self.snapshot.keys

    @property
    def external_block_metadata(self) -> object:
        """The further stores that it names."""
        return {"endpoints": list(self.snapshot.stores)}

    @property
    def pending_future_count(self) -> int:
        """Trailing placeholders."""
        return self.snapshot.placeholders

    @property
    def preempted(self) -> bool:
        """Whether this is a re-admission."""
        return self.snapshot.preempted

    @property
    def spec_decoding_state(self) -> SpecDecodingState:
        """As many drafts as were recorded; which tokens they are does not matter."""
        s = self.snapshot
        return SpecDecodingState([0] * s.drafts_to_verify, [0] * s.maybe_accepted_drafts)

    def __len__(self) -> int:
        return self.snapshot.length

    @property
    def all(self) -> TokenArray:
        """Nobody reads tokens whose identities are given."""
        return np.zeros(self.snapshot.length, dtype=np.int64)

    @property
    def prompt_length(self) -> int:
        """Not recorded, and not needed."""
        return self.snapshot.length

    @property
    def processed_length(self) -> int:
        """Start of the active window."""
        return self.snapshot.processed

    @property
    def active_length(self) -> int:
        """Tokens in the active window."""
        return self.snapshot.position - self.snapshot.processed

    @property
    def current_position(self) -> int:
        """End of the active window."""
        return self.snapshot.position

    def skip_processing(self, n: int) -> None:
        """Move the start of the window forward."""
        self.snapshot = replace(self.snapshot, processed=self.snapshot.processed + n)

    def rewind_processing(self, n: int) -> None:
        """Move the start of the window back."""
        self.skip_processing(-n)
