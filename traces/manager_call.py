"""One call of the manager under replay, and what can be wrong with it."""

from collections.abc import Callable
from inspect import isawaitable, iscoroutine
from typing import TypeVar

Result = TypeVar("Result")


class ManagerCallError(RuntimeError):
    """A call of the manager has failed; what it raised, if anything, is the cause."""

    def __init__(self, call: str, problem: str) -> None:
        self.call = call
        """Name of the method."""
        super().__init__(f"{call} {problem}")


def call_manager(name: str, call: Callable[[], Result]) -> Result:
    """Make one call, and tell what goes wrong in it from everything else that could.

    Raises:
        ManagerCallError: The call raised anything but ``KeyboardInterrupt``, or it is
            asynchronous.
    """
    try:
        result = call()
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # whatever it is: a manager has no business to end the process
        raise ManagerCallError(name, f"raised {type(error).__name__}: {error}") from error
    if isawaitable(result):
        if iscoroutine(result):
            result.close()
        raise ManagerCallError(
            name, "is asynchronous: a replay needs the methods of SyncKVCacheManager"
        )
    return result
