"""Engines with a bug each, for simulations that have to find it."""

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar
from unittest import mock

from pagedkv.engine.movers.copier import PageCopier
from pagedkv.engine.planner.pages import PagePool
from pagedkv.engine.streams.order_log import LoggedStreams
from pagedkv.engine.streams.stream import StreamEvent
from pagedkv.engine_simulation import EngineSimulator

Result = TypeVar("Result")


class BrokenSimulator(EngineSimulator):
    """The engine with one method replaced while it runs."""

    name = "broken"

    def __init__(self, owner: type, method: str, broken: Callable[..., object]) -> None:
        self._change = owner, method, broken

    @contextmanager
    def broken(self) -> Iterator[None]:
        with mock.patch.object(*self._change):
            yield

    def run(self, main: Coroutine[Any, Any, Result]) -> Result:
        with self.broken():
            return super().run(main)


_release, _to_device, _copy = PagePool.release, PageCopier.to_device, LoggedStreams.copy


def _release_backwards(pool: PagePool, pages: Iterable[int]) -> None:
    _release(pool, reversed(list(pages)))


def _do_not_pin(pool: PagePool, pages: Iterable[int]) -> None:
    """What is copied may be overwritten meanwhile."""


# Any, below: what is passed on as it comes.
async def _load_the_wrong_rows(
    copier: PageCopier, transfer: Any, marks: Any, slots: Any, rows: Sequence[int], *rest: Any
) -> None:
    """Of several blocks, the first two change places."""
    await _to_device(copier, transfer, marks, slots, [*rows[1::-1], *rows[2:]], *rest)


def _copy_at_once(
    streams: LoggedStreams, device_idx: int, name: Any, copies: Any, after: object = ()
) -> StreamEvent:
    """Forwards in flight may still use the pages."""
    return _copy(streams, device_idx, name, copies)


async def _never_wake(streams: LoggedStreams, event: StreamEvent) -> None:
    """Whoever waits for a copy is not told of its end."""
    await asyncio.get_running_loop().create_future()


BROKEN: dict[str, Callable[[], BrokenSimulator]] = {
    "gives pages back head first": lambda: BrokenSimulator(PagePool, "release", _release_backwards),
    "does not pin": lambda: BrokenSimulator(PagePool, "pin", _do_not_pin),
    "loads the wrong rows": lambda: BrokenSimulator(PageCopier, "to_device", _load_the_wrong_rows),
    "copies at once": lambda: BrokenSimulator(LoggedStreams, "copy", _copy_at_once),
    "never wakes": lambda: BrokenSimulator(LoggedStreams, "finished", _never_wake),
}
"""By what is wrong."""


def head_first() -> BrokenSimulator:
    """For ``--impl``."""
    return BROKEN["gives pages back head first"]()
