"""The calls of a story as lines of Python; how one is written is each system's own."""

import json
import textwrap
from abc import ABC, abstractmethod
from collections.abc import Sequence

from pagedkv.conformance.peers.supported import check_supported
from pagedkv.conformance.upstream.requests import Cast, Request
from pagedkv.conformance.upstream.story import NoCounterpartError, NoTestError, Story
from pagedkv.reference.events import (
    AllocPlanned,
    AllocRefused,
    AllocReturned,
    Claimed,
    ContextSnapshot,
    DiskOpened,
    Event,
    PrefixCacheReset,
    Released,
    Stepped,
)
from pagedkv.reference.params import HashAlgorithm
from pagedkv.traces.events.setup import EventTraceHeader

COMMON_FIELDS = (
    *("page_size", "total_num_pages", "max_batch_size", "enable_prefix_caching"),
    *("hash_seed", "model_fingerprint", "deduplication", "enable_dp_cross_replica_prefix_copy"),
    *("hash_algorithm", "shards", "layers", "head_dim"),
)
"""What a setup may say: the shape of pages and the kind of hash change no story."""


class Body(ABC):
    """Writes one story down.

    Raises:
        NoTestError: The manager of the story has what the system lacks.
    """

    system: str
    """What people call it."""
    fields: tuple[str, ...] = COMMON_FIELDS
    """The fields of a setup that it can do something with."""
    hash_algorithms: tuple[HashAlgorithm, ...] = ("sha256", "sha256_64", "xxh3_128")
    """Those that it may have been recorded with."""

    def __init__(self, story: Story) -> None:
        self.story = story
        self.cast = Cast((*story.events, story.last), story.header.setup.page_size)
        self.lines: list[str] = []
        self.seq = 0
        check_setup(self, story.header)

    def write(self, message: str) -> list[str]:
        """All the calls, and in the end the assertion, with what it says if it fails."""
        last = len(self.story.events)
        begin = 0
        for seq, event in enumerate(self.story.events):
            self.seq = seq
            begin = len(self.lines)
            self._tell(event)
        begins_at_end = last and self.story.events[-1] in _claims_of(self.story.last)
        end = begin if begins_at_end else len(self.lines)
        self.seq = last
        self._tell_mistake(message)
        return [*self.lines[:end], *([""] if end else []), *self.lines[end:]]

    def _tell(self, event: Event) -> None:
        match event:
            case Claimed(name, replica, dummy=False):
                self.claim(self.cast.claimed(name), replica)
            case AllocPlanned(name, replica, context, _, hits, issued) if not issued:
                request = self._moved(name, context)
                self.alloc(request, replica, hits.device_blocks * self.story.header.setup.page_size)
            case AllocReturned(name, processed):
                self.cast.named(name).processed = processed
            case AllocRefused(name, replica, context):
                self.refused_alloc(self._moved(name, context), replica)
            case Stepped(name, context, issued=()):
                self.step(self._moved(name, context))
            case Released(name):
                self.release(self.cast.named(name))
            case PrefixCacheReset():
                self.reset()
            case DiskOpened(()):
                pass  # there is no disk: the setup was checked
            case _:
                raise self.no_counterpart(f"{self.system} has no call for this")

    def _tell_mistake(self, message: str) -> None:
        last, expected, mistake = (
            self.story.last,
            self.story.divergence.expected,
            self.story.mistake,
        )
        page_size = self.story.header.setup.page_size
        match last, expected:
            case Claimed(name, replica), None:
                self.accepted_claim(self.cast.named(name), replica)
            case AllocPlanned(name, replica, context), None:
                self.accepted_alloc(self._moved(name, context), replica)
            case ((AllocPlanned() | AllocRefused()), AllocRefused(name, replica, context)):
                request = self._moved(name, context)
                if mistake == "free":
                    self.check_free(replica, self.story.free[replica], message)
                    message = ""
                self.refused_alloc(request, replica, message)
            case ((AllocPlanned() | AllocRefused()), AllocPlanned(name, replica, context)):
                request = self._moved(name, context)
                if mistake == "refused":
                    self.check_free(replica, self.story.free[replica], message)
                hits = expected.hits.device_blocks * page_size
                self.alloc(request, replica, hits, message if mistake == "hits" else "")
                if mistake == "pages":
                    self.check_pages(request, replica, len(expected.pages), message)
            case _:
                raise NoTestError(f"what differs cannot be asserted: {last!r}")

    def _moved(self, name: object, context: ContextSnapshot) -> Request:
        """The request, after the lines that make its window what a call found."""
        if context.placeholders or context.drafts_to_verify or context.maybe_accepted_drafts:
            raise self.no_counterpart("placeholders and drafts have no tokens that could be given")
        if context.stores:
            raise self.no_counterpart("further stores are named")
        request = self.cast.named(name)
        self.move(request, context)
        request.length, request.processed = context.length, context.processed
        request.position = context.position
        return request

    def no_counterpart(self, problem: str) -> NoCounterpartError:
        """The error for the event that is being told."""
        events = (*self.story.events, self.story.last)
        return NoCounterpartError(self.seq, events[self.seq], problem)

    # What every system says in its own words. A ``message`` is what the mistake asserts.

    @abstractmethod
    def move(self, request: Request, context: ContextSnapshot) -> None:
        """Forwards have run: let the request be where a call finds it."""

    @abstractmethod
    def claim(self, request: Request, replica: int) -> None:
        """``claim``."""

    @abstractmethod
    def alloc(self, request: Request, replica: int, hits: int, message: str = "") -> None:
        """``alloc``, which finds so many tokens cached."""

    @abstractmethod
    def refused_alloc(self, request: Request, replica: int, message: str = "") -> None:
        """``alloc``, which does not fit."""

    @abstractmethod
    def step(self, request: Request) -> None:
        """``step``."""

    @abstractmethod
    def release(self, request: Request) -> None:
        """``release``."""

    @abstractmethod
    def reset(self) -> None:
        """``reset_prefix_cache``."""

    @abstractmethod
    def check_free(self, replica: int, pages: int, message: str) -> None:
        """So many pages are free."""

    @abstractmethod
    def check_pages(self, request: Request, replica: int, pages: int, message: str) -> None:
        """The request has so many pages."""

    def accepted_claim(self, request: Request, replica: int) -> None:
        """``claim``, which must be refused."""
        raise self.no_counterpart(f"{self.system} has no call for this")

    def accepted_alloc(self, request: Request, replica: int) -> None:
        """``alloc``, which must be refused whatever the room."""
        raise self.no_counterpart(f"{self.system} has no table of claimed requests")


def _claims_of(event: Event) -> tuple[Event, ...]:
    """The claims that ``event`` may come right after."""
    if not isinstance(event, AllocPlanned | AllocRefused):
        return ()
    return (Claimed(event.request_id, event.replica),)


def check_setup(body: Body, header: EventTraceHeader) -> None:
    """See that the system has everything that a manager was set up with.

    Raises:
        NoTestError: It has not.
    """
    try:
        check_supported(
            body.system, header.setup, fields=body.fields, hash_algorithms=body.hash_algorithms
        )
    except ValueError as error:
        raise NoTestError(str(error)) from error


def asserted(condition: str, message: str) -> list[str]:
    """An assertion, on several lines if it is long."""
    if not message:
        return [f"assert {condition}"]
    line = f'assert {condition}, "{message}"'
    if len(line) + 4 <= WIDTH:
        return [line]
    return [f"assert {condition}, (", *(f"    {part}" for part in text_parts(message)), ")"]


WIDTH = 88
"""Most characters of a line, as both systems' formatters have it."""


def quoted(text: str) -> str:
    """A literal in double quotes."""
    return json.dumps(text, ensure_ascii=False)


def text_parts(text: str) -> Sequence[str]:
    """A long text as adjacent literals."""
    parts = textwrap.wrap(text, WIDTH - 12)
    return [f'"{part} "' for part in parts[:-1]] + [f'"{parts[-1]}"']
