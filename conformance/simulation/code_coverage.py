"""Which lines and branches of an implementation the runs of many processes have come through.

It takes the library ``coverage``, and several times as long.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from multiprocessing import util
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class CodeCovered:
    """One module."""

    file: str
    """Its file, as short as the interpreter knows it."""
    statements: int
    """Lines with code."""
    missed: tuple[int, ...]
    """Those of them that nothing has come to."""
    branches: int
    """Ways out of lines that have several."""
    missed_branches: tuple[tuple[int, int], ...]
    """Those of them that nothing has taken: from a line, to a line; below 0: out of the function
    that begins there."""

    def as_data(self) -> dict[str, object]:
        """All of it, for programs."""
        return asdict(self)


def is_available() -> bool:
    """Whether the library is installed."""
    return find_spec("coverage") is not None


def measure_until_exit(packages: Sequence[str], folder: Path) -> None:
    """Measure this process from now on; at its end, what was measured lies in ``folder``."""
    import coverage

    measuring = coverage.Coverage(
        data_file=folder / "lines",
        data_suffix=True,
        branch=True,
        source_pkgs=list(packages),
        config_file=False,
        messages=False,
    )
    measuring.start()

    def end() -> None:
        measuring.stop()
        measuring.save()

    util.Finalize(None, end, exitpriority=100)


def measured(packages: Sequence[str], folder: Path) -> list[CodeCovered]:
    """What all processes that have ended have come through together, module by module."""
    import coverage

    all_of_them = coverage.Coverage(
        data_file=folder / "lines",
        branch=True,
        source_pkgs=list(packages),
        config_file=False,
        messages=False,
    )
    all_of_them.combine([str(folder)])
    report = folder / "lines.json"
    all_of_them.json_report(outfile=str(report))
    return [
        CodeCovered(
            file,
            found["summary"]["num_statements"],
            tuple(found["missing_lines"]),
            found["summary"]["num_branches"],
            tuple((start, end) for start, end in found["missing_branches"]),
        )
        for file, found in _files(report).items()
    ]


# Any: the library's own report.
def _files(report: Path) -> dict[str, Any]:
    files: dict[str, Any] = json.loads(report.read_text())["files"]
    return files
