"""Generates workloads: the same parameters and seed give the same bytes, everywhere.

Prompts are put together from segments: pieces of text that have a name and a length, but no
letters. Requests share a prefix exactly as far as their segments are equal.
"""

import heapq
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from itertools import accumulate, islice
from random import Random

from pagedkv.traces.arrivals import starts_s
from pagedkv.traces.errors import InvalidFieldError
from pagedkv.traces.prefix_ids import PrefixIds
from pagedkv.traces.scenario import MIX, SCENARIOS, Scenario
from pagedkv.traces.workload import MAX_TOKENS, WorkloadHeader, WorkloadRequest

SPREAD = 0.7
"""Sigma of the log-normal lengths."""

LONGEST = 10
"""No length exceeds its mean more than this many times."""

SECONDS_PER_TOKEN = 0.02
"""Time that an answer takes before the next turn can begin."""

Segment = tuple[str, int]
"""A piece of text: its name and its length in tokens."""


@dataclass(frozen=True)
class GeneratorParameters:
    """What to generate. Lengths left at ``None`` are the scenario's own.

    Raises:
        ValueError: The numbers contradict each other.
    """

    scenario: str = MIX
    """A name in :data:`~pagedkv.traces.scenario.SCENARIOS`, or ``mix``."""
    requests: int = 1000
    """Number of requests, 1 or more."""
    sessions: int | None = None
    """Number of sessions that they belong to; by default from the scenario's turns."""
    seed: int = 0
    """Where all randomness starts from."""
    block_size: int = 128
    """Tokens per hash id, 1 or more."""
    arrival: str = "poisson"
    """A name in :data:`~pagedkv.traces.arrivals.ARRIVALS`: how sessions start."""
    rate: float = 1.0
    """Mean requests per second, above 0."""
    system_tokens: int | None = None
    """Mean length of a system prompt."""
    document_tokens: int | None = None
    """Mean length of a document or passage."""
    input_tokens: int | None = None
    """Mean length of what each turn adds."""
    output_tokens: int | None = None
    """Mean length of an answer."""

    def __post_init__(self) -> None:
        if not 0 < self.rate < math.inf:
            raise ValueError(f"rate is {self.rate}; give requests per second, above 0")
        if self.sessions is not None and self.sessions > self.requests:
            raise ValueError(
                f"sessions is {self.sessions}, more than the {self.requests} requests: "
                "every session has at least one, so ask for fewer sessions"
            )


def generate(
    parameters: GeneratorParameters,
) -> tuple[WorkloadHeader, Iterator[WorkloadRequest]]:
    """Make a workload: its header, and its requests in order of arrival.

    Raises:
        InvalidFieldError: While iterating: a request came out too long for the format.
    """
    chosen = ", ".join(f"{k}={v}" for k, v in asdict(parameters).items() if v is not None)
    header = WorkloadHeader(block_size=parameters.block_size, origin=f"generated: {chosen}")
    return header, _requests(parameters)


@dataclass(frozen=True)
class _Turn:
    """One request before its blocks are named."""

    arrival_s: float
    """Seconds since the start of the workload."""
    segments: tuple[Segment, ...]
    """The whole prompt: what earlier turns said, then what this one adds."""
    output_length: int
    """Tokens of the answer."""
    session: str
    """Name of the session it belongs to."""
    type: str
    """Name of its scenario."""


def _requests(parameters: GeneratorParameters) -> Iterator[WorkloadRequest]:
    prefixes = PrefixIds[tuple[tuple[str, int, int], ...]]()
    for turn in _in_order(_sessions(parameters)):
        input_length = sum(length for _, length in turn.segments)
        for name, length in (("input", input_length), ("output", turn.output_length)):
            if length > MAX_TOKENS:
                raise InvalidFieldError(
                    f"came out above the {MAX_TOKENS} tokens that a request can have",
                    field=f"{name}_length",
                    value=length,
                    remedy="ask for shorter texts, or for more sessions, which have fewer turns",
                )
        yield WorkloadRequest(
            arrival_ms=round(turn.arrival_s * 1000),
            input_length=input_length,
            output_length=turn.output_length,
            hash_ids=prefixes.chain(blocks_of(turn.segments, parameters.block_size)),
            session=turn.session,
            type=turn.type,
        )


def _sessions(parameters: GeneratorParameters) -> Iterator[Iterator[_Turn]]:
    """The sessions in order of their start, each as the iterator of its turns."""
    random = Random(f"{parameters.seed}")
    kinds = _kinds(parameters)
    shares = [kind.share for kind in kinds]
    mean_turns = sum(kind.turns * kind.share for kind in kinds) / sum(shares)
    sessions = parameters.sessions or math.ceil(parameters.requests / mean_turns)
    chosen = random.choices(kinds, shares, k=sessions)
    # Every session has one turn; the others fall to it by its kind and its user's diligence.
    weights = list(accumulate((kind.turns - 0.999) * random.expovariate(1.0) for kind in chosen))
    turns = [1] * sessions
    for number in random.choices(
        range(sessions), cum_weights=weights, k=parameters.requests - sessions
    ):
        turns[number] += 1
    starts = starts_s(parameters.arrival, parameters.rate * sessions / parameters.requests, random)
    for number, (start_s, kind) in enumerate(zip(starts, chosen, strict=False)):
        yield islice(_turns(kind, number, start_s, parameters.seed), turns[number])


def _kinds(parameters: GeneratorParameters) -> list[Scenario]:
    """The scenarios to mix, with the lengths that the parameters ask for."""
    names = list(SCENARIOS) if parameters.scenario == MIX else [parameters.scenario]
    lengths = {
        name: value
        for name in ("system_tokens", "document_tokens", "input_tokens", "output_tokens")
        if (value := getattr(parameters, name)) is not None
    }
    return [replace(SCENARIOS[name], **lengths) for name in names]


def _turns(kind: Scenario, number: int, start_s: float, seed: int) -> Iterator[_Turn]:
    """The turns of one session, without end."""
    random = Random(f"{seed} session {number}")
    system = f"{kind.name} system {_popular(random, kind.system_prompts)}"
    history = [(system, _length(Random(f"{seed} {system}"), kind.system_tokens))]
    for document in _distinct(random, kind.documents, kind.documents_per_session):
        name = f"{kind.name} document {document}"
        history.append((name, _length(Random(f"{seed} {name}"), kind.document_tokens)))
    now_s, turn = start_s, 0
    while True:
        turn += 1
        history.append((f"{number} input {turn}", _length(random, kind.input_tokens)))
        output = _length(random, kind.output_tokens)
        yield _Turn(now_s, tuple(history), output, f"{kind.name}-{number}", kind.name)
        history.append((f"{number} output {turn}", output))
        now_s += output * SECONDS_PER_TOKEN + random.expovariate(1.0) * kind.think_s


def _in_order(sessions: Iterator[Iterator[_Turn]]) -> Iterator[_Turn]:
    """Merge sessions that come in order of their first turn, holding only those under way."""
    under_way: list[tuple[float, int, _Turn, Iterator[_Turn]]] = []

    def pop() -> _Turn:
        _, number, turn, turns = under_way[0]
        following = next(turns, None)
        if following is None:
            heapq.heappop(under_way)
        else:
            heapq.heapreplace(under_way, (following.arrival_s, number, following, turns))
        return turn

    for number, turns in enumerate(sessions):
        first = next(turns)
        while under_way and under_way[0][0] < first.arrival_s:
            yield pop()
        heapq.heappush(under_way, (first.arrival_s, number, first, turns))
    while under_way:
        yield pop()


def blocks_of(
    segments: tuple[Segment, ...], block_size: int
) -> Iterator[tuple[tuple[str, int, int], ...]]:
    """Cut segments into blocks, each as its pieces: segment, first token in it, tokens.

    The last block may be shorter than ``block_size``.
    """
    block: list[tuple[str, int, int]] = []
    room = block_size
    for name, length in segments:
        start = 0
        while start < length:
            taken = min(room, length - start)
            block.append((name, start, taken))
            start += taken
            room -= taken
            if room == 0:
                yield tuple(block)
                block, room = [], block_size
    if block:
        yield tuple(block)


def _length(random: Random, mean: int) -> int:
    """A length around ``mean``, 1 or more."""
    drawn = random.lognormvariate(math.log(max(mean, 1)) - SPREAD**2 / 2, SPREAD)
    return max(1, round(min(drawn, LONGEST * mean)))


def _popular(random: Random, count: int) -> int:
    """A number below ``count``, about as often as Zipf's law says."""
    return int((count + 1) ** random.random()) - 1


def _distinct(random: Random, count: int, wanted: int) -> list[int]:
    """``wanted`` different numbers below ``count``, popular ones more often."""
    found: dict[int, None] = {}
    while len(found) < min(wanted, count):
        found[_popular(random, count)] = None
    return list(found)
