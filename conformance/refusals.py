"""Refusals: calls that a manager must not serve, and the errors that say so."""

from collections.abc import Iterator
from contextlib import contextmanager

from pagedkv.conformance.violation import Violation


@contextmanager
def raises(rule: str, kind: type[Exception], what: str) -> Iterator[None]:
    """Demand that a call is refused with an error of that kind.

    Raises:
        Violation: It is not refused, or with another error.
    """
    try:
        yield
    except Violation:
        raise
    except Exception as error:
        if is_error(error, kind):
            return
        raise Violation(
            rule, what, expected=kind.__name__, seen=f"{type(error).__name__}({error})"
        ) from error
    raise Violation(rule, what, expected=kind.__name__, seen="no error")


def is_error(error: Exception, kind: type[Exception]) -> bool:
    """Whether an error is of that kind: by class, by name, or by the built-in class it stands for.

    Managers of other projects do not import our classes.
    """
    if isinstance(error, kind) or type(error).__name__ == kind.__name__:
        return True
    built_in = tuple(
        base
        for base in kind.__mro__
        if base.__module__ == "builtins" and base not in (Exception, BaseException, object)
    )
    return isinstance(error, built_in)
