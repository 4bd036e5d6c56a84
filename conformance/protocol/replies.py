"""The replies of the protocol, as pydantic models: results by call, and errors.

``docs/protocol.md`` explains them, ``docs/protocol.schema.json`` is made of them.
"""

from dataclasses import fields
from functools import cache
from typing import Annotated, Any, Generic, Literal, Self, TypeVar, cast, get_args

import pydantic
from pydantic import AfterValidator, ConfigDict, Field, JsonValue, TypeAdapter

from pagedkv.conformance.implementation import Capability
from pagedkv.conformance.protocol.message import VERSION, Hex, Message
from pagedkv.conformance.protocol.requests import CALLS
from pagedkv.reference.metrics import KVCacheMetrics, PrefixCacheHits
from pagedkv.reference.params import HashAlgorithm
from pagedkv.reference.tier_names import TierName, TransferKind

NOT_ON_A_LINE: frozenset[Capability] = frozenset({"async", "memory", "vocabulary"})
"""Capabilities that are about Python objects, which no line can carry."""


def _is_ours(version: int) -> int:
    if version != VERSION:
        raise ValueError(
            f"speaks version {version} of the protocol, this is version {VERSION}: use a release "
            f"of pagedkv that speaks {version}"
        )
    return version


def _fits_on_a_line(capability: Capability) -> Capability:
    if capability in NOT_ON_A_LINE:
        raise ValueError(f"{capability!r} is about Python objects, which no line can carry")
    return capability


class Introduction(Message):
    """Who answers."""

    version: Annotated[int, AfterValidator(_is_ours)]
    """Version of the protocol that it speaks."""
    name: str
    """What reports call the implementation."""
    implementation_version: str
    """The implementation's own version."""
    capabilities: list[Annotated[Capability, AfterValidator(_fits_on_a_line)]]
    """What it can do beyond what its calls show."""
    follows: list[str]
    """Ids of the SHOULD rules that it follows."""
    write_policies: Annotated[list[Literal["through", "write_back", "reuse"]], Field(min_length=1)]
    """Write policies that it knows, the one to use by default first."""
    hash_algorithms: list[HashAlgorithm] = Field(
        default_factory=lambda: list(get_args(HashAlgorithm)), min_length=1
    )
    """Hash algorithms that it has (ID-1), the one to use by default first; left out: all."""
    page_size: Annotated[int, Field(ge=2)]
    """Tokens per page in checks that do not need another size."""


def _is_of_a_manager(call: str) -> str:
    if call not in CALLS or call in ("hello", "open", "close"):
        raise ValueError(f"{call!r} is no call of a manager")
    return call


class Opened(Message):
    """A manager was built."""

    calls: list[Annotated[str, AfterValidator(_is_of_a_manager)]]
    """The calls that it answers, besides ``close``."""
    slot_nbytes: Annotated[int, Field(ge=1)] | None
    """Bytes of one token in all layers, shards, caches and scales, content that is equal on all
    shards once; ``null`` without the capability ``bytes``."""


class Window(Message):
    """What an allocation has done to a context."""

    processed: int
    """Start of its active window."""
    cached_prefix_length: int | None
    """Tokens that its first admission found cached."""


class PlanData(Message):
    """An allocation that was begun."""

    pages: list[int]
    """The page table that the request is to get."""
    transfers: list[str]
    """Names of the transfers that it waits for."""


class TransferData(Message):
    """One transfer in flight."""

    id: str
    """Its name."""
    kind: TransferKind
    """Its direction."""
    source: TierName
    """The tier that is read."""
    target: TierName
    """The tier that is written."""
    keys: list[Hex]
    """The blocks, root first, by the keys of ID-1."""
    replica: int | None
    """The replica whose pages take part; ``null`` between lower tiers."""
    pages: list[int]
    """Its device pages, one per block, or none."""
    source_replica: int | None
    """The replica that is read, for a copy between replicas."""
    source_pages: list[int]
    """Its pages, for a copy between replicas."""


class DeviceInputs(Message):
    """What the forward on one device gets (INPUT-4, INPUT-5)."""

    columns: Annotated[int, Field(ge=1)]
    """Columns of the lookup table, also if it has no row."""
    lookup_table: list[list[int]]
    """Page ids, a row per request; unused entries are the null page's id."""
    cache_lengths: list[int]
    """Tokens already in the cache, by request."""
    max_prompt_length: int
    """Most tokens that one request computes."""
    max_cache_length: int
    """Most tokens of one request that are in the cache."""


# Any: the names of the counters are those of a class's fields, which no static type can list.
_literal: Any = Literal
_CounterName: Any = _literal[tuple(field.name for field in fields(KVCacheMetrics))]

# Any: each result has a type of its own.
RESULTS: dict[str, Any] = {
    "hello": Introduction,
    "open": Opened,
    "alloc": Window,
    "begin_alloc": PlanData,
    "finish_alloc": Window,
    "reserve": list[list[Window]],
    "end_reserve": list[list[Window]],
    "contains": bool,
    "get_req_blocks": list[int],
    "runtime_inputs": list[DeviceInputs],
    "in_flight": list[TransferData],
    "pending_transfers_exist": bool,
    "get_prefix_cache_hit_counts": list[PrefixCacheHits],
    "prefetch": list[str],
    "get_pct_used_blocks_after_allocation": float,
    "num_free_blocks": int,
    "total_num_blocks": int,
    "get_num_pages": int,
    "get_num_used_pages": int,
    "get_num_host_pages": int,
    "get_num_used_host_pages": int,
    "get_num_disk_pages": int,
    "get_num_used_disk_pages": int,
    "get_metrics_aggregated": dict[_CounterName, int],
    "read_slots": list[Hex],
}
"""The type of each call's result; calls that are not here have none: their result is null."""


class ErrorData(Message):
    """Why a call was refused, or failed."""

    name: str
    """A class of ``reference/errors.py``, a built-in exception of Python, or one of this
    protocol's own: ``UnknownCallError``, ``MalformedRequestError``, ``UnknownManagerError``."""
    message: str
    """What went wrong, for people."""
    fields: dict[str, JsonValue] = Field(default_factory=dict)
    """The fields of that class."""


ResultT = TypeVar("ResultT")
"""What a call gives."""


class Reply(Message, Generic[ResultT]):
    """The answer to a request: either its result or an error."""

    model_config = ConfigDict(
        json_schema_extra={"oneOf": [{"required": ["result"]}, {"required": ["error"]}]},
        use_attribute_docstrings=False,  # pydantic cannot find them for each type of result
    )

    # Any: there is no other way to let it be absent without letting it be null.
    result: ResultT = cast("Any", None)
    """What the call gives; ``null`` if that is nothing."""
    error: ErrorData | None = None
    """Why there is no result."""
    events: list[dict[str, JsonValue]] = Field(default_factory=list)
    """What the manager has reported since the last reply, if ``open`` asked for it: the lines of
    an event trace."""

    @pydantic.model_validator(mode="after")
    def _one_of_two(self) -> Self:
        if len(self.model_fields_set & {"result", "error"}) != 1:
            raise ValueError("a reply has a result or an error, one of the two")
        return self


# Any: the type of the result depends on the call.
@cache
def reply_to(call: str) -> TypeAdapter[Any]:
    """Reads the replies to a call."""
    generic: Any = Reply
    return TypeAdapter(generic[RESULTS.get(call)])
