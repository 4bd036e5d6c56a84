"""Managers of other projects, as far as they are installed, through their adapters."""

import importlib
import tomllib
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pagedkv.cli.conformance import plans_for
from pagedkv.conformance.implementation import Implementation
from pagedkv.conformance.peers.supported import check_supported
from pagedkv.conformance.spec_text import rule_of
from pagedkv.conformance.suite import Plan, all_checks, run_check, run_suite, with_methods_shown
from pagedkv.reference.context import TextContext
from pagedkv.reference.errors import InsufficientBlocksError
from pagedkv.reference.interfaces import SyncKVCacheManager
from pagedkv.reference.tokens import TokenBuffer, TokenHashOverride
from pagedkv.specification import build_reference
from pagedkv.traces.manager_setup import ManagerSetup

ROOT = Path(__file__).parents[2]
PAGE = 4
MANY = 500  # pages: more than any of these tests fills


def peer(name: str) -> Implementation:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what a peer imports is its own affair
        try:
            module = importlib.import_module(f"pagedkv.conformance.peers.{name}")
        except ImportError as error:
            pytest.skip(f"docs/peers.md says how to install it: {error}")
    found = module.implementation
    assert isinstance(found, Implementation)
    return found


@pytest.fixture(scope="module", params=["vllm", "max"])
def any_peer(request: pytest.FixtureRequest) -> Implementation:
    return peer(request.param)


@pytest.fixture(scope="module")
def vllm() -> Implementation:
    return peer("vllm")


@pytest.fixture(scope="module")
def max_() -> Implementation:
    return peer("max")


# Any: a peer's manager offers a part of the interface, and its inputs are its own.
def manager_of(implementation: Implementation, *, pages: int = MANY, **options: Any) -> Any:
    return implementation.make(
        ManagerSetup(page_size=PAGE, total_num_pages=pages, max_batch_size=8, **options)
    )


# Any: the options of TextContext are passed on.
def context(tokens: Iterable[int], name: str = "r", **options: Any) -> TextContext:
    array = np.fromiter(tokens, dtype=np.int64)
    return TextContext(max_length=1000, tokens=TokenBuffer(array), request_id=name, **options)


def admit(manager: Any, ctx: TextContext) -> TextContext:
    manager.claim(ctx.request_id, 0)
    manager.alloc(ctx, 0)
    return ctx


def serve(manager: SyncKVCacheManager, ctx: TextContext) -> int | None:
    """Serve a request from beginning to end; the tokens of it that were found cached."""
    admit(manager, ctx)
    ctx.update(0)
    manager.step([[ctx]])
    manager.release(ctx.request_id, 0)
    return ctx.cached_prefix_length


prompts = st.lists(st.lists(st.integers(0, 1), min_size=2, max_size=14), max_size=8)


def check_same_hits(
    implementation: Implementation,
    requests: list[list[int]],
    pages: int,
    make_context: Callable[[list[int]], TextContext] = context,
) -> None:
    tested = manager_of(implementation, pages=pages)
    model = build_reference(ManagerSetup(page_size=PAGE, total_num_pages=pages))
    for tokens in requests:
        hits = serve(tested, make_context(tokens))
        assert hits == serve(model, make_context(tokens))
    tested.shutdown()


@settings(deadline=None)
@given(prompts)
def test_peers_find_what_the_reference_finds_while_nothing_is_evicted(
    any_peer: Implementation, requests: list[list[int]]
) -> None:
    check_same_hits(any_peer, requests, MANY)


@settings(deadline=None)
@given(prompts)
def test_vllm_evicts_what_the_reference_evicts(
    vllm: Implementation, requests: list[list[int]]
) -> None:
    check_same_hits(vllm, requests, pages=5)


@settings(deadline=None)
@given(prompts)
def test_every_page_comes_back_from_a_peer(
    any_peer: Implementation, requests: list[list[int]]
) -> None:
    manager = manager_of(any_peer, pages=9)
    for tokens in requests:
        serve(manager, context(tokens))
        assert manager.num_free_blocks(0) == manager.total_num_blocks(0) == 9


# Any: options of TextContext.
IMAGE: dict[str, Any] = {"token_hash_overrides": [TokenHashOverride(1, 99, "image")]}


@pytest.mark.parametrize("other", [{"cache_salt": "tenant"}, IMAGE], ids=["salt", "image"])
def test_namespaces_and_images_reach_a_peer(
    any_peer: Implementation, other: dict[str, Any]
) -> None:
    manager = manager_of(any_peer)
    assert [serve(manager, context(range(9), **o)) for o in ({}, other, other)] == [0, 0, 8]


def test_adapters_reach_vllm(vllm: Implementation) -> None:
    manager = manager_of(vllm)
    hits = [serve(manager, context(range(9), adapter=a)) for a in (None, "a", "b", "b")]
    assert hits == [0, 0, 0, 8]


def test_given_digests_stand_in_for_tokens_in_vllm(vllm: Implementation) -> None:
    manager = manager_of(vllm)
    digests = [b"first", b"second"]
    assert serve(manager, context(range(9), given_digests=digests)) == 0
    assert serve(manager, context(range(50, 59), given_digests=digests)) == 8


def test_a_peer_sees_generated_tokens(any_peer: Implementation) -> None:
    manager = manager_of(any_peer)
    ctx = admit(manager, context([1, 2]))
    for token in range(3, 10):
        ctx.update(token)
        manager.step([[ctx]])
        manager.alloc(ctx, 0)
    assert len(manager.get_req_blocks("r", 0)) == 3
    assert serve(manager, context(range(1, 10), "other")) == 8


def test_a_peers_refusal_is_ours_with_its_numbers(any_peer: Implementation) -> None:
    manager = manager_of(any_peer, pages=4)
    admit(manager, context(range(8), "first"))
    with pytest.raises(InsufficientBlocksError) as later:
        admit(manager, context(range(50, 62)))
    assert (later.value.needed, later.value.free, later.value.total) == (3, 2, 4)
    assert later.value.can_ever_fit
    with pytest.raises(InsufficientBlocksError) as never:
        admit(manager, context(range(20), "large"))
    assert not never.value.can_ever_fit


def test_a_peer_hands_out_pages_from_0_on(any_peer: Implementation) -> None:
    manager = manager_of(any_peer)
    admit(manager, context(range(9)))
    assert manager.get_req_blocks("r", 0) == [0, 1, 2]


def test_a_look_up_in_a_peer_changes_nothing(any_peer: Implementation) -> None:
    manager = manager_of(any_peer)
    serve(manager, context(range(9)))
    before = manager.get_metrics_aggregated()
    [hits] = manager.get_prefix_cache_hit_counts(context(range(9)))
    assert hits.device_blocks == 2
    assert (manager.get_metrics_aggregated(), manager.num_free_blocks(0)) == (before, MANY)


def test_vllm_counts_preempted_requests_apart(vllm: Implementation) -> None:
    manager = manager_of(vllm)
    serve(manager, context(range(9)))
    before = manager.get_metrics_aggregated()
    serve(manager, context(range(9), preempted=True))
    after = manager.get_metrics_aggregated()
    assert after.preempted_blocks_served == 2
    assert after.device_blocks_served == before.device_blocks_served == 0


def test_max_lends_its_memory_and_tables_as_tensors(max_: Implementation) -> None:
    manager = manager_of(max_, pages=8)
    ctx = admit(manager, context(range(9)))
    [inputs] = manager.runtime_inputs([[ctx]]).inputs
    table = inputs.lookup_table.tolist()[0]
    assert table[:3] == [0, 1, 2]
    assert set(table[3:]) == {8}
    assert inputs.kv_blocks.data_ptr() == manager.get_device_buffer(0).values[0].data_ptr()


def test_max_copies_a_prefix_from_one_replica_to_another(max_: Implementation) -> None:
    manager = manager_of(max_, replicas=2)
    ctx = admit(manager, context(range(9)))
    manager.get_device_buffer(0).values[0][0] = 7
    ctx.update(0)
    manager.step([[ctx], []])
    other = context(range(9), "other")
    manager.claim("other", 1)
    manager.alloc(other, 1)
    page = manager.get_req_blocks("other", 1)[0]
    assert other.cached_prefix_length == 8
    assert (manager.get_device_buffer(1).values[0][page] == 7).all()


# What peers do otherwise shows through their adapters: docs/peers.md has the list.
def test_an_adapter_shows_that_vllm_caches_what_no_forward_has_written(
    vllm: Implementation,
) -> None:
    manager = manager_of(vllm)
    admit(manager, context(range(9)))
    manager.release("r", 0)
    assert serve(manager, context(range(9), "other")) == 8


def test_an_adapter_shows_what_a_refused_alloc_leaves_behind_in_max(max_: Implementation) -> None:
    manager = manager_of(max_, pages=8)
    serve(manager, context(range(9)))
    admit(manager, context(range(50, 66), "long"))
    ctx = context([*range(8), *range(80, 96)])
    with pytest.raises(InsufficientBlocksError):
        admit(manager, ctx)
    assert manager.get_req_blocks("r", 0) == [0, 1]
    assert (ctx.tokens.processed_length, ctx.cached_prefix_length) == (8, 8)


@pytest.mark.parametrize(
    "unknown",
    [{"host_pages": 3}, {"replicas": 2}, {"hash_algorithm": "sha256_64"}],
    ids=["tier", "replicas", "hash"],
)
def test_what_a_peer_does_not_have_is_refused_by_name(unknown: dict[str, Any]) -> None:
    setup = ManagerSetup(page_size=PAGE, total_num_pages=8, **unknown)
    with pytest.raises(ValueError, match=f"{next(iter(unknown))} is .* some peer takes"):
        check_supported(
            "some peer",
            setup,
            fields={"page_size", "total_num_pages", "hash_algorithm"},
            hash_algorithms={"sha256"},
        )


@pytest.fixture(params=["vllm", "max"])
def listed(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    """A peer and its list of deviations. Any: TOML."""
    path = ROOT / f"conformance/peers/{request.param}_deviations.toml"
    return request.param, tomllib.loads(path.read_text(encoding="utf-8"))


def test_each_deviation_is_from_a_rule_that_binds_and_listed_once(
    listed: tuple[str, dict[str, Any]],
) -> None:
    name, content = listed
    rules = [deviation["rule"] for deviation in content["deviation"]]
    choices = {rule for rule in rules if rule_of(rule).strength != "MUST"}
    assert len(rules) == len(set(rules))
    assert not choices or choices <= peer(name).follows


@pytest.mark.timeout(1200)
def test_every_check_that_a_peer_fails_has_a_known_cause(
    listed: tuple[str, dict[str, Any]],
) -> None:
    peer(listed[0])
    impl = f"pagedkv.conformance.peers.{listed[0]}"
    [plan] = plans_for([impl], [], None, None, examples=50, timeout=None)
    outcomes = run_suite(all_checks(), plan)
    assert {o.check.id: o.reason for o in outcomes if o.status == "failed"} == {}


@pytest.mark.parametrize(
    ("name", "found_by"),
    [
        ("max", "alloc.a_second_alloc_changes_nothing"),
        ("vllm", "metrics.tokens_that_are_computed_again_count_once"),
    ],
)
def test_the_suite_finds_tokens_that_a_peer_counts_wrongly(name: str, found_by: str) -> None:
    peer(name)
    module = importlib.import_module(f"pagedkv.conformance.peers.{name}")
    [check] = [check for check in all_checks() if check.id == found_by]
    outcome = run_check(check, Plan(with_methods_shown(module.with_counters), name))
    assert (outcome.status, outcome.rule) == ("failed", "METRIC-1")


def test_the_documentation_has_the_same_deviations(listed: tuple[str, dict[str, Any]]) -> None:
    text = (ROOT / "docs/peers.md").read_text(encoding="utf-8")
    for deviation in listed[1]["deviation"]:
        where = deviation["where"].replace("pipelines/kv_cache/paged_kv_cache", "kv")
        assert f"| {deviation['rule']} | {deviation['what']} | `{where}` |" in text


def test_deviations_are_those_of_the_version_that_is_tested(
    listed: tuple[str, dict[str, Any]],
) -> None:
    name, content = listed
    assert content["tested"] == peer(name).version
