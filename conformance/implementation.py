"""What an implementation says of itself, so that the suite knows what to ask of it."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from pagedkv.traces.manager_setup import ManagerFactory

Capability = Literal[
    "device",
    "prefix",
    "inputs",
    "probes",
    "metrics",
    "memory",
    "reset",
    "dummy",
    "reserve",
    "replicas",
    "host",
    "disk",
    "store",
    "transfers",
    "events",
    "async",
    "mla",
    "fp8",
    "multi",
    "speculative",
    "shutdown",
]
"""What a manager can do beyond the calls that every one has; docs/conformance.md explains each."""

CAPABILITIES: tuple[Capability, ...] = get_args(Capability)

METHODS: dict[Capability, tuple[str, ...]] = {
    "device": ("claim", "alloc", "step", "release", "get_req_blocks", "num_free_blocks"),
    "inputs": ("runtime_inputs",),
    "probes": ("get_prefix_cache_hit_counts", "get_pct_used_blocks_after_allocation"),
    "metrics": ("get_metrics_aggregated", "reset_metrics"),
    "memory": ("get_device_buffer",),
    "reset": ("reset_prefix_cache",),
    "dummy": ("alloc_dummy",),
    "reserve": ("reserve",),
    "transfers": ("begin_alloc", "finish_alloc", "cancel_alloc", "in_flight", "land", "fail"),
    "shutdown": ("shutdown",),
}
"""The methods that a capability needs; those that are not here need none of their own."""


@dataclass(frozen=True, kw_only=True)
class Implementation:
    """A manager to check: how to build one, and what it claims to be."""

    name: str
    """What reports call it."""
    make: ManagerFactory
    """Builds a fresh manager from a :class:`~pagedkv.traces.manager_setup.ManagerSetup`."""
    version: str = "unknown"
    """Its version."""
    capabilities: frozenset[Capability] = frozenset({"device", "prefix"})
    """What it can do; checks that need more are skipped, and reported as that."""
    follows: frozenset[str] = field(default_factory=frozenset)
    """Ids of the SHOULD rules that it follows; the others are not asked of it."""
    write_policies: tuple[Literal["through", "write_back", "reuse"], ...] = ("through",)
    """Write policies that it knows, the one to use by default first."""
    page_size: int = 4
    """Tokens per page in checks that do not need another size."""
    deviations: Path | None = None
    """Known deviations, in a file that its owner keeps; see :mod:`pagedkv.conformance.deviations`.
    """

    def __post_init__(self) -> None:
        unknown = sorted(set(self.capabilities) - set(CAPABILITIES))
        if unknown:
            raise ValueError(
                f"{self.name}: no such capabilities: {', '.join(unknown)}; "
                f"there are {', '.join(CAPABILITIES)}"
            )


def offered_by(manager: object, declared: Iterable[Capability]) -> frozenset[Capability]:
    """``declared``, and what the methods of ``manager`` show that it can do."""
    shown = {
        capability
        for capability, methods in METHODS.items()
        if all(callable(getattr(manager, name, None)) for name in methods)
    }
    return frozenset(declared) | shown
