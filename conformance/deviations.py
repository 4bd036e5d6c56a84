"""Known deviations of an implementation, in a file that its owner keeps.

A TOML file with one table per check that is known to fail::

    [[deviation]]
    check = "alloc.refused_alloc_changes_nothing"
    reason = "a refused alloc keeps the pages that it has hit"
    source = "cache_manager.py:412"       # where in the code; optional

A listed check that fails is reported as a deviation. One that passes, or that there is not, is an
error: the list stays true.
"""

import tomllib
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError


class Deviation(BaseModel):
    """One check that is known to fail."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    check: str
    """Id of the check."""
    reason: str
    """What the implementation does instead."""
    source: str | None = None
    """Where in its code, or in its tracker, that can be seen."""


class _DeviationFile(BaseModel):
    model_config = ConfigDict(extra="forbid")

    deviation: tuple[Deviation, ...] = ()


class DeviationFileError(ValueError):
    """A file of deviations cannot be read."""


def read_deviations(path: Path, known: frozenset[str]) -> dict[str, Deviation]:
    """The deviations of a file, by check.

    Args:
        path: The file.
        known: Ids of all checks.

    Raises:
        DeviationFileError: The file is missing or malformed, or names a check twice, or one that
            there is not.
    """
    try:
        content = _DeviationFile.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise DeviationFileError(f"{path}: {error.strerror}; write it, or leave it out") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise DeviationFileError(f"{path} is no TOML: {error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise DeviationFileError(f"{path}: {place}: {first['msg']}") from error
    by_check: dict[str, Deviation] = {}
    for deviation in content.deviation:
        if deviation.check not in known:
            raise DeviationFileError(
                f"{path} lists {deviation.check!r}, which is no check; "
                "see pagedkv conformance --list"
            )
        if deviation.check in by_check:
            raise DeviationFileError(f"{path} lists {deviation.check!r} twice")
        by_check[deviation.check] = deviation
    return by_check
