"""Small engines and requests for the tests."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest

from pagedkv.conformance.bench import Recording
from pagedkv.engine import PagedKVCacheManager
from pagedkv.engine.streams.stream import Streams
from pagedkv.reference import TextContext, TokenBuffer
from pagedkv.traces.manager_setup import ManagerSetup


class Making:
    """Makes what a test needs, with small defaults: pages of 4 tokens."""

    def __init__(self) -> None:
        self.events = Recording()
        """What the engines of the test have reported."""

    # The fields of a setup are passed through: their types are the setup's.
    def setup(self, **fields: Any) -> ManagerSetup:
        defaults: dict[str, Any] = {"page_size": 4, "total_num_pages": 16, "max_batch_size": 4}
        defaults |= {"tracer": self.events} | fields
        return ManagerSetup(**defaults)

    def engine(self, streams: Streams | None = None, **fields: Any) -> PagedKVCacheManager:
        setup = self.setup(**fields)
        return PagedKVCacheManager(
            setup.params(),
            setup.session(),
            setup.total_num_pages,
            setup.host_pages or 0,
            enable_runtime_checks=True,
            max_batch_size=setup.max_batch_size,
            tracer=setup.tracer,
            streams=streams,
            auto_land=setup.auto_land,
        )

    def request(self, tokens: Iterable[int], name: str, **options: Any) -> TextContext:
        array = np.fromiter(tokens, dtype=np.int64)
        return TextContext(max_length=10_000, tokens=TokenBuffer(array), request_id=name, **options)


@pytest.fixture
def make() -> Making:
    return Making()


def prompt(pages: int, start: int = 0) -> range:
    """Tokens for ``pages`` full pages, and the one more that every request has to compute."""
    return range(start, start + 4 * pages + 1)


async def serve(manager: PagedKVCacheManager, ctx: TextContext) -> None:
    """A whole request: claim, alloc, one forward, step, release."""
    async with manager.admit(ctx):
        manager.runtime_inputs([[ctx]])
        ctx.update(7)
        manager.step([[ctx]])
