"""The order checker: what it reports is a race, and it reports one wherever there are some."""

import ast
import contextlib
import io
import runpy
import sys
import threading
from itertools import combinations, pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pagedkv.conformance.stream_order import (
    Entry,
    OrderLogError,
    OrderLogWriter,
    Race,
    Record,
    Use,
    Wait,
    check_order,
    read_order_log,
)
from pagedkv.conformance.stream_order import writer as writer_module
from pagedkv.conformance.stream_order.log_file import order_log_lines

HOST = "host"

EXAMPLES = Path(__file__).parents[2] / "examples/stream_order"


@st.composite
def logs(draw: st.DrawFn) -> list[Entry]:
    entries: list[Entry] = []
    recorded: list[int] = []
    stream = st.sampled_from([HOST, "a", "b", "c"])
    rows = st.lists(st.tuples(st.integers(0, 2), st.just(1)), max_size=1)
    for _ in range(draw(st.integers(0, 14))):
        kind = draw(st.sampled_from(["use", "use", "record", "wait"]))
        if kind == "use":
            use = Use(
                entry="copy",
                stream=draw(stream),
                reads={"m": draw(rows)},
                writes={"m": draw(rows)},
            )
            entries.append(use)
        elif kind == "record":
            event = draw(st.integers(0, 3))
            recorded.append(event)
            entries.append(Record(stream=draw(stream), event=event))
        elif recorded:
            entries.append(Wait(stream=draw(stream), event=draw(st.sampled_from(recorded))))
    return entries


def ordered(entries: list[Entry]) -> set[tuple[int, int]]:
    """All pairs of entries that are ordered, by definition: the closure of the edges."""
    edges = set()
    last_record: dict[int, int] = {}
    for j, entry in enumerate(entries):
        edges |= {(i, j) for i in range(j) if entries[i].stream in (entry.stream, HOST)}
        if isinstance(entry, Record):
            last_record[entry.event] = j
        elif isinstance(entry, Wait):
            edges.add((last_record[entry.event], j))
    for k in range(len(entries)):
        before = [i for i, j in edges if j == k]
        behind = [j for i, j in edges if i == k]
        edges |= {(i, j) for i in before for j in behind}
    return edges


def conflicts(entries: list[Entry]) -> set[tuple[int, int, int]]:
    """Pairs of uses of a row, at least one of them a write, and the row."""
    found = set()
    for (i, one), (j, other) in combinations(enumerate(entries), 2):
        if isinstance(one, Use) and isinstance(other, Use):
            for row in range(3):
                uses = [
                    [(row, 1) in side.get("m", []) for side in (use.reads, use.writes)]
                    for use in (one, other)
                ]
                if any(uses[0]) and any(uses[1]) and (uses[0][1] or uses[1][1]):
                    found.add((i, j, row))
    return found


@given(logs())
def test_races_are_what_no_path_of_edges_orders(entries: list[Entry]) -> None:
    before = ordered(entries)
    expected = {(i, j, row) for i, j, row in conflicts(entries) if (i, j) not in before}
    races = check_order(entries)
    seen = {(race.earlier.index, race.later.index, row) for race in races for row in race.rows}
    assert seen <= expected
    # Of each row the first is always reported; later ones may hide behind it.
    for row in range(3):
        of_row = {race for race in expected if race[2] == row}
        if of_row:
            first = min(j for _, j, _ in of_row)
            assert any(race[1:] == (first, row) for race in seen)


@given(logs())
def test_missing_edge_is_the_missing_edge(entries: list[Entry]) -> None:
    races = check_order(entries)
    if not races:
        return
    race, event = races[0], 99
    earlier, later = race.earlier, race.later
    repaired = [
        *entries[: earlier.index + 1],
        Record(stream=earlier.stream, event=event),
        *entries[earlier.index + 1 : later.index],
        Wait(stream=later.stream, event=event),
        *entries[later.index :],
    ]
    pair = earlier.index, later.index + 2
    assert pair not in {(r.earlier.index, r.later.index) for r in check_order(repaired)}


@given(logs())
def test_log_survives_its_file(entries: list[Entry]) -> None:
    assert list(read_order_log(order_log_lines(entries))) == entries


def write(stream: str, row: int) -> Use:
    return Use(entry="copy", stream=stream, writes={"m": [(row, 1)]})


def read(stream: str, row: int) -> Use:
    return Use(entry="copy", stream=stream, reads={"m": [(row, 1)]})


def test_what_a_stream_has_waited_for_is_passed_on() -> None:
    passed_on: list[Entry] = [
        write("a", 0),
        Record(stream="a", event=1),
        Wait(stream="c", event=1),
        write("b", 1),
        Record(stream="b", event=2),
        Wait(stream="a", event=2),
        Record(stream="a", event=3),
        Wait(stream="c", event=3),
        read("c", 1),
    ]
    assert check_order(passed_on) == []


def test_older_news_of_a_stream_replaces_no_newer() -> None:
    older_last: list[Entry] = [
        write("b", 0),
        Record(stream="b", event=1),
        Wait(stream="a", event=1),
        Record(stream="a", event=2),
        write("b", 1),
        Record(stream="b", event=3),
        Wait(stream="c", event=3),
        Wait(stream="c", event=2),
        read("c", 1),
    ]
    assert check_order(older_last) == []


def test_one_mistake_is_reported_once() -> None:
    assert len(check_order([read("a", 0), write("b", 0), write("b", 0), read("b", 0)])) == 1


def test_rows_of_one_pair_are_one_report() -> None:
    (race,) = check_order(
        [
            Use(entry="copy", stream="onload 0", writes={"pages": [(0, 12)]}),
            Use(entry="launch", stream="compute 0", reads={"pages": [(2, 20)]}),
        ]
    )
    assert race.rows == list(range(2, 12))
    assert str(race).startswith("10 rows: 2, 3, 4, 5, 6, 7, 8, 9, ... of pages: entry 0 (copy on")


def test_event_that_is_there_already_is_named() -> None:
    (race,) = check_order(
        [
            Use(entry="copy", stream="onload 0", writes={"pages": [(0, 1)]}),
            Record(stream="onload 0", event=7),
            Use(entry="launch", stream="compute 0", reads={"pages": [(0, 1)]}),
        ]
    )
    assert race.missing == (
        "let compute 0 wait for event 7, which is recorded behind entry 0, before entry 2"
    )


@pytest.mark.parametrize(
    "lines, problem",
    [
        ([], "line 1 of the order log: is missing"),
        (['{"format":"pagedkv-events","version":1}'], "line 1 .*format: Input should be 'pagedkv-"),
        (['{"format":"pagedkv-stream-order","version":2}'], "line 1 .*version: Input should be 1"),
        (
            ['{"format":"pagedkv-stream-order","version":1}', '{"entry":"copied"}'],
            "line 2 .*'copied",
        ),
        (['{"format":"pagedkv-stream-order","version":1}', "nonsense"], "line 2 .*Invalid JSON"),
    ],
)
def test_line_that_is_not_understood_is_named(lines: list[str], problem: str) -> None:
    with pytest.raises(OrderLogError, match=problem):
        list(read_order_log(lines))


def test_wait_for_nothing_is_an_error() -> None:
    with pytest.raises(
        OrderLogError, match=r"line 2 .* offload 0 waits for event 3, which was not"
    ):
        check_order([Wait(stream="offload 0", event=3)])


class TestBugsThatReallyHappened:
    """Each with the edge that was missing, and silent once it is there."""

    def races(self, *entries: Entry) -> list[Race]:
        return check_order(entries)

    FORWARD = Use(
        entry="launch", stream="compute 0", reads={"pages": [(1, 2)]}, writes={"pages": [(3, 1)]}
    )

    def test_offload_that_starts_before_its_forward_has_finished(self) -> None:
        """vllm#45704."""
        offload = Use(
            entry="copy", stream="offload 0", reads={"pages": [(3, 1)]}, writes={"slots": [(0, 1)]}
        )
        (race,) = self.races(self.FORWARD, offload)
        assert str(race) == (
            "row 3 of pages: entry 0 (launch on compute 0 writes) and entry 1 (copy on offload 0 "
            "reads) are not ordered; missing: record an event on compute 0 behind entry 0, and let "
            "offload 0 wait for it before entry 1"
        )
        edge = Record(stream="compute 0", event=1), Wait(stream="offload 0", event=1)
        assert self.races(self.FORWARD, *edge, offload) == []

    def test_event_that_is_recorded_before_the_forward_does_not_help(self) -> None:
        offload = Use(entry="copy", stream="offload 0", reads={"pages": [(3, 1)]})
        edge = Record(stream="compute 0", event=1), Wait(stream="offload 0", event=1)
        assert len(self.races(edge[0], self.FORWARD, edge[1], offload)) == 1

    def test_onload_into_a_page_that_an_earlier_forward_still_reads(self) -> None:
        """vllm#47282."""
        onload = Use(
            entry="copy", stream="onload 0", reads={"slots": [(8, 1)]}, writes={"pages": [(2, 1)]}
        )
        (race,) = self.races(self.FORWARD, onload)
        assert str(race) == (
            "row 2 of pages: entry 0 (launch on compute 0 reads) and entry 1 (copy on onload 0 "
            "writes) are not ordered; missing: record an event on compute 0 behind entry 0, and "
            "let onload 0 wait for it before entry 1"
        )
        edge = Record(stream="compute 0", event=1), Wait(stream="onload 0", event=1)
        assert self.races(self.FORWARD, *edge, onload) == []

    def test_staging_overwritten_while_its_copy_is_pending(self) -> None:
        """TensorRT-LLM#15546."""
        fill = Use(entry="host", writes={"lookup staging": [(0, 1)]})
        copy = Use(
            entry="copy",
            stream="compute 0",
            reads={"lookup staging": [(0, 1)]},
            writes={"lookup table": [(0, 1)]},
        )
        (race,) = self.races(fill, copy, fill)
        assert str(race) == (
            "row 0 of lookup staging: entry 1 (copy on compute 0 reads) and entry 2 (host writes) "
            "are not ordered; missing: record an event on compute 0 behind entry 1, and let the "
            "host wait for it before entry 2"
        )
        edge = Record(stream="compute 0", event=1), Wait(stream="host", event=1)
        assert self.races(fill, copy, *edge, fill) == []


def example_log(name: str, *options: str) -> str:
    """What an example writes, run as its docstring says."""
    script = str(EXAMPLES / f"{name}.py")
    arguments, sys.argv = sys.argv, [script, *options]
    try:
        with contextlib.redirect_stdout(io.StringIO()) as written:
            runpy.run_path(script, run_name="__main__")
    finally:
        sys.argv = arguments
    return written.getvalue()


@pytest.mark.parametrize(
    ("name", "race"),
    [
        (
            "vllm_45704",
            "row 7 of gpu blocks: entry 0 (launch on compute writes) and entry 2 (copy on store "
            "reads) are not ordered; missing: record an event on compute behind entry 0, and let "
            "store wait for it before entry 2",
        ),
        (
            "vllm_47282",
            "2 rows: 1, 2 of gpu blocks: entry 0 (launch on compute reads) and entry 4 (copy on "
            "load writes) are not ordered; missing: let load wait for event 1, which is recorded "
            "behind entry 0, before entry 4",
        ),
        (
            "tensorrt_llm_15546",
            "row 0 of pinned: entry 1 (copy on compute reads) and entry 3 (host writes) are not "
            "ordered; missing: record an event on compute behind entry 1, and let the host wait "
            "for it before entry 3",
        ),
    ],
)
def test_example_of_a_real_bug_lacks_one_edge_and_its_fix_none(name: str, race: str) -> None:
    races = check_order(read_order_log(example_log(name).splitlines()))
    assert [*map(str, races)] == [race]
    assert check_order(read_order_log(example_log(name, "--fixed").splitlines())) == []


@pytest.mark.gpu
def test_offloader_on_a_gpu_forgets_what_it_is_told_to_forget() -> None:
    assert check_order(read_order_log(example_log("torch_offload").splitlines())) == []
    (race,) = check_order(read_order_log(example_log("torch_offload", "--forgetful").splitlines()))
    assert (race.memory, race.rows, race.later.stream) == ("pages", [2], "onload")


class TestWriter:
    """The file that other systems copy."""

    def test_it_needs_nothing_but_python(self) -> None:
        tree = ast.parse(Path(writer_module.__file__).read_text())
        imported = {
            name.split(".")[0]
            for node in ast.walk(tree)
            for name in (
                [alias.name for alias in node.names]
                if isinstance(node, ast.Import)
                else [node.module or ""]
                if isinstance(node, ast.ImportFrom)
                else []
            )
        }
        assert imported <= sys.stdlib_module_names

    @given(st.lists(st.tuples(st.booleans(), st.sets(st.integers(0, 20))), max_size=8))
    def test_rows_survive(self, uses: list[tuple[bool, set[int]]]) -> None:
        file = io.StringIO()
        log = OrderLogWriter(file)
        for writes, rows in uses:
            log.copy("a", reads={} if writes else {"m": rows}, writes={"m": rows} if writes else {})
        entries = list(read_order_log(file.getvalue().splitlines()))
        for entry, (writes, rows) in zip(entries, uses, strict=True):
            assert isinstance(entry, Use)
            ranges = (entry.writes if writes else entry.reads)["m"]
            listed = [row for first, count in ranges for row in range(first, first + count)]
            assert listed == sorted(rows)
            assert all(sum(one) < other[0] for one, other in pairwise(ranges))

    def test_own_numbers_of_events_may_be_used_again(self) -> None:
        file = io.StringIO()
        log = OrderLogWriter(file)
        assert [log.record("a"), log.record("a", 77), log.record("a", 77)] == [1, 77, 77]
        log.wait("b", 77)
        assert [entry.stream for entry in read_order_log(file.getvalue().splitlines())] == [
            *("a", "a", "a", "b")
        ]

    def test_lines_of_many_threads_stay_whole(self) -> None:
        file = io.StringIO()
        log = OrderLogWriter(file)

        def enqueue(stream: str) -> None:
            for row in range(200):
                with log.lock:
                    event = log.record(stream)
                    log.wait("host", event)
                    log.copy(stream, writes={stream: [row]})

        threads = [threading.Thread(target=enqueue, args=(name,)) for name in "abcd"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        lines = file.getvalue().splitlines()
        assert len(lines) == 1 + 4 * 200 * 3
        assert check_order(read_order_log(lines)) == []


def test_note_is_shown_beside_its_access() -> None:
    (race,) = check_order(
        [
            Use(entry="launch", stream="compute", writes={"m": [(0, 1)]}, note="step 7"),
            Use(entry="copy", stream="store", reads={"m": [(0, 1)]}),
        ]
    )
    assert (race.earlier.note, race.later.note) == ("step 7", "")
    assert (race.earlier.line, race.later.line) == (2, 3)
