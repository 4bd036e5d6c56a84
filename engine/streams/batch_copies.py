"""Many copies in one call of the CUDA driver: ``cuMemcpyBatchAsync``, of CUDA 12.8 and later."""

import ctypes
from collections.abc import Sequence

import torch

IN_STREAM_ORDER = 1
"""``CU_MEMCPY_SRC_ACCESS_ORDER_STREAM``: sources are read when the stream gets there. The other
orders may read device memory before the forward that writes it has run."""


class Location(ctypes.Structure):
    """``CUmemLocation``; a hint that only managed memory needs."""

    _fields_ = (("type", ctypes.c_int), ("id", ctypes.c_int))


class Attributes(ctypes.Structure):
    """``CUmemcpyAttributes``: what holds for all copies of a batch."""

    _fields_ = (
        ("source_access_order", ctypes.c_int),
        ("source_location", Location),
        ("target_location", Location),
        ("flags", ctypes.c_uint),
    )


class BatchCopies:
    """The driver's batch call. Its first version, which later drivers still have."""

    def __init__(self, library: ctypes.CDLL) -> None:
        """Find the call in ``library``.

        Raises:
            AttributeError: The driver is older than the call.
        """
        self._enqueue = library.cuMemcpyBatchAsync
        self._enqueue.restype = ctypes.c_int
        self._enqueue.argtypes = (
            ctypes.c_void_p,  # targets
            ctypes.c_void_p,  # sources
            ctypes.c_void_p,  # sizes
            ctypes.c_size_t,  # how many copies
            ctypes.c_void_p,  # attributes
            ctypes.c_void_p,  # from which copy on each of them holds
            ctypes.c_size_t,  # how many attributes
            ctypes.c_void_p,  # which copy was wrong
            ctypes.c_void_p,  # stream
        )

    @classmethod
    def load(cls) -> "BatchCopies | None":
        """The call of this machine's driver, or None if it has none."""
        try:
            return cls(ctypes.CDLL("libcuda.so.1"))
        except (OSError, AttributeError):
            return None

    def enqueue(self, stream: int, spans: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> None:
        """Enqueue copies on a stream whose context is current.

        Args:
            stream: The driver's handle; not that of the default stream, which takes no batches.
            spans: Target and source of each copy, contiguous and of equal length.

        Raises:
            RuntimeError: The driver refuses.
        """
        count = len(spans)
        targets = (ctypes.c_uint64 * count)(*[target.data_ptr() for target, _ in spans])
        sources = (ctypes.c_uint64 * count)(*[source.data_ptr() for _, source in spans])
        sizes = (ctypes.c_size_t * count)(*[target.nbytes for target, _ in spans])
        attributes = Attributes(source_access_order=IN_STREAM_ORDER)
        holds_from, wrong = ctypes.c_size_t(0), ctypes.c_size_t(0)
        code = self._enqueue(
            targets,
            sources,
            sizes,
            count,
            ctypes.byref(attributes),
            ctypes.byref(holds_from),
            1,
            ctypes.byref(wrong),
            stream,
        )
        if code != 0:
            raise RuntimeError(
                f"cuMemcpyBatchAsync gave CUDA error {code} for {count} copies, at {wrong.value}"
            )
