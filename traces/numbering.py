"""Names that say nothing: numbered in the order in which they are first met."""

from collections.abc import Hashable


class Numbering:
    """Gives equal names to equal things, and different ones to different things.

    Args:
        kind: What the things are; their names begin with it.
    """

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._names: dict[Hashable, str] = {}

    def __call__(self, thing: Hashable) -> str:
        """The name of ``thing``: ``request-1`` for the first request."""
        return self._names.setdefault(thing, f"{self._kind}-{len(self._names) + 1}")
