"""Files that are there completely or not at all."""

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


def check_replaceable(path: Path) -> None:
    """Refuse early what :func:`replace_file` could not write.

    Raises:
        OSError: The folder is missing, or the path is a device, a pipe, a folder, or a link that
            leads to itself.
    """
    if not path.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, "its folder does not exist", str(path))
    # /dev/stdout and its like are links that may end at a regular file, which is still no target.
    is_device = Path("/dev") in path.absolute().parents
    with contextlib.suppress(FileNotFoundError):
        if is_device or not stat.S_ISREG(path.stat().st_mode):
            raise OSError(errno.EINVAL, "is not a regular file", str(path))


@contextlib.contextmanager
def replace_file(path: Path) -> Iterator[BinaryIO]:
    """Write ``path`` anew; it keeps its old content until the block has ended without error.

    The bytes go to a temporary file in the same folder, which takes the name at the end.

    Raises:
        OSError: The path cannot be written; says ``path``, whatever the temporary file is called.
    """
    check_replaceable(path)
    path = path.resolve()  # a link stays a link: what it points to is replaced
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("xb") as file:
            yield file
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            error.filename, error.filename2 = str(path), None
        raise
