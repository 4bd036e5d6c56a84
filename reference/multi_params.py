"""Parameters of several caches that page the same sequences: target and draft, hybrid layers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pagedkv.reference.buffers import KVCacheBufferInterface, MultiKVCacheBuffer
from pagedkv.reference.device import DeviceRef
from pagedkv.reference.inputs import KVCacheAssignments, MultiKVCacheInputs
from pagedkv.reference.param_interface import (
    DeduplicationPolicy,
    HashAlgorithm,
    KVCacheParamInterface,
    KVConnectorType,
    SpeculativeMethod,
    check_params,
    check_type,
)
from pagedkv.reference.params import LAYOUT_FORMAT, fingerprint_of
from pagedkv.reference.tensor_types import Buffer, BufferType, TensorType

if TYPE_CHECKING:
    from pagedkv.reference.config import KVConnectorConfig

_DECLARED = (
    "page_size",
    "data_parallel_degree",
    "n_devices",
    "kv_connector",
    "host_kvcache_swap_space_gb",
    "speculative_method",
    "num_draft_tokens",
)
_INHERITED = (
    "devices",
    "enable_prefix_caching",
    "enable_dp_cross_replica_prefix_copy",
    "kv_connector_config",
    "kv_hash_algo",
    "kv_hash_seed",
    "deduplication",
)


@dataclass(frozen=True)
class MultiKVCacheParams(KVCacheParamInterface):
    """Parameters of several caches under one page table: page ``i`` of each belongs together.

    A child is a :class:`KVCacheParams` or another tree. :meth:`from_params` fills in the fields
    that all children share.
    """

    params: Sequence[KVCacheParamInterface]
    """The children, in the order in which their memory and inputs are listed."""
    page_size: int
    """Tokens per page."""
    data_parallel_degree: int
    """Replicas, each with a pool of its own."""
    n_devices: int
    """Number of devices."""
    kv_connector: KVConnectorType | None
    """What lies below the device tier; None means the same as ``null``."""
    host_kvcache_swap_space_gb: float | None
    """Size of the host tier in GiB, for all children together."""
    speculative_method: SpeculativeMethod | None = None
    """How draft tokens are made; None without speculation."""
    num_draft_tokens: int = 0
    """Draft tokens per speculative iteration."""
    names: Sequence[str] = field(default=(), kw_only=True)
    """One name per child, without dots; ``cache_0``, ``cache_1``, ... when left out."""
    devices: Sequence[DeviceRef] = field(init=False, repr=False)
    """All devices, replica-major, as every child has them."""
    enable_prefix_caching: bool = field(init=False, repr=False)
    """Whether requests reuse the pages of a common prefix."""
    enable_dp_cross_replica_prefix_copy: bool = field(init=False, repr=False)
    """Whether a hit on another replica is copied from device to device."""
    kv_connector_config: KVConnectorConfig | None = field(init=False, repr=False, hash=False)
    """Settings of the lower tiers."""
    kv_hash_algo: HashAlgorithm = field(init=False, repr=False)
    """What identifies a page."""
    kv_hash_seed: bytes | None = field(init=False, repr=False)
    """Root of every hash chain: 32 bytes, or None for a root that everybody shares."""
    deduplication: DeduplicationPolicy = field(init=False, repr=False)
    """What ``step`` does with a page whose content is already cached."""

    @classmethod
    def from_params(
        cls, *params: KVCacheParamInterface, **named: KVCacheParamInterface
    ) -> MultiKVCacheParams:
        """Aggregate ``params`` as ``cache_0``, ``cache_1``, ..., then ``named`` under their names.

        Raises:
            ValueError: There are none, two have the same name, or they differ in a field that
                they must share; the message names the field and the values.
        """
        children = _checked((*params, *named.values()))
        return cls(
            params=children,
            names=(*_default_names(len(params)), *named),
            **{name: getattr(children[0], name) for name in _DECLARED},
        )

    def __post_init__(self) -> None:
        """Check that the children agree, and take over what they share (PARAM-4).

        Raises:
            ValueError: There are no children, their names cannot be, or a field differs between
                them or from what is declared here.
        """
        children = _checked(self.params)
        check_type("names", self.names, list | tuple, "give a list of texts")
        names = tuple(self.names) or _default_names(len(children))
        for name in names:
            check_type("names", name, str, "give every cache a text of its own")
        if len(set(names)) != len(children) or any("." in name for name in names):
            raise ValueError(
                f"names is {list(names)} for {len(children)} cache(s); give each a name of its "
                "own, without dots"
            )
        object.__setattr__(self, "params", children)
        object.__setattr__(self, "names", names)
        for name in _INHERITED:
            object.__setattr__(self, name, getattr(children[0], name))
        for name in (*_DECLARED, *_INHERITED):
            values = {child: getattr(params, name) for child, params in self.children.items()}
            shared = getattr(self, name)
            if any(not _mean_the_same(value, shared) for value in values.values()):
                found = ", ".join(f"{child} has {_shown(value)}" for child, value in values.items())
                raise ValueError(
                    f"{name} must be {_shown(shared)} in every cache, but {found}; give all of "
                    "them the same, and leave the aggregate's fields to from_params()"
                )

    @property
    def children(self) -> dict[str, KVCacheParamInterface]:
        """The children by name."""
        return dict(zip(self.names, self.params, strict=True))

    @property
    def replicates_kv_across_tp(self) -> bool:
        """Whether every device of a replica holds identical KV state: in every child (PARAM-3).

        One sharded child is enough for the devices to differ. What is stored once in lower tiers
        is settled child by child, in :attr:`bytes_per_offloaded_block` and ``to_memory``.
        """
        return all(child.replicates_kv_across_tp for child in self.params)

    @property
    def bytes_per_block(self) -> int:
        """Device memory of one page in bytes, over all children (PARAM-2)."""
        return sum(child.bytes_per_block for child in self.params)

    @property
    def bytes_per_offloaded_block(self) -> int:
        """What one page of every child takes in a lower tier, in bytes."""
        return sum(child.bytes_per_offloaded_block for child in self.params)

    def get_symbolic_inputs(self, prefix: str = "") -> MultiKVCacheInputs[TensorType, BufferType]:
        """The types of the runtime inputs (MEM-4).

        A child's dimensions start with its name and a dot.
        """
        return MultiKVCacheInputs(
            {
                name: child.get_symbolic_inputs(f"{prefix}{name}.")
                for name, child in self.children.items()
            }
        )

    def unflatten_kv_inputs(self, it: Iterator[Buffer]) -> MultiKVCacheInputs[Buffer, Buffer]:
        """Rebuild the runtime inputs from their flat list."""
        return self.get_symbolic_inputs().unflatten(it)

    def allocate_buffers(self, total_num_pages: int) -> list[MultiKVCacheBuffer]:
        """Zeroed device memory of every child, one entry per replica. The caller owns it."""
        buffers: dict[str, Sequence[KVCacheBufferInterface]] = {
            name: child.allocate_buffers(total_num_pages) for name, child in self.children.items()
        }
        return [
            MultiKVCacheBuffer({name: replicas[i] for name, replicas in buffers.items()})
            for i in range(self.data_parallel_degree)
        ]

    def build_runtime_inputs(
        self,
        assignments: Sequence[KVCacheAssignments],
        buffers: Sequence[KVCacheBufferInterface],
    ) -> MultiKVCacheInputs[Buffer, Buffer]:
        """The inputs of one forward over all replicas; all children share the assignments."""
        trees: list[MultiKVCacheBuffer] = []
        for buffer in buffers:
            if not isinstance(buffer, MultiKVCacheBuffer) or [*buffer.children] != [*self.names]:
                raise ValueError(f"buffer is {buffer!r}; pass what allocate_buffers() gave")
            trees.append(buffer)
        return MultiKVCacheInputs(
            {
                name: child.build_runtime_inputs(
                    assignments, [tree.children[name] for tree in trees]
                )
                for name, child in self.children.items()
            }
        )

    def layout_fingerprint(self) -> str:
        """Digest over the children's names, order and fingerprints, 64 hex digits (NS-1)."""
        return fingerprint_of(
            {
                "format": LAYOUT_FORMAT,
                "children": [
                    [name, child.layout_fingerprint()] for name, child in self.children.items()
                ],
            }
        )


def _default_names(count: int) -> tuple[str, ...]:
    return tuple(f"cache_{i}" for i in range(count))


def _checked(params: Iterable[KVCacheParamInterface]) -> tuple[KVCacheParamInterface, ...]:
    check_type("params", params, Iterable, "give a list of caches' parameters")
    children = tuple(params)
    if not children:
        raise ValueError("params is empty; give at least one cache's parameters")
    for i, child in enumerate(children):
        check_params(f"params[{i}]", child)
    return children


def _mean_the_same(one: object, other: object) -> bool:
    no_connector = (None, KVConnectorType.null)
    return one == other or (one in no_connector and other in no_connector)


def _shown(value: object) -> str:
    """``value`` for a message: bytes are the hash seed, a secret."""
    return "a secret" if isinstance(value, bytes) else repr(value)
