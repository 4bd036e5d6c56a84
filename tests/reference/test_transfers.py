"""Blocks on their way between tiers: rules XFER-1 to XFER-7."""

import pytest
from tests.reference.conftest import STORE, Making, Recorder, prompt

from pagedkv.reference import (
    AllocPendingError,
    InsufficientBlocksError,
    Media,
    PoolStatistics,
    PrefixCacheHits,
    UnknownTransferError,
)
from pagedkv.reference.events import TransferLanded

A, B, C = prompt(1), prompt(1, start=100), prompt(1, start=200)
"""Three prompts of one page each, without a common prefix."""


@pytest.mark.rule("XFER-1", "POOL-7")
def test_a_page_is_pinned_from_the_issue_of_its_transfer_until_it_settles(make: Making) -> None:
    manager = make.manager(make.isolated_params(), pages=2, host_pages=4, auto_land=False)
    make.serve(manager, A)
    assert manager.statistics() == PoolStatistics(total=2, held=0, pinned=1, cached=0, free=1)
    assert manager.pending_transfers_exist(0)
    with pytest.raises(InsufficientBlocksError):
        make.begin(manager, range(100, 108))
    make.land_all(manager)
    assert manager.statistics() == PoolStatistics(total=2, held=0, pinned=0, cached=1, free=1)
    assert not manager.pending_transfers_exist(0)
    make.begin(manager, range(100, 108))


@pytest.mark.rule("XFER-1", "TIER-4")
def test_a_block_that_is_being_read_is_no_victim(make: Making) -> None:
    manager = make.manager(make.isolated_params(), host_pages=1, auto_land=False)
    make.serve(manager, A)
    make.land_all(manager)
    ctx, _ = make.begin(manager, A, replica=1)
    make.serve(manager, B)
    assert make.hits_below(manager, A).host_blocks == 1
    make.land_all(manager)
    assert manager.finish_alloc(ctx, 1).hit_counts == PrefixCacheHits(host_blocks=1)


@pytest.mark.rule("XFER-1", "TIER-4")
def test_recency_is_that_of_the_issue_whatever_the_order_of_landing(make: Making) -> None:
    manager = make.manager(make.isolated_params(), host_pages=2, auto_land=False)
    for tokens in (A, B):
        make.serve(manager, tokens)
    for transfer in reversed(manager.in_flight()):
        manager.land(transfer.id)
    make.serve(manager, C)
    assert make.hits_below(manager, A).host_blocks == 0, "the victim is settled at the issue too"
    make.land_all(manager)
    assert make.hits_below(manager, B).host_blocks == 1


@pytest.mark.rule("XFER-2")
def test_a_transfer_settles_once(make: Making) -> None:
    manager = make.manager(make.isolated_params(), host_pages=4, auto_land=False)
    for tokens in (A, B):
        make.serve(manager, tokens)
    landed, failed = (transfer.id for transfer in manager.in_flight())
    manager.land(landed)
    manager.fail(failed, "io_error")
    for name in (landed, failed, "onload-99"):
        with pytest.raises(UnknownTransferError, match=f"'{name}' is not in flight"):
            manager.land(name)
        with pytest.raises(UnknownTransferError) as unknown:
            manager.fail(name, "timeout")
        assert unknown.value.transfer_id == name


@pytest.mark.rule("XFER-2")
def test_a_failure_names_blocks_of_its_transfer(make: Making) -> None:
    manager = make.manager(make.isolated_params(), host_pages=4, auto_land=False)
    make.serve(manager, A)
    (transfer,) = manager.in_flight()
    for keys in ([], [bytes(32)]):
        with pytest.raises(ValueError, match=f"blocks of transfer {transfer.id}"):
            manager.fail(transfer.id, "io_error", keys)
    assert manager.in_flight() == [transfer]


@pytest.mark.rule("XFER-3")
def test_landing_shows_the_blocks_and_takes_the_pins_off_and_that_is_all(make: Making) -> None:
    manager = make.manager(make.isolated_params(), host_pages=4, auto_land=False)
    make.serve(manager, prompt(2))
    make.land_all(manager)
    ctx, plan = make.begin(manager, prompt(2), replica=1)
    before = manager.statistics(1), repr(ctx.tokens)
    make.land_all(manager)
    assert (manager.statistics(1), repr(ctx.tokens)) == before
    assert manager.get_req_blocks(ctx.request_id, 1) == []
    assert not manager.pending_transfers_exist(1)
    assert make.hits(manager, prompt(2), replica=1) == PrefixCacheHits(device_blocks=2)
    assert make.begin(manager, prompt(2), replica=1)[1].pages[:2] == plan.pages[:2]


@pytest.mark.rule("XFER-3", "ALLOC-13")
def test_until_it_has_landed_nobody_gets_what_a_load_brings(make: Making) -> None:
    manager = make.manager(make.isolated_params(), host_pages=4, auto_land=False)
    make.serve(manager, A)
    make.land_all(manager)
    ctx, _ = make.begin(manager, A, replica=1)
    assert make.hits(manager, A, replica=1) == PrefixCacheHits(host_blocks=1)
    with pytest.raises(AllocPendingError):
        manager.finish_alloc(ctx, 1)


@pytest.mark.rule("XFER-4", "POOL-5")
def test_a_failed_load_shows_nothing_and_gives_everything_back(make: Making) -> None:
    manager = make.manager(make.isolated_params(disk_pages=4), host_pages=2, auto_land=False)
    for start in (0, 100):
        make.serve(manager, prompt(2, start))
        make.land_all(manager)
    ctx, plan = make.begin(manager, prompt(2), replica=1)  # from disk, by way of host memory
    manager.release(ctx.request_id, 1)
    manager.fail(plan.transfers[0], "timeout")
    assert manager.statistics(1) == PoolStatistics(total=8, held=0, pinned=0, cached=0, free=8)
    assert make.hits(manager, prompt(2), replica=1) == PrefixCacheHits(disk_blocks=2)
    assert manager.get_num_used_host_pages(0) == 0, "the promised slots are free again"


@pytest.mark.rule("XFER-4", "TIER-1")
@pytest.mark.parametrize(("landed", "tier"), [(0, "host"), (1, "disk")])
def test_a_failed_write_shows_nothing_and_gives_its_slots_back(
    make: Making, landed: int, tier: str
) -> None:
    manager = make.manager(make.isolated_params(disk_pages=4), host_pages=4, auto_land=False)
    make.serve(manager, prompt(2))
    for _ in range(landed):
        manager.land(manager.in_flight()[0].id)
    (transfer,) = manager.in_flight()
    assert transfer.target == tier
    manager.fail(transfer.id, "io_error")
    assert manager.get_num_used_host_pages(0) == make.hits_below(manager, prompt(2)).host_blocks
    assert manager.get_num_used_disk_pages(0) == 0
    assert manager.statistics().pinned == 0


@pytest.mark.rule("XFER-5")
def test_a_block_that_was_computed_while_it_was_loaded_stays_as_it_is(make: Making) -> None:
    media = Media()
    params = make.tiered_params(store=STORE, extras={"model_fingerprint": "weights"})
    manager = make.manager(params, media=media, auto_land=False)
    computing = make.admit(manager, A)  # nobody has the block yet
    make.serve(make.manager(params, media=media), A)
    ctx, plan = make.begin(manager, A)
    assert plan.hit_counts == PrefixCacheHits(store_blocks=1)
    make.forward(manager, computing)
    make.land_all(manager)
    manager.finish_alloc(ctx, 0)
    own = manager.get_req_blocks(computing.request_id, 0)[0]
    assert manager.get_req_blocks(ctx.request_id, 0)[0] == plan.pages[0] != own
    assert make.begin(manager, A)[1].pages[0] == own


@pytest.mark.rule("XFER-6", "STEP-5")
def test_transfers_land_within_the_call_in_the_order_of_issue_and_follow_ups_last(
    make: Making, recorder: Recorder
) -> None:
    manager = make.manager(make.tiered_params(disk_pages=8), host_pages=8, tracer=recorder)
    batch = [make.admit(manager, tokens) for tokens in (A, B)]
    for ctx in batch:
        ctx.update(0)
    manager.step([batch])
    assert manager.in_flight() == []
    issued = [(e.transfer, e.source) for e in recorder.issued]
    assert [source for _, source in issued] == ["device", "device", "host", "host"]
    assert [e.transfer for e in recorder.of_kind(TransferLanded)] == [name for name, _ in issued]


@pytest.mark.rule("XFER-7")
def test_a_replica_that_is_read_for_another_has_transfers_pending(make: Making) -> None:
    manager = make.manager(make.params(replicas=3), auto_land=False)
    make.serve(manager, A, 1)
    make.begin(manager, A, 0)
    assert [manager.pending_transfers_exist(n) for n in range(3)] == [True, True, False]
    make.land_all(manager)
    assert not any(manager.pending_transfers_exist(n) for n in range(3))
