"""Traces of Qwen on Aliyun Bailian: chats that grow turn by turn, in blocks of 16 tokens.

Source: alibaba-edu/qwen-bailian-usagetraces-anon. Its ids name the content of a block, whatever
stands before it, so one id may follow two prefixes.
"""

from typing import Annotated

from pydantic import ConfigDict, Field, NonNegativeInt

from pagedkv.traces.formats.format import EMPTY_PROMPT, Format
from pagedkv.traces.oddities import Oddities
from pagedkv.traces.record import Record
from pagedkv.traces.workload import TokenCount, WorkloadRequest

NO_PARENT = -1
"""What ``parent_chat_id`` says for the first turn of a session."""


class BailianRecord(Record):
    """A line of a Qwen-Bailian trace."""

    model_config = ConfigDict(extra="allow")

    chat_id: int
    """An integer that names this request."""
    parent_chat_id: int = NO_PARENT
    """The chat_id of the previous turn, or -1."""
    timestamp: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    """Seconds since the start of the trace, 0 or more."""
    input_length: TokenCount
    """The number of prompt tokens, 0 or more."""
    output_length: TokenCount
    """The number of generated tokens, 0 or more."""
    type: str | None = None
    """The kind of request, such as text, search, image or file."""
    turn: int | None = None
    """The number of this turn in its session, counted from 1."""
    hash_ids: tuple[NonNegativeInt, ...]
    """A list with one id per 16 tokens of the prompt, 0 or more each."""


class BailianParser:
    """Reads the lines of one file, following each chat to the first turn of its session."""

    def __init__(self, first_line: str, block_size: int, oddities: Oddities) -> None:
        self._oddities = oddities
        self._session: dict[int, str] = {}

    def __call__(self, text: str, number: int) -> WorkloadRequest | None:
        """See :class:`~pagedkv.traces.formats.format.LineParser`."""
        record = BailianRecord.parse(text)
        for name in record.unknown_fields:
            self._oddities.add(f"field {name!r} is unknown and ignored", number)
        root = record.chat_id if record.parent_chat_id == NO_PARENT else record.parent_chat_id
        session = self._session.get(root, str(root))
        self._session[record.chat_id] = session
        if record.input_length == 0:
            self._oddities.add(EMPTY_PROMPT, number)
            return None
        return WorkloadRequest.model_construct(
            arrival_ms=record.timestamp * 1000,
            input_length=record.input_length,
            output_length=record.output_length,
            hash_ids=record.hash_ids,
            session=session,
            type=record.type,
        )


BAILIAN = Format(
    name="bailian",
    signature=frozenset({"chat_id", "hash_ids"}),
    block_size=16,
    first_line_is_header=False,
    ids_are_chained=False,
    parser=BailianParser,
)
