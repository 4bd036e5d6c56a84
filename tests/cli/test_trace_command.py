"""``pagedkv trace info|validate|import|generate`` from the outside."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

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


def test_json_goes_to_its_file_while_the_workload_goes_to_stdout(
    pagedkv: Pagedkv, tmp_path: Path
) -> None:
    outcome = pagedkv("trace", "generate", "-", "--requests", 3, "--json", tmp_path / "result")
    assert (outcome.status, outcome.out.count("\n")) == (0, 4)
    result = json.loads((tmp_path / "result").read_text())
    assert result == {"output": "-", "requests": 3, "block_size": 128, "bytes": None}


@pytest.mark.parametrize(
    "arguments",
    [
        ("replay", "trace"),
        ("demo", "--workload", "trace"),
        ("trace", "info", "trace"),
        ("trace", "validate", "trace"),
        ("trace", "import", "trace", "output"),
        ("trace", "generate", "trace"),
        ("trace", "import", "other", "trace"),
    ],
)
@pytest.mark.parametrize("json_to", ["trace", "symbolic", "hard", "./folder/../trace"])
def test_json_never_replaces_the_file_of_another_argument(
    pagedkv: Pagedkv,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    json_to: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("trace", "other"):
        Path(name).write_text(BAILIAN)
    Path("folder").mkdir()
    Path("symbolic").symlink_to("trace")
    Path("hard").hardlink_to("trace")
    outcome = pagedkv(*arguments, "--json", json_to)
    assert (outcome.status, outcome.out, outcome.err.count("\n")) == (2, "", 1)
    assert "itself; give it a file of its own" in outcome.err
    assert Path("trace").read_text() == BAILIAN
    assert not Path("output").exists()


def test_what_a_trace_says_is_shown_as_text_not_obeyed(
    pagedkv: Pagedkv, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    request = '{"arrival_ms":0,"input_length":4,"output_length":1,"hash_ids":[0],'
    path = tmp_path / "[red]x.jsonl"
    path.write_text(
        '{"format":"pagedkv-workload","version":1,"block_size":4,"origin":"[/bold]:smile:"}\n'
        + request
        + '"type":"[/bold]\\u001b[31m"}\n'
    )
    outcome = pagedkv("trace", "info", path)
    for text in ("[red]x.jsonl", "[/bold]:smile:", "[/bold]\\x1b[31m"):
        assert text in outcome.out
    for command in ("replay", "demo --workload", "trace validate"):
        assert "[red]x.jsonl" in pagedkv(*command.split(), path).out
    path.write_text(path.read_text() + request + '"\\u001b[31m":1}\n')
    outcome = pagedkv("trace", "validate", path)
    assert "\\x1b[31m = 1 is not a field" in outcome.err
    assert "\x1b" not in outcome.err


@pytest.mark.parametrize(("value", "shown"), [("NaN", "nan"), ("-Infinity", "-inf")])
def test_the_json_of_a_validation_is_json_whatever_the_trace_holds(
    pagedkv: Pagedkv, tmp_path: Path, value: str, shown: str
) -> None:
    path = tmp_path / "w"
    path.write_text(BAILIAN + BAILIAN.replace("1.5", value))
    outcome = pagedkv("trace", "validate", path, "--json")
    result = json.loads(outcome.out, parse_constant=lambda text: pytest.fail(text))
    assert result["errors"][0]["value"] == shown


def test_wrong_requests_are_told_in_one_line(pagedkv: Pagedkv, tmp_path: Path) -> None:
    output = tmp_path / "w"
    for arguments, message in {
        ("generate", output, "--scenario", "opera"): "'--scenario': 'opera' is not one of mix, ch",
        ("generate", output, "--arrival", "never"): "'--arrival': 'never' is not one of poisson",
        ("generate", output, "--requests", 0): "'--requests': '0' is no whole number from 1",
        ("generate", output, "--rate", 0): "'--rate': '0' is no number from 0.0001",
        ("generate", output, "--rate", "nan"): "'--rate': 'nan' is no number from 0.0001",
        ("generate", output, "--seed", "x"): "'--seed': 'x' is no whole number",
        ("generate", output, "--input-tokens", 10**9, "--block-size", 10**9): "'1000000000' is no",
        ("generate", output, "--input-tokens", 10**8, "--block-size", 10**8): "ask for shorter",
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
