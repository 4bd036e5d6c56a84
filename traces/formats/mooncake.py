"""Mooncake's traces, and what Dynamo adds to them: sessions, delays, other field names.

Sources: the FAST'25 traces of kvcache-ai/Mooncake; the trace replay guide of ai-dynamo/dynamo.
"""

from typing import Annotated

from pydantic import AliasChoices, ConfigDict, Field, NonNegativeInt

from pagedkv.traces.errors import InvalidFieldError
from pagedkv.traces.formats.format import EMPTY_PROMPT, Format
from pagedkv.traces.oddities import Oddities
from pagedkv.traces.record import Record
from pagedkv.traces.workload import Milliseconds, TokenCount, WorkloadRequest


class MooncakeRecord(Record):
    """A line of a Mooncake trace, Dynamo's additions included."""

    model_config = ConfigDict(extra="allow")

    timestamp: Annotated[
        Milliseconds | None,
        Field(validation_alias=AliasChoices("timestamp", "created_time")),
    ] = None
    """Milliseconds since the start of the trace, 0 or more."""
    input_length: Annotated[
        TokenCount, Field(validation_alias=AliasChoices("input_length", "input_tokens"))
    ]
    """The number of prompt tokens, 0 or more."""
    output_length: Annotated[
        TokenCount, Field(validation_alias=AliasChoices("output_length", "output_tokens"))
    ]
    """The number of generated tokens, 0 or more."""
    hash_ids: tuple[NonNegativeInt, ...]
    """A list with one id per block of the prompt, 0 or more each."""
    session_id: str | None = None
    """What the turns of one session have in common, a string."""
    delay: Annotated[
        Milliseconds | None, Field(validation_alias=AliasChoices("delay", "delay_ms"))
    ] = None
    """Milliseconds between the previous turn of the session and this one, 0 or more."""


class MooncakeParser:
    """Reads the lines of one file, keeping the last arrival of every session.

    A delay counts from the end of the previous turn, which a trace does not know: it is added
    to that turn's arrival.
    """

    def __init__(self, first_line: str, block_size: int, oddities: Oddities) -> None:
        self._oddities = oddities
        self._session_arrival_ms: dict[str, float] = {}

    def __call__(self, text: str, number: int) -> WorkloadRequest | None:
        """See :class:`~pagedkv.traces.formats.format.LineParser`."""
        record = MooncakeRecord.parse(text)
        for name in record.unknown_fields:
            self._oddities.add(f"field {name!r} is unknown and ignored", number)
        arrival_ms = self._arrival_ms(record)
        if record.session_id is not None:
            self._session_arrival_ms[record.session_id] = arrival_ms
        if record.input_length == 0:
            self._oddities.add(EMPTY_PROMPT, number)
            return None
        return WorkloadRequest.model_construct(
            arrival_ms=arrival_ms,
            input_length=record.input_length,
            output_length=record.output_length,
            hash_ids=record.hash_ids,
            session=record.session_id,
        )

    def _arrival_ms(self, record: MooncakeRecord) -> float:
        if record.timestamp is not None:
            return record.timestamp
        previous_ms = self._session_arrival_ms.get(record.session_id or "")
        if previous_ms is None or record.delay is None:
            raise InvalidFieldError(
                "has no timestamp",
                remedy="give the arrival in milliseconds, or, from the second turn of a session "
                "on, session_id and delay",
            )
        return previous_ms + record.delay


MOONCAKE = Format(
    name="mooncake",
    signature=frozenset({"hash_ids"}),
    block_size=512,
    first_line_is_header=False,
    ids_are_chained=True,
    parser=MooncakeParser,
)

DYNAMO = Format(
    name="dynamo",
    signature=frozenset({"hash_ids", "session_id"}),
    block_size=512,
    first_line_is_header=False,
    ids_are_chained=True,
    parser=MooncakeParser,
)
