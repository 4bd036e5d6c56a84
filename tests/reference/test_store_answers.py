"""What others do in a store is reported when it is asked: rule EVENT-5."""

import pytest
from tests.reference.conftest import STORE, Making, Recorder, prompt

from pagedkv.reference import KVCacheParams, KVLoadFailed, Media, PrefixCacheHits
from pagedkv.reference.events import AllocPlanned, Stepped, StoreAnswered, TransferLanded

FAR = "store:2"


def on_store(make: Making, endpoint: str = STORE) -> KVCacheParams:
    return make.tiered_params(store=endpoint, extras={"model_fingerprint": "weights"})


@pytest.fixture
def media() -> Media:
    return Media()


@pytest.mark.rule("EVENT-5")
def test_a_block_of_another_manager_is_reported_before_it_is_hit(
    make: Making, recorder: Recorder, media: Media
) -> None:
    make.serve(make.manager(on_store(make), media=media), prompt(2))
    manager = make.manager(on_store(make), media=media, tracer=recorder)
    make.serve(manager, prompt(3))
    (answer,) = recorder.of_kind(StoreAnswered)
    (planned,) = recorder.of_kind(AllocPlanned)
    assert (answer.found, answer.missing) == (planned.context.keys[:2], ())
    assert recorder.events.index(answer) < recorder.events.index(planned)


@pytest.mark.rule("EVENT-5")
def test_what_follows_from_the_managers_own_doings_is_no_news(
    make: Making, recorder: Recorder, media: Media
) -> None:
    manager = make.manager(on_store(make), media=media, tracer=recorder)
    for _ in range(3):
        make.serve(manager, prompt(2))
        manager.reset_prefix_cache()
    assert recorder.of_kind(StoreAnswered) == []


@pytest.mark.rule("EVENT-5", "TIER-2")
def test_a_block_that_somebody_else_has_put_is_reported_where_it_is_not_written(
    make: Making, recorder: Recorder, media: Media
) -> None:
    behind_host = make.manager(
        on_store(make), host_pages=4, media=media, tracer=recorder, auto_land=False
    )
    make.serve(behind_host, prompt(2))
    make.serve(make.manager(on_store(make), media=media), prompt(1))
    make.land_all(behind_host)
    (answer,) = recorder.of_kind(StoreAnswered)
    (written,) = (t for t in recorder.issued if t.target == "store")
    chain = recorder.of_kind(Stepped)[0].context.keys
    assert (answer.found, written.keys) == (chain[:1], chain[1:])


@pytest.mark.rule("EVENT-5", "STORE-3")
def test_a_block_that_another_manager_has_deleted_is_reported_as_missing(
    make: Making, recorder: Recorder, media: Media
) -> None:
    manager = make.manager(on_store(make), pages=3, media=media, tracer=recorder)
    make.serve(manager, prompt(2))
    make.serve(manager, prompt(2, 100))  # gives up the first chain on the device
    other = make.manager(on_store(make), media=media, auto_land=False)
    ctx, plan = make.begin(other, prompt(2))
    leaf = other.in_flight()[0].keys[-1]
    other.fail(plan.transfers[0], "corrupt", [leaf])
    with pytest.raises(KVLoadFailed):
        other.finish_alloc(ctx, 0)
    recorder.events.clear()
    make.admit(manager, prompt(2))
    assert recorder.of_kind(StoreAnswered) == [StoreAnswered((), (leaf,))]
    assert recorder.of_kind(AllocPlanned)[0].hits == PrefixCacheHits(store_blocks=1)


@pytest.mark.rule("EVENT-5", "STORE-4", "EVENT-2")
def test_an_answer_of_a_further_store_names_it_as_the_request_does(
    make: Making, recorder: Recorder, media: Media
) -> None:
    make.serve(make.manager(on_store(make, FAR), media=media), prompt(2))
    manager = make.manager(on_store(make), media=media, tracer=recorder)
    make.admit(manager, prompt(2), external_block_metadata={"endpoints": [FAR]})
    (answer,) = recorder.of_kind(StoreAnswered)
    (planned,) = recorder.of_kind(AllocPlanned)
    assert (answer.endpoint, planned.context.stores) == (FAR, (FAR,))


@pytest.mark.rule("EVENT-5", "TIER-1")
def test_what_another_manager_is_still_putting_is_not_there_yet(
    make: Making, recorder: Recorder, media: Media
) -> None:
    """Two managers put the same; each reports its own landing, and nothing is lost."""
    first, second = (
        make.manager(on_store(make), media=media, tracer=recorder, auto_land=False)
        for _ in range(2)
    )
    for manager in (first, second):
        make.serve(manager, prompt(2))
    assert len(recorder.issued) == 2, "each offloads, because neither sees the other's"
    first.fail(first.in_flight()[0].id, "timeout")
    make.land_all(second)
    assert len(recorder.of_kind(TransferLanded)) == 1
    assert make.hits(make.manager(on_store(make), media=media), prompt(2)).store_blocks == 2


@pytest.mark.rule("EVENT-5", "ALLOC-14")
def test_probes_ask_and_report_nothing(make: Making, recorder: Recorder, media: Media) -> None:
    make.serve(make.manager(on_store(make), media=media), prompt(2))
    manager = make.manager(on_store(make), media=media, tracer=recorder)
    assert make.hits(manager, prompt(2)).store_blocks == 2
    assert recorder.events == []


@pytest.mark.rule("EVENT-5")
def test_a_manager_believes_what_a_store_was_recorded_to_answer(
    make: Making, recorder: Recorder
) -> None:
    source = Recorder()
    make.serve(make.manager(tracer=source), prompt(2))
    keys = source.of_kind(Stepped)[0].context.keys
    manager = make.manager(on_store(make), tracer=recorder)
    manager.store_answered(keys)
    assert make.hits(manager, prompt(2)).store_blocks == 2
    manager.store_answered((), keys[1:])
    assert make.hits(manager, prompt(2)).store_blocks == 1
    make.serve(manager, prompt(2))
    assert recorder.of_kind(StoreAnswered) == [StoreAnswered(keys), StoreAnswered((), keys[1:])]


@pytest.mark.rule("EVENT-5")
def test_without_a_store_nothing_can_answer(make: Making) -> None:
    with pytest.raises(ValueError, match="the manager has none"):
        make.manager().store_answered([b"key"])
