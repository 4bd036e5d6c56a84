"""The JSON-lines protocol: what programs answer, and what becomes of those that do not."""

import gc
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tests.conformance.test_naive_manager import NAIVE_MANAGER

from pagedkv.conformance.implementation import Implementation, offered_by
from pagedkv.conformance.protocol import replies, requests
from pagedkv.conformance.protocol.client import implementation_of_command
from pagedkv.conformance.protocol.contexts import as_context, as_data, id_text
from pagedkv.conformance.protocol.errors import (
    MalformedReplyError,
    NoReplyError,
    ProcessEndedError,
    ProtocolError,
    RemoteError,
)
from pagedkv.conformance.protocol.message import VERSION
from pagedkv.conformance.protocol.process import LineProcess
from pagedkv.conformance.protocol.schema import schema_text
from pagedkv.conformance.suite import all_checks, run_suite
from pagedkv.conformance.time_limit import OutOfTimeError, time_limit
from pagedkv.pytest_plugin import plan_for
from pagedkv.reference import (
    AlreadyClaimedError,
    ImageMetadata,
    InsufficientBlocksError,
    SpecDecodingState,
    TextContext,
    TokenBuffer,
    TokenHashOverride,
)
from pagedkv.specification import reference_specification
from pagedkv.traces.manager_setup import ManagerSetup

REPOSITORY = Path(__file__).parents[2]
SERVER = shlex.join([sys.executable, "-m", "pagedkv", "serve-protocol", "--impl", "reference"])
SETUP = ManagerSetup(page_size=4, total_num_pages=8, max_batch_size=8)

# Any: JSON.
Json = Any


def context(tokens: list[int], **options: Any) -> TextContext:
    array = np.array(tokens, dtype=np.int64)
    return TextContext(max_length=len(tokens), tokens=TokenBuffer(array), **options)


def context_data(tokens: list[int], **options: Any) -> Json:
    return as_data(context(tokens, **options)).model_dump(mode="json")


# --- what every program answers ------------------------------------------------------------------


class Speaker:
    """Says lines to a program, and reads what it replies."""

    def __init__(self, command: str) -> None:
        self.process = LineProcess(shlex.split(command), timeout_s=60)
        self.numbers = count(1)

    def reply(self, line: bytes) -> Json:
        return json.loads(self.process.ask(line))

    def ask(self, call: str, **fields: Json) -> Json:
        return self.reply(json.dumps({"call": call, **fields}, ensure_ascii=False).encode())

    def result(self, call: str, **fields: Json) -> Json:
        reply = self.ask(call, **fields)
        assert "error" not in reply, reply
        return reply["result"]

    def error(self, call: str, **fields: Json) -> str:
        return error_name(self.ask(call, **fields))

    def open(self, **changes: Json) -> int:
        number = next(self.numbers)
        self.open_as(number, **changes)
        return number

    def open_as(self, number: int, **changes: Json) -> Json:
        return self.result("open", manager=number, setup=setup_data(**changes), events=False)


def error_name(reply: Json) -> str:
    assert "result" not in reply, reply
    assert reply["error"]["message"]
    return str(reply["error"]["name"])


def setup_data(**changes: Json) -> Json:
    setup = SETUP.model_dump(mode="json")
    return setup | {"disk_dir": None, "store_endpoint": "none", "auto_land": True} | changes


@pytest.fixture(scope="module", params=[SERVER, NAIVE_MANAGER], ids=["server", "naive manager"])
def speaker(request: pytest.FixtureRequest) -> Iterator[Speaker]:
    speaker = Speaker(request.param)
    yield speaker
    speaker.process.close()


def test_a_program_introduces_itself(speaker: Speaker) -> None:
    line = speaker.process.ask(b'{"call":"hello","version":1}')
    introduction = replies.reply_to("hello").validate_json(line).result
    assert introduction.version == VERSION
    assert {"device", "prefix"} <= set(introduction.capabilities)


def test_an_unknown_version_is_refused(speaker: Speaker) -> None:
    assert speaker.error("hello", version=2) == "MalformedRequestError"


@pytest.mark.parametrize(
    "line",
    [
        *(b"", b"nonsense", b"{", b"[]", b"null", b"3", b'"hello"', b"{}", b"\xff\xfe"),
        *(b'{"call":3}', b'{"call":"claim"}', b'{"call":"hello","version":1}{}'),
    ],
)
def test_a_malformed_line_is_an_error_and_no_end(speaker: Speaker, line: bytes) -> None:
    assert error_name(speaker.reply(line)) == "MalformedRequestError"
    assert speaker.result("hello", version=1)


@pytest.mark.parametrize("call", ["fly", "", "constructor", "__proto__", "request", "reset"])
def test_an_unknown_call_has_an_error_of_its_own(speaker: Speaker, call: str) -> None:
    assert speaker.error(call, manager=speaker.open()) == "UnknownCallError"


def test_a_manager_has_to_be_open(speaker: Speaker) -> None:
    names = {"request_id": "r0", "replica_idx": 0}
    assert speaker.error("claim", manager=10**6, **names) == "UnknownManagerError"
    number = speaker.open()
    speaker.result("close", manager=number)
    assert speaker.error("claim", manager=number, **names) == "UnknownManagerError"
    assert speaker.error("close", manager=number) == "UnknownManagerError"


def test_a_number_in_use_is_refused_and_its_manager_stays(speaker: Speaker) -> None:
    number = speaker.open()
    speaker.result("claim", manager=number, request_id="r0", replica_idx=0)
    again = {"manager": number, "setup": setup_data(), "events": False}
    assert speaker.error("open", **again) == "MalformedRequestError"
    assert speaker.result("get_req_blocks", manager=number, request_id="r0", replica_idx=0) == []


def test_several_managers_do_not_know_each_other(speaker: Speaker) -> None:
    numbers = [speaker.open() for _ in range(3)]
    for n, number in enumerate(numbers):
        speaker.result("claim", manager=number, request_id="same", replica_idx=0)
        data = context_data([*range(4 * n + 1)], request_id="same")
        speaker.result("alloc", manager=number, context=data, replica_idx=0)
    free = [speaker.result("num_free_blocks", manager=n, replica_idx=0) for n in numbers]
    assert free == [7, 6, 5]


def test_a_number_can_be_used_for_one_manager_after_another(speaker: Speaker) -> None:
    number = next(speaker.numbers)
    for pages in (8, 3, 5):
        speaker.open_as(number, total_num_pages=pages)
        assert speaker.result("num_free_blocks", manager=number, replica_idx=0) == pages
        speaker.result("claim", manager=number, request_id="r0", replica_idx=0)
        speaker.result("close", manager=number)


def test_after_shutdown_only_shutdown_and_close_are_answered(speaker: Speaker) -> None:
    number = speaker.open()
    for _ in range(2):
        assert speaker.result("shutdown", manager=number) is None
    names = {"request_id": "r0", "replica_idx": 0}
    assert speaker.error("claim", manager=number, **names) == "ManagerClosedError"
    assert speaker.result("close", manager=number) is None


def test_a_reservation_that_there_is_not_cannot_be_ended(speaker: Speaker) -> None:
    number = speaker.open()
    data = context_data([1], request_id="r0")
    speaker.result("reserve", manager=number, reservation=7, batches=[[data]])
    assert speaker.error("end_reserve", manager=number, reservation=8) == "MalformedRequestError"
    assert speaker.result("end_reserve", manager=number, reservation=7) == [
        [{"processed": 0, "cached_prefix_length": None}]
    ]
    assert speaker.error("end_reserve", manager=number, reservation=7) == "MalformedRequestError"


@given(st.text(st.characters(codec="utf-8")))
@example("__proto__")
@example("\u2028\u2029\x85\r\n\x00")
@example("\N{GRINNING FACE}" * 1000)
def test_any_text_is_a_request_id(speaker: Speaker, request_id: str) -> None:
    names = {"manager": speaker.open(), "request_id": request_id, "replica_idx": 0}
    assert speaker.result("contains", **names) is False
    speaker.result("claim", **names)
    assert speaker.result("contains", **names) is True
    reply = speaker.ask("claim", **names)
    assert error_name(reply) == "AlreadyClaimedError"
    assert reply["error"]["fields"]["request_id"] == request_id
    speaker.result("release", **names)
    assert speaker.result("contains", **names) is False
    speaker.result("close", manager=names["manager"])


def hits(speaker: Speaker, number: int, tokens: list[int]) -> int:
    """Blocks that a prompt finds cached; it is computed then."""
    number_and_place = {"manager": number, "replica_idx": 0}
    speaker.result("claim", request_id="r", **number_and_place)
    ctx = context(tokens, request_id="r")
    window = speaker.result(
        "alloc", context=as_data(ctx).model_dump(mode="json"), **number_and_place
    )
    ctx.update(1)
    batches = [[as_data(ctx).model_dump(mode="json")]]
    speaker.result("step", manager=number, batches=batches)
    speaker.result("release", request_id="r", **number_and_place)
    return int(window["processed"]) // 4


def test_tokens_are_exact_integers(speaker: Speaker) -> None:
    number = speaker.open()
    for token in (2**53, 2**53 + 1, 2**62, 2**62 + 1, 2**63 - 1, -(2**63), -(2**63) + 1):
        assert hits(speaker, number, [token] * 5) == 0
        assert hits(speaker, number, [token] * 5) == 1


@pytest.mark.parametrize("token", [2**63, -(2**63) - 1, 2**100, 1.5, "1", None])
def test_a_token_that_is_no_int64_is_refused(speaker: Speaker, token: Json) -> None:
    number = speaker.open()
    data = context_data([1, 2], request_id="r0") | {"tokens": [1, token]}
    fields = {"manager": number, "context": data}
    assert speaker.error("get_prefix_cache_hit_counts", **fields) == "MalformedRequestError"


def test_a_line_of_megabytes_is_a_line(speaker: Speaker) -> None:
    number = speaker.open(page_size=2**16)
    tokens = [*range(10**6, 10**6 + 300_000)]
    speaker.result("claim", manager=number, request_id="long", replica_idx=0)
    data = context_data(tokens, request_id="long")
    assert len(json.dumps(data)) > 2_000_000
    speaker.result("alloc", manager=number, context=data, replica_idx=0)
    pages = speaker.result("get_req_blocks", manager=number, request_id="long", replica_idx=0)
    assert len(pages) == 5


def valid_requests() -> list[Json]:
    """Requests of all kinds, to manager 0."""
    data = context_data(
        [1, 2, 3, 4, 5], request_id="r0", token_hash_overrides=[TokenHashOverride(0, 5)]
    )
    bounds = {"batch_size": 1, "max_prompt_length": 9, "max_cache_valid_length": 9}
    inputs = {"batches": [[data]], "max_cache_length": 8, "batch_characteristics": bounds}
    return [
        {"call": "claim", "manager": 0, "request_id": "r1", "replica_idx": 0},
        {"call": "alloc", "manager": 0, "context": data, "replica_idx": 0},
        {"call": "get_prefix_cache_hit_counts", "manager": 0, "context": data},
        {"call": "step", "manager": 0, "batches": [[data]]},
        {"call": "reserve", "manager": 0, "reservation": 1, "batches": [[data]]},
        {"call": "num_free_blocks", "manager": 0, "replica_idx": 0},
        {"call": "reset_prefix_cache", "manager": 0},
        {"call": "runtime_inputs", "manager": 0, **inputs},
    ]


def objects_in(value: Json) -> Iterator[dict[str, Json]]:
    if isinstance(value, dict):
        yield value
        for part in value.values():
            yield from objects_in(part)
    elif isinstance(value, list):
        for part in value:
            yield from objects_in(part)


@st.composite
def spoiled_requests(draw: st.DrawFn) -> Json:
    """Requests with one field, perhaps of a part, that is missing, of a wrong type, or too many."""
    request = json.loads(json.dumps(draw(st.sampled_from(valid_requests()))))
    part = draw(st.sampled_from([*objects_in(request)]))
    name = draw(st.sampled_from(sorted(part.keys() - {"external_block_metadata"})))
    match draw(st.sampled_from(["missing", "wrong", "too many"])):
        case "missing":
            del part[name]
        case "wrong":
            part[name] = draw(st.sampled_from([1.5, [None], {"no": "field"}]))
        case _:
            part["surplus"] = None
    return request


@given(spoiled_requests())
def test_a_spoiled_request_is_refused_and_changes_nothing(speaker: Speaker, request: Json) -> None:
    if speaker.ask("close", manager=0):  # whether or not it was open
        speaker.open_as(0)
    names = {"manager": 0, "request_id": "r0", "replica_idx": 0}
    speaker.result("claim", **names)
    line = json.dumps(request).encode()
    assert error_name(speaker.reply(line)) == "MalformedRequestError"
    assert speaker.result("get_req_blocks", **names) == []
    assert speaker.result("num_free_blocks", manager=0, replica_idx=0) == 8


@pytest.mark.parametrize("command", [SERVER, NAIVE_MANAGER], ids=["server", "naive manager"])
def test_the_end_of_stdin_is_the_end_of_the_program(command: str) -> None:
    hello = b'{"call":"hello","version":1}\n'
    done = subprocess.run(shlex.split(command), input=3 * hello, capture_output=True, check=False)
    assert done.returncode == 0
    assert len(done.stdout.splitlines()) == 3
    assert done.stderr == b""


def test_the_reference_passes_the_suite_over_the_protocol() -> None:
    plan = replace(plan_for(f"cmd:{SERVER}", examples=10), specification=reference_specification)
    outcomes = list(run_suite(all_checks(), plan))
    failures = [f"{o.check.id}\n{o.reason}" for o in outcomes if o.status == "failed"]
    assert not failures, "\n\n".join(failures)
    unseen = re.compile(
        r"has no (memory|vocabulary|clean|renew_write_budget)|not to be found in the \w+ tier"
        r"|is not a simulated one"
    )
    skips = [o.reason for o in outcomes if o.status == "skipped"]
    assert not [reason for reason in skips if not unseen.search(reason)]


# --- contexts ------------------------------------------------------------------------------------


@st.composite
def contexts(draw: st.DrawFn) -> TextContext:
    """Requests in every state that a call may find one in."""
    texts = st.none() | st.text(st.characters(codec="utf-8"))
    prompt = draw(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=9))
    places = st.integers(0, len(prompt) - 1)
    overrides = st.builds(TokenHashOverride, places, st.integers(), st.text(max_size=3))
    images = places.map(lambda n: ImageMetadata(n, n + 1, image_hash=None if n % 2 else n))
    ctx = TextContext(
        max_length=100,
        tokens=TokenBuffer(np.array(prompt, dtype=np.int64)),
        request_id=draw(st.text(st.characters(codec="utf-8"))),
        cache_salt=draw(texts),
        adapter=draw(texts),
        external_block_metadata=draw(st.none() | st.just({"endpoints": ["elsewhere"]})),
        images=draw(st.lists(images, max_size=2)),
        token_hash_overrides=draw(st.lists(overrides, max_size=2)),
        given_digests=draw(st.none() | st.lists(st.binary(min_size=32, max_size=32), max_size=2)),
        spec_decoding_state=SpecDecodingState([1] * draw(places), [2] * draw(places)),
        preempted=draw(st.booleans()),
        cached_prefix_length=draw(st.none() | places),
    )
    for token in draw(st.lists(st.integers(0, 9), max_size=4)):
        ctx.update(token)
    for _ in range(draw(st.integers(0, 2))):
        ctx.update_with_future_token(max_pending_futures=2)
    ctx.rewind_processing(draw(st.integers(0, ctx.processed_length)))
    ctx.skip_processing(draw(st.integers(0, ctx.active_length - 1)))
    if ctx.active_length > 1 and draw(st.booleans()):
        ctx.chunk(draw(st.integers(1, ctx.active_length - 1)))
    return ctx


@given(contexts())
def test_a_context_arrives_as_it_was_sent(ctx: TextContext) -> None:
    data = as_data(ctx)
    received = requests.ContextData.model_validate_json(data.model_dump_json())
    assert received == data
    assert as_data(as_context(received)) == data


@pytest.mark.parametrize("hit_limit", [None, 0, 3])
def test_a_hit_limit_is_on_the_line_only_where_there_is_one(hit_limit: int | None) -> None:
    request = requests.BeginAlloc(
        call="begin_alloc",
        manager=1,
        context=as_data(context([1, 2])),
        replica_idx=0,
        hit_limit=hit_limit,
    )
    line = json.loads(request.as_line())
    assert line.get("hit_limit", "left out") == ("left out" if hit_limit is None else hit_limit)
    assert requests.REQUEST.validate_json(request.as_line()) == request


def test_a_manager_without_prefetch_is_not_asked_for_it(naive: Implementation) -> None:
    manager = naive.make(SETUP)
    assert "prefetch" not in offered_by(manager, ())
    assert not hasattr(manager, "prefetch")


def test_ids_that_are_no_text_stay_apart_from_text() -> None:
    assert id_text("1") == "1"
    assert id_text(1) == "<1>"
    assert id_text(("a", 1)) == "<('a', 1)>"


# --- what becomes of programs that do not answer as they should ----------------------------------

HELLO = json.dumps(
    {
        "result": {
            **{"version": 1, "name": "parrot", "implementation_version": "1", "page_size": 4},
            **{"capabilities": ["device"], "follows": [], "write_policies": ["through"]},
        }
    }
)
OPENED = '{"result":{"calls":["claim","num_free_blocks"],"slot_nbytes":null}}'


def parrot(*replies: str, then: str = "") -> str:
    """The command of a program that answers with these lines, whatever it is asked."""
    script = (
        f"import signal, sys\nfor reply in {replies!r}:\n  input()\n  print(reply, flush=True)\n"
    )
    return shlex.join([sys.executable, "-c", script + "input()\n" + then])


def manager_of(command: str, **options: float) -> Json:
    return implementation_of_command(command, **options).make(SETUP)


def test_a_parrot_can_pass_for_a_manager() -> None:
    manager = manager_of(parrot(HELLO, OPENED, '{"result":8}'))
    assert manager.num_free_blocks(0) == 8


@pytest.mark.parametrize(
    ("command", "problem"),
    [
        ("", "the command is empty"),
        ("'", "No closing quotation"),
        ("/no/such/program", "cannot be run: .*No such file"),
        ("true", "has ended with status 0; it has written nothing on stderr"),
        ("cat", "is no reply to it: {.call.:.hello"),
        (parrot("Welcome!"), "no reply to it: Welcome!\nInvalid JSON"),
        (parrot("{}"), "a reply has a result or an error, one of the two"),
        (parrot('{"result":null,"error":null}'), "result: Input should be an object"),
        (parrot(HELLO.replace('"version": 1', '"version": 9')), "speaks version 9"),
        (parrot(HELLO.replace('"device"', '"magic"')), "capabilities.0: Input should be 'device'"),
        (parrot(HELLO.replace('"device"', '"async"')), "'async' is about Python objects"),
        (parrot('{"error":{"name":"MalformedRequestError","message":"I am 9"}}'), "I am 9"),
        (parrot('{"error":{"name":"Grumpy","message":"no"}}'), "refuses version 1: Grumpy: no"),
        (parrot(then="sys.exit('out of pages')"), "status 1; its stderr ends with:\nout of pages"),
        (parrot(then="import os; os.close(1); signal.pause()"), "has closed its stdout"),
    ],
)
def test_a_program_that_does_not_introduce_itself_is_told(command: str, problem: str) -> None:
    with pytest.raises(ProtocolError, match=problem):
        implementation_of_command(command)


def test_every_mistake_of_an_introduction_is_told_at_once() -> None:
    wrong = HELLO.replace('"device"', '"magic", "async"').replace('"page_size": 4', '"size": "4"')
    with pytest.raises(ProtocolError) as told:
        implementation_of_command(parrot(wrong.replace('"version": 1', '"version": 2')))
    for mistake in ("'device'", "'async' is about", "page_size: Field", "size: Extra", "version 2"):
        assert mistake in str(told.value)


def test_a_program_may_have_some_hash_algorithms_only() -> None:
    assert "sha256_64" in implementation_of_command(parrot(HELLO)).hash_algorithms
    some = HELLO.replace('"follows"', '"hash_algorithms": ["xxh3_128"], "follows"')
    assert implementation_of_command(parrot(some)).hash_algorithms == ("xxh3_128",)


@pytest.mark.parametrize(
    ("reply", "problem"),
    [
        ('{"result":"8"}', "result: Input should be a valid integer"),
        ('{"result":8.5}', "result: Input should be a valid integer"),
        ('{"result":null}', "result: Input should be a valid integer"),
        ('{"result":8,"hint":1}', "hint: Extra inputs are not permitted"),
        ('{"result":8}}', "Invalid JSON: trailing characters"),
        ("free: 8", "'num_free_blocks' with a line that is no reply to it: free: 8"),
        ("x" * 5000, r"x{300}\.\.\. \(5000 bytes\)"),
    ],
)
def test_a_line_that_is_no_reply_is_quoted(reply: str, problem: str) -> None:
    manager = manager_of(parrot(HELLO, OPENED, reply))
    with pytest.raises(MalformedReplyError, match=problem):
        manager.num_free_blocks(0)
    with pytest.raises(ProcessEndedError):
        manager.num_free_blocks(0)


@pytest.mark.parametrize(
    ("opened", "problem"),
    [
        (OPENED.replace("claim", "fly"), "'fly' is no call of a manager"),
        (OPENED.replace("claim", "close"), "'close' is no call of a manager"),
        (OPENED.replace("null", "16"), "lacks the calls write_slots and read_slots"),
    ],
)
def test_a_manager_that_contradicts_the_protocol_is_refused(opened: str, problem: str) -> None:
    with pytest.raises(ProtocolError, match=problem):
        manager_of(parrot(HELLO, opened))


def test_a_program_that_dies_is_quoted_with_its_last_words() -> None:
    dies = "print('first', 'last words', sep='\\n', file=sys.stderr); sys.exit(7)"
    manager = manager_of(parrot(HELLO, OPENED, then=dies))
    with pytest.raises(
        ProcessEndedError, match="status 7; its stderr ends with:\nfirst\nlast words"
    ):
        manager.claim("r0", 0)


def test_after_a_death_the_next_manager_gets_a_new_process() -> None:
    implementation = implementation_of_command(parrot(HELLO, OPENED, then="sys.exit(7)"))
    for _ in range(3):
        manager: Json = implementation.make(SETUP)
        with pytest.raises(ProcessEndedError):
            manager.claim("r0", 0)


def test_a_program_that_is_silent_is_killed() -> None:
    before = set(psutil.Process().children())
    manager = manager_of(parrot(HELLO, OPENED, then="signal.pause()"), timeout_s=2)
    with pytest.raises(NoReplyError, match="has not answered within 2 s"):
        manager.claim("r0", 0)
    assert set(psutil.Process().children()) == before
    with pytest.raises(ProcessEndedError):
        manager.claim("r0", 0)


def test_a_call_that_is_interrupted_ends_the_process() -> None:
    manager = manager_of(parrot(HELLO, OPENED, then="signal.pause()"))
    with pytest.raises(OutOfTimeError), time_limit(0.5):
        manager.claim("r0", 0)
    with pytest.raises(ProcessEndedError):  # and takes no late reply for that to another call
        manager.num_free_blocks(0)


def test_a_program_that_does_not_read_cannot_block_its_caller() -> None:
    manager = manager_of(parrot(HELLO, OPENED, then="signal.pause()"), timeout_s=2)
    with pytest.raises(NoReplyError):
        manager.claim("x" * 10**6, 0)


@pytest.mark.parametrize("command", [NAIVE_MANAGER, parrot(HELLO, OPENED, then="signal.pause()")])
def test_no_process_outlives_what_refers_to_it(command: str) -> None:
    before = set(psutil.Process().children())
    manager = manager_of(command)
    assert set(psutil.Process().children()) != before
    del manager
    gc.collect()
    assert set(psutil.Process().children()) == before


def test_what_a_python_manager_prints_is_no_reply(tmp_path: Path) -> None:
    code = "from pagedkv.implementations import reference_manager\n"
    code += "def make(setup):\n  print('chatter')\n  return reference_manager(setup)\n"
    (tmp_path / "chatty.py").write_text(code)
    manager = manager_of(
        f"env PYTHONPATH={tmp_path} {sys.executable} -m pagedkv serve-protocol --impl chatty:make"
    )
    assert manager.num_free_blocks(0) == 8


# --- managers, seen from here --------------------------------------------------------------------


@pytest.fixture(scope="module")
def naive() -> Implementation:
    return implementation_of_command(NAIVE_MANAGER)


def test_a_manager_has_the_methods_that_it_names(naive: Implementation) -> None:
    manager = naive.make(SETUP)
    assert not hasattr(manager, "in_flight")
    assert not hasattr(manager, "open")
    assert {"inputs", "probes", "reserve"} <= offered_by(manager, ())
    assert not {"transfers", "bytes", "poison"} & offered_by(manager, ())


def test_errors_arrive_as_their_classes_with_their_fields(naive: Implementation) -> None:
    manager = naive.make(SETUP)
    manager.claim("r0", 0)
    with pytest.raises(AlreadyClaimedError) as claimed:
        manager.claim("r0", 0)
    assert (claimed.value.request_id, claimed.value.lives_on) == ("r0", 0)
    with pytest.raises(InsufficientBlocksError) as refused:
        manager.alloc(context([*range(50)], request_id="r0"), 0)
    assert (refused.value.needed, refused.value.free, refused.value.total) == (13, 8, 8)
    assert not refused.value.can_ever_fit


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        ('{"name":"KeyError","message":"gone"}', KeyError),
        ('{"name":"InsufficientBlocksError","message":"gone"}', InsufficientBlocksError),
        ('{"name":"ENOMEM","message":"gone"}', RemoteError),
        ('{"name":"SystemExit","message":"gone"}', RemoteError),
    ],
)
def test_errors_without_fields_are_errors(error: str, kind: type[Exception]) -> None:
    manager = manager_of(parrot(HELLO, OPENED, f'{{"error":{error}}}'))
    with pytest.raises(kind, match="gone") as raised:
        manager.claim("r0", 0)
    assert getattr(raised.value, "can_ever_fit", True)


def test_a_window_outside_of_the_tokens_is_an_error() -> None:
    opened = OPENED.replace("claim", "alloc")
    window = '{"result":{"processed":5,"cached_prefix_length":5}}'
    manager = manager_of(parrot(HELLO, opened, window))
    with pytest.raises(ValueError, match="cannot skip 5 of 5 active tokens"):
        manager.alloc(context([*range(5)]), 0)


# --- the documents -------------------------------------------------------------------------------


def test_schema_is_that_of_the_messages() -> None:
    written = (REPOSITORY / "docs/protocol.schema.json").read_text(encoding="utf-8")
    remedy = "python -m pagedkv.conformance.protocol.schema > docs/protocol.schema.json"
    assert json.loads(written) == json.loads(schema_text()), f"renew it: {remedy}"


def test_examples_in_the_document_are_requests_with_their_replies() -> None:
    text = (REPOSITORY / "docs/protocol.md").read_text(encoding="utf-8")
    blocks = re.findall("```json\n(.*?)```", text, re.S)
    lines = [line for block in blocks for line in block.splitlines()]
    assert len(lines) >= 12
    for request, reply in zip(lines[::2], lines[1::2], strict=True):
        parsed = requests.REQUEST.validate_json(request)
        replies.reply_to(parsed.call).validate_json(reply)


def test_document_has_every_call() -> None:
    text = (REPOSITORY / "docs/protocol.md").read_text(encoding="utf-8")
    assert not [call for call in requests.CALLS if f"`{call}`" not in text]
