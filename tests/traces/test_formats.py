"""Public traces are read as they are published."""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pagedkv.traces import Workload, WorkloadRequest, write_workload
from pagedkv.traces.errors import InvalidFieldError, MalformedLineError, UnknownFormatError
from pagedkv.traces.prefix_ids import chained

TraceOf = Callable[..., Workload]

MOONCAKE = '{"timestamp": 27, "input_length": 600, "output_length": 52, "hash_ids": [46, 47]}'
BAILIAN = (
    '{"chat_id": 159, "parent_chat_id": 55, "timestamp": 61.114, "input_length": 33, '
    '"output_length": 132, "type": "text", "turn": 2, "hash_ids": [1089, 1090, 6326]}'
)
AZURE = ("TIMESTAMP,ContextTokens,GeneratedTokens", "2023-11-16 18:15:46.6805900,374,44")
BURSTGPT = (
    "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type",
    "5,ChatGPT,472,18,490,Conversation log",
)
BURSTGPT_WITH_SESSIONS = (
    "Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type",
    "19440110.0,1722ac82,43,GPT-4,906,446,1352,Conversation log",
)


def test_mooncake(trace_of: TraceOf) -> None:
    workload = trace_of(MOONCAKE)
    assert (workload.format.name, workload.header.block_size) == ("mooncake", 512)
    assert list(workload) == [
        WorkloadRequest(arrival_ms=27, input_length=600, output_length=52, hash_ids=(46, 47))
    ]


def test_bailian_counts_seconds_and_blocks_of_16(trace_of: TraceOf) -> None:
    workload = trace_of(BAILIAN)
    assert (workload.format.name, workload.header.block_size) == ("bailian", 16)
    (request,) = workload
    assert request.arrival_ms == pytest.approx(61_114)
    assert request.type == "text"
    assert request.hash_ids == (1089, 1090, 6326)


def test_bailian_chats_belong_to_the_session_of_their_first_turn(trace_of: TraceOf) -> None:
    def line(chat: int, parent: int) -> str:
        return (
            f'{{"chat_id": {chat}, "parent_chat_id": {parent}, "timestamp": 1.0, '
            '"input_length": 1, "output_length": 1, "type": "text", "turn": 1, "hash_ids": [0]}'
        )

    workload = trace_of(line(1, -1), line(2, 1), line(3, 2), line(4, -1), line(5, 77), line(6, 5))
    assert [request.session for request in workload] == ["1", "1", "1", "4", "77", "77"]


def test_azure_counts_from_its_first_row(trace_of: TraceOf) -> None:
    workload = trace_of(*AZURE, "2023-11-16 18:15:50.9951690,396,109")
    assert workload.format.name == "azure"
    first, second = workload
    assert (first.arrival_ms, first.input_length, first.output_length) == (0, 374, 44)
    assert second.arrival_ms == pytest.approx(4314.58, abs=0.01)


def test_azure_times_may_name_their_zone(trace_of: TraceOf) -> None:
    rows = ("2024-05-10 00:00:00.009930+00:00,9,9", "2024-05-10 02:00:01.009930+02:00,9,9")
    assert [r.arrival_ms for r in trace_of(AZURE[0], *rows)] == [0, 1000]


def test_the_multimodal_azure_trace_has_a_column_more(trace_of: TraceOf) -> None:
    header = "TIMESTAMP,NumImages,ContextTokens,GeneratedTokens"
    (request,) = trace_of(header, "2024-10-15 00:00:00.1,2,374,44")
    assert (request.input_length, request.output_length) == (374, 44)


def test_burstgpt(trace_of: TraceOf) -> None:
    workload = trace_of(*BURSTGPT)
    assert workload.format.name == "burstgpt"
    (request,) = workload
    assert (request.input_length, request.output_length) == (472, 18)
    assert (request.session, request.type) == (None, "Conversation log")


def test_newer_burstgpt_names_sessions_between_the_other_columns(trace_of: TraceOf) -> None:
    api_call = "19440111.5,,3,ChatGPT,36,29,65,API log"
    first, second = trace_of(*BURSTGPT_WITH_SESSIONS, api_call)
    assert (first.session, first.input_length) == ("1722ac82", 906)
    assert (second.session, second.arrival_ms) == (None, 1500)


def test_requests_without_content_share_nothing(trace_of: TraceOf) -> None:
    workload = trace_of(AZURE[0], *["2023-11-16 18:15:46,374,44"] * 3)
    ids = [i for request in workload for i in request.hash_ids]
    assert len(ids) == len(set(ids)) == 9


@pytest.mark.parametrize(
    "lines",
    [
        (BURSTGPT[0], "5,ChatGPT,0,0,0,API log", BURSTGPT[1]),
        (MOONCAKE.replace("600", "0").replace("46, 47", ""), MOONCAKE),
        (BAILIAN.replace("33", "0").replace("1089, 1090, 6326", ""), BAILIAN),
    ],
)
def test_failed_requests_without_a_prompt_are_skipped_and_counted(
    trace_of: TraceOf, lines: tuple[str, ...]
) -> None:
    workload = trace_of(*lines)
    assert len(list(workload)) == 1
    assert "requests without a prompt are skipped (1 lines" in workload.oddities.texts()[0]


def test_dynamo_turns_follow_their_session_after_a_delay(trace_of: TraceOf) -> None:
    workload = trace_of(
        '{"session_id":"a","timestamp":1000,"input_length":9,"output_length":1,"hash_ids":[1]}',
        '{"session_id":"b","created_time":1010,"input_tokens":9,"output_tokens":1,"hash_ids":[2]}',
        '{"session_id":"a","delay":250,"input_length":600,"output_length":1,"hash_ids":[1,3]}',
        '{"session_id":"b","delay_ms":50,"input_length":9,"output_length":1,"hash_ids":[4]}',
        '{"session_id":"b","delay_ms":5,"input_length":9,"output_length":1,"hash_ids":[5]}',
    )
    assert workload.format.name == "dynamo"
    assert [request.arrival_ms for request in workload] == [1000, 1010, 1250, 1060, 1065]
    assert [request.session for request in workload] == ["a", "b", "a", "b", "b"]


def test_dynamo_lines_may_come_late_in_a_file_that_starts_as_mooncake(trace_of: TraceOf) -> None:
    later = '{"session_id":"a","timestamp":28,"input_length":9,"output_length":1,"hash_ids":[1]}'
    assert [request.session for request in trace_of(MOONCAKE, later)] == [None, "a"]


def test_a_turn_without_any_time_is_an_error(trace_of: TraceOf) -> None:
    line = '{"session_id":"a","delay":5,"input_length":9,"output_length":1,"hash_ids":[1]}'
    with pytest.raises(InvalidFieldError, match="line 1: has no timestamp; give the arrival"):
        list(trace_of(line))


def test_fields_nobody_knows_are_ignored_in_public_traces_and_reported(trace_of: TraceOf) -> None:
    workload = trace_of(MOONCAKE, MOONCAKE.replace("}", ', "priority": 3}'))
    assert len(list(workload)) == 2
    assert workload.oddities.texts() == [
        "field 'priority' is unknown and ignored (1 lines, the first is line 2)"
    ]


def test_the_order_of_the_file_is_kept_even_if_time_runs_backwards(trace_of: TraceOf) -> None:
    workload = trace_of(MOONCAKE, MOONCAKE.replace("27", "3"), MOONCAKE.replace("27", "3"))
    assert [request.arrival_ms for request in workload] == [27, 3, 3]
    assert workload.oddities.texts() == [
        "arrival times go backwards; the order of the file is kept (1 lines, the first is line 2)"
    ]


def test_block_size_can_be_told_where_the_format_does_not_say(trace_of: TraceOf) -> None:
    line = MOONCAKE.replace("46, 47", ",".join(map(str, range(10))))
    assert len(list(trace_of(line, block_size=64))) == 1


def delayed(**timing: float) -> str:
    fields = {"session_id": "a", "input_length": 9, "output_length": 1, "hash_ids": [1], **timing}
    return json.dumps(fields)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ((BAILIAN.replace("61.114", "1e308"),), "arrival_ms = inf is no arrival time; give"),
        ((*BURSTGPT, "1e308,ChatGPT,9,9,18,API log"), "arrival_ms = inf is no arrival time"),
        ((*BURSTGPT, "inf,ChatGPT,9,9,18,API log"), "Timestamp = 'inf' is not an arrival time"),
        ((*BURSTGPT, "nan,ChatGPT,9,9,18,API log"), "Timestamp = 'nan' is not an arrival time"),
        ((*BURSTGPT, "1_0,ChatGPT,9,9,18,API log"), "Timestamp = '1_0' is not an arrival time"),
        ((delayed(timestamp=9e18), delayed(delay=9e18)), "arrival_ms = 1.8e.19 is no arrival"),
    ],
)
def test_times_that_the_own_format_cannot_hold_are_refused(
    trace_of: TraceOf, lines: tuple[str, ...], message: str
) -> None:
    with pytest.raises(InvalidFieldError, match=message):
        list(trace_of(*lines))


def test_a_column_that_is_named_twice_is_an_error(trace_of: TraceOf) -> None:
    with pytest.raises(MalformedLineError, match="line 1: names column 'TIMESTAMP' twice"):
        list(trace_of(AZURE[0] + ",TIMESTAMP", AZURE[1] + ",9"))


@pytest.mark.skipif(sys.platform == "darwin", reason="its file names are always Unicode")
def test_a_file_whose_name_is_no_text_can_be_imported(tmp_path: Path) -> None:
    trace = tmp_path / os.fsdecode(b"mooncake\xff")
    trace.write_text(MOONCAKE)
    workload = Workload(trace)
    write_workload(tmp_path / "w", workload.header, workload)
    assert Workload(tmp_path / "w").header.origin == "mooncake trace mooncake\ufffd"


def test_a_format_can_be_forced(trace_of: TraceOf) -> None:
    assert trace_of(BAILIAN, format="mooncake", block_size=16).format.name == "mooncake"
    with pytest.raises(MalformedLineError, match="trace, line 1: names no column 'ContextTokens'"):
        list(trace_of(MOONCAKE, format="azure"))
    with pytest.raises(UnknownFormatError, match="the formats are pagedkv, bailian"):
        trace_of(MOONCAKE, format="parquet")


def test_a_byte_order_mark_and_blank_lines_are_no_obstacle(trace_of: TraceOf) -> None:
    assert len(list(trace_of("\ufeff" + AZURE[0], "", AZURE[1], ""))) == 1


def test_import_gives_every_prefix_its_own_id(trace_of: TraceOf) -> None:
    def line(*ids: int) -> str:
        return (
            f'{{"timestamp": 0, "input_length": {512 * len(ids)}, "output_length": 1, '
            f'"hash_ids": {list(ids)}}}'
        )

    workload = trace_of(line(900, 7), line(900, 8), line(7, 900), line(900, 7))
    assert [r.hash_ids for r in chained(workload)] == [(0, 1), (0, 2), (3, 4), (0, 1)]
