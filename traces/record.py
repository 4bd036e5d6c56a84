"""One line of a JSON trace as a pydantic model whose errors are made for people."""

import json
from collections import Counter
from typing import Self

from pydantic import BaseModel, ConfigDict, ValidationError

from pagedkv.traces.errors import InvalidFieldError, MalformedLineError, TraceError


class Record(BaseModel):
    """Base of the models; the docstring of a field says in an error what the field should hold."""

    model_config = ConfigDict(frozen=True, strict=True, use_attribute_docstrings=True)

    @classmethod
    def parse(cls, line: str) -> Self:
        """Read one line of JSON.

        Raises:
            MalformedLineError: The line is not a JSON object, or names a field twice.
            InvalidFieldError: A field is missing, unknown, of the wrong type or out of range.
        """
        try:
            record = cls.model_validate_json(line)
        except ValidationError as error:
            raise cls._for_people(error) from None
        json.loads(line, object_pairs_hook=refuse_repeated)
        return record

    @property
    def unknown_fields(self) -> list[str]:
        """Names that the model does not know; empty for a model that forbids them."""
        return list(self.model_extra or {})

    @classmethod
    def _for_people(cls, error: ValidationError) -> TraceError:
        """The first of pydantic's complaints, with the field's own description as the remedy."""
        first = error.errors(include_url=False)[0]
        if first["type"] == "json_invalid":
            return MalformedLineError(
                "is not valid JSON (" + str(first.get("ctx", {}).get("error")) + ")",
                remedy="write one JSON object per line",
            )
        if not first["loc"]:
            return MalformedLineError(
                "is JSON, but not an object", remedy="write one JSON object per line"
            )
        name = str(first["loc"][0])
        field = name + "".join(f"[{index}]" for index in first["loc"][1:])
        if first["type"] == "missing":
            return InvalidFieldError(
                f"has no field {name!r}", remedy=f"add it: {cls._description(name)}"
            )
        if first["type"] == "extra_forbidden":
            return InvalidFieldError(
                "is not a field of this format",
                field=field,
                value=first["input"],
                remedy=f"remove it; the fields are {', '.join(cls.model_fields)}",
            )
        return InvalidFieldError(
            first["msg"].replace("Input should", "should"),
            field=field,
            value=first["input"],
            remedy=f"it holds: {cls._description(name)}",
        )

    @classmethod
    def _description(cls, name: str) -> str:
        """The docstring of a field, found by its own name or by one of its aliases."""
        for own_name, field in cls.model_fields.items():
            aliases = getattr(field.validation_alias, "choices", ())
            if name == own_name or name in aliases:
                text = (field.description or "").rstrip(".")
                return text[:1].lower() + text[1:]
        return f"a {name}"


def refuse_repeated(pairs: list[tuple[str, object]]) -> None:
    """Check the fields of one JSON object, of which pydantic would silently take the last.

    Raises:
        MalformedLineError: One of them is named twice.
    """
    if len(dict(pairs)) < len(pairs):
        (name, _), *_ = Counter(name for name, _ in pairs).most_common(1)
        raise MalformedLineError(f"names field {name!r} twice", remedy="remove one of the two")
