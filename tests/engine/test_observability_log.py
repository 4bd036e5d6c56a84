"""What operators read: each thing once, with its numbers, and a failing tier not too often."""

import asyncio
import errno
import logging
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.engine.conftest import Making, prompt, serve

from pagedkv.engine import PagedKVCacheManager
from pagedkv.engine.disk.faulty_files import FaultyFiles
from pagedkv.engine.observability.operator_log import OperatorLog
from pagedkv.engine.planner.transfer import Transfer

WRITE = Transfer("write", "host", "disk", (b"1", b"2"))
OFFLOAD = Transfer("offload", "device", "host", (b"1",))


@pytest.fixture(autouse=True)
def _everything(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="pagedkv.engine")


def lines(caplog: pytest.LogCaptureFixture, level: int) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == level]


async def test_tiers_are_told_when_opened_and_the_end_when_it_comes(
    make: Making, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tiers: dict[str, Any] = {"host_pages": 8, "disk_pages": 20, "disk_dir": tmp_path}
    tiers["model_fingerprint"] = "m"
    manager = make.engine(**tiers)
    await serve(manager, make.request(prompt(2), "r"))
    await manager.aclose()
    again = make.engine(**tiers)
    await again.aclose()
    told = [line for line in lines(caplog, logging.INFO) if "opened" in line]
    assert told[:2] == [
        "host tier opened: room for 8 blocks, 0 there already",
        "disk tier opened: room for 20 blocks, 0 there already",
    ]
    assert lines(caplog, logging.INFO)[-1] == "closed"
    assert lines(caplog, logging.WARNING) == []
    opened = next(record for record in caplog.records if "disk tier" in record.getMessage())
    assert (opened.__dict__["kv_tier"], opened.__dict__["kv_capacity_blocks"]) == ("disk", 20)


async def test_failure_is_told_with_way_reason_and_numbers(
    make: Making, caplog: pytest.LogCaptureFixture
) -> None:
    manager = make.engine(host_pages=8, auto_land=False)
    await serve(manager, make.request(prompt(2), "r"))
    (offload,) = manager.in_flight()
    manager.fail(offload.id, "no_space")
    assert lines(caplog, logging.WARNING) == ["device to host: no_space, 2 blocks at fault"]
    record = caplog.records[-1]
    assert record.__dict__["kv_transfer"] == offload.id
    assert record.__dict__["kv_reason"] == "no_space"
    await manager.aclose()


async def test_full_disk_is_told(
    make: Making, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files = FaultyFiles()
    setup = make.setup(host_pages=8, disk_pages=20, disk_dir=tmp_path, model_fingerprint="m")
    manager = PagedKVCacheManager(
        setup.params(), setup.session(), 16, 8, max_batch_size=4, files=files
    )
    files.fail("pwritev", errno.ENOSPC)
    await serve(manager, make.request(prompt(2), "r"))
    await manager.aclose()
    assert lines(caplog, logging.WARNING) == ["host to disk: no_space, 1 blocks at fault"]


async def test_poisoned_replica_is_an_error_that_says_what_to_do(
    make: Making, caplog: pytest.LogCaptureFixture
) -> None:
    manager = make.engine()
    manager.poison(0, "fell off the bus")
    (line,) = lines(caplog, logging.ERROR)
    assert "replica 0" in line
    assert "fell off the bus" in line
    assert "restart" in line
    await manager.aclose()


async def test_tier_that_is_too_slow_is_told(
    make: Making, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files = FaultyFiles()
    setup = make.setup(host_pages=4, disk_pages=40, disk_dir=tmp_path, model_fingerprint="m")
    params = setup.params()
    config = params.kv_connector_config
    assert config is not None
    options = {"slow_tier_policy": "timeout", "slow_tier_timeout_s": 0.01}
    for name, value in options.items():
        setattr(config, name, value)
    manager = PagedKVCacheManager(params, setup.session(), 16, 4, max_batch_size=4, files=files)
    for name, pages, start in (("first", 2, 0), ("more", 15, 100)):
        await serve(manager, make.request(prompt(pages, start), name))
        while manager.in_flight():
            await asyncio.sleep(0.001)
    files.delay_s = 1.0
    await serve(manager, make.request(prompt(2), "again"))
    assert lines(caplog, logging.WARNING) == [
        "request 'again' computes what slow tiers did not bring within 0.01 s"
    ]
    await manager.aclose()


async def test_what_is_hardly_ever_meant_is_told(
    make: Making, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tiers: dict[str, Any] = {"host_pages": 8, "disk_pages": 20, "disk_dir": tmp_path}
    first = make.engine(**tiers, model_fingerprint="mine")
    await serve(first, make.request(prompt(2), "r"))
    await first.aclose()
    await make.engine(**tiers).aclose()
    cold, dropped = lines(caplog, logging.WARNING)
    assert "starts cold" in cold and "model_fingerprint" in cold
    assert "had 2 blocks under another model_fingerprint" in dropped


class Clock:
    """Seconds that a test sets."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@given(pauses=st.lists(st.integers(0, 12), min_size=1, max_size=40))
def test_lines_are_a_period_apart_and_account_for_every_failure(pauses: list[int]) -> None:
    written: list[tuple[float, int]] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            written.append((clock.now_s, record.__dict__["kv_left_out"]))

    clock, handler = Clock(), Handler()
    log = OperatorLog(period_s=10, clock=clock)
    logging.getLogger("pagedkv.engine").addHandler(handler)
    try:
        for pause in pauses:
            clock.now_s += pause
            log.transfer_failed(WRITE, "io_error", 1)
        clock.now_s += 10
        log.transfer_failed(WRITE, "io_error", 1)
    finally:
        logging.getLogger("pagedkv.engine").removeHandler(handler)
    times = [at_s for at_s, _ in written]
    assert all(later - earlier >= 10 for earlier, later in pairwise(times))
    assert len(written) + sum(left_out for _, left_out in written) == len(pauses) + 1


def test_kinds_of_failure_do_not_hide_each_other(caplog: pytest.LogCaptureFixture) -> None:
    log = OperatorLog(clock=Clock())
    for _ in range(3):
        log.transfer_failed(WRITE, "io_error", 2)
        log.transfer_failed(WRITE, "no_space", 2)
        log.transfer_failed(OFFLOAD, "io_error", 1)
        log.tier_too_slow("r", waited_s=1)
    assert len(lines(caplog, logging.WARNING)) == 4


def test_next_line_says_how_many_were_left_out(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    log = OperatorLog(period_s=10, clock=clock)
    for _ in range(4):
        log.transfer_failed(WRITE, "io_error", 2)
    clock.now_s = 10
    log.transfer_failed(WRITE, "io_error", 2)
    assert lines(caplog, logging.WARNING)[-1].endswith(
        "2 blocks at fault (3 more like this since the last such line)"
    )
