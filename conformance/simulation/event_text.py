"""Events in a line each, for people: without what goes without saying."""

from collections.abc import Iterable
from dataclasses import MISSING, fields, is_dataclass
from typing import Any

from pagedkv.reference.events import Event

KEY_DIGITS = 6
"""Hexadecimal digits of a key that are shown: enough to tell blocks of one run apart."""


def event_text(event: Event, only: Iterable[str] = ()) -> str:
    """An event as text, with ``only`` these of its fields, if any are given.

    Fields that are empty or have their default value are left out.
    """
    names = set(only) or {field.name for field in fields(event) if _is_told(event, field)}
    told = (f.name for f in fields(event) if f.name in names)
    return f"{type(event).__name__}({', '.join(f'{n}={_text(getattr(event, n))}' for n in told)})"


# Any, here and below: values of whatever type events have.
def _text(value: Any) -> str:
    if isinstance(value, bytes):
        return value.hex()[:KEY_DIGITS]
    if isinstance(value, tuple):
        return f"[{' '.join(map(_text, value))}]"
    if is_dataclass(value):
        told = (field.name for field in fields(value) if _is_told(value, field))
        return f"({', '.join(f'{name}={_text(getattr(value, name))}' for name in told)})"
    return repr(value)


def _is_told(owner: Any, field: Any) -> bool:
    """Whether a field says more than its default, or that there is nothing."""
    value = getattr(owner, field.name)
    if is_dataclass(value):
        return any(_is_told(value, inner) for inner in fields(value))
    return value != () and (field.default is MISSING or value != field.default)
