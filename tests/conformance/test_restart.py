"""What a disk holds at a start is judged by the run before, and decides what the next one hits."""

from dataclasses import replace

import pytest
from tests.conformance.test_cutting import outcome, part

from pagedkv.conformance.recorded.restart import wrong_survivors
from pagedkv.conformance.recordings.recording import SMALL
from pagedkv.conformance.recordings.stage import Stage
from pagedkv.conformance.validation import Divergence
from pagedkv.reference.events import DiskOpened, Event, TransferLanded
from pagedkv.reference.media import Media
from pagedkv.specification import build_reference, reference_specification
from pagedkv.traces.events.setup import EventTraceHeader
from pagedkv.traces.manager_setup import ManagerSetup

Run = tuple[EventTraceHeader, list[Event]]


def stage(media: Media, model: str | None = "weights", disk_pages: int = 6) -> Stage:
    options = {"host_pages": 8, "model_fingerprint": model, "media": media}
    return Stage(build_reference, ManagerSetup(**SMALL | options, disk_pages=disk_pages))


def run_of(played: Stage) -> Run:
    return EventTraceHeader(setup=played.setup.run_setup()), played.events


def first_run(media: Media, *, closed: bool) -> Run:
    """Two chains are written to the disk; of a third, the bytes are still on their way."""
    played = stage(media)
    for start in (0, 100):
        played.serve(f"writer {start}", played.prompt(2, start))
    late = played.admit("late", played.prompt(1, 200))
    played.forward(late)
    played.land(target="host")
    if closed:
        played.manager.shutdown()
    return run_of(played)


def second_run(media: Media, model: str | None = "weights", disk_pages: int = 6) -> Run:
    played = stage(media, model, disk_pages)
    played.serve("reader", played.prompt(2))
    return run_of(played)


def opened(run: Run) -> DiskOpened:
    event = run[1][0]
    assert isinstance(event, DiskOpened)
    return event


def complaint(before: Run, after: Run, survivors: DiskOpened | None = None) -> str:
    found = survivors or opened(after)
    return wrong_survivors(*before, after[0], found, reference_specification) or ""


@pytest.mark.parametrize("closed", [False, True])
def test_a_disk_with_what_had_landed_is_right(closed: bool) -> None:
    media = Media()
    before, after = first_run(media, closed=closed), second_run(media)
    assert len(opened(after).keys) == (5 if closed else 4)
    assert complaint(before, after) == ""
    assert outcome(*after) == len(after[1])


def test_after_a_crash_less_may_have_survived_but_nothing_else() -> None:
    media = Media()
    before, after = first_run(media, closed=False), second_run(media)
    keys = opened(after).keys
    assert complaint(before, after, DiskOpened(keys[1:3])) == ""
    on_its_way = next(
        e.issued[0].keys for e in reversed(before[1]) if isinstance(e, TransferLanded) and e.issued
    )
    assert "had not landed" in complaint(before, after, DiskOpened((*keys, *on_its_way)))


def test_after_a_clean_end_everything_is_there_in_its_order() -> None:
    media = Media()
    before, after = first_run(media, closed=True), second_run(media)
    keys = opened(after).keys
    assert "left 5 blocks" in complaint(before, after, DiskOpened(keys[1:]))
    assert "left 5 blocks" in complaint(before, after, DiskOpened(keys[::-1]))


def test_a_smaller_disk_keeps_the_youngest() -> None:
    media = Media()
    before, after = first_run(media, closed=True), second_run(media, disk_pages=2)
    assert len(opened(after).keys) == 2
    assert complaint(before, after) == ""


def test_other_weights_find_a_cold_disk() -> None:
    media = Media()
    before, after = first_run(media, closed=True), second_run(media, model="other weights")
    assert opened(after).keys == () and complaint(before, after) == ""
    assert "must be cold" in complaint(before, after, DiskOpened((b"12345678",)))


def test_a_reset_is_not_undone_by_a_restart() -> None:
    media = Media()
    played = stage(media)
    played.serve("writer", played.prompt(2))
    survivors = DiskOpened(tuple(block.key for block in media.disks["recorded"].blocks.values()))
    played.manager.reset_prefix_cache()
    before, after = run_of(played), second_run(media)
    assert "had not landed" in complaint(before, after, survivors)


def test_a_run_before_may_begin_in_the_middle() -> None:
    media = Media()
    before, after = first_run(media, closed=False), second_run(media)
    assert complaint(part(*before, 10), after) == ""


def test_a_disk_that_hits_what_it_was_not_opened_with_diverges() -> None:
    media = Media()
    first_run(media, closed=True)
    header, events = second_run(media)
    divergence = outcome(header, [DiskOpened(()), *events[1:]])
    assert isinstance(divergence, Divergence)
    assert "hits: expected" in divergence.reason


def test_without_a_name_for_the_weights_a_warm_disk_diverges() -> None:
    media = Media()
    first_run(media, closed=True)
    header, events = second_run(media)
    nameless = header.setup.model_copy(update={"model_fingerprint": None})
    divergence = outcome(header.model_copy(update={"setup": nameless}), events)
    assert isinstance(divergence, Divergence)
    assert divergence.expected == replace(opened((header, events)), keys=())
