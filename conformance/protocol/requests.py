"""The requests of the protocol, as pydantic models.

``docs/protocol.md`` explains them, ``docs/protocol.schema.json`` is made of them.
"""

from typing import Annotated, Literal, Self, get_args

import pydantic
from pydantic import ConfigDict, Field, JsonValue, TypeAdapter, WithJsonSchema
from pydantic.config import JsonDict
from pydantic.json_schema import SkipJsonSchema

from pagedkv.conformance.protocol.message import STRICT, Count, Hex, Message
from pagedkv.reference.tier_names import FailReason
from pagedkv.traces.events.setup import RunSetup

Token = Annotated[int, Field(ge=-(2**63), lt=2**63)]
"""A token id: int64."""


# --- what requests carry ----------------------------------------------------------------------


class Setup(RunSetup):
    """The manager to build. All fields are always there."""

    model_config = STRICT

    hash_seed: (
        Annotated[
            bytes,
            Field(min_length=32, max_length=32),
            WithJsonSchema({"type": "string", "pattern": "^[0-9a-f]{64}$"}),
        ]
        | None
    ) = None
    """Root of all identities, besides the salt (ID-3)."""
    disk_dir: str | None
    """Folder of the disk tier; two managers that get the same one in turn see a restart."""
    store_endpoint: str
    """Where the block store is, if there is one."""
    auto_land: bool
    """Whether transfers land by themselves, or when ``land`` and ``fail`` say so."""


class Override(Message):
    """Content behind a placeholder token (ID-5)."""

    position: Count
    """Position in the request, counted from 0."""
    hash: Annotated[str, Field(pattern="^-?[0-9]+$")] | None
    """Hash of the content, as decimal text: it may be any integer. ``null``: an image without
    one, which is an error where prefix caching is on."""
    source: str
    """What the hash was taken of."""


class ContextData(Message):
    """A request of the server, as a call finds it. All fields are always there."""

    request_id: str
    """Its name; ids that are no text stand in angle brackets."""
    tokens: list[Token]
    """Every token, placeholders included."""
    prompt_length: Count
    """Tokens that it came with, at least one."""
    processed: Count
    """Start of the active window."""
    position: Count
    """End of the active window, which has at least one token."""
    placeholders: Count
    """Trailing tokens that are not known yet."""
    drafts_to_verify: Count
    """Draft tokens that the next forward verifies."""
    maybe_accepted_drafts: Count
    """Draft tokens that a forward in flight verifies."""
    cache_salt: str | None
    """Tenant (ID-4)."""
    adapter: str | None
    """Identity of the adapter's weights (ID-6)."""
    overrides: list[Override]
    """Content behind placeholder tokens, images included (ID-5)."""
    given_digests: list[Hex] | None
    """Digests of its leading full pages, if the server has them (ID-9)."""
    external_block_metadata: JsonValue
    """Further stores to ask (STORE-4)."""
    preempted: bool
    """Whether this is a re-admission after a preemption (METRIC-4)."""
    cached_prefix_length: Count | None
    """Tokens found cached at the first admission; ``null`` before it (ALLOC-9)."""

    @pydantic.model_validator(mode="after")
    def _lengths_fit(self) -> Self:
        length = len(self.tokens)
        if not 1 <= self.prompt_length <= length:
            raise ValueError(f"prompt_length is {self.prompt_length}, of {length} tokens")
        if not self.processed < self.position <= length:
            window = f"[{self.processed}, {self.position})"
            raise ValueError(f"the window {window} is empty, or exceeds {length} tokens")
        return self


class Bounds(Message):
    """Bounds of a batch's shape (INPUT-6)."""

    batch_size: Count
    """Requests."""
    max_prompt_length: Count
    """Most tokens that one request computes."""
    max_cache_valid_length: Count
    """Most tokens of one request in the cache afterwards."""


# --- requests ---------------------------------------------------------------------------------


class Hello(Message):
    """The first request: who is there?"""

    call: Literal["hello"] = "hello"
    """The call."""
    version: int
    """Version of the protocol that the caller speaks."""


class ManagerRequest(Message):
    """A request to one of the managers in the process."""

    manager: int
    """Its number, which ``open`` has given it."""


class Open(ManagerRequest):
    """Build a manager, under a number that is not in use."""

    call: Literal["open"] = "open"
    """The call."""
    setup: Setup
    """Sizes, policies and shape."""
    events: bool
    """Whether its events are wanted in the replies."""


class PlainCall(ManagerRequest):
    """A call without arguments; ``close`` forgets the manager and its number."""

    call: Literal[
        "close",
        "shutdown",
        "crash",
        "poll_transfers",
        "in_flight",
        "get_metrics_aggregated",
        "reset_metrics",
        "reset_prefix_cache",
    ]
    """The call."""


class ReplicaCall(ManagerRequest):
    """A call about a replica."""

    call: Literal[
        "num_free_blocks",
        "total_num_blocks",
        "get_num_pages",
        "get_num_used_pages",
        "get_num_host_pages",
        "get_num_used_host_pages",
        "get_num_disk_pages",
        "get_num_used_disk_pages",
        "pending_transfers_exist",
    ]
    """The call."""
    replica_idx: int
    """The replica."""


class RequestCall(ManagerRequest):
    """A call that names a request."""

    call: Literal["claim", "alloc_dummy", "release", "contains", "get_req_blocks", "cancel_alloc"]
    """The call."""
    request_id: str
    """The request."""
    replica_idx: int
    """Its replica."""


class ContextCall(ManagerRequest):
    """A call with a context."""

    call: Literal["alloc", "finish_alloc", "get_pct_used_blocks_after_allocation"]
    """The call."""
    context: ContextData
    """The request."""
    replica_idx: int
    """Its replica."""


def _without_default(schema: JsonDict) -> None:
    schema.pop("default", None)


class BeginAlloc(ManagerRequest):
    """Plan an allocation."""

    # The field without a limit is left out, so that the schema must not require it.
    model_config = ConfigDict(json_schema_serialization_defaults_required=False)

    call: Literal["begin_alloc"]
    """The call."""
    context: ContextData
    """The request."""
    replica_idx: int
    """Its replica."""
    hit_limit: Annotated[
        Count | SkipJsonSchema[None], Field(json_schema_extra=_without_default)
    ] = None
    """Most blocks of its hit to use (ALLOC-15). It is there only if it limits something, and only
    for programs that answer ``prefetch``: earlier ones do not know it."""

    def as_line(self) -> bytes:
        """It as JSON, with a ``hit_limit`` only if there is one."""
        return self.model_dump_json(
            exclude={"hit_limit"} if self.hit_limit is None else None
        ).encode()


class LookUp(ManagerRequest):
    """What a fresh request would hit: how much it is, or load it into host memory."""

    call: Literal["get_prefix_cache_hit_counts", "prefetch"]
    """The call."""
    context: ContextData
    """The request, claimed or not."""


class RuntimeInputs(ManagerRequest):
    """Inputs for the next forward."""

    call: Literal["runtime_inputs"] = "runtime_inputs"
    """The call."""
    batches: list[list[ContextData]]
    """One batch per replica."""
    max_cache_length: int | None
    """Tokens that the tables must have columns for; ``null``: those of the longest request."""
    batch_characteristics: Bounds | None
    """Bounds to prepare the forward for, in place of the real shape."""


class Step(ManagerRequest):
    """Commit what forwards have written."""

    call: Literal["step"] = "step"
    """The call."""
    batches: list[list[ContextData]]
    """One batch per replica."""


class Reserve(ManagerRequest):
    """Claim and allocate all contexts or none, until ``end_reserve`` (CLAIM-5)."""

    call: Literal["reserve"] = "reserve"
    """The call."""
    reservation: int
    """A number to end it by."""
    batches: list[list[ContextData]]
    """One batch per replica."""


class EndReserve(ManagerRequest):
    """Release the contexts of a reservation."""

    call: Literal["end_reserve"] = "end_reserve"
    """The call."""
    reservation: int
    """Which one."""


class Submit(ManagerRequest):
    """What can fail of a load has been done."""

    call: Literal["submit"] = "submit"
    """The call."""
    transfer_id: str
    """Which one."""


class Land(ManagerRequest):
    """All bytes of a transfer have arrived."""

    call: Literal["land"] = "land"
    """The call."""
    transfer_id: str
    """Which one."""


class Fail(ManagerRequest):
    """A transfer has failed."""

    call: Literal["fail"] = "fail"
    """The call."""
    transfer_id: str
    """Which one."""
    reason: FailReason
    """Why."""
    keys: list[Hex] | None
    """The blocks at fault; ``null``: all of them."""


class Poison(ManagerRequest):
    """The device of a replica has failed."""

    call: Literal["poison"] = "poison"
    """The call."""
    replica_idx: int
    """Which one."""
    reason: str
    """What happened."""


class WriteSlots(ManagerRequest):
    """Write the KV of single tokens, as a forward would."""

    call: Literal["write_slots"] = "write_slots"
    """The call."""
    replica_idx: int
    """Whose memory."""
    slots: list[tuple[int, int, Hex]]
    """Page, offset in it, and ``slot_nbytes`` bytes."""


class ReadSlots(ManagerRequest):
    """Read the KV of single tokens, as a forward would."""

    call: Literal["read_slots"] = "read_slots"
    """The call."""
    replica_idx: int
    """Whose memory."""
    slots: list[tuple[int, int]]
    """Page, and offset in it."""


Request = Annotated[
    Hello
    | Open
    | PlainCall
    | ReplicaCall
    | RequestCall
    | ContextCall
    | BeginAlloc
    | LookUp
    | RuntimeInputs
    | Step
    | Reserve
    | EndReserve
    | Submit
    | Land
    | Fail
    | Poison
    | WriteSlots
    | ReadSlots,
    Field(discriminator="call"),
]
"""Any request."""

REQUEST: TypeAdapter[Request] = TypeAdapter(Request)
"""Reads and writes requests."""

CALLS: dict[str, type[Message]] = {
    call: kind
    for kind in get_args(get_args(Request)[0])
    for call in get_args(kind.model_fields["call"].annotation)
}
"""Every call, with the kind of its request."""
