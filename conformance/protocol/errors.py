"""What can go wrong between two processes, and how a manager's errors travel."""

import inspect

from pydantic import JsonValue
from pydantic_core import from_json, to_json

from pagedkv.conformance.protocol.replies import ErrorData
from pagedkv.reference import errors


class ProtocolError(Exception):
    """The two sides do not understand each other, or one of them is gone."""


class UnknownCallError(ProtocolError):
    """A call that the manager does not know."""


class MalformedRequestError(ProtocolError):
    """A request that is no JSON, has a wrong field or lacks one, or comes out of turn."""


class UnknownManagerError(ProtocolError):
    """A request names a manager that is not open."""


class CannotStartError(ProtocolError):
    """The command cannot be run."""


class ProcessEndedError(ProtocolError):
    """The process has ended, although it was asked for something."""


class NoReplyError(ProtocolError):
    """The process does not answer in time."""


class MalformedReplyError(ProtocolError):
    """The process has answered with something that is no reply to the request."""


class RemoteError(Exception):
    """A manager has failed with an error of its own."""


BUILT_IN: tuple[type[Exception], ...] = (
    AssertionError,
    IndexError,
    KeyError,
    MemoryError,
    NotImplementedError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""Python's exceptions that a manager may raise, too."""

_KNOWN: dict[str, type[Exception]] = {
    kind.__name__: kind
    for kind in (
        *BUILT_IN,
        *(UnknownCallError, MalformedRequestError, UnknownManagerError),
        *(
            kind
            for kind in vars(errors).values()
            if isinstance(kind, type) and issubclass(kind, errors.PagedKVError)
        ),
    )
}
"""The errors that have a name on both sides."""


def as_data(error: Exception) -> ErrorData:
    """An error as a reply carries it: under the name of the nearest class that both sides know."""
    known = next((kind for kind in type(error).__mro__ if kind in _KNOWN.values()), Exception)
    message = str(error) if known is type(error) else f"{type(error).__name__}: {error}"
    fields: dict[str, JsonValue] = {}
    if isinstance(error, errors.PagedKVError):
        fields = from_json(to_json(vars(error), fallback=repr))
    return ErrorData(name=known.__name__, message=message, fields=fields)


def as_error(data: ErrorData) -> Exception:
    """The error that a reply carries, to be raised; fields that it lacks have their defaults."""
    kind = _KNOWN.get(data.name)
    if kind is None:
        return RemoteError(f"{data.name}: {data.message}")
    error = kind.__new__(kind, data.message)
    if issubclass(kind, errors.PagedKVError):
        parameters = inspect.signature(kind).parameters.values()
        defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
        vars(error).update(defaults | data.fields)
    return error
