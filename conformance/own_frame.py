"""The place in an implementation where an exception has come from."""

import sys
import traceback
from pathlib import Path

from pagedkv.traces.manager_setup import ManagerFactory

SUITE = ("pagedkv.conformance.", "pagedkv.traces.")
"""Modules that call implementations, and are none."""

NOBODYS = frozenset(sys.stdlib_module_names) | {"pagedkv"}
"""Top-level packages that say nothing of whose frame it is."""


def own_frame(error: BaseException, make: ManagerFactory) -> str:
    """The innermost frame that belongs to an implementation, as ``file:line, in function``.

    Its own is the top-level package of its factory. If that has no part in it, the outermost frame
    of any foreign package is given: the one that the suite has called.

    Args:
        error: What was raised.
        make: The factory of the implementation.

    Returns:
        The place; the file relative to the working directory if it is below. Empty if there is
        none, as for a manager in another process.
    """
    factory = getattr(make, "func", make)  # of a partial, the function
    package = factory.__module__.partition(".")[0]
    own, foreign = None, None
    for frame, line in traceback.walk_tb(error.__traceback__):
        module = str(frame.f_globals.get("__name__", ""))
        top = module.partition(".")[0]
        place = f"{_shown(frame.f_code.co_filename)}:{line}, in {frame.f_code.co_name}"
        if top == package and not module.startswith(SUITE):
            own = place
        if foreign is None and top not in NOBODYS:
            foreign = place
    return own or foreign or ""


def _shown(filename: str) -> str:
    path = Path(filename)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else filename
