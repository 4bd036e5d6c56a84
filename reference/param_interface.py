"""What the parameters of every cache offer, of one cache or of a tree, and what they may say."""

from __future__ import annotations

import reprlib
from collections.abc import Iterator, Sequence
from enum import StrEnum
from numbers import Real
from operator import index
from types import UnionType
from typing import TYPE_CHECKING, Literal, Protocol, SupportsIndex, runtime_checkable

from pagedkv.reference.buffers import KVCacheBufferInterface
from pagedkv.reference.device import DeviceRef
from pagedkv.reference.inputs import KVCacheAssignments, KVCacheInputsInterface
from pagedkv.reference.tensor_types import Buffer, BufferType, TensorType

if TYPE_CHECKING:
    from pagedkv.reference.config import KVConnectorConfig

SpeculativeMethod = Literal["standalone", "eagle", "mtp", "dflash"]
"""How draft tokens are made: by a model of its own, by heads on the target (``eagle``, ``mtp``),
or as a whole block in one forward (``dflash``)."""

HashAlgorithm = Literal["sha256", "xxh3_128", "sha256_64"]
"""What identifies a page: the safe default, the fast choice, and one for 64-bit wire formats."""

DeduplicationPolicy = Literal["swap", "keep"]
"""What ``step`` does with a page whose content is already cached: swap in the cached page, or
keep the request's own so that page tables only ever grow."""


class KVConnectorType(StrEnum):
    """What lies below the device tier."""

    null = "null"
    """Nothing: pages live on the device only."""
    local = "local"
    """Host memory. Needs prefix caching and ``host_kvcache_swap_space_gb``."""
    tiered = "tiered"
    """Host memory, then disk. Needs what ``local`` needs, and ``disk_offload_dir``."""
    dkv = "dkv"
    """A distributed block store. Needs prefix caching and ``block_store_endpoint``."""


@runtime_checkable
class KVCacheParamInterface(Protocol):
    """Parameters of one cache, or of several that page the same sequences."""

    page_size: int
    """Tokens per page."""
    data_parallel_degree: int
    """Replicas, each with a pool of its own."""
    n_devices: int
    """Number of devices."""
    devices: Sequence[DeviceRef]
    """All devices, replica-major: the shards of replica 0, then of replica 1, ..."""
    enable_prefix_caching: bool
    """Whether requests reuse the pages of a common prefix."""
    enable_dp_cross_replica_prefix_copy: bool
    """Whether a hit on another replica is copied from device to device."""
    kv_connector: KVConnectorType | None
    """What lies below the device tier; None means the same as ``null``."""
    kv_connector_config: KVConnectorConfig | None
    """Settings of the lower tiers."""
    host_kvcache_swap_space_gb: float | None
    """Size of the host tier in GiB."""
    speculative_method: SpeculativeMethod | None
    """How draft tokens are made; None without speculation."""
    num_draft_tokens: int
    """Draft tokens per speculative iteration."""
    kv_hash_algo: HashAlgorithm
    """What identifies a page."""
    kv_hash_seed: bytes | None
    """Root of every hash chain: 32 bytes, or None for a root that everybody shares."""
    deduplication: DeduplicationPolicy
    """What ``step`` does with a page whose content is already cached."""

    @property
    def tensor_parallel_degree(self) -> int:
        """Shards per replica (PARAM-1)."""
        return self.n_devices // self.data_parallel_degree

    @property
    def devices_per_replica(self) -> list[Sequence[DeviceRef]]:
        """The shards' devices, one group per replica, in the order given (PARAM-1)."""
        shards = self.tensor_parallel_degree
        return [self.devices[i : i + shards] for i in range(0, self.n_devices, shards)]

    @property
    def num_draft_tokens_per_step(self) -> int:
        """Draft tokens that one draft forward writes: all of them for ``dflash``, otherwise 1."""
        return self.num_draft_tokens if self.speculative_method == "dflash" else 1

    @property
    def replicates_kv_across_tp(self) -> bool:
        """Whether every device of a replica holds identical KV state."""
        ...

    @property
    def bytes_per_block(self) -> int:
        """Device memory of one page, in bytes: all shards of a replica, scales included."""
        ...

    @property
    def bytes_per_offloaded_block(self) -> int:
        """What one page takes in a lower tier, in bytes: replicated content is stored once."""
        ...

    def get_symbolic_inputs(
        self, prefix: str = ""
    ) -> KVCacheInputsInterface[TensorType, BufferType]:
        """The types of the runtime inputs; ``prefix`` starts the name of every dimension."""
        ...

    def flattened_kv_inputs(self) -> list[TensorType | BufferType]:
        """The types of the runtime inputs in one flat list."""
        return self.get_symbolic_inputs().flatten()

    def unflatten_kv_inputs(self, it: Iterator[Buffer]) -> KVCacheInputsInterface[Buffer, Buffer]:
        """Rebuild the runtime inputs from their flat list.

        Raises:
            ValueError: ``it`` ends too early.
        """
        return self.get_symbolic_inputs().unflatten(it)

    def allocate_buffers(self, total_num_pages: int) -> Sequence[KVCacheBufferInterface]:
        """Zeroed device memory, one entry per replica. The caller owns it.

        Args:
            total_num_pages: Pages per replica, with the null page among them if there is to be one.

        Raises:
            ValueError: ``total_num_pages`` is below 1.
            DeviceUnavailableError: This machine lacks one of the devices.
        """
        ...

    def build_runtime_inputs(
        self,
        assignments: Sequence[KVCacheAssignments],
        buffers: Sequence[KVCacheBufferInterface],
    ) -> KVCacheInputsInterface[Buffer, Buffer]:
        """The inputs of one forward over all replicas. Nothing is copied.

        Args:
            assignments: Pages of each replica's batch.
            buffers: Each replica's memory, as :meth:`allocate_buffers` gave it.

        Raises:
            ValueError: There is not one of each per replica, or not one per shard in them.
        """
        ...

    def layout_fingerprint(self) -> str:
        """Digest of everything that decides what the bytes of a page mean, 64 hex digits.

        Pages may move between processes whose fingerprints are equal. Replicas share pages, so
        neither their number nor the devices' names are part of it.
        """
        ...


def whole_number(name: str, value: SupportsIndex, least: int | None = None) -> int:
    """``value`` as a plain ``int``; numpy's integers are whole numbers too, truth values are not.

    Raises:
        ValueError: It is something else, or below ``least``; the message calls it ``name``.
    """
    try:
        number = None if isinstance(value, bool) else index(value)
    except TypeError:
        number = None
    if number is None or (least is not None and number < least):
        start = "" if least is None else f" from {least}"
        raise ValueError(f"{name} is {reprlib.repr(value)}; use a whole number{start}")
    return number


def check_real_number(name: str, value: float, remedy: str) -> None:
    """Raise ``ValueError`` unless ``value`` is a number, and no truth value."""
    check_type(name, value, Real, remedy)
    if isinstance(value, bool):
        raise ValueError(f"{name} is {value}; {remedy}")


def check_type(name: str, value: object, kind: type | UnionType, remedy: str) -> None:
    """Raise ``ValueError``, calling it ``name``, unless ``value`` is of ``kind``."""
    if not isinstance(value, kind):
        raise ValueError(f"{name} is {reprlib.repr(value)}; {remedy}")


def check_params(name: str, value: object) -> None:
    """Raise ``ValueError``, calling it ``name``, unless ``value`` is a cache's parameters."""
    remedy = "pass KVCacheParams or MultiKVCacheParams, and each cache as an argument of its own"
    check_type(name, value, KVCacheParamInterface, remedy)
