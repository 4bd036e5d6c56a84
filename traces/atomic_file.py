"""Files that are there completely or not at all."""

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


def check_replaceable(path: Path) -> None:
    """Refuse early what :func:`replace_file` could not write.

    Raises:
        OSError: The folder is missing, or the path is a device, a pipe or a folder.
    """
    if not path.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, "its folder does not exist", str(path))
    # /dev/stdout and its like are links that may end at a regular file, which is still no target.
    is_device = Path("/dev") in path.absolute().parents
    if is_device or (path.exists() and not path.is_file()):
        raise OSError(errno.EINVAL, "is not a regular file", str(path))


@contextlib.contextmanager
def replace_file(path: Path) -> Iterator[BinaryIO]:
    """Write ``path`` anew; it keeps its old content until the block has ended without error.

    The bytes go to a temporary file in the same folder, which takes the name at the end.

    Raises:
        OSError: The path cannot be written.
    """
    check_replaceable(path)
    path = path.resolve()  # a link stays a link: what it points to is replaced
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("xb") as file:
            yield file
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
