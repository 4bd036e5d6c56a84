"""What a cache is made of: model geometry, parallelism, paging, and the tiers below the device."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING, get_args

import torch

from pagedkv.reference.buffers import KVCacheBuffer, KVCacheBufferInterface
from pagedkv.reference.device import DeviceRef
from pagedkv.reference.inputs import (
    KVCacheAssignments,
    KVCacheInputs,
    KVCacheInputsPerDevice,
)
from pagedkv.reference.param_interface import (
    DeduplicationPolicy,
    HashAlgorithm,
    KVCacheParamInterface,
    KVConnectorType,
    SpeculativeMethod,
    check_real_number,
    check_type,
    whole_number,
)
from pagedkv.reference.tensor_types import Buffer, BufferType, Dim, DType, TensorType

if TYPE_CHECKING:
    from pagedkv.reference.config import KVConnectorConfig

__all__ = [
    "LAYOUT_FORMAT",
    "DeduplicationPolicy",
    "HashAlgorithm",
    "KVCacheParamInterface",
    "KVCacheParams",
    "KVCacheQuantizationConfig",
    "KVConnectorType",
    "SpeculativeMethod",
    "fingerprint_of",
]

LAYOUT_FORMAT = 1
"""Version of the page layout, and of what a layout fingerprint covers."""

_DTYPE_SHORTHANDS = {
    torch.float32: "f32",
    torch.float16: "f16",
    torch.bfloat16: "bf16",
    torch.float8_e4m3fn: "f8_e4m3fn",
    torch.float8_e4m3fnuz: "f8_e4m3fnuz",
}


@dataclass(frozen=True)
class KVCacheQuantizationConfig:
    """Scales that are stored next to FP8 values."""

    scale_dtype: DType = torch.float32
    """Floating-point type of a scale."""
    quantization_granularity: int = 128
    """Elements of a head that share one scale; it divides ``head_dim``."""

    def __post_init__(self) -> None:
        """Raises ``ValueError`` for a scale that is no float, or a granularity below 1."""
        remedy = "use a floating-point type such as torch.float32"
        check_type("scale_dtype", self.scale_dtype, torch.dtype, remedy)
        if not self.scale_dtype.is_floating_point:
            raise ValueError(f"scale_dtype is {self.scale_dtype}; {remedy}")
        _set_whole_numbers(self, 1, "quantization_granularity")


@dataclass(frozen=True)
class KVCacheParams(KVCacheParamInterface):
    """Parameters of one cache."""

    dtype: DType
    """Element type of keys and values."""
    n_kv_heads: int
    """KV heads over all shards of a replica; MLA has one latent head, whatever is given here."""
    head_dim: int
    """Elements per head."""
    num_layers: int
    """Layers of the model that this cache serves."""
    devices: Sequence[DeviceRef]
    """All devices, replica-major; anything :meth:`DeviceRef.of` takes is converted."""
    enable_prefix_caching: bool = False
    """Whether requests reuse the pages of a common prefix."""
    kv_connector: KVConnectorType | None = None
    """What lies below the device tier; None means the same as ``null``."""
    kv_connector_config: KVConnectorConfig | None = field(default=None, hash=False)
    """Settings of the lower tiers; a mapping is converted."""
    host_kvcache_swap_space_gb: float | None = None
    """Size of the host tier in GiB; needed with ``local`` and ``tiered``."""
    page_size: int = 128
    """Tokens per page, any number from 1; MAX's limit to multiples of 128 does not hold here."""
    is_mla: bool = False
    """Multi-head latent attention: one latent per token, which every shard holds in full."""
    num_q_heads: int | None = None
    """Query heads over all shards of a replica; needed with ``is_mla``."""
    data_parallel_degree: int = 1
    """Replicas; it divides the number of devices."""
    kvcache_quant_config: KVCacheQuantizationConfig | None = None
    """Scales, used when ``dtype`` is FP8; without it FP8 values are stored unscaled."""
    speculative_method: SpeculativeMethod | None = None
    """How draft tokens are made; None without speculation."""
    num_draft_tokens: int = 0
    """Draft tokens per speculative iteration."""
    enable_dp_cross_replica_prefix_copy: bool = True
    """Whether a hit on another replica is copied from device to device."""
    kv_hash_algo: HashAlgorithm = "sha256"
    """What identifies a page."""
    kv_hash_seed: bytes | None = field(default=None, repr=False)
    """Root of every hash chain: 32 bytes that nothing prints, for they are a secret between
    processes; None for a root that everybody shares."""
    deduplication: DeduplicationPolicy = "swap"
    """What ``step`` does with a page whose content is already cached."""
    n_devices: int = field(init=False, repr=False)
    """Number of devices."""

    def __post_init__(self) -> None:
        """Convert what was given, then check it (PARAM-5).

        Raises:
            ValueError: A field cannot be, or does not go with the others; nothing is guessed.
        """
        devices = DeviceRef.all_of(self.devices)
        object.__setattr__(self, "devices", devices)
        object.__setattr__(self, "n_devices", len(devices))
        if self.kv_connector is not None:
            _check_choice("kv_connector", self.kv_connector, list(KVConnectorType))
            object.__setattr__(self, "kv_connector", KVConnectorType(self.kv_connector))
        self._check_kinds()
        self._check_sizes()
        self._check_heads()
        self._check_connector()
        self._check_speculation()
        self._check_identity()

    def _check_kinds(self) -> None:
        check_type("dtype", self.dtype, torch.dtype, "use a torch type such as torch.bfloat16")
        for name in ("enable_prefix_caching", "is_mla", "enable_dp_cross_replica_prefix_copy"):
            check_type(name, getattr(self, name), bool, "use True or False")
        check_type(
            "kvcache_quant_config",
            self.kvcache_quant_config,
            KVCacheQuantizationConfig | None,
            "use a KVCacheQuantizationConfig, or None",
        )

    def _check_sizes(self) -> None:
        _set_whole_numbers(
            self, 1, "n_kv_heads", "head_dim", "num_layers", "page_size", "data_parallel_degree"
        )
        if self.n_devices % self.data_parallel_degree:
            raise ValueError(
                f"data_parallel_degree is {self.data_parallel_degree}, which does not divide the "
                f"{self.n_devices} device(s); give every replica the same number of devices"
            )
        if self.kvcache_quant_config is not None and self.quantized_kv_cache:
            granularity = self.kvcache_quant_config.quantization_granularity
            if self.head_dim % granularity:
                raise ValueError(
                    f"kvcache_quant_config.quantization_granularity is {granularity}, which does "
                    f"not divide head_dim {self.head_dim}; use a divisor"
                )

    def _check_heads(self) -> None:
        if self.num_q_heads is not None:
            _set_whole_numbers(self, 1, "num_q_heads")
        if self.is_mla and self.num_q_heads is None:
            raise ValueError("num_q_heads is None; with is_mla give the number of query heads")
        name, heads = (
            ("num_q_heads", self.num_q_heads) if self.is_mla else ("n_kv_heads", self.n_kv_heads)
        )
        if heads is not None and heads % self.tensor_parallel_degree:
            raise ValueError(
                f"{name} is {heads}, which the {self.tensor_parallel_degree} tensor-parallel "
                "devices of a replica cannot share evenly; use fewer devices per replica, or a "
                "larger data_parallel_degree"
            )

    def _check_connector(self) -> None:
        size = self.host_kvcache_swap_space_gb
        if size is not None:
            remedy = "use a size in GiB from 0"
            check_real_number("host_kvcache_swap_space_gb", size, remedy)
            if not 0 <= size < float("inf"):
                raise ValueError(f"host_kvcache_swap_space_gb is {size}; {remedy}")
        self._check_connector_config()
        if self.kv_connector in (None, KVConnectorType.null):
            return
        name = f"kv_connector {self.kv_connector.value!r}"
        if not self.enable_prefix_caching:
            raise ValueError(f"enable_prefix_caching is False, but {name} needs it; set it to True")
        if self.kv_connector is not KVConnectorType.dkv and size is None:
            raise ValueError(
                f"host_kvcache_swap_space_gb is None, but {name} needs it; give a size in GiB"
            )
        needed = {
            KVConnectorType.tiered: "disk_offload_dir",
            KVConnectorType.dkv: "block_store_endpoint",
        }.get(self.kv_connector)
        if needed and not getattr(self.kv_connector_config, needed, None):
            raise ValueError(
                f"kv_connector_config.{needed} is not set, but {name} needs it; pass "
                f"kv_connector_config=KVConnectorConfig({needed}=...)"
            )

    def _check_connector_config(self) -> None:
        # Configurations build parameters, so their module can be imported only when it is needed.
        from pagedkv.reference.config import KVConnectorConfig, TierOptions

        given: object = self.kv_connector_config
        if isinstance(given, Mapping):
            config = KVConnectorConfig.model_validate(given)
            object.__setattr__(self, "kv_connector_config", config)
        check_type(
            "kv_connector_config",
            self.kv_connector_config,
            KVConnectorConfig | None,
            "use a KVConnectorConfig, a mapping of its fields, or None",
        )
        TierOptions.from_connector_config(self.kv_connector_config)

    def _check_speculation(self) -> None:
        if self.speculative_method is not None:
            _check_choice(
                "speculative_method", self.speculative_method, get_args(SpeculativeMethod)
            )
        # A method with no drafts is a deployment that has drafting switched off.
        _set_whole_numbers(self, 0, "num_draft_tokens")
        if self.num_draft_tokens and self.speculative_method is None:
            raise ValueError(
                f"num_draft_tokens is {self.num_draft_tokens} without a speculative_method; name "
                "the method, or leave the drafts at 0"
            )

    def _check_identity(self) -> None:
        _check_choice("kv_hash_algo", self.kv_hash_algo, get_args(HashAlgorithm))
        _check_choice("deduplication", self.deduplication, get_args(DeduplicationPolicy))
        seed = self.kv_hash_seed
        if seed is not None and not (isinstance(seed, bytes) and len(seed) == 32):
            length = f" of length {len(seed)}" if isinstance(seed, Sized) else ""
            raise ValueError(
                f"kv_hash_seed is {type(seed).__name__}{length}; give 32 bytes, or None"
            )

    @property
    def replicates_kv_across_tp(self) -> bool:
        """Whether every device of a replica holds the same: MLA on several shards (PARAM-3)."""
        return self.is_mla and self.tensor_parallel_degree > 1

    @property
    def kv_dim(self) -> int:
        """Tensors per token and layer: key and value, or the one latent of MLA."""
        return 1 if self.is_mla else 2

    @property
    def n_kv_heads_per_device(self) -> int:
        """KV heads on one shard; 1 for MLA."""
        return 1 if self.is_mla else self.n_kv_heads // self.tensor_parallel_degree

    @property
    def num_q_heads_per_device(self) -> int:
        """Query heads on one shard.

        Raises:
            ValueError: ``num_q_heads`` was not given.
        """
        if self.num_q_heads is None:
            raise ValueError("num_q_heads is None; give the number of query heads")
        return self.num_q_heads // self.tensor_parallel_degree

    @property
    def shape_per_block(self) -> list[int]:
        """One page on one shard: ``[kv, layers, page_size, heads, head_dim]`` (MEM-1)."""
        return [
            self.kv_dim,
            self.num_layers,
            self.page_size,
            self.n_kv_heads_per_device,
            self.head_dim,
        ]

    @property
    def shape_per_scale_block(self) -> list[int]:
        """Scales of one page on one shard: ``[kv, layers, page_size, heads, groups]``.

        Raises:
            ValueError: ``kvcache_quant_config`` was not given.
        """
        if self.kvcache_quant_config is None:
            raise ValueError("kvcache_quant_config is None; scales have a shape only with it")
        # Rounded up, for layouts that are only asked about and never quantised.
        groups = -(-self.head_dim // self.kvcache_quant_config.quantization_granularity)
        return [*self.shape_per_block[:-1], groups]

    @property
    def is_fp8_kv_dtype(self) -> bool:
        """Whether values are FP8, scaled or not."""
        return self.dtype in (torch.float8_e4m3fn, torch.float8_e4m3fnuz)

    @property
    def quantized_kv_cache(self) -> bool:
        """Whether scales are stored next to the values."""
        return self.is_fp8_kv_dtype and self.kvcache_quant_config is not None

    @property
    def kv_cache_scale_dtype(self) -> DType:
        """Element type of the scales; float32 where there are none."""
        if self.quantized_kv_cache and self.kvcache_quant_config is not None:
            return self.kvcache_quant_config.scale_dtype
        return torch.float32

    @property
    def dtype_shorthand(self) -> str:
        """Short name of ``dtype``, such as ``bf16``; torch's own name where there is none."""
        return _DTYPE_SHORTHANDS.get(self.dtype, str(self.dtype).removeprefix("torch."))

    @property
    def bytes_per_block(self) -> int:
        """Device memory of one page in bytes: all shards of a replica, and scales (PARAM-2)."""
        return self._bytes_per_shard * self.tensor_parallel_degree

    @property
    def bytes_per_offloaded_block(self) -> int:
        """What one page takes in a lower tier, in bytes: replicated content once (SIZE-3)."""
        return self._bytes_per_shard if self.replicates_kv_across_tp else self.bytes_per_block

    @property
    def _bytes_per_shard(self) -> int:
        values = prod(self.shape_per_block) * self.dtype.itemsize
        if not self.quantized_kv_cache:
            return values
        return values + prod(self.shape_per_scale_block) * self.kv_cache_scale_dtype.itemsize

    def get_symbolic_inputs(self, prefix: str = "") -> KVCacheInputs[TensorType, BufferType]:
        """The types of the runtime inputs (MEM-4).

        The named dimensions are ``total_num_pages``, and for each replica its ``batch_size`` and
        the ``max_num_pages`` that its lookup table has columns for. ``prefix`` starts all of them.
        """
        host = DeviceRef.CPU()
        inputs = []
        for replica_idx, devices in enumerate(self.devices_per_replica):
            batch: Dim = f"{prefix}replica_{replica_idx}_batch_size"
            columns: Dim = f"{prefix}replica_{replica_idx}_max_num_pages"
            pages: Dim = f"{prefix}total_num_pages"
            for device in devices:
                scales = None
                if self.quantized_kv_cache:
                    scale_shape = [pages, *self.shape_per_scale_block]
                    scales = BufferType(self.kv_cache_scale_dtype, scale_shape, device)
                inputs.append(
                    KVCacheInputsPerDevice(
                        kv_blocks=BufferType(self.dtype, [pages, *self.shape_per_block], device),
                        cache_lengths=TensorType(torch.int32, [batch], device),
                        lookup_table=TensorType(torch.int32, [batch, columns], device),
                        max_prompt_length=TensorType(torch.int32, [1], host),
                        max_cache_length=TensorType(torch.int32, [1], host),
                        kv_scales=scales,
                    )
                )
        return KVCacheInputs(inputs)

    def unflatten_kv_inputs(self, it: Iterator[Buffer]) -> KVCacheInputs[Buffer, Buffer]:
        """Rebuild the runtime inputs from their flat list."""
        return self.get_symbolic_inputs().unflatten(it)

    def allocate_buffers(self, total_num_pages: int) -> list[KVCacheBuffer]:
        """Zeroed device memory, one entry per replica. The caller owns it."""
        total_num_pages = whole_number("total_num_pages", total_num_pages, 1)
        # All devices are looked up before the first byte is taken.
        devices_of = [[ref.to_device() for ref in group] for group in self.devices_per_replica]

        def zeros(page_shape: list[int], dtype: DType, devices: list[torch.device]) -> list[Buffer]:
            # Kernels may read slots that nobody wrote and mask them afterwards, which works with
            # zeros but not with the NaNs that fresh memory can hold.
            shape = [total_num_pages, *page_shape]
            return [torch.zeros(shape, dtype=dtype, device=device) for device in devices]

        return [
            KVCacheBuffer(
                replicates_kv_across_tp=self.replicates_kv_across_tp,
                values=zeros(self.shape_per_block, self.dtype, devices),
                scales=zeros(self.shape_per_scale_block, self.kv_cache_scale_dtype, devices)
                if self.quantized_kv_cache
                else None,
            )
            for devices in devices_of
        ]

    def build_runtime_inputs(
        self,
        assignments: Sequence[KVCacheAssignments],
        buffers: Sequence[KVCacheBufferInterface],
    ) -> KVCacheInputs[Buffer, Buffer]:
        """The inputs of one forward over all replicas. Nothing is copied."""
        for name, given in (("assignments", assignments), ("buffers", buffers)):
            if len(given) != self.data_parallel_degree:
                raise ValueError(
                    f"{name} has {len(given)} entries; give one for each of the "
                    f"{self.data_parallel_degree} replica(s)"
                )
        inputs = []
        for replica_idx, (assignment, buffer) in enumerate(zip(assignments, buffers, strict=True)):
            if not isinstance(buffer, KVCacheBuffer):
                raise ValueError(f"buffer is {buffer!r}; pass what allocate_buffers() gave")
            shards = {
                "values": len(buffer.values),
                "cache_lengths_by_device": len(assignment.cache_lengths_by_device),
                "lookup_table_by_device": len(assignment.lookup_table_by_device),
            }
            if set(shards.values()) != {self.tensor_parallel_degree}:
                raise ValueError(
                    f"replica {replica_idx} has {shards}; give one of each for its "
                    f"{self.tensor_parallel_degree} shard(s)"
                )
            scales: Sequence[Buffer | None] = buffer.scales or [None] * len(buffer.values)
            for blocks, kv_scales, cache_lengths, lookup_table in zip(
                buffer.values,
                scales,
                assignment.cache_lengths_by_device,
                assignment.lookup_table_by_device,
                strict=True,
            ):
                inputs.append(
                    KVCacheInputsPerDevice(
                        kv_blocks=blocks,
                        cache_lengths=cache_lengths,
                        lookup_table=lookup_table,
                        max_prompt_length=assignment.max_prompt_length,
                        max_cache_length=assignment.max_cache_length,
                        kv_scales=kv_scales,
                    )
                )
        return KVCacheInputs(inputs)

    def layout_fingerprint(self) -> str:
        """Digest of everything that decides what the bytes of a page mean, 64 hex digits (NS-1)."""
        quantized = self.quantized_kv_cache
        return fingerprint_of(
            {
                "format": LAYOUT_FORMAT,
                "dtype": str(self.dtype),
                "page_shape": self.shape_per_block,
                "scale_dtype": str(self.kv_cache_scale_dtype) if quantized else None,
                "scale_shape": self.shape_per_scale_block if quantized else None,
                "tensor_parallel_degree": self.tensor_parallel_degree,
                "replicated": self.replicates_kv_across_tp,
                "speculative_method": self.speculative_method,
                "hash_algorithm": self.kv_hash_algo,
                "hash_seed": self.kv_hash_seed.hex() if self.kv_hash_seed else None,
            }
        )


def fingerprint_of(layout: dict[str, object]) -> str:
    """SHA-256 of ``layout`` as canonical JSON: sorted keys, no spaces; 64 hex digits."""
    text = json.dumps(layout, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _set_whole_numbers(params: object, least: int, *names: str) -> None:
    """Check these fields of a frozen dataclass, and make plain ``int`` of them."""
    for name in names:
        object.__setattr__(params, name, whole_number(name, getattr(params, name), least))


def _check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f"{name} is {value!r}; use one of {', '.join(choices)}")
