"""While a CUDA graph is captured, the manager goes on and the driver is left alone."""

import asyncio
from random import Random

import pytest
from tests.engine.conftest import Making, prompt, serve

from pagedkv.conformance.validation import Divergence, validate
from pagedkv.engine.simulated.landings import land_by_chance
from pagedkv.engine.streams.capture_gate import CapturingError
from pagedkv.engine.streams.cuda import CudaStreams
from pagedkv.engine.streams.order_log import LoggedStreams, OrderLog
from pagedkv.engine.streams.recording_driver import RecordingDriver
from pagedkv.engine.streams.simulated import SimulatedStreams
from pagedkv.specification import reference_specification


async def test_what_is_decided_meanwhile_is_enqueued_afterwards(make: Making) -> None:
    driver = RecordingDriver()
    setup = make.setup(host_pages=8)
    streams = LoggedStreams(CudaStreams(setup.session(), driver), OrderLog(lambda line: None))
    manager = make.engine(streams, host_pages=8)
    await serve(manager, make.request(prompt(2), "before"))
    ctx = make.request(prompt(2, 100), "meanwhile")
    async with manager.admit(ctx):
        manager.runtime_inputs([[ctx]])
        ctx.update(7)
        driver.calls.clear()
        with manager.capturing(), manager.capturing():
            manager.step([[ctx]])
            for _ in range(20):
                await asyncio.sleep(0)
            assert not driver.calls
            assert manager.in_flight()
    while manager.in_flight():
        await asyncio.sleep(0.001)
    assert any(call.call == "copy" for call in driver.calls)
    assert manager.get_num_used_host_pages(0) == 4
    await manager.aclose()
    found = validate(setup.run_setup(), make.events, reference_specification)
    assert not isinstance(found, Divergence), str(found)


async def test_inputs_are_built_before(make: Making) -> None:
    manager = make.engine()
    ctx = make.request(prompt(2), "a")
    async with manager.admit(ctx):
        with manager.capturing(), pytest.raises(CapturingError, match="build the inputs before"):
            manager.runtime_inputs([[ctx]])
        manager.runtime_inputs([[ctx]])
    await manager.aclose()


async def test_streams_without_a_driver_go_on(make: Making) -> None:
    streams = SimulatedStreams(1)
    manager = make.engine(streams, host_pages=8)
    landing = asyncio.create_task(land_by_chance(streams, Random(0)))
    ctx = make.request(prompt(2), "a")
    with manager.capturing():
        async with manager.admit(ctx):
            ctx.update(7)
            manager.step([[ctx]])
        while manager.in_flight():
            await asyncio.sleep(0.001)
    assert manager.get_num_used_host_pages(0) == 2
    await manager.aclose()
    landing.cancel()
