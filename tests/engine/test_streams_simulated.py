"""Simulated streams: the test decides, and mistakes show whatever it decides."""

import asyncio
from random import Random

import pytest
import torch

from pagedkv.engine.streams.simulated import (
    RUBBISH,
    Reads,
    SimulatedStreams,
    UnorderedAccessError,
)
from pagedkv.engine.streams.stream import Copy, DeviceFailedError, Memory


def memory(name: str, value: int) -> Memory:
    return Memory(name, torch.full((4, 8), value, dtype=torch.uint8))


@pytest.fixture
def pages() -> Memory:
    return memory("pages", 1)


@pytest.fixture
def slots() -> Memory:
    return memory("slots", 2)


def test_only_heads_whose_events_are_done_are_ready(pages: Memory, slots: Memory) -> None:
    streams = SimulatedStreams(2)
    first = streams.copy(0, "onload", [Copy(pages, 0, slots, 0)])
    streams.copy(0, "onload", [Copy(pages, 1, slots, 1)])
    streams.copy(1, "peer", [Copy(slots, 2, pages, 0)], after=[first])
    assert list(map(str, streams.ready())) == ["Work(1 copies on onload of device 0)"]
    streams.run()
    assert first.done
    assert [work.name for work in streams.ready()] == ["onload", "peer"]
    streams.run(1)
    assert slots.rows[2].tolist() == [2] * 8


@pytest.mark.parametrize(
    "reads, meanwhile, seen", [("early", [2] * 8, [2] * 8), ("late", [1] * 8, [3] * 8)]
)
def test_bytes_move_as_early_or_as_late_as_allowed(
    pages: Memory, slots: Memory, reads: Reads, meanwhile: list[int], seen: list[int]
) -> None:
    streams = SimulatedStreams(1, reads=reads)
    streams.copy(0, "onload", [Copy(pages, 0, slots, 0)])
    assert pages.rows[0].tolist() == meanwhile
    slots.rows.fill_(3)
    streams.run_all()
    assert pages.rows[0].tolist() == seen


def test_early_is_not_before_the_events(pages: Memory, slots: Memory) -> None:
    streams = SimulatedStreams(1, reads="early")
    slot_free = streams.copy(0, "offload", [Copy(slots, 0, pages, 0)])
    streams.copy(0, "onload", [Copy(pages, 1, slots, 0)], after=[slot_free])
    assert pages.rows[1].tolist() == [1] * 8
    slots.rows.fill_(3)
    streams.run()
    assert pages.rows[1].tolist() == [3] * 8


def test_source_that_changes_while_it_may_be_read_is_reported(pages: Memory, slots: Memory) -> None:
    streams = SimulatedStreams(1)
    streams.copy(0, "onload", [Copy(pages, 0, slots, 2)])
    slots.rows[2, 7] = 9
    with pytest.raises(
        UnorderedAccessError, match=r"rows 2 to 2 of slots .* as its source"
    ) as info:
        streams.run_all()
    assert info.value.touched == "source"


def test_target_that_is_written_while_a_copy_lands_is_reported(
    pages: Memory, slots: Memory
) -> None:
    streams = SimulatedStreams(1)
    streams.copy(0, "onload", [Copy(pages, 0, slots, 0)])
    streams.copy(0, "peer", [Copy(pages, 0, memory("other", 4), 0)])
    with pytest.raises(UnorderedAccessError, match=r"rows 0 to 0 of pages .* as its target"):
        streams.run_all()


def test_target_is_rubbish_until_the_copy_has_landed(pages: Memory, slots: Memory) -> None:
    streams = SimulatedStreams(1)
    streams.copy(0, "onload", [Copy(pages, 0, slots, 0)])
    assert pages.rows[0].tolist() == [RUBBISH] * 8
    streams.run_all()
    assert pages.rows[0].tolist() == [2] * 8


def test_offload_without_the_event_of_its_forward_is_reported(pages: Memory, slots: Memory) -> None:
    streams = SimulatedStreams(1, queued_forwards=True)
    streams.launch(0, lambda: pages.rows.fill_(5))
    streams.copy(0, "offload", [Copy(slots, 0, pages, 0)])
    with pytest.raises(UnorderedAccessError, match="of pages"):
        streams.run_all()


def test_offload_behind_the_event_of_its_forward_gets_its_bytes(
    pages: Memory, slots: Memory
) -> None:
    streams = SimulatedStreams(1, queued_forwards=True)
    streams.launch(0, lambda: pages.rows.fill_(5))
    streams.copy(0, "offload", [Copy(slots, 0, pages, 0)], after=[streams.record(0)])
    streams.run_random(Random(1))
    assert slots.rows[0].tolist() == [5] * 8


def test_wait_on_an_idle_compute_stream_runs_what_it_needs_and_no_more(
    pages: Memory, slots: Memory
) -> None:
    streams = SimulatedStreams(1)
    offloaded = streams.copy(0, "offload", [Copy(slots, 0, pages, 0)])
    needed = streams.copy(0, "onload", [Copy(pages, 1, slots, 0)], after=[offloaded])
    later = streams.copy(0, "onload", [Copy(pages, 2, slots, 1)])
    streams.pause(0, "offload")
    streams.wait(0, "compute", needed)
    assert needed.done and not later.done


def test_paused_stream_is_not_ready_until_it_goes_on(pages: Memory, slots: Memory) -> None:
    streams = SimulatedStreams(1)
    landed = streams.copy(0, "onload", [Copy(pages, 0, slots, 0)])
    streams.pause(0, "onload")
    streams.run_all()
    assert not landed.done
    streams.resume(0, "onload")
    streams.run_all()
    assert landed.done


@pytest.mark.parametrize(
    "reads, torn", [("late", [2, 2, 2, 2, 1, 1, 1, 1]), ("both", [2] * 4 + [RUBBISH] * 4)]
)
async def test_failed_device_leaves_half_a_row_and_no_event(
    pages: Memory, slots: Memory, reads: Reads, torn: list[int]
) -> None:
    streams = SimulatedStreams(1, reads=reads)
    started = streams.copy(0, "onload", [Copy(pages, 0, slots, 0)])
    behind = streams.copy(0, "onload", [Copy(pages, 1, slots, 1)])
    waiting = asyncio.ensure_future(streams.finished(started))
    await asyncio.sleep(0)
    streams.fail_device(0, "fell off the bus")
    with pytest.raises(DeviceFailedError, match="device 0 has failed: fell off the bus"):
        await waiting
    with pytest.raises(DeviceFailedError):
        await streams.finished(behind)
    assert pages.rows[0].tolist() == torn
    assert pages.rows[1].tolist() == [1] * 8
    assert not started.done and streams.ready() == []
    with pytest.raises(DeviceFailedError):
        streams.copy(0, "offload", [])
    await streams.aclose()


def test_same_seed_gives_the_same_run() -> None:
    def run(seed: int) -> list[str]:
        streams, seen, rng = SimulatedStreams(2), list[str](), Random(seed)
        for name in ("onload", "offload", "peer"):
            for device_idx in (0, 1):
                for n in range(3):
                    target = memory(f"{name} {device_idx} {n}", 0)
                    streams.copy(device_idx, name, [Copy(target, 0, memory("source", 1), 0)])
        while ready := streams.ready():
            seen.append(streams.run(rng.randrange(len(ready))).copies[0].target.name)
        return seen

    assert run(1) == run(1) != run(2)


def test_wait_for_a_failed_device_fails_the_device_that_waits(pages: Memory, slots: Memory) -> None:
    streams = SimulatedStreams(2)
    event = streams.copy(0, "offload", [Copy(slots, 0, pages, 0)])
    streams.fail_device(0, "gone")
    for _ in range(2):
        with pytest.raises(DeviceFailedError, match=r"device 1 has failed: it waits .* 0: gone"):
            streams.copy(1, "peer", [], after=[event])


def test_event_that_was_done_stays_done_when_its_device_fails(pages: Memory, slots: Memory) -> None:
    streams = SimulatedStreams(2)
    event = streams.copy(0, "offload", [Copy(slots, 0, pages, 0)])
    streams.run_all()
    streams.fail_device(0)
    assert event.done
    assert streams.copy(1, "peer", [Copy(slots, 1, pages, 1)], after=[event]) is not None
