"""What all lines of the protocol have in common."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema

VERSION = 1
"""Version of the protocol; both sides must speak the same one."""

STRICT = ConfigDict(
    extra="forbid",
    strict=True,
    ser_json_bytes="hex",
    val_json_bytes="hex",
    use_attribute_docstrings=True,
    json_schema_serialization_defaults_required=True,
)
"""What all messages have in common: no field too many, no text for a number, bytes as hex."""


Count = Annotated[int, Field(ge=0)]
"""A number of something, or a place."""

Hex = Annotated[bytes, WithJsonSchema({"type": "string", "pattern": "^([0-9a-f]{2})*$"})]
"""Bytes, in hexadecimal."""


class Message(BaseModel):
    """A line, or a part of one."""

    model_config = STRICT

    def as_line(self) -> bytes:
        """It as JSON, without an end of the line."""
        return self.model_dump_json().encode()
