"""The folder of a report: there completely or not at all, and never in place of anything else."""

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from pagedkv.traces.comparison.report import FORMAT

REPORT = "report.json"
"""The file that tells a report's folder from others, and says what else is in it."""


PAGE = "report.html"
"""The file for people."""


class ForeignFolderError(ValueError):
    """The folder holds something else than a report, which would be lost."""

    def __init__(self, folder: Path, foreign: str) -> None:
        self.folder = folder
        """The folder."""
        self.foreign = foreign
        """What it holds, or why that is unknown."""
        super().__init__(f"{folder} {foreign}; name a new folder, or that of an earlier report")


@contextlib.contextmanager
def report_folder(path: Path) -> Iterator[Path]:
    """A new folder to write a report into, which takes the name ``path`` in the end.

    An earlier report of that name stays until then. Folders above it are made.

    Raises:
        ForeignFolderError: ``path`` is something else than a folder with an earlier report.
        OSError: The folder cannot be made or renamed; says ``path``.
    """
    check_replaceable_report(path)
    path = path.resolve()  # a link stays a link: the folder that it points to is replaced
    fresh, earlier = (path.with_name(f".{path.name}.{os.getpid()}.{s}") for s in ("new", "old"))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh.mkdir()
        yield fresh
        check_replaceable_report(path)
        if path.exists():
            path.rename(earlier)
        fresh.rename(path)
    except BaseException as error:
        shutil.rmtree(fresh, ignore_errors=True)
        if earlier.exists():
            earlier.rename(path)
        if isinstance(error, OSError) and error.filename in (str(fresh), str(path.parent)):
            error.filename, error.filename2 = str(path), None
        raise
    shutil.rmtree(earlier, ignore_errors=True)


def check_replaceable_report(path: Path) -> None:
    """Refuse a path that holds anything but a report.

    Raises:
        ForeignFolderError: It does, or nobody can tell.
        OSError: It cannot be read.
    """
    if not path.exists() and not path.is_symlink():
        return
    if not path.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path))
    present = {entry.name for entry in path.iterdir()}
    if not present:
        return
    try:
        report = json.loads((path / REPORT).read_bytes())
        own = {*report["files"]} if report["format"] == FORMAT else set[str]()
    except (OSError, ValueError, TypeError, KeyError):
        own = set()
    if foreign := sorted(present - own):
        raise ForeignFolderError(path, f"holds {foreign[0]}, which belongs to no report")
