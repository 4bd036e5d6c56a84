"""What a soak is made of: sizes that thrash every tier, and how often something happens."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pagedkv.reference.events import Tracer
from pagedkv.traces.manager_setup import ManagerSetup

PAGE_SIZE = 16
"""Tokens per page."""


@dataclass(frozen=True)
class SoakSettings:
    """How long, where, and how hard."""

    seconds: float
    """How long to serve."""
    folder: Path
    """Folder of the disk tier; it exists."""
    seed: int = 0
    """Of the workload and of all random choices. Threads make each run another one all the same."""
    clients: int = 12
    """Requests that are served at the same time."""
    pages: int = 160
    """Pages of each replica."""
    host_pages: int = 256
    """Pages in host memory."""
    disk_pages: int = 1024
    """Pages on disk."""
    cancel_share: float = 0.05
    """Share of the requests that are cancelled on their way."""
    prefetch_share: float = 0.1
    """Share of the requests that are prefetched."""

    @property
    def sample_s(self) -> float:
        """Seconds from one sample to the next: some 240 of them in all."""
        return min(10.0, max(0.25, self.seconds / 240))

    @property
    def life_s(self) -> float:
        """Seconds until the engine is closed and opened again."""
        return min(600.0, max(2.0, self.seconds / 6))

    @property
    def phase_s(self) -> float:
        """Seconds until the disk has other troubles."""
        return min(60.0, max(0.5, self.seconds / 24))

    @property
    def reset_s(self) -> float:
        """Seconds on average until the prefix cache is reset."""
        return min(120.0, max(1.0, self.seconds / 12))

    def manager_setup(self, tracer: Tracer) -> ManagerSetup:
        """How the engine is set up. Only the tracer differs from life to life."""
        # Any: the fields of ManagerSetup, which checks them.
        fields: dict[str, Any] = {
            "page_size": PAGE_SIZE,
            "total_num_pages": self.pages,
            "replicas": 2,
            "max_batch_size": self.clients,
            "layers": 2,
            "head_dim": 64,
            "host_pages": self.host_pages,
            "disk_pages": self.disk_pages,
            "disk_dir": self.folder,
            "model_fingerprint": "soak",
            "tracer": tracer,
        }
        return ManagerSetup(**fields)
