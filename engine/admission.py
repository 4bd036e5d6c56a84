"""Requests that wait for pages: strictly first come, first served, and holding nothing."""

import asyncio
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager


class AdmissionQueue:
    """The line in front of one replica."""

    def __init__(self) -> None:
        self._places: deque[Place] = deque()

    def __len__(self) -> int:
        return len(self._places)

    @contextmanager
    def place(self) -> "Iterator[Place]":
        """Stand in line until the end of the scope."""
        place = Place(self)
        self._places.append(place)
        try:
            yield place
        finally:
            self._places.remove(place)
            self.pages_came_free()

    def is_first(self, place: "Place") -> bool:
        """Whether nobody stands before ``place``."""
        return self._places[0] is place

    def pages_came_free(self) -> None:
        """Let the first in line try again; the others wait for it."""
        if self._places:
            self._places[0].look_again()


class Place:
    """A request's place in line."""

    def __init__(self, queue: AdmissionQueue) -> None:
        self._queue = queue
        self._changed = asyncio.Event()

    @property
    def is_first(self) -> bool:
        """Whether it is this one's turn."""
        return self._queue.is_first(self)

    def look_again(self) -> None:
        """It may be worth another try."""
        self._changed.set()

    async def changed(self) -> None:
        """Wait until it may be worth another try."""
        await self._changed.wait()
        self._changed.clear()
