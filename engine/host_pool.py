"""The host tier's memory: one region of exactly its size, pinned while it is already in use.

One region, because pinned allocators round sizes up, by as much as a factor of two; pinned in
chunks, because one huge registration takes minutes or fails.
"""

import logging
import math
import mmap
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch

from pagedkv.engine.memory_limits import check_memory

CHUNK_NBYTES = 2**30
"""About how much is pinned at a time."""

_logger = logging.getLogger(__name__)


class Registrar(Protocol):
    """Pins memory for a device; called from one thread at a time."""

    is_limited: bool
    """Whether what it pins counts under ``RLIMIT_MEMLOCK``."""

    def register(self, address: int, nbytes: int) -> None:
        """Pin a range; ``RuntimeError`` if the driver refuses."""
        ...

    def unregister(self, address: int) -> None:
        """Unpin what was registered at ``address``; ``RuntimeError`` if the driver refuses."""
        ...


class CudaRegistrar:
    """Pins memory for all CUDA devices of this process, with ``cudaHostRegister``.

    Make it where the device to be used is current: a thread of its own would start a context on
    the first one.
    """

    is_limited = False  # the driver pins pages itself, outside the kernel's account of locked ones

    def __init__(self) -> None:
        self._device = torch.cuda.current_device()
        # Any: torch says nothing of the types of its bindings.
        self._runtime: Any = torch.cuda.cudart()  # type: ignore[no-untyped-call]

    def register(self, address: int, nbytes: int) -> None:
        """See :class:`Registrar`."""
        portable = 1  # pinned for every context, not only the current one
        with torch.cuda.device(self._device):
            _check(self._runtime.cudaHostRegister(address, nbytes, portable))

    def unregister(self, address: int) -> None:
        """See :class:`Registrar`."""
        with torch.cuda.device(self._device):
            _check(self._runtime.cudaHostUnregister(address))


class HostPool:
    """Slots of host memory, zero at first. Tensors and views of it keep it alive.

    Args:
        num_slots: How many slots.
        slot_nbytes: Bytes of one.
        pin: Whether to pin them for CUDA devices, where there are any.
        field: The setting that decides ``num_slots``, for errors.
        registrar: Pins them; by default CUDA's if there is CUDA.

    Raises:
        ValueError: A size is below 1.
        InsufficientMemoryError: There is not enough memory (SIZE-4).
    """

    def __init__(
        self,
        num_slots: int,
        slot_nbytes: int,
        *,
        pin: bool,
        field: str = "host_kvcache_swap_space_gb",
        registrar: Registrar | None = None,
        chunk_nbytes: int = CHUNK_NBYTES,
    ) -> None:
        for name, number in (("num_slots", num_slots), ("slot_nbytes", slot_nbytes)):
            if number < 1:
                raise ValueError(f"{name} is {number}; use 1 or more")
        if pin and registrar is None and torch.cuda.is_available():
            registrar = CudaRegistrar()
        self._registrar = registrar if pin else None
        nbytes = num_slots * slot_nbytes
        check_memory(
            field, nbytes, locked=self._registrar is not None and self._registrar.is_limited
        )
        memory = mmap.mmap(-1, nbytes, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            _advise_hugepages(memory)
        self.rows = torch.frombuffer(memory, dtype=torch.uint8).view(num_slots, slot_nbytes)
        """``[num_slots, slot_nbytes]`` uint8, contiguous and page-aligned."""
        self.registered_slots = 0
        """How many slots, from the first on, are pinned by now."""
        self._view = memoryview(memory)
        self.chunk_slots = slots_per_chunk(slot_nbytes, chunk_nbytes)
        """Slots that are pinned together."""
        self._registered: list[int] = []
        self._closing = threading.Event()
        self._in_driver = threading.RLock()  # a capture may be nested
        self._thread: threading.Thread | None = None
        if self._registrar is not None:
            self._thread = threading.Thread(
                target=self._register, args=(self._registrar,), name="pagedkv-pin", daemon=True
            )
            self._thread.start()

    def __repr__(self) -> str:
        num_slots, nbytes = self.rows.shape
        return f"HostPool({num_slots} slots of {nbytes} bytes, {self.registered_slots} pinned)"

    def row(self, slot: int) -> memoryview:
        """The bytes of a slot, writable, for disk and network.

        Raises:
            IndexError: There is no such slot.
        """
        num_slots, nbytes = self.rows.shape
        if not 0 <= slot < num_slots:
            raise IndexError(f"slot is {slot}; use 0 to {num_slots - 1}")
        return self._view[slot * nbytes : (slot + 1) * nbytes]

    @contextmanager
    def pinning_paused(self) -> Iterator[None]:
        """Pin nothing meanwhile; the chunk that is just being pinned is waited for."""
        with self._in_driver:
            yield

    def wait_registered(self) -> None:
        """Return once as much is pinned as will be. Blocks; the pool can be used before."""
        if self._thread is not None:
            self._thread.join()

    def close(self) -> None:
        """Unpin everything; no copy may be in flight. Twice is harmless.

        The chunk that is just being pinned is waited for.
        """
        self._closing.set()
        self.wait_registered()
        while self._registered and self._registrar is not None:
            try:
                self._registrar.unregister(self._registered.pop())
            except RuntimeError as error:
                _logger.warning("host memory could not be unpinned: %s", error)
        self.registered_slots = 0

    def _register(self, registrar: Registrar) -> None:
        num_slots, nbytes = self.rows.shape
        for first in range(0, num_slots, self.chunk_slots):
            if self._closing.is_set():
                return
            end = min(first + self.chunk_slots, num_slots)
            address = self.rows.data_ptr() + first * nbytes
            try:
                with self._in_driver:
                    registrar.register(address, (end - first) * nbytes)
            except RuntimeError as error:
                _logger.warning(
                    "only %d of %d host slots could be pinned, so that copies of the others are "
                    "slower: %s",
                    first,
                    num_slots,
                    error,
                )
                return
            self._registered.append(address)
            self.registered_slots = end


def slots_per_chunk(slot_nbytes: int, chunk_nbytes: int) -> int:
    """Slots that are pinned together: about ``chunk_nbytes``, and whole memory pages.

    So no slot is in two chunks, which one copy could not cross, and no page either, which could
    not be pinned twice.
    """
    step = mmap.PAGESIZE // math.gcd(slot_nbytes, mmap.PAGESIZE)
    return max(1, chunk_nbytes // (slot_nbytes * step)) * step


def _advise_hugepages(memory: mmap.mmap) -> None:
    try:
        memory.madvise(mmap.MADV_HUGEPAGE)
    except OSError as error:
        _logger.debug("no huge pages for host memory: %s", error)


def _check(result: Any) -> None:
    """Raise what a CUDA call returned, unless it is success."""
    if int(result):
        raise RuntimeError(f"CUDA refused with {result!r}")
