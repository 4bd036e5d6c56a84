"""The driver's batch call, on a library in C's calling convention that copies within host memory.

What it is given is read as the driver reads it: from addresses.
"""

import ctypes

import pytest
import torch

from pagedkv.engine.streams.batch_copies import BatchCopies

STREAM = 0x5EA


class HostLibrary(ctypes.CDLL):
    """A ``libcuda`` with the batch call alone; it may refuse, as the driver does."""

    # CDLL would open a file.
    def __init__(self, *, code: int = 0, at: int = 0) -> None:
        self.code, self.at = code, at
        self.attributes: list[int] = []
        """The words of ``CUmemcpyAttributes``."""
        self.stream = 0
        pointer, size = ctypes.c_void_p, ctypes.c_size_t
        arguments = (pointer, pointer, pointer, size, pointer, pointer, size, pointer, pointer)
        self.cuMemcpyBatchAsync = ctypes.CFUNCTYPE(ctypes.c_int, *arguments)(self._copy)

    def _copy(
        self,
        targets: int,
        sources: int,
        sizes: int,
        count: int,
        attributes: int,
        holds_from: int,
        num_attributes: int,
        wrong: int,
        stream: int,
    ) -> int:
        assert (ctypes.c_size_t.from_address(holds_from).value, num_attributes) == (0, 1)
        self.attributes = list((ctypes.c_int * 6).from_address(attributes))
        self.stream = stream
        if self.code:
            ctypes.c_size_t.from_address(wrong).value = self.at
            return self.code
        for n in range(count):
            ctypes.memmove(
                (ctypes.c_uint64 * count).from_address(targets)[n],
                (ctypes.c_uint64 * count).from_address(sources)[n],
                (ctypes.c_size_t * count).from_address(sizes)[n],
            )
        return 0


def spans() -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Targets of zeros and sources of ones, 2 and 3 words long."""
    return [(torch.zeros(n, dtype=torch.int32), torch.ones(n, dtype=torch.int32)) for n in (2, 3)]


def test_every_byte_of_every_span_is_copied_on_the_stream() -> None:
    library, copied = HostLibrary(), spans()
    BatchCopies(library).enqueue(STREAM, copied)
    assert [target.tolist() for target, _ in copied] == [[1, 1], [1, 1, 1]]
    assert library.stream == STREAM


def test_sources_are_read_when_the_stream_gets_there() -> None:
    library = HostLibrary()
    BatchCopies(library).enqueue(STREAM, spans())
    in_stream_order, no_hints_and_no_flags = 1, [0] * 5
    assert library.attributes == [in_stream_order, *no_hints_and_no_flags]


@pytest.mark.parametrize("code", [1, 700])
def test_refusal_of_the_driver_is_raised(code: int) -> None:
    library = HostLibrary(code=code, at=1)
    with pytest.raises(RuntimeError, match=f"CUDA error {code} for 2 copies, at 1"):
        BatchCopies(library).enqueue(STREAM, spans())


def test_library_without_the_call_is_told_by_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="cuMemcpyBatchAsync"):
        BatchCopies(ctypes.CDLL(None))
