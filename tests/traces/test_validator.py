"""Every kind of damage is found, and its message says where it is and what to do."""

import gzip
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pagedkv.traces import TraceError, Workload, validate
from pagedkv.traces.errors import (
    BrokenChainError,
    InvalidFieldError,
    MalformedLineError,
    UnknownFormatError,
    UnreadableTraceError,
)

TraceOf = Callable[..., Workload]

HEADER = '{"format":"pagedkv-workload","version":1,"block_size":4}'


def request(**changes: object) -> str:
    fields: dict[str, object] = {
        "arrival_ms": 0,
        "input_length": 7,
        "output_length": 1,
        "hash_ids": "[0, 1]",
    }
    fields |= changes
    return "{" + ", ".join(f'"{k}": {v}' for k, v in fields.items() if v is not None) + "}"


GOOD = request()


@pytest.mark.parametrize(
    ("line", "kind", "message"),
    [
        ("{", MalformedLineError, "line 3: is not valid JSON"),
        (GOOD[:-9], MalformedLineError, "line 3: is not valid JSON"),
        ("[]", MalformedLineError, "is JSON, but not an object"),
        ("17", MalformedLineError, "is JSON, but not an object"),
        (request(input_length=-3), InvalidFieldError, "line 3: input_length = -3 should be gre"),
        (request(input_length=0), InvalidFieldError, "number of prompt tokens, 1 or more"),
        (request(input_length='"7"'), InvalidFieldError, "input_length = '7' should be a valid"),
        (request(input_length="true"), InvalidFieldError, "input_length = True should be"),
        (request(input_length=10**12), InvalidFieldError, "less than or equal to 100000000"),
        (request(output_length=-1), InvalidFieldError, "output_length = -1 should be greater"),
        (request(arrival_ms=-0.5), InvalidFieldError, "arrival_ms = -0.5 should be greater"),
        (request(arrival_ms="NaN"), InvalidFieldError, "arrival_ms = nan should be a finite"),
        (request(hash_ids="[0, -1]"), InvalidFieldError, r"hash_ids\[1\] = -1 should be greater"),
        (request(hash_ids="[0, 1, 2]"), InvalidFieldError, "has 3 ids, but 7 prompt tokens in b"),
        (request(hash_ids="[0]"), InvalidFieldError, "blocks of 4 need 2; give one id per block"),
        (request(hash_ids=f"[0, {2**61}]"), InvalidFieldError, "number the blocks densely from 0"),
        (request(hash_ids=None), InvalidFieldError, "has no field 'hash_ids'; add it: one id per"),
        (
            GOOD[:-1] + ', "output_length": 1}',
            MalformedLineError,
            "names field 'output_length' twi",
        ),
        (request(arrival_ms="1e19"), InvalidFieldError, "less than or equal to 92233"),
        (request(colour=3), InvalidFieldError, "colour = 3 is not a field of this format; remove"),
        (request(hash_ids="[5, 1]"), BrokenChainError, "stands at position 1, after id 5, but sto"),
        (request(hash_ids="[1, 0]"), BrokenChainError, "stands at position 0, first, but stood at"),
        (request(hash_ids="[0, 0]"), BrokenChainError, r"hash_ids\[1\] = 0 stands at position 1"),
    ],
)
def test_damage_in_a_line_is_found(
    trace_of: TraceOf, line: str, kind: type[TraceError], message: str
) -> None:
    report = validate(trace_of(HEADER, GOOD, line, GOOD))
    (error,) = report.errors
    assert type(error) is kind
    assert error.line == 3
    with pytest.raises(kind, match=message):
        raise error
    assert "\n" not in str(error)
    assert report.requests == 2, "validation goes on behind the damage"


@pytest.mark.parametrize(
    ("first_line", "kind", "message"),
    [
        ('{"format": "pagedkv', MalformedLineError, "is not valid JSON"),
        ("once upon a time", UnknownFormatError, "has the fields of no known format; name the"),
        ('{"a": 1}', UnknownFormatError, "has the fields of no known format; name the format"),
        (HEADER.replace("1", "2", 1), UnknownFormatError, "version 2, this program reads up to"),
        (HEADER.replace("1", "0", 1), InvalidFieldError, "it holds: the number 1, the only versio"),
        (HEADER.replace("1", "true", 1), InvalidFieldError, "version = True should be a valid int"),
        (HEADER.replace("4", "4" * 40), InvalidFieldError, "less than or equal to 100000000"),
        (HEADER[:-1] + ',"block_size":5}', MalformedLineError, "names field 'block_size' twice"),
        (HEADER.replace("4", "0"), InvalidFieldError, "block_size = 0 should be greater"),
        (HEADER.replace("block_", ""), InvalidFieldError, "has no field 'block_size'"),
        (HEADER.replace("pagedkv-", ""), InvalidFieldError, "format = 'workload' should be 'pag"),
        ("{" + '"a":{' * 100_000, MalformedLineError, "is not valid JSON"),
    ],
)
def test_damage_in_the_first_line_is_found(
    trace_of: TraceOf, first_line: str, kind: type[TraceError], message: str
) -> None:
    with pytest.raises(kind, match=message):
        trace_of(first_line, GOOD)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("2023-11-16 18:15:46,374", "line 2: has 2 columns, the first line names 3"),
        ("yesterday,374,44", "TIMESTAMP = 'yesterday' is not an arrival time; write it like 2023"),
        ("2023-11-16 18:15:46,-4,44", "ContextTokens = '-4' is not a number of tokens; write a w"),
        ("2023-11-16 18:15:46,٣,4", "ContextTokens = '٣' is not a number of tokens"),
        ("2023-11-16 18:15:46,374,", "GeneratedTokens = '' is not a number of tokens"),
        ("2023-11-16 18:15:46," + "9" * 5000 + ",4", "is not a number of tokens"),
        ("2023-11-16 18:15:46," + "9" * 200_000 + ",4", "is not valid CSV"),
    ],
)
def test_damage_in_a_row_of_csv_is_found(trace_of: TraceOf, row: str, message: str) -> None:
    with pytest.raises(TraceError, match=message):
        list(trace_of("TIMESTAMP,ContextTokens,GeneratedTokens", row))


@pytest.mark.parametrize("cut", [1, 10, 100])
def test_a_truncated_gzip_stream_is_found(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "w.gz"
    lines = [request(hash_ids=f"[{i}, {i + 5000}]") for i in range(5000)]
    path.write_bytes(gzip.compress("\n".join([HEADER, *lines]).encode())[:-cut])
    (error,) = validate(Workload(path)).errors
    assert isinstance(error, UnreadableTraceError)
    assert "gzip stream is truncated" in str(error)


def test_a_damaged_gzip_stream_is_found(tmp_path: Path) -> None:
    path = tmp_path / "w.gz"
    packed = bytearray(gzip.compress("\n".join([HEADER, *[GOOD] * 5000]).encode()))
    packed[len(packed) // 2] ^= 255
    path.write_bytes(packed)
    with pytest.raises(TraceError):
        list(Workload(path))


def test_what_is_no_text_file_is_told_as_that(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\x80\x81\n")
    (tmp_path / "empty").touch()
    for name, message in {
        "binary": "not UTF-8 text",
        "empty": "the file is empty",
        "absent": "does not exist; check the path",
        ".": "is not a file",
    }.items():
        with pytest.raises(UnreadableTraceError, match=message):
            Workload(tmp_path / name)


@pytest.mark.parametrize("line", [1, 3, 1000])
def test_bytes_that_are_no_text_are_found_in_their_line(tmp_path: Path, line: int) -> None:
    lines = [HEADER.encode(), *[GOOD.encode()] * 2000]
    lines[line - 1] = b"\xff"
    (tmp_path / "w").write_bytes(b"\n".join(lines))
    with pytest.raises(UnreadableTraceError, match=f"w, line {line}: is not UTF-8 text"):
        list(Workload(tmp_path / "w"))


def test_validation_stops_at_the_largest_number_of_errors(trace_of: TraceOf) -> None:
    report = validate(trace_of(HEADER, *["{"] * 30), max_errors=5)
    assert (len(report.errors), report.complete) == (5, False)


def test_times_that_run_backwards_are_a_warning(trace_of: TraceOf) -> None:
    report = validate(trace_of(HEADER, request(arrival_ms=5), GOOD))
    assert report.ok
    assert "arrival times go backwards; the order of the file is kept" in report.warnings[0]


def test_ids_of_content_are_a_warning_where_the_format_has_them(trace_of: TraceOf) -> None:
    line = (
        '{{"chat_id": {}, "timestamp": 1, "input_length": 32, "output_length": 1, "hash_ids": {}}}'
    )
    report = validate(trace_of(line.format(1, [1, 2]), line.format(2, [3, 2])))
    assert report.ok
    assert report.requests == 2
    assert "'pagedkv trace import' gives every prefix its own id" in report.warnings[0]


@given(st.binary(max_size=200), st.booleans())
def test_no_bytes_whatever_raise_anything_but_a_trace_error(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, with_header: bool
) -> None:
    path = tmp_path_factory.getbasetemp() / "any"
    path.write_bytes(HEADER.encode() + b"\n" + content if with_header else content)
    try:
        validate(Workload(path))
    except TraceError as error:
        assert str(error).startswith(str(path))
