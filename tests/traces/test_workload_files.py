"""The package's own format: what is written is what is read, or nothing is written."""

import errno
import gzip
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pagedkv.traces import Workload, WorkloadHeader, WorkloadRequest, write_workload
from pagedkv.traces.atomic_file import replace_file
from pagedkv.traces.ceil_div import ceil_div
from pagedkv.traces.errors import InvalidFieldError

BLOCK_SIZE = 4
HEADER = WorkloadHeader(block_size=BLOCK_SIZE, origin="a test: «é»")

names = st.none() | st.text(max_size=5)


@st.composite
def requests(draw: st.DrawFn) -> WorkloadRequest:
    input_length = draw(st.integers(1, 40))
    blocks = ceil_div(input_length, BLOCK_SIZE)
    return WorkloadRequest(
        arrival_ms=draw(st.floats(0, 1e12)),
        input_length=input_length,
        output_length=draw(st.integers(0, 1000)),
        hash_ids=tuple(draw(st.lists(st.integers(0, 2**50), min_size=blocks, max_size=blocks))),
        session=draw(names),
        type=draw(names),
    )


A_REQUEST = WorkloadRequest(arrival_ms=0, input_length=5, output_length=1, hash_ids=(0, 1))


@given(st.lists(requests()), st.sampled_from(["w.jsonl", "w.jsonl.gz"]))
def test_what_is_written_is_read_back(written: list[WorkloadRequest], name: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        assert write_workload(path, HEADER, written) == len(written)
        workload = Workload(path)
        assert workload.header == HEADER
        assert list(workload) == written
        assert list(workload) == written, "a second pass reads the same"


def test_compression_is_told_from_the_content_not_from_the_name(tmp_path: Path) -> None:
    write_workload(tmp_path / "packed.gz", HEADER, [A_REQUEST])
    packed = (tmp_path / "packed.gz").rename(tmp_path / "packed.jsonl")
    write_workload(tmp_path / "plain.jsonl", HEADER, [A_REQUEST])
    plain = (tmp_path / "plain.jsonl").rename(tmp_path / "plain.gz")
    assert list(Workload(packed)) == list(Workload(plain)) == [A_REQUEST]


def test_equal_content_gives_equal_bytes_whatever_the_name(tmp_path: Path) -> None:
    for name in ("a.gz", "b.gz"):
        write_workload(tmp_path / name, HEADER, [A_REQUEST] * 100)
    assert (tmp_path / "a.gz").read_bytes() == (tmp_path / "b.gz").read_bytes()


@pytest.mark.parametrize("name", ["w.jsonl", "w.jsonl.gz"])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    write_workload(path, HEADER, [A_REQUEST])
    before = path.read_bytes()

    def interrupted() -> Iterator[WorkloadRequest]:
        yield A_REQUEST
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_workload(path, HEADER, interrupted())
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "target")
    write_workload(tmp_path / "link", HEADER, [A_REQUEST])
    assert (tmp_path / "link").is_symlink()
    assert list(Workload(tmp_path / "target")) == [A_REQUEST]


def test_a_link_that_leads_to_itself_is_an_error_that_says_so(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(OSError, match="Too many levels of symbolic links"):
        write_workload(tmp_path / "loop", HEADER, [A_REQUEST])


def test_a_full_disk_is_told_with_the_name_of_the_file_not_of_a_temporary_one(
    tmp_path: Path,
) -> None:
    with pytest.raises(OSError, match="No space") as told, replace_file(tmp_path / "w"):
        raise OSError(errno.ENOSPC, "No space left on device", "elsewhere")
    assert told.value.filename == str(tmp_path / "w")
    assert list(tmp_path.iterdir()) == []


def test_devices_are_never_replaced() -> None:
    with pytest.raises(OSError, match="not a regular file"):
        write_workload("/dev/null", HEADER, [])
    assert Path("/dev/null").is_char_device()


def test_a_request_that_does_not_fit_the_header_is_not_written(tmp_path: Path) -> None:
    request = A_REQUEST.model_copy(update={"hash_ids": (0, 1, 2)})
    with pytest.raises(InvalidFieldError, match="has 3 ids, but 5 prompt tokens"):
        write_workload(tmp_path / "w", HEADER, [request])
    assert list(tmp_path.iterdir()) == []


def test_reading_holds_one_line_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "w.jsonl.gz"
    write_workload(path, HEADER, [A_REQUEST] * 50)
    with path.open("ab") as file:
        file.write(gzip.compress(b"not a request\n" * 100_000))
    first = next(iter(Workload(path)))
    assert first == A_REQUEST, "what stands far behind is not looked at yet"
