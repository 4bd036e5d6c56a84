"""The specification: vocabulary, numbered rules and a plain synchronous manager.

SPEC.md beside this file has the rules; `manager.py` is where to start reading. Everything public
is importable from here, and the events by name from :mod:`pagedkv.reference.events`.
"""

if not __name__.startswith("pagedkv."):
    raise ImportError(
        f"import pagedkv.reference instead of {__name__}: "
        "a second copy of a module has classes of its own, equal to nobody else's"
    )

from pagedkv.reference.buffers import (
    KVCacheBuffer,
    KVCacheBufferInterface,
    KVCacheMemory,
    MultiKVCacheBuffer,
    ReplicatedKVCacheMemory,
)
from pagedkv.reference.config import (
    ConfigFileModel,
    KVCacheConfig,
    KVConnectorConfig,
    TierOptions,
)
from pagedkv.reference.connector import (
    TierConnector,
)
from pagedkv.reference.context import (
    FUTURE_TOKEN,
    Context,
    ExternalBlockMetadata,
    ImageMetadata,
    RequestID,
    SpecDecodingState,
    TextContext,
    TokenWindow,
)
from pagedkv.reference.device import (
    DeviceLike,
    DeviceRef,
    DeviceUnavailableError,
    InferenceSession,
)
from pagedkv.reference.errors import (
    AllocPendingError,
    AlreadyClaimedError,
    BatchesError,
    BlocksNotAllocatedError,
    InsufficientBlocksError,
    KVLoadFailed,
    KVLoadRefused,
    LayoutMismatchError,
    ManagerClosedError,
    NoPlannedAllocError,
    PagedKVError,
    PoolCorruptedError,
    ReplicaIndexError,
    ReplicaPoisonedError,
    SubmittedTransferError,
    UnknownRequestError,
    UnknownTransferError,
)
from pagedkv.reference.events import (
    Event,
    Tracer,
)
from pagedkv.reference.fates import Fates, MissReason
from pagedkv.reference.identity import (
    PageKey,
    page_digest,
    page_digests,
    page_key,
    root_digest,
)
from pagedkv.reference.inputs import (
    BatchCharacteristics,
    KVCacheAssignments,
    KVCacheInputs,
    KVCacheInputsInterface,
    KVCacheInputsPerDevice,
    MultiKVCacheInputs,
)
from pagedkv.reference.interfaces import (
    AsyncKVCacheManager,
    KVConnector,
    SyncKVCacheManager,
)
from pagedkv.reference.lengths import (
    required_pages,
    required_tokens,
)
from pagedkv.reference.manager import (
    PagedKVCacheManager,
)
from pagedkv.reference.media import (
    Media,
)
from pagedkv.reference.metrics import (
    KVCacheMetrics,
    PrefixCacheHits,
)
from pagedkv.reference.multi_params import (
    MultiKVCacheParams,
)
from pagedkv.reference.params import (
    DeduplicationPolicy,
    HashAlgorithm,
    KVCacheParamInterface,
    KVCacheParams,
    KVCacheQuantizationConfig,
    KVConnectorType,
    SpeculativeMethod,
)
from pagedkv.reference.pool import (
    PoolStatistics,
)
from pagedkv.reference.sizing import (
    InsufficientMemoryError,
    available_cache_memory,
    compute_max_seq_len_fitting_in_cache,
    compute_num_device_blocks,
    compute_num_disk_blocks,
    compute_num_host_blocks,
    estimated_memory_size,
    spec_decode_cache_slack,
)
from pagedkv.reference.state import (
    AllocPlan,
)
from pagedkv.reference.tensor_types import (
    Buffer,
    BufferType,
    DType,
    TensorType,
)
from pagedkv.reference.tier_names import FailReason, LowerTier, TierName
from pagedkv.reference.tokens import (
    TokenBuffer,
    TokenHashOverride,
)
from pagedkv.reference.transfer import Transfer

__all__ = [
    "FUTURE_TOKEN",
    "AllocPendingError",
    "AllocPlan",
    "AlreadyClaimedError",
    "AsyncKVCacheManager",
    "BatchCharacteristics",
    "BatchesError",
    "BlocksNotAllocatedError",
    "Buffer",
    "BufferType",
    "ConfigFileModel",
    "Context",
    "DType",
    "DeduplicationPolicy",
    "DeviceLike",
    "DeviceRef",
    "DeviceUnavailableError",
    "Event",
    "ExternalBlockMetadata",
    "FailReason",
    "Fates",
    "HashAlgorithm",
    "ImageMetadata",
    "InferenceSession",
    "InsufficientBlocksError",
    "InsufficientMemoryError",
    "KVCacheAssignments",
    "KVCacheBuffer",
    "KVCacheBufferInterface",
    "KVCacheConfig",
    "KVCacheInputs",
    "KVCacheInputsInterface",
    "KVCacheInputsPerDevice",
    "KVCacheMemory",
    "KVCacheMetrics",
    "KVCacheParamInterface",
    "KVCacheParams",
    "KVCacheQuantizationConfig",
    "KVConnector",
    "KVConnectorConfig",
    "KVConnectorType",
    "KVLoadFailed",
    "KVLoadRefused",
    "LayoutMismatchError",
    "LowerTier",
    "ManagerClosedError",
    "Media",
    "MissReason",
    "MultiKVCacheBuffer",
    "MultiKVCacheInputs",
    "MultiKVCacheParams",
    "NoPlannedAllocError",
    "PageKey",
    "PagedKVCacheManager",
    "PagedKVError",
    "PoolCorruptedError",
    "PoolStatistics",
    "PrefixCacheHits",
    "ReplicaIndexError",
    "ReplicaPoisonedError",
    "ReplicatedKVCacheMemory",
    "RequestID",
    "SpecDecodingState",
    "SpeculativeMethod",
    "SubmittedTransferError",
    "SyncKVCacheManager",
    "TensorType",
    "TextContext",
    "TierConnector",
    "TierName",
    "TierOptions",
    "TokenBuffer",
    "TokenHashOverride",
    "TokenWindow",
    "Tracer",
    "Transfer",
    "UnknownRequestError",
    "UnknownTransferError",
    "available_cache_memory",
    "compute_max_seq_len_fitting_in_cache",
    "compute_num_device_blocks",
    "compute_num_disk_blocks",
    "compute_num_host_blocks",
    "estimated_memory_size",
    "page_digest",
    "page_digests",
    "page_key",
    "required_pages",
    "required_tokens",
    "root_digest",
    "spec_decode_cache_slack",
]
