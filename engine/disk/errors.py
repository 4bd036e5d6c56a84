"""What can be wrong with a disk directory: one class per reason."""

import os
from pathlib import Path

from pagedkv.reference.errors import PagedKVError
from pagedkv.reference.identity import PageKey


class BlockDamagedError(PagedKVError):
    """The bytes of a slot are not those of the block that was asked for (TIER-5)."""

    def __init__(self, key: PageKey) -> None:
        self.key = key
        """The block that was asked for."""
        super().__init__(f"block {key.hex()} is damaged; compute its tokens again")


class BlockMissingError(PagedKVError):
    """A slot holds nothing: its block was found damaged by another call, or was reset."""

    def __init__(self, key: PageKey) -> None:
        self.key = key
        """The block that was asked for."""
        super().__init__(f"block {key.hex()} is there no more; compute its tokens again")


class DirectoryInUseError(PagedKVError, RuntimeError):
    """Another process, or another manager of this one, has the directory open."""

    def __init__(self, directory: Path, pid: int | None) -> None:
        self.directory = directory
        """The directory in question."""
        self.pid = pid
        """The process that has it open; ``None`` if it has not said so yet."""
        holder, remedy = "another process" if pid is None else f"process {pid}", "end that one"
        if pid == os.getpid():
            holder, remedy = f"{holder}, which is this one", "close the manager that has it"
        super().__init__(
            f"disk_offload_dir {str(directory)!r} is open in {holder}; {remedy}, or choose another "
            "directory"
        )


class DirectoryUnusableError(PagedKVError, ValueError):
    """The directory cannot be made, read or written."""

    def __init__(
        self,
        directory: Path,
        reason: str,
        remedy: str = "make room, and make it readable and writable for this process, or choose "
        "another directory",
    ) -> None:
        self.directory = directory
        """The directory in question."""
        self.reason = reason
        """What the operating system or the index said."""
        super().__init__(f"disk_offload_dir {str(directory)!r} cannot be used ({reason}); {remedy}")


class NewerIndexError(PagedKVError, ValueError):
    """The directory was written by a later version of this package."""

    def __init__(self, directory: Path, found: int, known: int) -> None:
        self.directory = directory
        """The directory in question."""
        self.found = found
        """Version of its index."""
        self.known = known
        """The latest version that is known here."""
        super().__init__(
            f"disk_offload_dir {str(directory)!r} has an index of version {found}, but this "
            f"pagedkv knows versions up to {known}; upgrade pagedkv, clear the directory with "
            "`pagedkv disk clear`, or choose another one"
        )


class IndexDamagedError(PagedKVError, ValueError):
    """An index cannot be read, or contradicts itself. Opening the directory sets it aside."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        """What is wrong with it."""
        super().__init__(
            f"the index is damaged ({reason}); the next disk tier here sets it aside and starts "
            "cold, or clear the directory with `pagedkv disk clear`"
        )
