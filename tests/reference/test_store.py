"""The block store, which others use too: rules STORE-1 to STORE-4."""

from typing import Any

import pytest
from tests.reference.conftest import STORE, Making, prompt

from pagedkv.reference import KVCacheParams, KVLoadFailed, Media, PrefixCacheHits

OTHER_STORE, THIRD_STORE = "store:2", "store:3"


def on_store(make: Making, endpoint: str = STORE, model: str = "weights") -> KVCacheParams:
    return make.tiered_params(store=endpoint, extras={"model_fingerprint": model})


@pytest.mark.rule("STORE-1")
def test_every_key_of_a_manager_begins_with_its_namespace(make: Making) -> None:
    media = Media()

    def prefixes(params: KVCacheParams, resets: int = 0) -> set[bytes]:
        """What the keys that this manager adds begin with, before the page's identity."""
        known = set(media.stores.get(STORE, ()))
        manager = make.manager(params, media=media)
        for _ in range(resets):
            manager.reset_prefix_cache()
        make.serve(manager, prompt(2))
        blocks = media.stores[STORE]
        added = blocks.keys() - known
        assert all(name.endswith(blocks[name].key) for name in added)
        return {name.removesuffix(blocks[name].key) for name in added}

    namespaces = [
        prefixes(on_store(make)),
        prefixes(on_store(make, model="other weights")),
        prefixes(on_store(make), resets=1),
        prefixes(make.tiered_params(store=STORE, num_layers=2)),
    ]
    assert [len(namespace) for namespace in namespaces] == [1, 1, 1, 1]
    assert len(set[bytes]().union(*namespaces)) == 4
    assert prefixes(on_store(make)) == set(), "what is there already is not written again"


@pytest.mark.rule("STORE-2", "NS-4")
def test_one_manager_hits_what_another_has_put(make: Making) -> None:
    media = Media()
    first, second = (make.manager(on_store(make), media=media) for _ in range(2))
    make.serve(first, prompt(2))
    first.shutdown()
    assert make.admit(second, prompt(2)).cached_prefix_length == 8
    assert second.get_metrics_aggregated().store_blocks_read == 2


@pytest.mark.rule("STORE-3", "RESET-4")
def test_a_manager_leaves_the_store_as_it_is_for_others(make: Making) -> None:
    media = Media()
    make.serve(make.manager(on_store(make), media=media), prompt(2))
    before = dict(media.stores[STORE])
    manager = make.manager(on_store(make), media=media, auto_land=False)
    for reason in ("timeout", "unavailable"):
        ctx, plan = make.begin(manager, prompt(2))
        manager.fail(plan.transfers[0], reason)
        with pytest.raises(KVLoadFailed):
            manager.finish_alloc(ctx, 0)
        manager.release(ctx.request_id, 0)
    make.begin(manager, prompt(2))
    manager.reset_prefix_cache()
    manager.shutdown()
    assert media.stores[STORE] == before


@pytest.mark.rule("STORE-4", "ALLOC-4")
def test_further_stores_are_asked_in_the_order_given_after_the_managers_own(
    make: Making,
) -> None:
    media = Media()
    shared = prompt(3)
    for pages, endpoint in enumerate((STORE, OTHER_STORE, THIRD_STORE), start=1):
        writer = make.manager(on_store(make, endpoint), media=media)
        ctx = make.admit(writer, shared[: 4 * pages + 1])
        for unit in writer.get_device_buffer(0).to_memory():
            unit.buffer.fill_(pages)  # the bytes say which store they are in
        make.forward(writer, ctx)
    manager = make.manager(on_store(make), media=media)
    assert make.hits(manager, shared) == PrefixCacheHits(store_blocks=1)
    ctx = make.admit(
        manager, shared, external_block_metadata={"endpoints": [OTHER_STORE, THIRD_STORE]}
    )
    assert ctx.cached_prefix_length == 12
    (unit,) = manager.get_device_buffer(0).to_memory()
    table = manager.get_req_blocks(ctx.request_id, 0)
    assert [unit.buffer[page][0].item() for page in table[:3]] == [1, 2, 3]


@pytest.mark.rule("STORE-4")
def test_without_a_store_of_its_own_a_manager_asks_no_other(make: Making) -> None:
    media = Media()
    make.serve(make.manager(on_store(make), media=media), prompt(2))
    manager = make.manager(make.tiered_params(), host_pages=4, media=media)
    elsewhere = {"endpoints": [STORE]}
    assert make.hits(manager, prompt(2), external_block_metadata=elsewhere).total_blocks == 0


@pytest.mark.rule("STORE-4")
@pytest.mark.parametrize(
    "metadata",
    ["store:2", ["store:2"], {}, {"endpoints": "store:2"}, {"endpoints": [2]}, {"hosts": []}],
)
def test_other_metadata_is_an_error_that_shows_the_schema(make: Making, metadata: Any) -> None:
    with pytest.raises(ValueError, match=r'must be a mapping \{"endpoints": \["host:port"'):
        make.context(prompt(1), external_block_metadata=metadata)
    manager, ctx = make.manager(on_store(make)), make.context(prompt(1))
    manager.claim(ctx.request_id, 0)
    ctx.external_block_metadata = metadata
    with pytest.raises(ValueError, match="external_block_metadata"):
        manager.alloc(ctx, 0)
    assert manager.get_req_blocks(ctx.request_id, 0) == []


@pytest.mark.rule("STORE-2", "POOL-9")
def test_managers_that_share_a_store_may_transfer_at_the_same_time(make: Making) -> None:
    """The runtime checks of each count the transfers of the other."""
    media = Media()
    params = make.tiered_params(store=STORE, extras={"model_fingerprint": "weights"})
    first, second = (make.manager(params, media=media, auto_land=False) for _ in range(2))
    make.serve(first, range(9))
    assert first.in_flight()
    second.claim("request", 0)
    make.land_all(first)
    assert make.hits(second, range(9)).store_blocks == 2
