"""A manager that nobody closes says so, as a file does."""

import gc

import pytest
from tests.engine.conftest import Making, prompt, serve


async def test_a_manager_that_is_forgotten_warns(make: Making) -> None:
    manager = make.engine(host_pages=4)
    await serve(manager, make.request(prompt(1), "a"))
    while manager.in_flight():
        await manager._moves.drained()
    with pytest.warns(ResourceWarning, match="await aclose"):
        del manager
        gc.collect()


async def test_one_that_was_closed_does_not(make: Making) -> None:
    manager = make.engine(host_pages=4)
    await manager.aclose()
    del manager
    gc.collect()
