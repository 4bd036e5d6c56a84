"""What is looked at again and again while a soak lasts."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import psutil

from pagedkv.engine import PagedKVCacheManager
from pagedkv.soak.clients import Tally
from pagedkv.traces.percentile import percentile

TIERS = ("device", "peer", "host", "disk")
"""Where blocks are served from."""


@dataclass(frozen=True)
class Sample:
    """One look."""

    at_s: float
    """When, in seconds since the beginning."""
    life: int
    """Which life of the engine, from 0."""
    trouble: str
    """What the disk is going through."""
    resident_bytes: int
    """Memory of this process."""
    threads: int
    """Threads of this process."""
    pages: Mapping[str, int]
    """Device pages by state, over all replicas: held, pinned, cached, free."""
    used: Mapping[str, int]
    """Slots in use below the devices, by tier."""
    in_flight: int
    """Transfers."""
    requests_per_s: float
    """Requests that have ended since the last sample."""
    alloc_us: Mapping[str, float]
    """Durations of the allocations since then, in microseconds: p50, p99, max."""
    late_ms: float
    """How late the event loop was to take this sample, in milliseconds."""
    served: Mapping[str, int]
    """Blocks served since the beginning, by tier."""
    failures: Mapping[str, int]
    """Failed transfers since the beginning, by reason."""
    validated: int
    """Events that were checked against the specification."""
    waiting: int
    """Events that wait to be checked."""

    def as_data(self) -> dict[str, object]:
        """All of it, for programs."""
        return asdict(self)


class Sampler:
    """Takes samples of one engine after the other."""

    def __init__(self, tally: Tally) -> None:
        self._process = psutil.Process()
        self._tally = tally
        self._ended, self._at_s = 0, 0.0
        self._served_before: Counter[str] = Counter()

    def sample(
        self,
        manager: PagedKVCacheManager,
        *,
        at_s: float,
        life: int,
        trouble: str,
        late_s: float,
        failures: Mapping[str, int],
        validated: int,
        waiting: int,
    ) -> Sample:
        """Look at an engine; see :class:`Sample` for the arguments."""
        replicas = range(len(manager.params.devices_per_replica))
        states = [manager.statistics(n) for n in replicas]
        durations, self._tally.alloc_ns = sorted(self._tally.alloc_ns), []
        ended = self._tally.ended
        rate = (ended - self._ended) / max(at_s - self._at_s, 1e-9)
        self._ended, self._at_s = ended, at_s
        now = served_by(manager)
        return Sample(
            at_s=round(at_s, 3),
            life=life,
            trouble=trouble,
            resident_bytes=self._process.memory_info().rss,
            threads=self._process.num_threads(),
            pages={
                name: sum(getattr(state, name) for state in states)
                for name in ("held", "pinned", "cached", "free")
            },
            used={
                "host": manager.get_num_used_host_pages(0),
                "disk": manager.get_num_used_disk_pages(0),
            },
            in_flight=len(manager.in_flight()),
            requests_per_s=round(rate, 2),
            alloc_us=_microseconds(durations),
            late_ms=round(1000 * late_s, 3),
            served={tier: self._served_before[tier] + now[tier] for tier in TIERS},
            failures=dict(failures),
            validated=validated,
            waiting=waiting,
        )

    def life_ends(self, manager: PagedKVCacheManager) -> None:
        """Keep what an engine has counted that is about to be closed."""
        self._served_before += served_by(manager)


def served_by(manager: PagedKVCacheManager) -> Counter[str]:
    """Blocks that an engine has served, by tier."""
    metrics = manager.get_metrics_aggregated()
    return Counter({tier: getattr(metrics, f"{tier}_blocks_served") for tier in TIERS})


def _microseconds(durations_ns: Sequence[int]) -> dict[str, float]:
    values = {
        "p50": percentile(durations_ns, 50),
        "p99": percentile(durations_ns, 99),
        "max": percentile(durations_ns, 100),
    }
    return {name: round(value / 1000, 1) for name, value in values.items()}
