"""Known deviations of an implementation, in a file that its owner keeps.

A TOML file with one table per cause, and the checks that it makes fail::

    tested = "1.4.0"                      # version of the implementation; optional

    [[deviation]]
    rule = "ALLOC-2"
    what = "A refused alloc keeps the pages that it has hit."
    where = "cache_manager.py:412"        # in its code, or in its tracker; optional
    checks = ["alloc.a_refused_alloc_changes_nothing"]

A listed check that fails is reported as a deviation. One that passes, or that there is not, is an
error: the list stays true.
"""

import tomllib
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from pagedkv.conformance.spec_text import rules


class Deviation(BaseModel):
    """One thing that the implementation is known to do differently."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rule: str
    """The rule that it breaks."""
    what: str
    """What the implementation does instead."""
    where: str | None = None
    """Where in its code, or in its tracker, that can be seen."""
    checks: tuple[str, ...] = ()
    """Ids of the checks that it makes fail."""


class _DeviationFile(BaseModel):
    model_config = ConfigDict(extra="forbid")

    tested: str | None = None
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
        if deviation.rule not in rules():
            raise DeviationFileError(
                f"{path} names {deviation.rule!r}, which is no rule of SPEC.md"
            )
        for check in deviation.checks:
            if check not in known:
                raise DeviationFileError(
                    f"{path} lists {check!r}, which is no check; see pagedkv conformance --list"
                )
            if check in by_check:
                raise DeviationFileError(f"{path} lists {check!r} twice")
            by_check[check] = deviation
    return by_check
