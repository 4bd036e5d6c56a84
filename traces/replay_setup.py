"""What a replay asks of an implementation: a manager of given sizes."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pagedkv.reference.events import Tracer
    from pagedkv.reference.interfaces import SyncKVCacheManager
    from pagedkv.traces.events.setup import RunSetup


@dataclass(frozen=True)
class ReplaySetup:
    """Sizes of the manager to build. Content does not matter: one byte per token is enough.

    Raises:
        ValueError: A size is out of range, or two of them contradict each other.
    """

    page_size: int
    """Tokens per page, 1 or more."""
    total_num_pages: int
    """Device pages per replica, without the null page; 1 or more."""
    total_num_host_pages: int = 0
    """Host pages, shared by the replicas; 0 for no host tier."""
    total_num_disk_pages: int = 0
    """Disk pages, shared by the replicas; 0 for no disk tier."""
    disk_dir: Path | None = None
    """An empty folder for the disk tier; belongs to the caller, who removes it afterwards."""
    replicas: int = 1
    """Data-parallel replicas, each with its own device pages; 1 or more."""
    max_batch_size: int = 1
    """Most requests in one batch of one replica, 1 or more."""
    tracer: "Tracer | None" = None
    """Receives the manager's events, if the implementation reports any; ``None``: not wanted."""

    def run_setup(self) -> "RunSetup":
        """The same sizes, as the header of an event trace says them."""
        # Imported late because it brings in torch, which takes seconds.
        from pagedkv.traces.events.setup import RunSetup

        return RunSetup(
            page_size=self.page_size,
            total_num_pages=self.total_num_pages,
            replicas=self.replicas,
            max_batch_size=self.max_batch_size,
            host_pages=self.total_num_host_pages or None,
            disk_pages=self.total_num_disk_pages or None,
        )

    def __post_init__(self) -> None:
        for name in ("page_size", "total_num_pages", "replicas", "max_batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be 1 or more")
        for name in ("total_num_host_pages", "total_num_disk_pages"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be 0 or more")
        if self.total_num_disk_pages and not self.total_num_host_pages:
            raise ValueError(
                f"{self.total_num_disk_pages} disk pages need host pages in front of them: "
                "give host pages, too"
            )
        if self.total_num_disk_pages and self.disk_dir is None:
            raise ValueError("disk pages need a folder: give disk_dir")


ManagerFactory = Callable[[ReplaySetup], "SyncKVCacheManager"]
"""Builds a fresh manager; the replay shuts it down."""
