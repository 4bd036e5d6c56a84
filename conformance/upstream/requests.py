"""The requests of a story, with tokens: a trace knows lengths and identities only."""

import builtins
import re
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import chain, count
from keyword import iskeyword

from pagedkv.reference.events import (
    AllocPlanned,
    AllocRefused,
    Claimed,
    ContextSnapshot,
    Event,
    Stepped,
)
from pagedkv.reference.identity import PageKey

TAKEN = {
    *dir(builtins),
    *("manager", "alloc", "schedule", "make_manager", "make_request", "make_context"),
    *("np", "pytest", "torch", "token", "blocks", "block_ids", "num_cached_tokens"),
}
"""Names that a test needs for itself."""


@dataclass
class Request:
    """One request, from its claim to its release."""

    request_id: str
    """Its name in the trace."""
    variable: str
    """Its name in the test."""
    replica: int = 0
    """Where it lives."""
    keys: tuple[PageKey, ...] = ()
    """Identities of its pages, as far as the trace says them."""
    most: int = 1
    """The most tokens that it ever has."""
    tokens: list[int] = field(default_factory=list)
    """All the tokens that it ever has."""
    length: int = 0
    """Tokens that it has now; 0: it was not seen yet."""
    processed: int = 0
    """Start of its active window now."""
    position: int = 0
    """End of its active window now."""


class Cast:
    """Who takes part in a story.

    Tokens are made up so that they are equal where identities are: those of the page that is
    mentioned first are ``range(page_size)``, those of the next one follow, and so on.
    """

    def __init__(self, events: Iterable[Event], page_size: int) -> None:
        self._page_size = page_size
        self._numbers: dict[PageKey, int] = {}
        self._fresh = count()
        self._next: dict[Hashable, int] = {}
        self._lives: dict[Hashable, list[Request]] = {}
        for event in events:
            if isinstance(event, Claimed):
                self._begin(event.request_id)
            elif isinstance(event, AllocPlanned | AllocRefused | Stepped):
                self._see(event.request_id, event.context)
        for request in self.requests:
            request.tokens = self._tokens_of(request)

    @property
    def requests(self) -> list[Request]:
        """All of them, by name."""
        return [request for lives in self._lives.values() for request in lives]

    def claimed(self, request_id: Hashable) -> Request:
        """The request that begins now."""
        self._next[request_id] = self._next.get(request_id, -1) + 1
        return self.named(request_id)

    def named(self, request_id: Hashable) -> Request:
        """The request that has this name now."""
        return self._lives[request_id][self._next.setdefault(request_id, 0)]

    def _begin(self, request_id: Hashable) -> Request:
        lives = self._lives.setdefault(request_id, [])
        name = variable_name(request_id)
        taken = {request.variable for request in self.requests}
        names = chain([name], (f"{name}_{life}" for life in count(2)))
        name = next(name for name in names if name not in taken)
        lives.append(Request(str(request_id), name))
        return lives[-1]

    def _see(self, request_id: Hashable, context: ContextSnapshot) -> None:
        lives = self._lives.get(request_id)
        request = lives[-1] if lives else self._begin(request_id)
        request.most = max(request.most, context.length)
        request.keys = max(request.keys, context.keys, key=len)

    def _tokens_of(self, request: Request) -> list[int]:
        size = self._page_size
        numbers: list[int] = []
        for key in request.keys:
            if key not in self._numbers:
                self._numbers[key] = next(self._fresh)
            numbers.append(self._numbers[key])
        while len(numbers) * size < request.most:
            numbers.append(next(self._fresh))
        tokens = [n * size + offset for n in numbers for offset in range(size)]
        return tokens[: request.most]


def variable_name(request_id: Hashable) -> str:
    """What a request is called in a test, and in what the test says of it."""
    name = re.sub(r"\W", "_", str(request_id), flags=re.ASCII)
    is_free = name.isidentifier() and not iskeyword(name) and name not in TAKEN
    return name if is_free else f"request_{name}"


def tokens_text(tokens: Sequence[int]) -> str:
    """Tokens as a Python list, ranges in place of what follows on each other."""
    runs: list[list[int]] = []
    for token in tokens:
        if runs and runs[-1][1] == token:
            runs[-1][1] += 1
        else:
            runs.append([token, token + 1])
    if len(runs) == 1 and runs[0][1] - runs[0][0] > 1:
        return f"list({_range(*runs[0])})"
    parts = [str(a) if b - a == 1 else f"*{_range(a, b)}" for a, b in runs]
    return f"[{', '.join(parts)}]"


def _range(start: int, stop: int) -> str:
    return f"range({stop})" if start == 0 else f"range({start}, {stop})"
