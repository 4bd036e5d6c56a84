"""Contexts: what a manager has to know of a request, as a Protocol and as a ready class."""

import uuid
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from pagedkv.reference.param_interface import check_type, whole_number
from pagedkv.reference.tokens import TokenArray, TokenBuffer, TokenHashOverride

FUTURE_TOKEN = -999
"""Placeholder for a token that is being sampled and not known yet."""


class RequestID(str):
    """The name of a request: any string; ``RequestID()`` is a fresh one."""

    __slots__ = ()

    def __new__(cls, value: str | None = None) -> "RequestID":
        """The given name, or a fresh one."""
        return super().__new__(cls, uuid.uuid4().hex if value is None else value)

    @property
    def value(self) -> str:
        """The name as plain text."""
        return str(self)


@dataclass(slots=True)
class SpecDecodingState:
    """The draft tokens of a request under speculative decoding."""

    draft_tokens_to_verify: list[int] = field(default_factory=list)
    """Drafts that the next forward verifies."""
    maybe_accepted_draft_tokens: list[int] = field(default_factory=list)
    """Drafts that a forward in flight is verifying: room is kept for all of them."""


@dataclass(frozen=True, slots=True)
class ImageMetadata:
    """One image among the tokens of a request."""

    start_idx: int
    """Position of its first placeholder token."""
    end_idx: int
    """Position after its last placeholder token."""
    pixel_values: object = field(default=None, repr=False)
    """The pixels, for the server's use; the cache looks at their hash only."""
    image_hash: int | None = None
    """Hash of the pixels; needed when prefix caching is on."""

    def __post_init__(self) -> None:
        """Raises ``ValueError`` for a span that is none, or a field of the wrong type."""
        whole_number("start_idx", self.start_idx)
        whole_number("end_idx", self.end_idx)
        if self.image_hash is not None:
            whole_number("image_hash", self.image_hash)
        if not 0 <= self.start_idx < self.end_idx:
            raise ValueError(
                f"image spans [{self.start_idx}, {self.end_idx}): it must start at 0 or later and "
                "end after its start"
            )


@dataclass(frozen=True, slots=True)
class ExternalBlockMetadata:
    """Where else the prefix of a request may be cached: other block stores to ask (STORE-4)."""

    endpoints: tuple[str, ...]
    """Store endpoints, in the order to ask, after the manager's own."""

    @classmethod
    def parse(cls, value: object) -> "ExternalBlockMetadata":
        """Accept an instance, ``None``, or a mapping ``{"endpoints": [str, ...]}``.

        Raises:
            ValueError: Anything else.
        """
        if value is None:
            return cls(())
        if isinstance(value, cls):
            return value
        if isinstance(value, dict) and set(value) == {"endpoints"}:
            endpoints = value["endpoints"]
            if isinstance(endpoints, (list, tuple)) and all(isinstance(e, str) for e in endpoints):
                return cls(tuple(endpoints))
        raise ValueError(
            'external_block_metadata must be a mapping {"endpoints": ["host:port", ...]}, '
            f"got {value!r}"
        )


class TokenWindow(Protocol):
    """What a manager uses of a request's tokens; :class:`TokenBuffer` is one."""

    def __len__(self) -> int:
        """Number of tokens, placeholders included."""
        ...

    @property
    def all(self) -> TokenArray:
        """Every token, ``[len]`` int64."""
        ...

    @property
    def prompt_length(self) -> int:
        """Number of tokens that the request came with."""
        ...

    @property
    def processed_length(self) -> int:
        """Start of the active window."""
        ...

    @property
    def active_length(self) -> int:
        """Tokens in the active window; at least one."""
        ...

    @property
    def current_position(self) -> int:
        """End of the active window."""
        ...

    def skip_processing(self, n: int) -> None:
        """Move the start of the window forward; at least one active token stays."""
        ...

    def rewind_processing(self, n: int) -> None:
        """Move the start of the window back."""
        ...


@runtime_checkable
class Context(Protocol):
    """What a manager reads and writes of a request. A server can bring its own class."""

    cached_prefix_length: int | None
    """Tokens found cached at the first admission; written once by the manager (ALLOC-9)."""

    @property
    def request_id(self) -> Hashable:
        """The name under which the request is claimed."""
        ...

    @property
    def tokens(self) -> TokenWindow:
        """The tokens and their active window."""
        ...

    @property
    def cache_salt(self) -> str | None:
        """Separates tenants: equal tokens under different salts share nothing (ID-4)."""
        ...

    @property
    def adapter(self) -> str | None:
        """Identity of the adapter's weights, not merely its name (ID-6)."""
        ...

    @property
    def hash_overrides(self) -> Sequence[TokenHashOverride]:
        """Content hashes for positions whose token id is a placeholder (ID-5)."""
        ...

    @property
    def given_digests(self) -> Sequence[bytes] | None:
        """Digests of its leading full pages, if the server has them; else tokens are hashed."""
        ...

    @property
    def external_block_metadata(self) -> object:
        """Other stores to ask: see :class:`ExternalBlockMetadata`."""
        ...

    @property
    def pending_future_count(self) -> int:
        """Trailing placeholders for tokens that are not known yet."""
        ...

    @property
    def spec_decoding_state(self) -> SpecDecodingState:
        """Draft tokens; empty lists without speculation."""
        ...

    @property
    def preempted(self) -> bool:
        """Whether this is a re-admission after a preemption (METRIC-4)."""
        ...


@dataclass(kw_only=True, eq=False)
class TextContext:
    """A request for text generation: a ready :class:`Context`.

    Raises:
        ValueError: The prompt is longer than ``max_length``, or a field is malformed.
    """

    max_length: int
    """Most tokens, prompt included, that the request may reach."""
    tokens: TokenBuffer
    """The tokens and their active window; owned by the context."""
    request_id: RequestID | str = field(default_factory=RequestID)
    """Name of the request; fresh unless given."""
    cache_salt: str | None = None
    """Separates tenants: equal tokens under different salts share nothing."""
    adapter: str | None = None
    """Identity of the adapter's weights; change it when the weights change."""
    external_block_metadata: object = None
    """Other stores to ask: ``None`` or ``{"endpoints": [...]}``."""
    images: list[ImageMetadata] = field(default_factory=list)
    """Images among the tokens."""
    token_hash_overrides: list[TokenHashOverride] = field(default_factory=list)
    """Further content hashes by position."""
    given_digests: Sequence[bytes] | None = None
    """Digests of its leading full pages, if the server has hashed them already."""
    spec_decoding_state: SpecDecodingState = field(default_factory=SpecDecodingState)
    """Draft tokens; empty lists without speculation."""
    preempted: bool = False
    """Set it before admitting a preempted request again."""
    cached_prefix_length: int | None = None
    """Tokens found cached at the first admission; ``None`` before it."""
    model_name: str = ""
    """Free for the server's use; no part of a page's identity."""
    pending_future_count: int = field(default=0, init=False)
    """Trailing placeholders for tokens that are not known yet."""

    def __post_init__(self) -> None:
        self.max_length = whole_number("max_length", self.max_length, 1)
        check_type("tokens", self.tokens, TokenBuffer, "wrap an int64 array: TokenBuffer(array)")
        check_type("request_id", self.request_id, str, "use text, or leave it out for a fresh one")
        for name in ("cache_salt", "adapter"):
            check_type(name, getattr(self, name), str | None, "use text, or None")
        if len(self.tokens) > self.max_length:
            raise ValueError(
                f"the prompt has {len(self.tokens)} tokens, max_length is {self.max_length}: "
                "raise max_length or shorten the prompt"
            )
        ExternalBlockMetadata.parse(self.external_block_metadata)
        self._check_hash_overrides()

    def _check_hash_overrides(self) -> None:
        for name in ("token_hash_overrides", "images"):
            check_type(name, getattr(self, name), list | tuple, "give a list")
        for i, override in enumerate(self.token_hash_overrides):
            name = f"token_hash_overrides[{i}]"
            check_type(name, override, TokenHashOverride, "use TokenHashOverride(position, hash)")
            self._check_in_prompt(name, override.token_idx)
        for i, image in enumerate(self.images):
            check_type(
                f"images[{i}]",
                image,
                ImageMetadata,
                "use ImageMetadata(start, end, image_hash=...)",
            )
            self._check_in_prompt(f"images[{i}]", image.end_idx - 1)

    def _check_in_prompt(self, name: str, position: int) -> None:
        if position >= self.prompt_length:
            raise ValueError(
                f"{name} reaches token {position}, but the prompt has {self.prompt_length} tokens; "
                "count positions from 0, over the placeholders of the content"
            )

    def __len__(self) -> int:
        """Number of tokens, placeholders included."""
        return len(self.tokens)

    @property
    def prompt_length(self) -> int:
        """Number of tokens that the request came with."""
        return self.tokens.prompt_length

    @property
    def processed_length(self) -> int:
        """Start of the active window."""
        return self.tokens.processed_length

    @property
    def active_length(self) -> int:
        """Tokens in the active window; at least one."""
        return self.tokens.active_length

    @property
    def current_position(self) -> int:
        """End of the active window."""
        return self.tokens.current_position

    @property
    def is_done(self) -> bool:
        """Whether the request has reached ``max_length``."""
        return len(self.tokens) >= self.max_length

    @property
    def hash_overrides(self) -> Sequence[TokenHashOverride]:
        """``token_hash_overrides``, and one for the first position of every image.

        Raises:
            ValueError: An image has no ``image_hash``.
        """
        if not self.images:
            return self.token_hash_overrides
        overrides = list(self.token_hash_overrides)
        for image in self.images:
            if image.image_hash is None:
                raise ValueError(
                    f"the image at token {image.start_idx} has no image_hash, which prefix caching "
                    "needs: set it to a hash of the pixels"
                )
            overrides.append(TokenHashOverride(image.start_idx, image.image_hash, "image"))
        return overrides

    def skip_processing(self, n: int) -> None:
        """See :meth:`TokenBuffer.skip_processing`."""
        self.tokens.skip_processing(n)

    def rewind_processing(self, n: int) -> None:
        """See :meth:`TokenBuffer.rewind_processing`."""
        self.tokens.rewind_processing(n)

    def chunk(self, n: int) -> None:
        """See :meth:`TokenBuffer.chunk`."""
        self.tokens.chunk(n)

    def update(self, token: int) -> None:
        """Take the token that the forward has sampled; the window counts as processed.

        After a chunk that is not the last one there is no token to take: the argument is
        dropped and the remaining prompt becomes active.

        Raises:
            ValueError: A placeholder still waits for its token.
        """
        if self.tokens.actively_chunked:
            self.tokens.advance_chunk()
            return
        if self.pending_future_count:
            raise ValueError(
                "the last token is still a placeholder: call realize_future_token() before update()"
            )
        self.tokens.advance_with_token(token)

    def update_with_future_token(self, max_pending_futures: int = 1) -> None:
        """Add a placeholder for the token that a forward in flight will sample.

        Raises:
            ValueError: ``max_pending_futures`` placeholders wait already.
        """
        if self.tokens.actively_chunked:
            self.tokens.advance_chunk()
            return
        if self.pending_future_count >= max_pending_futures:
            raise ValueError(
                f"{self.pending_future_count} placeholder(s) wait already, and "
                f"max_pending_futures is {max_pending_futures}: realize_future_token() first"
            )
        self.tokens.advance_with_token(FUTURE_TOKEN)
        self.pending_future_count += 1

    def realize_future_token(self, token: int) -> None:
        """Put the sampled token in the place of the oldest placeholder.

        Raises:
            ValueError: No placeholder waits.
        """
        if not self.pending_future_count:
            raise ValueError("no placeholder waits: update_with_future_token() comes first")
        self.tokens.overwrite_token_at_offset_from_end(self.pending_future_count, token)
        self.pending_future_count -= 1

    def reset(self) -> None:
        """Start over after a preemption: every known token is active, placeholders are dropped."""
        self.tokens.reset_as_new_prompt(self.pending_future_count)
        self.pending_future_count = 0
        self.spec_decoding_state = SpecDecodingState()
        self.preempted = True
