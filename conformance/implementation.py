"""What an implementation says of itself, so that the suite knows what to ask of it."""

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol, get_args

from pagedkv.reference.context import Context
from pagedkv.reference.identity import PageKey
from pagedkv.reference.params import HashAlgorithm
from pagedkv.reference.tier_names import FailReason, TierName, TransferKind
from pagedkv.traces.manager_setup import ManagerFactory

Capability = Literal[
    "device",
    "prefix",
    "inputs",
    "probes",
    "metrics",
    "bytes",
    "memory",
    "reset",
    "dummy",
    "reserve",
    "replicas",
    "host",
    "disk",
    "store",
    "transfers",
    "deferral",
    "prefetch",
    "events",
    "async",
    "mla",
    "fp8",
    "multi",
    "speculative",
    "shutdown",
    "poison",
    "vocabulary",
]
"""What a manager can do beyond the calls that every one has; docs/conformance.md explains each."""

CAPABILITIES: tuple[Capability, ...] = get_args(Capability)

METHODS: dict[Capability, tuple[str, ...]] = {
    "device": ("claim", "alloc", "step", "release", "get_req_blocks", "num_free_blocks"),
    "inputs": ("runtime_inputs",),
    "probes": ("get_prefix_cache_hit_counts", "get_pct_used_blocks_after_allocation"),
    "metrics": ("get_metrics_aggregated", "reset_metrics"),
    "bytes": ("write_slots", "read_slots"),
    "memory": ("get_device_buffer",),
    "reset": ("reset_prefix_cache",),
    "dummy": ("alloc_dummy",),
    "reserve": ("reserve",),
    "transfers": ("begin_alloc", "finish_alloc", "cancel_alloc", "in_flight", "land", "fail"),
    "deferral": ("submit",),
    "prefetch": ("prefetch",),
    "shutdown": ("shutdown",),
    "poison": ("poison",),
}
"""The methods that a capability needs; those that are not here need none of their own."""

TIER_METHODS: dict[Capability, tuple[str, ...]] = {
    "host": ("get_num_host_pages", "get_num_used_host_pages"),
    "disk": ("get_num_disk_pages", "get_num_used_disk_pages"),
}
"""The methods that count the pages of a tier, for those who have them."""


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
    hash_algorithms: tuple[HashAlgorithm, ...] = get_args(HashAlgorithm)
    """Hash algorithms that it has (ID-1), the one to use by default first; checks that need another
    one are skipped."""
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
        wrong = sorted(set(self.hash_algorithms) - set(get_args(HashAlgorithm)))
        if wrong or not self.hash_algorithms:
            raise ValueError(
                f"{self.name}: hash_algorithms is {self.hash_algorithms!r}; name one or more of "
                f"{', '.join(get_args(HashAlgorithm))}"
            )
        if self.page_size < 2:
            raise ValueError(
                f"{self.name}: page_size is {self.page_size}; the checks need pages of 2 tokens or "
                "more, with a first and a last one"
            )


class PlannedAllocation(Protocol):
    """What ``begin_alloc`` returns."""

    @property
    def pages(self) -> Sequence[int]:
        """The page table that the request is to get."""
        ...

    @property
    def transfers(self) -> Sequence[str]:
        """Names of the transfers that it waits for."""
        ...


class TransferInFlight(Protocol):
    """One transfer, as ``in_flight`` lists it."""

    @property
    def id(self) -> str:
        """Its name."""
        ...

    @property
    def kind(self) -> TransferKind:
        """Its direction."""
        ...

    @property
    def source(self) -> TierName:
        """The tier that is read."""
        ...

    @property
    def target(self) -> TierName:
        """The tier that is written."""
        ...

    @property
    def keys(self) -> Sequence[PageKey]:
        """The blocks, root first, by the keys of ID-1."""
        ...

    @property
    def replica(self) -> int | None:
        """The replica whose pages take part; ``None`` between lower tiers."""
        ...

    @property
    def pages(self) -> Sequence[int]:
        """Its device pages, one per block, or none."""
        ...

    @property
    def source_replica(self) -> int | None:
        """The replica that is read, for a copy between replicas."""
        ...

    @property
    def source_pages(self) -> Sequence[int]:
        """Its pages, for a copy between replicas."""
        ...


class ControlledManager(Protocol):
    """A manager whose environment the suite plays: capability ``transfers``.

    It is built with ``auto_land=False``, and then nothing lands or fails by itself. (``alloc``,
    which cannot wait, lands the loads that it issues.)
    """

    def begin_alloc(
        self, ctx: Context, replica_idx: int, hit_limit: int | None = None
    ) -> PlannedAllocation:
        """Match, take, issue the loads (ALLOC-13).

        No more than ``hit_limit`` blocks of the hit are used (ALLOC-15); nobody gives one to a
        manager without ``prefetch``, which may lack the argument.
        """
        ...

    def finish_alloc(self, ctx: Context, replica_idx: int) -> object:
        """Complete it, or raise ``KVLoadFailed`` if a load has failed."""
        ...

    def cancel_alloc(self, request_id: Hashable, replica_idx: int) -> None:
        """Undo it."""
        ...

    def in_flight(self) -> Sequence[TransferInFlight]:
        """Transfers that have neither landed nor failed, in the order of their issue."""
        ...

    def land(self, transfer_id: str) -> None:
        """The bytes of a transfer have arrived."""
        ...

    def fail(
        self, transfer_id: str, reason: FailReason, keys: Iterable[PageKey] | None = None
    ) -> None:
        """A transfer has failed, through the fault of ``keys``, by default all."""
        ...


class DeferringManager(Protocol):
    """A controlled manager with the capability ``deferral``: it serves before a load has landed.

    That is for schedulers which have the device wait for the copies in place of the host (XFER-8).
    """

    def submit(self, transfer_id: str) -> None:
        """What can fail of a load is done; whoever reads its pages from now on finds its bytes."""
        ...


class PrefetchingManager(Protocol):
    """A manager with the capability ``prefetch``: it leaves slow tiers out, or runs ahead of them.

    It serves requests that should not wait for disk and store: ``begin_alloc`` takes a
    ``hit_limit``, where there is a ``begin_alloc`` (ALLOC-15).
    """

    def prefetch(self, ctx: Context) -> Sequence[str]:
        """Load what ``ctx``, claimed or not, could hit into host memory; the transfers' names."""
        ...


def offered_by(manager: object, declared: Iterable[Capability]) -> frozenset[Capability]:
    """``declared``, and what the methods of ``manager`` show that it can do."""
    shown: set[Capability] = {
        capability
        for capability, methods in METHODS.items()
        if not missing_methods(manager, methods)
    }
    if "memory" in shown:
        shown.add("bytes")
    return frozenset(declared) | shown


def missing_methods(manager: object, names: Iterable[str]) -> list[str]:
    """Those of ``names`` that are no methods of ``manager``."""
    return [name for name in names if not callable(getattr(manager, name, None))]
