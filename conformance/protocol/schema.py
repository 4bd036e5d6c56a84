"""The protocol as a JSON Schema: ``python -m pagedkv.conformance.protocol.schema`` prints it."""

import json
from typing import Any

from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema
from pydantic_core import core_schema

from pagedkv.conformance.protocol import replies, requests
from pagedkv.conformance.protocol.message import VERSION


class _WithoutTitles(GenerateJsonSchema):
    """Fields have their names; nothing is gained by repeating them as titles."""

    def field_title_should_be_set(
        self, schema: core_schema.CoreSchema | core_schema.ModelField | Any
    ) -> bool:
        return False


# Any: JSON of whatever shape, and results of every type.
def protocol_schema() -> dict[str, Any]:
    """The schema of a request; that of a reply under ``reply``, of results under ``results``."""
    types: dict[str, Any] = {call: replies.RESULTS.get(call) for call in requests.CALLS}
    schemas, parts = TypeAdapter.json_schemas(
        [
            ("request", "serialization", requests.REQUEST),
            ("reply", "validation", TypeAdapter(replies.Reply)),
            *((call, "validation", TypeAdapter(result)) for call, result in types.items()),
        ],
        schema_generator=_WithoutTitles,
    )
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"pagedkv manager protocol, version {VERSION}",
        **schemas["request", "serialization"],
        "reply": schemas["reply", "validation"],
        "results": {call: schemas[call, "validation"] for call in types},
        **parts,
    }


def schema_text() -> str:
    """The schema as ``docs/protocol.schema.json`` has it."""
    return json.dumps(protocol_schema(), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    print(schema_text(), end="")
