"""Snapshots: all that a manager knows, as data, and managers that go on from one."""

from dataclasses import replace
from typing import Any

import pytest
from tests.reference.conftest import Making, prompt

from pagedkv.reference import PagedKVCacheManager, SubmittedTransferError
from pagedkv.reference.snapshot import PoolSnapshot, RequestSnapshot, Snapshot


def params(make: Making) -> Any:
    return make.isolated_params(disk_pages=8, replicas=2)


def fresh(make: Making) -> PagedKVCacheManager:
    return make.manager(params(make), pages=12, host_pages=4, auto_land=False)


def busy(make: Making) -> PagedKVCacheManager:
    """Live requests, one of them waiting for a load that a reset has fenced, and transfers."""
    manager = fresh(make)
    make.serve(manager, prompt(2))
    make.land_all(manager)
    make.begin(manager, prompt(2), 1, request_id="fenced")
    manager.reset_prefix_cache()
    make.serve(manager, prompt(2))
    make.land_all(manager)
    make.admit(manager, prompt(2, 100), 1, request_id="running")
    make.begin(manager, prompt(2), 1, request_id="waiting")
    return manager


@pytest.mark.rule("POOL-9")
def test_a_manager_goes_on_from_a_snapshot_as_the_first_would(make: Making) -> None:
    first, second = busy(make), fresh(make)
    second.restore(first.snapshot())
    assert second.snapshot() == first.snapshot()
    for manager in (first, second):
        make.land_all(manager)
        manager.release("running", 1)
        make.serve(manager, prompt(3), 1, request_id="later")
        manager.release("waiting", 1)
    assert second.snapshot() == first.snapshot()


@pytest.mark.rule("POOL-9", "XFER-8")
def test_a_manager_goes_on_with_a_submitted_load(make: Making) -> None:
    first, second = fresh(make), fresh(make)
    make.serve(first, prompt(2))
    make.land_all(first)
    make.begin(first, prompt(2), 1, request_id="waiting")
    (load,) = first.in_flight()
    first.submit(load.id)
    second.restore(first.snapshot())
    assert second.snapshot() == first.snapshot()
    for manager in (first, second):
        with pytest.raises(SubmittedTransferError, match="it lands, or its replica's device fails"):
            manager.fail(load.id, "timeout")
        make.land_all(manager)
        manager.release("waiting", 1)
    assert second.snapshot() == first.snapshot()


@pytest.mark.rule("POOL-9", "TIER-11")
@pytest.mark.parametrize("ending", ["lands", "fails", "is fenced"])
def test_a_manager_goes_on_with_a_prefetch_in_flight(make: Making, ending: str) -> None:
    first, second = fresh(make), fresh(make)
    for start in (0, 100):
        make.serve(first, prompt(3, start))
        make.land_all(first)
    first.poison(0, "so that the prompts are on the disk alone")
    (transfer,) = first.prefetch(make.context(prompt(3)))
    second.restore(first.snapshot())
    assert second.snapshot() == first.snapshot()
    for manager in (first, second):
        if ending == "is fenced":
            manager.reset_prefix_cache()
        if ending == "fails":
            manager.fail(transfer, "io_error")
        else:
            manager.land(transfer)
        make.begin(manager, prompt(3), 1, request_id="later")
        make.land_all(manager)
    assert second.snapshot() == first.snapshot()


def test_taking_a_snapshot_changes_nothing(make: Making) -> None:
    manager = busy(make)
    assert manager.snapshot() == manager.snapshot()


def test_the_snapshot_of_a_closed_manager_is_closed(make: Making) -> None:
    manager, second = busy(make), fresh(make)
    manager.shutdown()
    second.restore(manager.snapshot())
    with pytest.raises(Exception, match="shut down"):
        second.claim("late", 0)


def test_only_a_fresh_manager_is_restored(make: Making) -> None:
    manager = busy(make)
    with pytest.raises(ValueError, match="restore a fresh one"):
        manager.restore(manager.snapshot())


def test_a_snapshot_of_other_tiers_is_refused(make: Making) -> None:
    plain = make.manager()
    with pytest.raises(ValueError, match=r"2 replica\(s\) with host, disk, the manager has 1 with"):
        plain.restore(busy(make).snapshot())


def damaged(snapshot: Snapshot, **changes: Any) -> Snapshot:
    first, *others = snapshot.pools
    return replace(snapshot, pools=(replace(first, **changes), *others))


def test_a_snapshot_with_pages_that_there_are_not_says_which_there_are(make: Making) -> None:
    snapshot = replace(make.manager(pages=8).snapshot(), requests=(RequestSnapshot("a", 0, (8,)),))
    with pytest.raises(ValueError, match=r"there are no pages \[8\], only 0 to 7"):
        make.manager(pages=8).restore(snapshot)


@pytest.mark.rule("POOL-9")
@pytest.mark.parametrize(
    "damage",
    [
        lambda s: damaged(s, idle=s.pools[0].idle[1:]),
        lambda s: damaged(s, idle=(*s.pools[0].idle, 99)),
        lambda s: damaged(s, cached=((99, b"x"), (99, b"y"))),
        lambda s: damaged(s, dirty=(5,)),
        lambda s: replace(s, requests=(*s.requests, RequestSnapshot("new", 0, pages=(0,)))),
        lambda s: replace(s, requests=(RequestSnapshot("new", 7, pages=(0,)),)),
        lambda s: replace(s, in_flight=()),
        lambda s: replace(s, in_flight=(replace(s.in_flight[0], pages=(-1, -2)),)),
        lambda s: replace(s, in_flight=(replace(s.in_flight[0], keys=(b"x",)),)),
        lambda s: replace(s, pools=(PoolSnapshot(()), PoolSnapshot(()))),
    ],
)
def test_a_snapshot_that_contradicts_itself_is_refused(make: Making, damage: Any) -> None:
    with pytest.raises(ValueError, match="the snapshot contradicts itself"):
        fresh(make).restore(damage(busy(make).snapshot()))
