"""The lines of an event trace: its header and its events as JSON, and back.

An event's line has its number in the trace, its name in snake case, and its fields; identities are
hexadecimal, and fields that have their default value are left out::

    {"seq":7,"event":"alloc_returned","request_id":"r3","processed":32}
"""

import json
import re
from collections.abc import Hashable
from dataclasses import MISSING, fields
from functools import reduce
from operator import or_
from typing import Annotated, Any, Literal, get_args, get_type_hints

import pydantic
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from pagedkv.reference.events import Event
from pagedkv.traces.errors import InvalidFieldError, MalformedLineError, UnknownFormatError
from pagedkv.traces.events.renaming import Renaming
from pagedkv.traces.events.setup import VERSION, EventTraceHeader

NAMES: dict[type[Event], str] = {
    kind: re.sub(r"(?<!^)(?=[A-Z])", "_", kind.__name__).lower() for kind in get_args(Event)
}
"""The name of every kind of event."""

KINDS = {name: kind for kind, name in NAMES.items()}
"""The same, kind by name."""

_CONFIG = ConfigDict(ser_json_bytes="hex", val_json_bytes="hex", extra="forbid", frozen=True)


def _line_model(kind: type[Event]) -> type[BaseModel]:
    """The model of one kind's lines: the event's fields, after its number and name."""
    hints = get_type_hints(kind)
    # Any: pydantic takes a type and a default for each field, which no type of ours describes.
    definitions: dict[str, Any] = {
        "seq": (Annotated[int, pydantic.Field(ge=0)], ...),
        "event": (Literal.__getitem__(NAMES[kind]), ...),
    }
    for field in fields(kind):
        hint = _AS_TEXT.get(field.name, hints[field.name])
        definitions[field.name] = (hint, ... if field.default is MISSING else field.default)
    return pydantic.create_model(f"{kind.__name__}Line", __config__=_CONFIG, **definitions)


# Request ids may be any hashable value; in a file they are text.
_AS_TEXT: dict[str, object] = {"request_id": str, "batches": tuple[tuple[str, ...], ...]}
_LINES = {kind: _line_model(kind) for kind in NAMES}
# Any: a union that is made at run time is no type to a checker.
_LINE_TYPE: Any = Annotated[reduce(or_, _LINES.values()), pydantic.Field(discriminator="event")]
_ANY_LINE: TypeAdapter[Any] = TypeAdapter(_LINE_TYPE)


def encode_header(header: EventTraceHeader) -> bytes:
    """The first line of a trace, without its end."""
    line = header.model_dump(mode="json", exclude={"start"})
    if header.start is not None:
        start = Renaming(request=_text).apply_to_start(header.start)
        line["start"] = start.model_dump(mode="json", exclude_defaults=True)
    return json.dumps(line, separators=(",", ":"), ensure_ascii=False).encode()


def decode_header(text: str) -> EventTraceHeader:
    """The header that a line holds.

    Raises:
        UnknownFormatError: It holds none, or one of a later version.
    """
    try:
        return EventTraceHeader.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        if place == "version":
            raise UnknownFormatError(
                f"is of a version that this program does not read; it reads up to {VERSION}",
                remedy="upgrade pagedkv",
            ) from None
        raise UnknownFormatError(
            f"does not begin with the header of an event trace ({place or 'line'}: {first['msg']})",
            remedy="see docs/event-traces.md",
        ) from None


def encode(seq: int, event: Event) -> bytes:
    """The line of an event, without its end."""
    kind = type(event)
    values = {f.name: getattr(event, f.name) for f in fields(event)}
    if "request_id" in values:
        values["request_id"] = _text(values["request_id"])
    if "batches" in values:
        values["batches"] = tuple(tuple(map(_text, batch)) for batch in values["batches"])
    line = _LINES[kind].model_construct(seq=seq, event=NAMES[kind], **values)
    return line.model_dump_json(exclude_defaults=True).encode()


def decode(text: str) -> tuple[int, Event]:
    """The number and the event of a line.

    Raises:
        MalformedLineError: It is not JSON, or no event.
        InvalidFieldError: A field is missing, unknown or of the wrong type.
    """
    try:
        line = _ANY_LINE.validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        place = [str(part) for part in first["loc"] if part not in KINDS]
        if not place:
            raise MalformedLineError(
                f"is no event ({first['msg']})",
                remedy=f"the events are {', '.join(KINDS)}",
            ) from None
        raise InvalidFieldError(
            f"is wrong ({first['msg']})",
            remedy="record the run again, or correct the field",
            field=".".join(place),
            value=first["input"],
        ) from None
    kind = KINDS[line.event]
    return line.seq, kind(**{f.name: getattr(line, f.name) for f in fields(kind)})


def _text(request_id: Hashable) -> str:
    """Text as it is; anything else in angle brackets, so that ``1`` and ``"1"`` stay apart."""
    return request_id if isinstance(request_id, str) else f"<{request_id!r}>"
