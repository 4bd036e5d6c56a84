"""What the log says of what was enqueued."""

import json

import pytest
import torch

from pagedkv.engine.streams.order_log import LoggedStreams, OrderLog
from pagedkv.engine.streams.simulated import SimulatedStreams
from pagedkv.engine.streams.stream import Access, Copy, Memory

PAGES = Memory("device 0 unit 0", torch.zeros(8, 4, dtype=torch.uint8))
SLOTS = Memory("host unit 0", torch.zeros(8, 4, dtype=torch.uint8))


@pytest.fixture
def lines() -> list[str]:
    return []


@pytest.fixture
def streams(lines: list[str]) -> LoggedStreams:
    return LoggedStreams(SimulatedStreams(1, queued_forwards=True), OrderLog(lines.append))


def entries(lines: list[str]) -> list[dict[str, object]]:
    assert all(line.endswith("\n") for line in lines)
    assert json.loads(lines[0]) == {"format": "pagedkv-stream-order", "version": 1}
    return [json.loads(line) for line in lines[1:]]


def test_copy_is_waits_copy_and_record(streams: LoggedStreams, lines: list[str]) -> None:
    forward = streams.record(0)
    copies = [Copy(SLOTS, 3, PAGES, 5), Copy(SLOTS, 4, PAGES, 1, count=2)]
    streams.copy(0, "offload", copies, after=[forward])
    assert entries(lines) == [
        {"entry": "record", "stream": "compute 0", "event": 1},
        {"entry": "wait", "stream": "offload 0", "event": 1},
        {
            "entry": "copy",
            "stream": "offload 0",
            "reads": {"device 0 unit 0": [[5, 1], [1, 2]]},
            "writes": {"host unit 0": [[3, 3]]},
        },
        {"entry": "record", "stream": "offload 0", "event": 2},
    ]


def test_forwards_and_the_host_say_what_they_use(streams: LoggedStreams, lines: list[str]) -> None:
    streams.launched(0, (Access("pages", row, writes=row > 4) for row in (2, 3, 7, 5)))
    streams.host_accessed([Access("slots", 1, writes=True)])
    assert entries(lines) == [
        {
            "entry": "launch",
            "stream": "compute 0",
            "reads": {"pages": [[2, 2]]},
            "writes": {"pages": [[7, 1], [5, 1]]},
        },
        {"entry": "host", "stream": "host", "reads": {}, "writes": {"slots": [[1, 1]]}},
    ]


@pytest.mark.parametrize("how", ["finished", "done"])
async def test_host_has_waited_once_it_knows(
    streams: LoggedStreams, lines: list[str], how: str
) -> None:
    event = streams.copy(0, "onload", [Copy(PAGES, 0, SLOTS, 0)])
    assert not event.done
    assert isinstance(streams.inner, SimulatedStreams)
    streams.inner.run_all()
    before = len(lines)
    if how == "finished":
        await streams.finished(event)
    else:
        assert [event.done, event.done] == [True, True]
    assert entries(lines)[before - 1 :] == [{"entry": "wait", "stream": "host", "event": 1}]


async def test_refused_work_is_not_logged(streams: LoggedStreams, lines: list[str]) -> None:
    with pytest.raises(ValueError):
        streams.copy(7, "onload", [])
    assert entries(lines) == []
