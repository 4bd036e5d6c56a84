"""Fixtures of the trace tests: files from lines, and Mooncake's trace where it is at hand."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from pagedkv.traces import Workload

REPOSITORY = Path(__file__).parents[2]
BESIDE_THE_CHECKOUT = REPOSITORY.parent / "shared" / "data" / "mooncake_conversation_trace.jsonl"

TraceOf = Callable[..., Workload]


@pytest.fixture
def trace_of(tmp_path: Path) -> TraceOf:
    """Writes lines to a file and opens it as a workload; keywords go to ``Workload``."""

    def write(*lines: str, **options: object) -> Workload:
        path = tmp_path / "trace"
        path.write_text("".join(line + "\n" for line in lines))
        return Workload(path, **options)  # type: ignore[arg-type]

    return write


@pytest.fixture(scope="session")
def mooncake() -> Workload:
    """Mooncake's conversation trace, which is not part of the repository.

    It is the file that PAGEDKV_MOONCAKE_TRACE names, or one in a ``shared/data`` folder beside
    the checkout.
    """
    path = Path(os.environ.get("PAGEDKV_MOONCAKE_TRACE", BESIDE_THE_CHECKOUT))
    if not path.is_file():
        pytest.skip(
            "PAGEDKV_MOONCAKE_TRACE does not name the file of Mooncake's conversation trace"
        )
    return Workload(path)
