"""The cache sizes that a comparison goes through."""

from collections.abc import Iterable
from itertools import product

from pydantic import BaseModel, NonNegativeInt, PositiveInt


class Sizes(BaseModel, frozen=True):
    """Pages of each tier; 0 for a tier that is not there."""

    device_pages: PositiveInt
    """Pages of the device pool."""
    host_pages: NonNegativeInt = 0
    """Pages of the host tier."""
    disk_pages: NonNegativeInt = 0
    """Pages of the disk tier, behind a host tier."""

    @property
    def lower_pages(self) -> int:
        """Pages of all tiers below the device."""
        return self.host_pages + self.disk_pages

    @property
    def tiers(self) -> tuple[str, ...]:
        """Names of the tiers that are there, fastest first."""
        return tuple(tier for tier in ("device", "host", "disk") if self.pages_of(tier))

    def pages_of(self, tier: str) -> int:
        """Pages of the tier that is called so."""
        pages: int = getattr(self, f"{tier}_pages")
        return pages

    @property
    def lower_tiers(self) -> str:
        """The tiers below the device, in words."""
        parts = [f"{self.host_pages:,} host"] if self.host_pages else []
        parts += [f"{self.disk_pages:,} disk"] if self.disk_pages else []
        return f"{' and '.join(parts)} pages" if parts else "device only"


def every_combination(
    device_pages: Iterable[int], host_pages: Iterable[int], disk_pages: Iterable[int]
) -> list[Sizes]:
    """All combinations that can be, each once: a disk tier needs a host tier in front of it.

    Those with the same lower tiers stand together, smaller device pools first.
    """
    choices = product(sorted(set(host_pages)), sorted(set(disk_pages)), sorted(set(device_pages)))
    return [
        Sizes(device_pages=device, host_pages=host, disk_pages=disk)
        for host, disk, device in choices
        if host or not disk
    ]
