"""``pagedkv trace info|validate|import|generate`` from the outside."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pagedkv.traces import Workload

Pagedkv = Callable[..., Any]

BAILIAN = (
    '{"chat_id": 1, "parent_chat_id": -1, "timestamp": 1.5, "input_length": 32, '
    '"output_length": 2, "type": "text", "turn": 1, "hash_ids": [70, 71]}\n'
)


def test_info_describes_a_workload(pagedkv: Pagedkv, workload: Path) -> None:
    outcome = pagedkv("trace", "info", workload)
    assert outcome.status == 0
    assert "no cache can hit more" in outcome.out
    result = pagedkv("trace", "info", workload, "--page-size", 64, "--json").json
    assert (result["requests"], result["block_size"], result["page_size"]) == (200, 128, 64)
    assert sum(result["types"].values()) == 200


def test_a_valid_trace_is_told_as_that(pagedkv: Pagedkv, workload: Path) -> None:
    outcome = pagedkv("trace", "validate", workload, "--json")
    assert outcome.status == 0
    assert outcome.json == {
        "trace": str(workload),
        "valid": True,
        "requests": 200,
        "errors": [],
        "complete": True,
        "warnings": [],
    }


def test_every_error_of_an_invalid_trace_is_listed(pagedkv: Pagedkv, tmp_path: Path) -> None:
    path = tmp_path / "w"
    path.write_text(BAILIAN + BAILIAN.replace("32", "-32") + BAILIAN + "{\n")
    outcome = pagedkv("trace", "validate", path, "--json")
    assert outcome.status == 2
    first, second = outcome.json["errors"]
    assert (first["line"], first["field"], first["value"]) == (2, "input_length", -32)
    assert first["kind"] == "InvalidFieldError"
    assert first["remedy"] == "it holds: the number of prompt tokens, 0 or more"
    assert (second["line"], second["field"]) == (4, None)
    assert outcome.err.splitlines() == [
        f"pagedkv: {path}, line 2: input_length = -32 should be greater than or equal to 0; "
        "it holds: the number of prompt tokens, 0 or more",
        f"pagedkv: {path}, line 4: is not valid JSON (EOF while parsing an object at line 2 "
        "column 0); write one JSON object per line",
    ]


def test_a_file_of_no_known_format_is_invalid_too(pagedkv: Pagedkv, tmp_path: Path) -> None:
    (tmp_path / "w").write_text("hello\n")
    outcome = pagedkv("trace", "validate", tmp_path / "w", "--json")
    assert outcome.status == 2
    assert outcome.json["errors"][0]["kind"] == "UnknownFormatError"


def test_import_makes_a_workload_file(pagedkv: Pagedkv, tmp_path: Path) -> None:
    (tmp_path / "bailian").write_text(BAILIAN)
    outcome = pagedkv("trace", "import", tmp_path / "bailian", tmp_path / "w.gz", "--json")
    assert outcome.status == 0
    assert (outcome.json["requests"], outcome.json["block_size"]) == (1, 16)
    imported = Workload(tmp_path / "w.gz")
    assert imported.format.name == "pagedkv"
    assert imported.header.origin == "bailian trace bailian"
    assert [request.hash_ids for request in imported] == [(0, 1)]


def test_a_failed_import_writes_nothing(pagedkv: Pagedkv, tmp_path: Path) -> None:
    (tmp_path / "bailian").write_text(BAILIAN + "{\n")
    outcome = pagedkv("trace", "import", tmp_path / "bailian", tmp_path / "w")
    assert outcome.status == 2
    assert "line 2: is not valid JSON" in outcome.err
    assert [path.name for path in tmp_path.iterdir()] == ["bailian"]


def test_generate_writes_the_same_bytes_to_a_file_and_to_stdout(
    pagedkv: Pagedkv, tmp_path: Path
) -> None:
    options = ("--requests", 30, "--seed", 5, "--scenario", "rag", "--arrival", "bursty")
    assert pagedkv("trace", "generate", tmp_path / "w", *options).status == 0
    to_stdout = pagedkv("trace", "generate", "-", *options)
    assert to_stdout.out == (tmp_path / "w").read_text()
    assert json.loads(to_stdout.out.splitlines()[0])["origin"].startswith("generated: scenario=rag")


def test_wrong_requests_are_told_in_one_line(pagedkv: Pagedkv, tmp_path: Path) -> None:
    output = tmp_path / "w"
    for arguments, message in {
        ("generate", output, "--scenario", "opera"): "'--scenario': 'opera' is not one of mix, ch",
        ("generate", output, "--arrival", "never"): "'--arrival': 'never' is not one of poisson",
        ("generate", output, "--requests", 0): "'--requests'",
        ("generate", output, "--rate", 0): "'--rate'",
        ("generate", output, "--rate", "nan"): "rate",
        ("generate", output, "--requests", 5, "--sessions", 6): "--sessions is 6, more than the 5",
        ("generate", tmp_path / "no" / "w"): "its folder does not exist",
        ("generate", tmp_path): "is not a regular file",
        ("generate", "-", "--json", "-"): "OUTPUT and --json cannot both go to stdout",
        ("generate",): "OUTPUT",
        ("info", tmp_path / "absent"): "does not exist; check the path",
        ("import", tmp_path / "absent", output): "does not exist; check the path",
        ("validate", output, "--max-errors", 0): "'--max-errors'",
        ("dance",): "dance",
        (): "which command?",
    }.items():
        outcome = pagedkv("trace", *arguments)
        assert outcome.status == 2, arguments
        assert message in outcome.err
        assert outcome.err.count("\n") == 1
        assert list(tmp_path.iterdir()) == []
