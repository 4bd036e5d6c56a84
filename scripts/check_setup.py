"""Say in one line what keeps this checkout from being set up, if anything does.

The Makefile runs this with the Python it was given, before it makes the virtual environment.
"""

import importlib.util
import sys
from pathlib import Path

OLDEST, NEWEST = (3, 11), (3, 14)


# The annotation is quoted because a Python that is too old has to come as far as saying so.
def obstacle() -> "str | None":
    """What is missing and how to get it; None when nothing is missing."""
    version = sys.version_info[:2]
    if not OLDEST <= version <= NEWEST:
        return (
            "pagedkv needs Python {}.{} to {}.{}, and {} is {}.{}: "
            "name another one, for example `make test PYTHON=python3.12`"
        ).format(*OLDEST, *NEWEST, sys.executable, *version)
    if importlib.util.find_spec("ensurepip") is None:
        return (
            f"{sys.executable} cannot make virtual environments (no ensurepip): "
            "install its venv package (Debian and Ubuntu: apt install python3-venv)"
        )
    if not Path("src/pagedkv/reference").is_dir():
        return (
            "src/pagedkv/reference should be a symbolic link and is not: "
            "run `git config core.symlinks true`, then `git checkout -- src/pagedkv`"
        )
    return None


if __name__ == "__main__":
    sys.exit(obstacle())
